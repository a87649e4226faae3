// Drives the tunnels API with the unmodified SDK `@anthropic-ai/sdk`; exits non-zero at the first difference.
//
//     node tunnels_api.mjs SDK_FILE BASE_URL MANAGE_KEY USE_KEY CA_PEM_FILE CA2_PEM_FILE
//     node tunnels_api.mjs SDK_FILE LOSSY_URL MANAGE_KEY
//
// Leaves only archived tunnels behind. Needs room for four tunnels. LOSSY_URL delivers requests, and loses the first
// two answers.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [sdk, baseURL, manageKey, useKey, pemFile, pem2File] = process.argv.slice(2);
const { default: Anthropic } = await import(pathToFileURL(sdk));

const client = (options) => new Anthropic({ baseURL, apiKey: manageKey, maxRetries: 0, ...options }).beta.tunnels;

/** Calls something that has to be rejected with this class of the SDK; returns the error. */
async function refused(kind, status, what, call) {
  let error;
  try {
    await call();
  } catch (thrown) {
    error = thrown;
  }
  assert(error, `${what}: was not refused`);
  assert.equal(error.constructor, kind, `${what}: ${error}`);
  assert.equal(error.status, status, what);
  assert.equal(error.error.type, "error", what);
  assert(error.error.error.message, `${what}: no message`);
  assert.equal(error.error.request_id, error.requestID, `${what}: request id`);
  return error;
}

function recent(time, what) {
  const age = Date.now() - Date.parse(time);
  assert(-5_000 < age && age < 300_000, `${what}: ${time} is not recent`);
}

