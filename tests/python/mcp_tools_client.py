"""Lists the tools of a server and calls one, with the official SDK 2.x. Prints one JSON object: what an agent would see.

    KEY=... python mcp_tools_client.py URL auto|legacy
"""

import asyncio
import json
import os
import sys

import httpx2 as httpx
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client


async def main() -> None:
    url, mode = sys.argv[1], sys.argv[2]
    async with httpx.AsyncClient(headers={"x-api-key": os.environ["KEY"]}, timeout=30, trust_env=False) as http:
        async with Client(streamable_http_client(url, http_client=http), mode=mode, cache=None) as client:
            tools = (await client.list_tools()).tools
            seen = {tool.name: tool.description for tool in tools}
            try:
                called = (await client.call_tool("read", {"path": "x"})).content[0].text
            except Exception as error:  # What the gateway or the SDK refuses is an outcome as well.
                called = [type(error).__name__, str(error)]
            said = {"version": client.protocol_version, "tools": seen, "called": called}
            print(json.dumps(said | {"instructions": client.instructions}))


asyncio.run(main())
