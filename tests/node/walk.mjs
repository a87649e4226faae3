// Walks through an MCP server with an official TypeScript client and prints what it saw, one JSON array per line.
//
//     node walk.mjs URL KIND --modules DIR [--sdk 1|2] [--mode auto|legacy] [--key KEY] [--restarted FILE] [--bridge]
//
// --sdk 1 is @modelcontextprotocol/sdk, 2 is @modelcontextprotocol/client; both come from DIR, a `node_modules`. With
// --bridge the client speaks stdio to `mcp-remote`, and that speaks to the URL. KIND says what the server offers:
// `everything`, `fastmcp`, `listen` (stateless era only), `polling` or `files`; `restart` waits in the middle until
// FILE says that the server was started anew; `controlled` is refused some of it on the way. What differs from run to
// run (ids) is replaced, so that the same walk over another way to the same server prints the same lines. The clients
// are used as they come; a CA is named by NODE_EXTRA_CA_CERTS.

import './localhost.mjs';

import { randomUUID } from 'node:crypto';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const PATIENCE_MS = 20_000;
const SESSION = 'mcp-session-id';
const ID = /[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}/g;

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    modules: { type: 'string' },
    sdk: { type: 'string', default: '2' },
    mode: { type: 'string', default: 'auto' },
    key: { type: 'string' },
    restarted: { type: 'string' },
    bridge: { type: 'boolean', default: false },
  },
});
const [url, kind] = positionals;
const modern = options.sdk === '2' && options.mode === 'auto';

/** A package of the folder that was given, by its path there. */
const from = (path) => import(pathToFileURL(join(options.modules, path)));

/** Both generations of the SDK, under the same few names. */
async function sdk() {
  if (options.sdk === '2') {
    const main = await from('@modelcontextprotocol/client/dist/index.mjs');
    const stdio = await from('@modelcontextprotocol/client/dist/stdio.mjs');
    return {
      Client: main.Client,
      Http: main.StreamableHTTPClientTransport,
      Stdio: stdio.StdioClientTransport,
      more: { versionNegotiation: { mode: options.mode } },
      request: (method) => method,
      call: (client, params, more) => client.callTool(params, more),
    };
  }
  const dist = '@modelcontextprotocol/sdk/dist/esm';
  const main = await from(`${dist}/client/index.js`);
  const http = await from(`${dist}/client/streamableHttp.js`);
  const stdio = await from(`${dist}/client/stdio.js`);
  const types = await from(`${dist}/types.js`);
  const schemas = {
    'sampling/createMessage': types.CreateMessageRequestSchema,
    'elicitation/create': types.ElicitRequestSchema,
    'notifications/message': types.LoggingMessageNotificationSchema,
    'notifications/tools/list_changed': types.ToolListChangedNotificationSchema,
    'notifications/resources/updated': types.ResourceUpdatedNotificationSchema,
  };
  return {
    Client: main.Client,
    Http: http.StreamableHTTPClientTransport,
    Stdio: stdio.StdioClientTransport,
    more: {},
    request: (method) => schemas[method],
    call: (client, params, more) => client.callTool(params, undefined, more),
  };
}

/** JSON with the members of objects in order. */
function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