async function all(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

async function checkTunnels(tunnels) {
  const before = new Set((await all(tunnels.list({ limit: 1000 }))).map((tunnel) => tunnel.id));
  const first = await tunnels.create({});
  assert.equal(first.type, "tunnel");
  assert.equal(first.display_name, null);
  assert.equal(first.archived_at, null);
  assert.match(first.id, /^tnl_[A-Za-z0-9]+$/);
  assert.match(first.domain, /^[a-z0-9]{4,32}(\.[a-z0-9-]+)+$/);
  recent(first.created_at, "created_at");
  const made = [first];
  for (const display_name of ["second", "caf\u00e9 \u2603", "x".repeat(255)]) {
    made.push(await tunnels.create({ display_name, betas: ["output-300k-2026-03-24"] }));
  }
  assert.equal(made[2].display_name, "caf\u00e9 \u2603");
  assert.equal(new Set(made.map((tunnel) => tunnel.domain)).size, 4, "domains differ");
  assert.deepEqual({ ...(await tunnels.retrieve(first.id)) }, { ...first });

  const listed = (await all(tunnels.list({ limit: 2 }))).filter((tunnel) => !before.has(tunnel.id));
  assert.deepEqual(listed.map((tunnel) => tunnel.id), made.map((tunnel) => tunnel.id).reverse(), "newest first");
  const page = await tunnels.list({ limit: 1 });
  assert(page.hasNextPage());
  assert.equal((await page.getNextPage()).data[0].id, made[2].id, "second page");
  assert.equal((await tunnels.list({ limit: 1000 })).next_page, null, "the last page");

  for (const tunnel of made.slice(1)) {
    const archived = await tunnels.archive(tunnel.id);
    recent(archived.archived_at, "archived_at");
    assert.deepEqual({ ...(await tunnels.archive(tunnel.id)) }, { ...archived }, "archiving again changes nothing");
  }
  assert(!(await all(tunnels.list())).some((tunnel) => tunnel.id === made[1].id), "archived ones are not listed");
  const shown = await all(tunnels.list({ include_archived: true, limit: 3 }));
  assert(made.every((tunnel) => shown.some((other) => other.id === tunnel.id)), "they are on demand");
  return first;
}

async function checkTokens(tunnels, tunnel) {
  const { data: token, response } = await tunnels.revealToken(tunnel.id).withResponse();
  assert.equal(response.headers.get("cache-control"), "no-store");
  for (const name of ["request-id", "anthropic-organization-id", "anthropic-workspace-id"]) {
    assert(response.headers.get(name), `no ${name}`);
  }
  assert.equal(token.type, "tunnel_token");
  const form = JSON.parse(Buffer.from(token.tunnel_token, "base64"));
  assert.deepEqual(Object.keys(form).sort(), ["a", "s", "t"]);
  assert.equal(token.id, `ttkn_${createHash("sha256").update(token.tunnel_token).digest("hex")}`);
  assert.equal((await tunnels.revealToken(tunnel.id)).tunnel_token, token.tunnel_token, "the same until rotated");
  const rotated = await tunnels.rotateToken(tunnel.id, { reason: "test" });
  assert.notEqual(rotated.id, token.id);
  assert.equal((await tunnels.revealToken(tunnel.id)).tunnel_token, rotated.tunnel_token);
  assert.notEqual((await tunnels.rotateToken(tunnel.id, {})).id, rotated.id, "a reason is optional");
}

function fingerprint(pem) {
  // No parser of certificates: those of some tests hold arbitrary bytes.
  const der = Buffer.from(pem.replace(/-----[A-Z ]+-----/g, ""), "base64");
  return createHash("sha256").update(der).digest("hex");
}

async function checkCertificates(tunnels, tunnel, pem, pem2) {
  const { certificates } = tunnels;
  assert.deepEqual((await certificates.list(tunnel.id)).data, []);
  const one = await certificates.create(tunnel.id, { ca_certificate_pem: pem });
  assert.equal(one.type, "tunnel_certificate");
  assert.equal(one.tunnel_id, tunnel.id);
  assert.equal(one.fingerprint, fingerprint(pem));
  assert.match(one.id, /^tcrt_[A-Za-z0-9]+$/);
  assert(Date.parse(one.expires_at) > Date.now());
  const two = await certificates.create(tunnel.id, { ca_certificate_pem: pem2 });
  assert.deepEqual({ ...(await certificates.retrieve(one.id, { tunnel_id: tunnel.id })) }, { ...one });
  const ids = async (query) => (await all(certificates.list(tunnel.id, query))).map((certificate) => certificate.id);
  assert.deepEqual(await ids({ limit: 1 }), [two.id, one.id], "auto-pagination, newest first");
  const archived = await certificates.archive(one.id, { tunnel_id: tunnel.id });
  recent(archived.archived_at, "archived_at");
  assert.deepEqual(await ids(), [two.id]);
  assert.deepEqual(await ids({ include_archived: true }), [two.id, one.id]);
  for (const bad of ["", "not a certificate", "x".repeat(8193)]) {
    const call = () => certificates.create(tunnel.id, { ca_certificate_pem: bad });
    await refused(Anthropic.BadRequestError, 400, "a bad certificate", call);
  }
  const unknown = () => certificates.retrieve("tcrt_nosuch", { tunnel_id: tunnel.id });
  await refused(Anthropic.NotFoundError, 404, "an unknown certificate", unknown);
  await tunnels.archive(tunnel.id);
  const left = await all(certificates.list(tunnel.id, { include_archived: true }));
  assert(left.every((certificate) => certificate.archived_at), "certificates are archived with their tunnel");
}

async function checkRefusals(tunnels) {
  const unknownKey = client({ apiKey: "sortie-manage-guess" });
  await refused(Anthropic.AuthenticationError, 401, "an unknown key", () => unknownKey.list());
  await refused(Anthropic.PermissionDeniedError, 403, "a use key", () => client({ apiKey: useKey }).list());
  assert(await client({ apiKey: null, authToken: manageKey }).list(), "a manage key as bearer");
  const { response } = await tunnels.list().withResponse();
  await tunnels.list({ workspace_id: response.headers.get("anthropic-workspace-id") });
  for (const [kind, status, what, call] of [
    [Anthropic.PermissionDeniedError, 403, "another workspace", () => tunnels.list({ workspace_id: "wrkspc_no" })],
    [Anthropic.NotFoundError, 404, "an unknown tunnel", () => tunnels.retrieve("tnl_nosuch")],
    [Anthropic.NotFoundError, 404, "an id of another kind", () => tunnels.archive("nonsense")],
    [Anthropic.BadRequestError, 400, "an empty name", () => tunnels.create({ display_name: "" })],
    [Anthropic.BadRequestError, 400, "a long name", () => tunnels.create({ display_name: "x".repeat(256) })],
    [Anthropic.BadRequestError, 400, "a page of nothing", () => tunnels.list({ limit: 0 })],
    [Anthropic.BadRequestError, 400, "a page too large", () => tunnels.list({ limit: 1001 })],
    [Anthropic.BadRequestError, 400, "a made-up cursor", () => tunnels.list({ page: "page_AAAA" })],
    [Anthropic.BadRequestError, 400, "an unknown feature", () => tunnels.list({ betas: ["mcp-tunnels-2099-01-01"] })],
  ]) {
    await refused(kind, status, what, call);
  }
}

/** What will not succeed by itself is not tried again, although the SDK may. */
async function checkNoRetries(pem) {
  const counts = [];
  const counting = (url, init) => {
    counts.push(new Headers(init.headers).get("x-stainless-retry-count"));
    return fetch(url, init);
  };
  const tunnels = client({ maxRetries: 2, fetch: counting });
  const refusedOnce = async (kind, status, what, call) => {
    counts.length = 0;
    const error = await refused(kind, status, what, call);
    assert.equal(error.headers.get("x-should-retry"), "false", what);
    assert.deepEqual(counts, ["0"], `${what}: attempts`);
    return error;
  };
  const gone = await tunnels.create({});
  await tunnels.archive(gone.id);
  const late = () => tunnels.certificates.create(gone.id, { ca_certificate_pem: pem });
  await refusedOnce(Anthropic.ConflictError, 409, "an archived tunnel", late);
  const made = [];
  const key = { headers: { "idempotency-key": gone.id } };
  made.push(await tunnels.create({ display_name: "once" }, key));
  const { data: again, response } = await tunnels.create({ display_name: "once" }, key).withResponse();
  assert.equal(again.id, made[0].id);
  assert.equal(response.headers.get("idempotent-replayed"), "true");
  try {
    await assert.rejects(async () => {
      for (let count = 0; count < 100; count += 1) made.push(await tunnels.create({}));
    }, Anthropic.BadRequestError);
    const error = await refusedOnce(Anthropic.BadRequestError, 400, "the limit", () => tunnels.create({}));
    assert.match(error.error.error.message, /^Organization already has the maximum of \d+ non-archived Tunnels$/);
  } finally {
    for (const tunnel of made) await tunnels.archive(tunnel.id);
  }
}

/** A creation whose answer is lost makes one tunnel, since the SDK tries again by itself. */
async function checkLostAnswers() {
  const tunnels = client({ maxRetries: 2 });
  const made = await tunnels.create({ display_name: "lost" });
  assert.deepEqual((await all(tunnels.list())).map((tunnel) => tunnel.id), [made.id], "one, which the SDK knows");
  const second = await tunnels.create({ display_name: "lost" });
  assert.notEqual(second.id, made.id, "the next creation makes another tunnel");
  for (const tunnel of [made, second]) await tunnels.archive(tunnel.id);
}

if (useKey === undefined) {
  await checkLostAnswers();
  console.log("tunnels_api: no spare tunnel with @anthropic-ai/sdk");
} else {
  const [pem, pem2] = [pemFile, pem2File].map((file) => readFileSync(file, "ascii"));
  const tunnels = client({});
  const tunnel = await checkTunnels(tunnels);
  await checkTokens(tunnels, tunnel);
  await checkCertificates(tunnels, tunnel, pem, pem2);
  await checkRefusals(tunnels);
  await checkNoRetries(pem);
  console.log("tunnels_api: all as expected with @anthropic-ai/sdk");
}
