"""Uses everything that an MCP server offers, once, with the official SDK 2.x: the client under test of the conformance
suite's client scenarios. Prints one JSON array per use: what, and what came of it.

    python mcp_explore.py [--through URL --upstream FILE --key KEY] SERVER_URL

Directly, or through a tunnel: then the server's port is written to FILE, for whoever stands behind the tunnel to dial,
and the server is spoken to below URL. The revision of the protocol, and calls to make instead of one for each tool, are
taken from the suite's variables.
"""

import argparse
import asyncio
import json
import os
import urllib.parse

import httpx2 as httpx
import mcp_types as types
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

REVISION = os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"]
SAMPLES = {"number": 5, "integer": 5, "string": "a", "boolean": True, "array": [], "object": {}, "null": None}


async def on_elicitation(_context, params):
    """Fills a form in: with its defaults, else with samples."""
    fields = params.requested_schema["properties"]
    content = {name: field.get("default", SAMPLES[field["type"]]) for name, field in fields.items()}
    return types.ElicitResult(action="accept", content=content)


def sample(schema):
    properties = schema.get("properties", {})
    return {name: SAMPLES[properties[name].get("type", "string")] for name in schema.get("required", [])}


def calls(tools):
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    if "toolCalls" in context:
        return [(call["name"], call["arguments"]) for call in context["toolCalls"]]
    return [(tool.name, sample(tool.input_schema)) for tool in tools]


async def show(what, answer):
    try:
        outcome = (await answer).model_dump(mode="json", by_alias=True, exclude_none=True)
    except Exception as error:  # What the server or the SDK refuses is an outcome as well.
        outcome = [type(error).__name__, str(error)]
    print(json.dumps([what, outcome], sort_keys=True), flush=True)


async def explore(client):
    for name, arguments in calls((await client.list_tools()).tools):
        await show(name, client.call_tool(name, arguments))
    if client.server_capabilities.resources:
        for resource in (await client.list_resources()).resources:
            await show(resource.uri, client.read_resource(resource.uri))
    if client.server_capabilities.prompts:
        for prompt in (await client.list_prompts()).prompts:
            await show(prompt.name, client.get_prompt(prompt.name))


def reached(args):
    """The URL to use for the server."""
    if args.through is None:
        return args.server_url
    server = urllib.parse.urlsplit(args.server_url)
    with open(args.upstream, "w", encoding="ascii") as upstream:
        upstream.write(str(server.port))
    return args.through + (server.path or "/")


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--through")
    parser.add_argument("--upstream")
    parser.add_argument("--key")
    parser.add_argument("server_url")
    args = parser.parse_args()
    headers = {"x-api-key": args.key} if args.key else {}
    http = httpx.AsyncClient(headers=headers, timeout=30, trust_env=False)
    transport = streamable_http_client(reached(args), http_client=http)
    mode = "legacy" if REVISION < "2026-07-28" else "auto"
    async with Client(transport, mode=mode, elicitation_callback=on_elicitation, cache=None) as client:
        await explore(client)


asyncio.run(main())
