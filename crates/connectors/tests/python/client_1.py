"""Drives the files connector with the Python SDK 1.x: client_1.py URL."""

import asyncio
import json
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main(url: str) -> None:
    async with streamablehttp_client(url) as (reader, writer, _):
        async with ClientSession(reader, writer) as client:
            opened = await client.initialize()
            tools = await client.list_tools()
            names = [tool.name for tool in tools.tools]
            assert names == ["list", "read", "search"], names

            read = await client.call_tool("read", {"path": "docs/a.md"})
            assert read.content[0].text == "hello from a file\n", read
            found = await client.call_tool("search", {"query": "HELLO"})
            assert found.structuredContent["matches"][0]["path"] == "docs/a.md", found
            refused = await client.call_tool("read", {"path": "../secret"})
            assert refused.isError and "upwards" in refused.content[0].text, refused
            print(json.dumps({"version": opened.protocolVersion}))


asyncio.run(main(*sys.argv[1:]))
