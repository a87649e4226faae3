// Drives agents, environments, vaults and credentials with the unmodified SDK `@anthropic-ai/sdk`; exits non-zero at the
// first difference.
//
//     node agents_api.mjs SDK_FILE BASE_URL MANAGE_KEY
//
// Needs a workspace that has none of them.

import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const [sdk, baseURL, apiKey] = process.argv.slice(2);
const { default: Anthropic } = await import(pathToFileURL(sdk));
const { beta } = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const CANARY = "canary-secret";
const [ALLOW, ASK] = [{ type: "always_allow" }, { type: "always_ask" }];

/** Calls something that has to be rejected with this class of the SDK and these words; returns the error. */
async function refused(kind, status, said, call) {
  let error;
  try {
    await call();
  } catch (thrown) {
    error = thrown;
  }
  assert(error, `${said}: was not refused`);
  assert(error instanceof kind, `${said}: ${error}`);
  assert.equal(error.status, status, said);
  const { message } = error.error.error;
  assert(message.includes(said), `expected ${said} in ${message}`);
  assert(!JSON.stringify(error.error).includes(CANARY), `${said}: a secret in an error`);
  return error;
}

async function ids(pages) {
  const found = [];
  for await (const item of pages) found.push(item.id);
  return found;
}

const { BadRequestError, ConflictError, NotFoundError } = Anthropic;

async function checkAgents(agents) {
  const first = await agents.create({ name: "first", model: "scripted" });
  assert.deepEqual([first.type, first.version, first.multiagent, first.archived_at], ["agent", 1, null, null]);
  assert.deepEqual(first.model, { id: "scripted", effort: { type: "high" }, speed: "standard" });
  assert.deepEqual(await agents.retrieve(first.id), first);
  const full = await agents.create({
    name: "full",
    model: { id: "scripted", effort: "low" },
    system: "Be brief.",
    tools: [
      { type: "agent_toolset_20260401", configs: [{ name: "bash", permission_policy: ASK }] },
      { type: "mcp_toolset", mcp_server_name: "files" },
      { type: "custom", name: "ask", description: "Asks.", input_schema: { type: "object" } },
    ],
    mcp_servers: [{ type: "url", name: "files", url: "https://files.x.sortie.localhost/mcp" }],
    metadata: { team: "a" },
  });
  const [toolset, mcp] = full.tools;
  assert.deepEqual(toolset.default_config, { enabled: true, permission_policy: ALLOW });
  assert.deepEqual(toolset.configs, [{ name: "bash", type: "bash", enabled: true, permission_policy: ASK }]);
  assert.deepEqual(mcp.default_config, { enabled: true, permission_policy: ASK });

  assert.deepEqual(await agents.update(full.id, { version: 1 }), full);
  const second = await agents.update(full.id, { version: 1, system: null, metadata: { team: null, b: "2" } });
  assert.deepEqual([second.version, second.system, second.metadata], [2, null, { b: "2" }]);
  assert.deepEqual(second.tools, full.tools);
  await refused(ConflictError, 409, "version 2", () => agents.update(full.id, { version: 1, name: "late" }));
  assert.deepEqual(await agents.retrieve(full.id, { version: 1 }), full);
  const versions = [];
  for await (const version of agents.versions.list(full.id, { limit: 1 })) versions.push(version.version);
  assert.deepEqual(versions, [2, 1]);

  assert.deepEqual(await ids(agents.list({ limit: 1 })), [full.id, first.id]);
  assert((await agents.archive(first.id)).archived_at);
  assert.deepEqual(await ids(agents.list()), [full.id]);
  const hour = 3_600_000;
  const at = (offset) => new Date(Date.now() + offset).toISOString();
  const between = { "created_at[gte]": at(-hour), "created_at[lte]": at(hour), include_archived: true };
  assert.deepEqual(await ids(agents.list(between)), [full.id, first.id]);
  assert.deepEqual(await ids(agents.list({ "created_at[gte]": at(hour) })), []);
  await refused(BadRequestError, 400, "archived", () => agents.update(first.id, { name: "late" }));
  await refused(BadRequestError, 400, "multiagent", () =>
    agents.create({ name: "bad", model: "m", multiagent: { type: "coordinator", agents: [] } }),
  );
  await refused(NotFoundError, 404, "no agent", () => agents.retrieve("agent_none"));
}

