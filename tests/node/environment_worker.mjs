// Serves a session with the unmodified worker of the SDK `@anthropic-ai/sdk`; exits non-zero at the first difference.
//
//     node environment_worker.mjs SDK_FILE BASE_URL MANAGE_KEY ENVIRONMENT_ID ENVIRONMENT_KEY DIRECTORY
//
// Plays a script on the model `scripted`.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

const [sdk, baseURL, apiKey, environmentId, environmentKey, workdir] = process.argv.slice(2);
const { default: Anthropic } = await import(pathToFileURL(sdk));

const operator = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const script = [{ tools: [{ name: "bash", input: { command: "echo made > file.txt; cat file.txt" } }] }, { text: "it said {{result}}" }];
const agent = await operator.beta.agents.create({
  name: "a",
  model: "scripted",
  tools: [{ type: "agent_toolset_20260401", default_config: { permission_policy: { type: "always_allow" } } }],
});
const session = await operator.beta.sessions.create({
  agent: agent.id,
  environment_id: environmentId,
  initial_events: [{ type: "user.message", content: [{ type: "text", text: JSON.stringify({ script }) }] }],
});

const host = new Anthropic({ baseURL, authToken: "none", apiKey: null });
const stop = new AbortController();
const serving = host.beta.environments.work
  .worker({ environmentId, environmentKey, workdir, maxIdleMs: 1000 })
  .run(stop.signal);

async function until(what, look) {
  for (let waited = 0; waited < 600; waited += 1) {
    if (await look()) return;
    await sleep(100);
  }
  assert.fail(`${what} did not happen within 60 s`);
}

await until("the answer", async () => {
  for await (const event of operator.beta.sessions.events.list(session.id)) {
    if (event.type === "agent.message" && event.content.some((block) => block.text.includes("it said made"))) return true;
  }
  return false;
});
await until("the end of the item", async () => {
  const items = [];
  for await (const item of operator.beta.environments.work.list(environmentId)) items.push(item);
  return items.length === 1 && items[0].state === "stopped";
});
stop.abort();
await serving.catch((error) => assert.equal(error.name, "AbortError"));
console.log("all as expected");
