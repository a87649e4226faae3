// An MCP server on the TypeScript SDK 1.x that closes a call's stream and lets its client come back for the rest.
//
//     node polling_server.mjs READY_FILE MODULES
//
// Serves http://127.0.0.1:PORT/mcp on a free port and writes {"port": ...} to READY_FILE.

import { randomUUID } from 'node:crypto';
import { renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [readyFile, modules] = process.argv.slice(2);
const from = (path) => import(pathToFileURL(join(modules, '@modelcontextprotocol/sdk/dist/esm', path)));
const { McpServer } = await from('server/mcp.js');
const { StreamableHTTPServerTransport } = await from('server/streamableHttp.js');

const RETRY_MS = 200;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The events of one session, in the order in which they were said. */
class Events {
  all = [];

  async storeEvent(stream, message) {
    this.all.push({ id: `${stream}_${this.all.length}`, stream, message });
    return this.all.at(-1).id;
  }

  async getStreamIdForEventId(id) {
    return this.all.find((event) => event.id === id)?.stream;
  }

  async replayEventsAfter(last, { send }) {
    const at = this.all.findIndex((event) => event.id === last);
    const { stream } = this.all[at];
    for (const event of this.all.slice(at + 1)) {
      // An event without a message only gave its id.
      if (event.stream === stream && Object.keys(event.message).length > 0) await send(event.id, event.message);
    }
    return stream;
  }
}

function server() {
  const mcp = new McpServer({ name: 'sortie-test-polling', version: '1.0' }, { capabilities: { logging: {} } });
  mcp.registerTool('poll', { description: 'Reports, hangs up, and reports the rest.' }, async (extra) => {
    const progressToken = extra._meta?.progressToken;
    const report = (progress) =>
      extra.sendNotification({ method: 'notifications/progress', params: { progressToken, progress, total: 3 } });
    await report(1);
    extra.closeSSEStream();
    // Said while nobody listens.
    await report(2);
    await pause(2 * RETRY_MS);
    await report(3);
    return { content: [{ type: 'text', text: 'came back for it' }] };
  });
  return mcp;
}

const sessions = new Map();
const http = createServer(async (request, response) => {
  const known = request.headers['mcp-session-id'];
  let transport = sessions.get(known);
  if (!transport) {
    if (known) return response.writeHead(404).end();
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      eventStore: new Events(),
      retryInterval: RETRY_MS,
      onsessioninitialized: (id) => sessions.set(id, transport),
      onsessionclosed: (id) => sessions.delete(id),
    });
    await server().connect(transport);
  }
  await transport.handleRequest(request, response);
});
http.listen(0, '127.0.0.1', () => {
  writeFileSync(`${readyFile}.partial`, JSON.stringify({ port: http.address().port }));
  renameSync(`${readyFile}.partial`, readyFile);
  console.log('startup complete');
});