async function checkEnvironments(environments) {
  const made = await environments.create({ name: "lab", config: { type: "self_hosted" }, metadata: { a: "1" } });
  assert.deepEqual([made.type, made.config, made.description], ["environment", { type: "self_hosted" }, null]);
  assert.deepEqual(await environments.retrieve(made.id), made);
  await refused(ConflictError, 409, made.id, () => environments.create({ name: "lab" }));
  const after = await environments.update(made.id, { description: "d", metadata: { a: "" } });
  assert.deepEqual([after.description, after.metadata], ["d", {}]);
  const changed = await refused(BadRequestError, 400, "config.type", () =>
    environments.update(made.id, { config: { type: "cloud" } }),
  );
  assert.equal(changed.error.error.details.error_code, "invalid_config_type_change");
  assert((await environments.archive(made.id)).archived_at);
  assert.deepEqual(await ids(environments.list()), []);
  assert.deepEqual(await ids(environments.list({ include_archived: true })), [made.id]);
  assert.deepEqual(await environments.delete(made.id), { id: made.id, type: "environment_deleted" });
  await refused(NotFoundError, 404, "no environment", () => environments.retrieve(made.id));
}

async function checkVaults(vaults) {
  const vault = await vaults.create({ display_name: "secrets" });
  assert.deepEqual([vault.type, vault.display_name, vault.metadata], ["vault", "secrets", {}]);
  const { credentials } = vaults;
  const within = { vault_id: vault.id };
  const url = "https://mcp.example.com/mcp";
  const bearer = { type: "static_bearer", mcp_server_url: url, token: CANARY };
  const made = await credentials.create(vault.id, { auth: bearer });
  assert.deepEqual(made.auth, { type: "static_bearer", mcp_server_url: url });
  assert.deepEqual(await credentials.retrieve(made.id, within), made);
  await refused(ConflictError, 409, made.id, () => credentials.create(vault.id, { auth: bearer }));
  const refresh = {
    token_endpoint: "https://auth.example.com/token",
    client_id: "client",
    refresh_token: CANARY,
    token_endpoint_auth: { type: "client_secret_post", client_secret: CANARY },
  };
  const oauth = await credentials.create(vault.id, {
    auth: { type: "mcp_oauth", mcp_server_url: "https://other.example.com", access_token: CANARY, refresh },
  });
  assert(!JSON.stringify([made, oauth]).includes(CANARY), "a secret is shown");
  assert.deepEqual(oauth.auth.refresh.token_endpoint_auth, { type: "client_secret_post" });
  const auth = { type: "mcp_oauth", access_token: `${CANARY}2` };
  const updated = await credentials.update(oauth.id, { ...within, display_name: "new", auth });
  assert.equal(updated.display_name, "new");
  assert.deepEqual(await ids(credentials.list(vault.id, { limit: 1 })), [oauth.id, made.id]);
  assert((await credentials.archive(made.id, within)).archived_at);
  assert.equal((await credentials.delete(made.id, within)).type, "vault_credential_deleted");
  assert((await vaults.archive(vault.id)).archived_at);
  assert.deepEqual(await ids(credentials.list(vault.id)), []);
  assert.deepEqual(await ids(vaults.list({ include_archived: true })), [vault.id]);
  assert.deepEqual(await vaults.delete(vault.id), { id: vault.id, type: "vault_deleted" });
  await refused(NotFoundError, 404, "no vault", () => vaults.retrieve(vault.id));
}

await checkAgents(beta.agents);
await checkEnvironments(beta.environments);
await checkVaults(beta.vaults);
console.log("agents_api: all as expected");
