// Drives sessions, their events and streams with the unmodified SDK `@anthropic-ai/sdk`; exits non-zero at the first
// difference.
//
//     node sessions_api.mjs SDK_FILE BASE_URL MANAGE_KEY
//
// Plays scripts on the model `scripted`.

import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const [sdk, baseURL, apiKey] = process.argv.slice(2);
const { default: Anthropic } = await import(pathToFileURL(sdk));
const { accumulateManagedAgentsEvent } = await import(pathToFileURL(join(dirname(sdk), "lib/sessions/accumulate.mjs")));

const client = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const { agents, environments, sessions } = client.beta;

const says = (text) => ({ type: "user.message", content: [{ type: "text", text }] });
const plays = (...steps) => says(JSON.stringify({ script: steps }));

async function all(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

/** Reads a stream up to the event of which this is true, and closes it; its events. */
async function until(stream, truth, events = []) {
  for await (const event of stream) {
    events.push(event);
    if (await truth(event)) return events;
  }
  assert.fail(`the stream ended: ${events.map((event) => event.type)}`);
}

const idle = (reason) => (event) => event.type === "session.status_idle" && event.stop_reason.type === reason;

async function checkTurn(create) {
  const session = await sessions.create({ ...create, title: "From Node" });
  assert.deepEqual([session.type, session.status, session.title], ["session", "idle", "From Node"]);
  const stream = await sessions.events.stream(session.id, { event_deltas: ["agent.message"] });
  const sent = await sessions.events.send(session.id, { events: [plays({ text: ["Good ", "morning."] })] });
  assert.equal(sent.data[0].processed_at, null);
  const events = await until(stream, idle("end_turn"));
  const stored = events.filter((event) => !event.type.startsWith("event_"));
  assert.equal(stored[0].id, sent.data[0].id);
  assert.deepEqual(await all(sessions.events.list(session.id)), stored.slice(1), "the list is the stream");
  assert(stored.some((event) => event.type === "session.usage"), "what it has used is on the stream");
  let snapshot;
  const seen = [];
  for (const event of events) {
    snapshot = accumulateManagedAgentsEvent(snapshot, event);
    if (event.type === "event_delta") seen.push(snapshot.content[0].text);
  }
  assert.equal(seen.at(-1), "Good morning.");
  assert.equal(snapshot.content[0].text, "Good morning.");
  const threads = await all(sessions.threads.list(session.id));
  assert.equal(threads.length, 1);
  const ofThread = await all(sessions.threads.events.list(threads[0].id, { session_id: session.id }));
  assert.deepEqual(ofThread, stored.slice(1));
  const some = await all(sessions.events.list(session.id, { types: ["agent.message"], order: "desc", limit: 1 }));
  assert.deepEqual(some.map((event) => event.type), ["agent.message"]);
}

async function checkTools(create) {
  const session = await sessions.create(create);
  const stream = await sessions.events.stream(session.id);
  const tools = [{ name: "lookup", input: { key: "a" } }];
  const script = plays({ tools }, { text: "It is {{result}}." });
  await sessions.events.send(session.id, { events: [script] });
  const events = await until(stream, async (event) => {
    if (idle("requires_action")(event)) {
      const [custom_tool_use_id] = event.stop_reason.event_ids;
      const content = [{ type: "text", text: "seven" }];
      await sessions.events.send(session.id, {
        events: [{ type: "user.custom_tool_result", custom_tool_use_id, content }],
      });
    }
    return idle("end_turn")(event);
  });
  const said = events.find((event) => event.type === "agent.message");
  assert.equal(said.content[0].text, "It is seven.");
}

async function checkInterrupt(create) {
  const session = await sessions.create({ ...create, initial_events: [plays({ text: "Well", hang: true })] });
  assert.equal(session.status, "running");
  await assert.rejects(sessions.delete(session.id), Anthropic.BadRequestError);
  const stream = await sessions.events.stream(session.id);
  await sessions.events.send(session.id, { events: [{ type: "user.interrupt" }] });
  await until(stream, idle("end_turn"));
  const watch = await sessions.events.stream(session.id);
  assert.equal((await sessions.archive(session.id)).status, "terminated");
  assert.deepEqual((await all(watch)).at(-1).type, "session.status_terminated");
  assert.deepEqual(await sessions.delete(session.id), { id: session.id, type: "session_deleted" });
  await assert.rejects(sessions.retrieve(session.id), Anthropic.NotFoundError);
}

async function checkLists(create) {
  const made = [];
  for (let count = 0; count < 3; count += 1) made.unshift((await sessions.create(create)).id);
  const listed = (await all(sessions.list({ agent_id: create.agent, limit: 2 }))).map((session) => session.id);
  assert.deepEqual(listed, made);
  const page = await sessions.list({ agent_id: create.agent, limit: 2 });
  const wrong = sessions.list({ agent_id: create.agent, order: "asc", page: page.next_page });
  await assert.rejects(wrong, Anthropic.BadRequestError);
}

const lookup = {
  type: "custom",
  name: "lookup",
  description: "Looks something up.",
  input_schema: { type: "object", properties: { key: { type: "string" } } },
};
const player = await agents.create({ name: "player", model: "scripted", tools: [lookup] });
const other = await agents.create({ name: "other", model: "scripted" });
const environment = await environments.create({ name: "here", config: { type: "self_hosted" } });
const create = { agent: player.id, environment_id: environment.id };
await checkTurn(create);
await checkTools(create);
await checkInterrupt(create);
await checkLists({ ...create, agent: other.id });
console.log("all as expected");
