// Walks through the reference server over the legacy transport HTTP with SSE (2024-11-05), with the official TypeScript
// SDK, and prints what it saw, one JSON array per line.
//
//     node sse_walk.mjs SERVER URL [KEY]
//
// SERVER is a program of the installed packages, beside which the SDK is found. What differs from run to run (session
// ids) is left out. Names below `.localhost` are resolved to 127.0.0.1, which not every system does; a CA comes by
// NODE_EXTRA_CA_CERTS.

import dns from "node:dns";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const lookup = dns.lookup;
dns.lookup = (name, ...rest) => lookup(name.endsWith(".localhost") ? "127.0.0.1" : name, ...rest);

const [server, url, key] = process.argv.slice(2);
const packages = createRequire(pathToFileURL(server));
const { Client } = packages("@modelcontextprotocol/sdk/client/index.js");
const { SSEClientTransport } = packages("@modelcontextprotocol/sdk/client/sse.js");

const show = (step, value) => console.log(JSON.stringify([step, value ?? null]));

const headers = key ? { "x-api-key": key } : {};
const client = new Client({ name: "sse-walk", version: "1" }, { capabilities: {} });
await client.connect(new SSEClientTransport(new URL(url), { requestInit: { headers } }));
show("server", client.getServerVersion());
show("tools", await client.listTools());
show("echo", await client.callTool({ name: "echo", arguments: { message: "grüße, 你好" } }));
show("get-sum", await client.callTool({ name: "get-sum", arguments: { a: 2, b: 3 } }));
const came = [];
const operation = { name: "trigger-long-running-operation", arguments: { duration: 0.8, steps: 5 } };
const done = await client.callTool(operation, undefined, { onprogress: (progress) => came.push(progress) });
// The last one may come with the result, which this SDK then no longer reports.
show("progress", [came.slice(0, 3), done]);
show("resources", await client.listResources());
await client.close();
show("end", null);
