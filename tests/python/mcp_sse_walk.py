"""Walks through the reference server over the legacy transport HTTP with SSE (2024-11-05), with the official SDK, 1.x or
2.x, and prints what it saw, one JSON array per line.

    python mcp_sse_walk.py URL [--key KEY] [--ca FILE]

What differs from run to run (session ids) is left out, so that the same walk over another way to the same server
prints the same lines. The client is used as it comes; names below `.localhost` are resolved to 127.0.0.1, which not
every system does.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import ssl
import sys
import time

from mcp.client.sse import sse_client

try:
    import httpx2 as httpx
    import mcp_types as types
    from mcp.client import Client

    MAJOR = 2
except ImportError:
    import httpx
    from mcp import ClientSession, types

    MAJOR = 1

resolve = socket.getaddrinfo


def resolve_localhost(host, *rest, **more):
    name = host.decode() if isinstance(host, bytes) else host
    return resolve("127.0.0.1" if name and name.endswith(".localhost") else host, *rest, **more)


socket.getaddrinfo = resolve_localhost


def show(step, value):
    # One write, so that what libraries log does not get in between.
    sys.stdout.write(json.dumps([step, value], sort_keys=True, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def wire(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def on_sampling(_context, _params):
    content = types.TextContent(type="text", text="a thought")
    return types.CreateMessageResult(role="assistant", content=content, model="test-model")


@contextlib.asynccontextmanager
async def opened(args):
    """A session, and what the server says of itself."""
    verify = ssl.create_default_context(cafile=args.ca) if args.ca else True

    def client(headers=None, timeout=None, auth=None):
        return httpx.AsyncClient(headers=headers, timeout=timeout, auth=auth, verify=verify, trust_env=False)

    headers = {"x-api-key": args.key} if args.key else {}
    transport = sse_client(args.url, headers=headers, httpx_client_factory=client)
    if MAJOR == 2:
        async with Client(transport, mode="legacy", sampling_callback=on_sampling, cache=None) as session:
            yield session, [session.protocol_version, wire(session.server_info)]
    else:
        async with transport as streams, ClientSession(*streams, sampling_callback=on_sampling) as session:
            told = await session.initialize()
            yield session, [told.protocolVersion, wire(told.serverInfo)]


async def call(session, name, arguments, **more):
    try:
        return wire(await session.call_tool(name, arguments, **more))
    except Exception as error:  # What the server refuses has to look the same, too.
        return [type(error).__name__, str(error)]


async def main(args):
    async with opened(args) as (session, told):
        show("server", told)
        show("tools", wire(await session.list_tools()))
        for name, arguments in [
            ("echo", {"message": "grüße, 你好"}),
            ("get-sum", {"a": 2, "b": 3}),
            ("echo", {"wrong": 1}),
            ("no-such-tool", {}),
        ]:
            show(name, await call(session, name, arguments))
        came, times = [], []

        async def on_progress(progress, total, message):
            came.append([progress, total, message])
            times.append(time.monotonic())

        operation = ("trigger-long-running-operation", {"duration": 0.8, "steps": 5})
        result = await call(session, *operation, progress_callback=on_progress)
        show("progress", [came, result, {"one by one": bool(times) and times[-1] - times[0] > 0.3}])
        show("sampling", await call(session, "trigger-sampling-request", {"prompt": "why?", "maxTokens": 9}))
        listed = wire(await session.list_resources())
        show("resources", listed)
        show("resource", wire(await session.read_resource(listed["resources"][0]["uri"])))
        show("prompt", wire(await session.get_prompt("args-prompt", {"city": "Bern"})))
    show("end", None)


parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--key")
parser.add_argument("--ca")
asyncio.run(main(parser.parse_args()))
