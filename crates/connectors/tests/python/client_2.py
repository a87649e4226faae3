"""Drives the files connector with the Python SDK 2.x: client_2.py URL MODE, where MODE is auto or legacy."""

import asyncio
import json
import sys

from mcp.client import Client


async def main(url: str, mode: str) -> None:
    arguments = {} if mode == "auto" else {"mode": mode}
    async with Client(url, **arguments) as client:
        tools = await client.list_tools()
        names = [tool.name for tool in tools.tools]
        assert names == ["list", "read", "search"], names
        assert all(tool.annotations.read_only_hint for tool in tools.tools)

        listed = await client.call_tool("list", {"depth": 2})
        assert not listed.is_error, listed
        paths = [entry["path"] for entry in listed.structured_content["entries"]]
        assert paths == ["docs", "docs/a.md"], paths

        read = await client.call_tool("read", {"path": "docs/a.md"})
        assert read.content[0].text == "hello from a file\n", read
        found = await client.call_tool("search", {"query": "HELLO"})
        assert found.structured_content["matches"][0]["line"] == 1, found

        refused = await client.call_tool("read", {"path": "../secret"})
        assert refused.is_error and "upwards" in refused.content[0].text, refused
        print(json.dumps({"version": client.protocol_version}))


asyncio.run(main(*sys.argv[1:]))