function show(step, value) {
  // At once, so that nothing of it is lost when the process ends.
  writeFileSync(1, `["${step}", ${JSON.stringify(sorted(value ?? null))}]\n`.replace(ID, '<id>'));
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits for a condition, sync or async. */
async function until(what, look) {
  const end = Date.now() + PATIENCE_MS;
  while (Date.now() < end) {
    if (await look()) return;
    await pause(20);
  }
  throw new Error(`walk.mjs: ${what} did not come within ${PATIENCE_MS} ms`);
}

class Walk {
  exchanges = new Set();
  sessionId = null;
  logs = [];
  notes = [];
  asked = [];
  resumed = false;
  said = '';

  get headers() {
    return options.key ? { 'x-api-key': options.key } : {};
  }

  /** The platform's own fetch, watched. */
  fetch = async (target, init) => {
    this.resumed ||= new Headers(init?.headers).has('last-event-id');
    const answer = await fetch(target, init);
    this.exchanges.add(`${init?.method ?? 'GET'} ${answer.status}`);
    this.sessionId = answer.headers.get(SESSION) ?? this.sessionId;
    const hop = answer.headers.get('sortie-hop');
    // While the server is away its clients look for it, and are told so; and one walk is to be refused.
    if (hop !== null && hop !== 'upstream' && kind !== 'restart' && kind !== 'controlled') {
      console.error(`walk.mjs: the call ended at ${hop}: ${await answer.text()}`);
      process.exit(1);
    }
    return answer;
  };

  async open() {
    this.sdk = await sdk();
    const capabilities = { sampling: {}, elicitation: { form: {} } };
    const client = new this.sdk.Client({ name: 'walk', version: '1' }, { capabilities, ...this.sdk.more });
    const on = (method, handler) => client.setRequestHandler(this.sdk.request(method), handler);
    on('sampling/createMessage', ({ params }) => {
      this.asked.push(params.messages);
      return { role: 'assistant', content: { type: 'text', text: 'a thought' }, model: 'test-model' };
    });
    on('elicitation/create', ({ params }) => {
      this.asked.push(params.message);
      return { action: 'accept', content: { value: 'Ada', name: 'Ada' } };
    });
    const hear = (method, handler) => client.setNotificationHandler(this.sdk.request(method), handler);
    hear('notifications/message', ({ params }) => void this.logs.push([params.level, params.data]));
    hear('notifications/tools/list_changed', ({ method }) => void this.notes.push(method));
    hear('notifications/resources/updated', ({ method, params }) => void this.notes.push(`${method} ${params.uri}`));
    this.transport = options.bridge ? this.bridge() : new this.sdk.Http(new URL(url), this.http());
    await client.connect(this.transport);
    this.client = client;
    return client;
  }

  http() {
    return { fetch: this.fetch, requestInit: { headers: this.headers } };
  }

  /** mcp-remote, as a desktop application starts it; the key is in a file that only its user may read. */
  bridge() {
    const args = ['--import', fileURLToPath(new URL('localhost.mjs', import.meta.url))];
    args.push(join(options.modules, 'mcp-remote/dist/proxy.js'), url, '--transport', 'http-only');
    if (url.startsWith('http://')) args.push('--allow-http');
    if (options.key) {
      const file = join(process.env.HOME, `headers-${process.pid}`);
      writeFileSync(file, `x-api-key: ${options.key}\n`, { mode: 0o600 });
      args.push('--header-file', file);
    }
    const transport = new this.sdk.Stdio({ command: process.execPath, args, env: process.env, stderr: 'pipe' });
    transport.stderr?.on('data', (text) => {
      this.said += text;
      process.stderr.write(text);
    });
    return transport;
  }

  async call(name, args = {}, more = {}) {
    const params = { name, arguments: args };
    // Who wants log messages in the stateless era says so with each request.
    if (modern) params._meta = { 'io.modelcontextprotocol/logLevel': 'debug' };
    try {
      return await this.sdk.call(this.client, params, more);
    } catch (error) {
      // What the server refuses has to look the same, too.
      return [error.name, error.code ?? null, error.message];
    }
  }

  async text(name, args) {
    const result = await this.call(name, args);
    if (!result.content) throw new Error(`walk.mjs: ${name}: ${JSON.stringify(result)}`);
    return result.content[0].text;
  }

  /** A call that reports: what came, and whether it came while the call ran rather than at its end. */
  async progress(name, args, ms) {
    const came = [];
    const times = [];
    const onprogress = (progress) => {
      came.push(progress);
      times.push(Date.now());
    };
    const result = await this.call(name, args, { onprogress });
    // Over stdio this SDK forgets what comes in one piece with the call's result: the last one comes or does not.
    const sure = options.bridge ? came.slice(0, 4) : came;
    show('progress', [sure, result, { 'one by one': times.at(-1) - times[0] > ms / 6 }]);
  }

  /** Many notifications at once: all come, in their order. */
  async burst() {
    const came = [];
    await this.call('burst', { count: 500 }, { onprogress: ({ progress }) => void came.push(progress) });
    // As for `progress`.
    if (!options.bridge) await until('all notifications', () => came.length >= 500);
    show('burst', [options.bridge || came.length, came.every((value, at) => value === at + 1)]);
  }

  /** More than fits into any buffer on the way, in both directions. */
  async bulk() {
    for (const [size, times] of [[1 << 20, 0], [1 << 17, 3]]) {
      const text = Array.from({ length: size }, (_, at) => String.fromCharCode(97 + (at % 23))).join('');
      const result = await this.call('repeat', { text, times });
      const whole = result.content?.[0].text === text.repeat(times);
      show('bulk', [size, times, whole || JSON.stringify(result).slice(0, 1000)]);
    }
  }

  /** A slow call that is given up: the server has to learn of it. */
  async cancellation() {
    const mark = randomUUID();
    const state = async (field) => JSON.parse(await this.text('seen', { mark }))[field];
    const abort = new AbortController();
    const slow = this.call('slow', { mark }, { signal: abort.signal });
    await until('the start of the slow call', () => state('started'));
    show('cancelled before', await state('cancelled'));
    abort.abort('enough');
    show('told the caller', (await slow)[2]?.includes('enough'));
    await until('the cancellation at the server', () => state('cancelled'));
    show('cancelled after', true);
  }

  async everything() {
    const calls = [
      ['echo', { message: 'grüße, 你好' }],
      ['get-sum', { a: 2, b: 3 }],
      ['get-tiny-image', {}],
      ['get-structured-content', { location: 'Chicago' }],
      ['get-annotated-message', { messageType: 'error', includeImage: false }],
      ['get-resource-links', { count: 2 }],
      ['echo', { wrong: 1 }],
      ['no-such-tool', {}],
    ];
    for (const [name, args] of calls) show(name, await this.call(name, args));
    await this.progress('trigger-long-running-operation', { duration: 0.8, steps: 5 }, 600);
    show('sampling', await this.call('trigger-sampling-request', { prompt: 'why?', maxTokens: 9 }));
    show('elicitation', await this.call('trigger-elicitation-request'));
    show('asked', this.asked);
    const listed = await this.client.listResources();
    show('resources', listed);
    const [{ uri }] = listed.resources;
    show('resource', await this.client.readResource({ uri }));
    show('templates', await this.client.listResourceTemplates());
    show('prompts', await this.client.listPrompts());
    show('prompt', await this.client.getPrompt({ name: 'args-prompt', arguments: { city: 'Bern' } }));
    const argument = { name: 'department', value: 'E' };
    show('completion', await this.client.complete({ ref: { type: 'ref/prompt', name: 'completable-prompt' }, argument }));
    // These come outside of any call, on the session's own stream; which level comes first is random.
    if (!options.bridge) await until('the stream of the session', () => this.exchanges.has('GET 200'));
    show('subscribed', await this.client.subscribeResource({ uri }));
    show('updates', await this.call('toggle-subscriber-updates'));
    await until('an update', () => this.notes.includes(`notifications/resources/updated ${uri}`));
    show('no updates', await this.call('toggle-subscriber-updates'));
    show('unsubscribed', await this.client.unsubscribeResource({ uri }));
    this.logs.length = 0;
    await this.client.setLoggingLevel('debug');
    show('logging', await this.call('toggle-simulated-logging'));
    await until('a log message', () => this.logs.length);
    show('stopped', await this.call('toggle-simulated-logging'));
  }

  async fastmcp() {
    show('add', await this.call('add', { a: 2, b: 3 }));
    for (const [name, args] of [['add', { a: 'x' }], ['fail', {}], ['no-such-tool', {}]]) {
      show(`refused ${name}`, await this.call(name, args));
    }
    await this.progress('steps', { count: 5 }, 600);
    await this.burst();
    await this.bulk();
    if (modern) show('decide', await this.call('decide'));
    show('say', await this.call('say', { text: 'hello' }));
    await until('the log messages', () => this.logs.length >= 2);
    show('logs', this.logs);
    if (!modern) {
      show('ask', await this.call('ask'));
      show('think', await this.call('think', { prompt: 'why?' }));
    }
    show('asked', this.asked);
    show('resources', await this.client.listResources());
    show('templates', await this.client.listResourceTemplates());
    for (const uri of ['note://one', 'data://bytes']) show(uri, await this.client.readResource({ uri }));
    show('prompt', await this.client.getPrompt({ name: 'review', arguments: { text: 'this' } }));
    if (this.sessionId) {
      await until('the stream of the session', () => this.exchanges.has('GET 200'));
      show('announce', await this.call('announce'));
      await until('the announcement', () => this.notes.includes('notifications/tools/list_changed'));
    }
    // In the stateless era a bridge has to close its request, and this one posts a notification instead.
    if (!(options.bridge && modern)) await this.cancellation();
    const numbers = Array.from({ length: 20 }, (_, number) => number);
    show('at once', await Promise.all(numbers.map((a) => this.text('add', { a, b: 1000 }))));
  }

  /** The stateless era's stream of changes. */
  async listen() {
    const changes = await this.client.listen({ toolsListChanged: true });
    show('honoured', changes.honoredFilter);
    for (let count = 1; count <= 3; count += 1) {
      show('announce', await this.call('announce'));
      await until('the change', () => this.notes.length >= count);
    }
    // Others who walk at the same time announce, too.
    show('events', this.notes.slice(0, 3));
    await changes.close();
    show('closed', await changes.closed);
    await until('the end of the stream at the server', async () => (await this.text('listeners')) === '0');
  }

  /** A call whose stream ends in its midst: the client comes back, and the rest is there for it. */
  async polling() {
    const came = [];
    show('result', await this.call('poll', {}, { onprogress: ({ progress }) => void came.push(progress) }));
    show('came', came);
    show('returned', this.resumed);
  }

  async files() {
    const calls = [
      ['list', { depth: 2 }],
      ['read', { path: 'docs/a.md' }],
      ['search', { query: 'HELLO' }],
      ['read', { path: '../secret' }],
      ['read', {}],
      ['no-such-tool', {}],
    ];
    for (const [name, args] of calls) show(name, await this.call(name, args));
  }

  /** What is allowed, what is not, and what somebody has to say yes to. */
  async controlled() {
    const calls = [
      ['allowed', 'echo', { text: 'hello' }],
      ['denied', 'fail', {}],
      ['unknown', 'no-such-tool', {}],
      ['still allowed', 'echo', { text: 'again' }],
      ['headers', 'headers', {}],
      ['asked', 'slow', { ms: 1 }],
    ];
    for (const [step, name, args] of calls) show(step, await this.call(name, args));
  }

  /** The session is gone with the server: only a 404 tells a client so. */
  async restart() {
    show('before', await this.call('add', { a: 2, b: 3 }));
    await until('the restart', () => existsSync(options.restarted));
    show('after', await this.call('add', { a: 2, b: 3 }));
    const again = new Walk();
    await again.open();
    show('again', await again.call('add', { a: 2, b: 3 }));
    await again.close();
  }

  /** Ends the session as a polite client does: DELETE, where there is a session. */
  async close() {
    if (this.sessionId && kind !== 'restart') await this.transport.terminateSession();
    await this.client.close();
  }

  async main() {
    const client = await this.open();
    show('server', [
      client.getNegotiatedProtocolVersion?.() ?? this.transport.protocolVersion ?? null,
      client.getServerVersion(),
      client.getServerCapabilities(),
      client.getInstructions() ?? null,
    ]);
    show('tools', await client.listTools());
    await this[kind]();
    const session = this.sessionId;
    await this.close();
    show('exchanges', [...this.exchanges].sort());
    if (session) {
      const headers = { accept: 'application/json, text/event-stream', 'content-type': 'application/json' };
      const ping = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'ping' });
      const all = { ...headers, ...this.headers, [SESSION]: session };
      const answer = await fetch(url, { method: 'POST', headers: all, body: ping });
      show('after the end', [answer.status, await answer.text()]);
    }
    show('end', null);
  }
}

await new Walk().main();
process.exit(0);
