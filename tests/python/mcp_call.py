"""Calls one tool with the official SDK, 1.x or 2.x, as it comes, and prints the result or the error as JSON.

    python mcp_call.py URL KEY TOOL ARGUMENTS
"""

import asyncio
import json
import sys

try:
    import httpx2 as httpx
    from mcp.client import Client
except ImportError:
    import httpx
    from mcp import ClientSession

    Client = None
from mcp.client.streamable_http import streamable_http_client


async def call(client, tool, arguments):
    try:
        result = await client.call_tool(tool, arguments)
        print(json.dumps(result.model_dump(mode="json", by_alias=True, exclude_none=True)), flush=True)
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]), flush=True)


async def main():
    url, key, tool, arguments = sys.argv[1:]
    http = httpx.AsyncClient(headers={"x-api-key": key}, timeout=60, trust_env=False)
    transport = streamable_http_client(url, http_client=http)
    if Client is not None:
        async with Client(transport) as client:
            await call(client, tool, json.loads(arguments))
    else:
        async with transport as (reader, writer, _), ClientSession(reader, writer) as session:
            await session.initialize()
            await call(session, tool, json.loads(arguments))


asyncio.run(main())
