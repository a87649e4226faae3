"""Walks through an MCP server with fastmcp's own client and prints what it saw, one JSON array per line.

    python fastmcp_walk.py URL KIND [--mode auto|legacy] [--key KEY] [--ca FILE]

KIND is `everything` or `fastmcp`, as for `mcp_walk.py`, which walks farther: here is what this client does on top of the
official SDK. Over another way to the same server it prints the same lines.
"""

import argparse
import asyncio
import json
import re
import socket
import sys
import time
import uuid

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

PATIENCE_SECONDS = 20
ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")

resolve = socket.getaddrinfo


def resolve_localhost(host, *rest, **more):
    name = host.decode() if isinstance(host, bytes) else host
    return resolve("127.0.0.1" if name and name.endswith(".localhost") else host, *rest, **more)


socket.getaddrinfo = resolve_localhost


def show(step, value):
    text = json.dumps([step, value], sort_keys=True, ensure_ascii=False, default=wire)
    # One write, so that what libraries log does not get in between.
    sys.stdout.write(ID.sub("<id>", text) + "\n")
    sys.stdout.flush()


def wire(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def until(what, look):
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if await look():
            return
        await asyncio.sleep(0.02)
    raise SystemExit(f"fastmcp_walk: {what} did not come within {PATIENCE_SECONDS} s")


class Walk:
    def __init__(self, args):
        self.args = args
        self.logs, self.asked = [], []
        headers = {"x-api-key": args.key} if args.key else {}
        transport = StreamableHttpTransport(args.url, headers=headers, verify=args.ca or True)
        handlers = {
            "log_handler": self.on_log,
            "sampling_handler": self.on_sampling,
            "elicitation_handler": self.on_elicitation,
        }
        self.client = Client(transport, mode=args.mode, **handlers)

    async def on_log(self, message):
        self.logs.append([message.level, message.data])

    async def on_sampling(self, messages, _params, _context):
        self.asked.append([wire(message) for message in messages])
        return "a thought"

    async def on_elicitation(self, message, kind, _params, _context):
        self.asked.append(message)
        return kind(value="Ada") if "value" in getattr(kind, "__annotations__", {}) else {"name": "Ada"}

    async def call(self, name, arguments=None, **more):
        try:
            result = await self.client.call_tool_mcp(name, arguments or {}, **more)
        except Exception as error:  # What the server refuses has to look the same, too.
            return [type(error).__name__, str(error)]
        return wire(result)

    async def progress(self, name, arguments, seconds):
        came, times = [], []

        async def on_progress(progress, total, message):
            came.append([progress, total, message])
            times.append(time.monotonic())

        result = await self.call(name, arguments, progress_handler=on_progress)
        show("progress", [came, result, {"one by one": times[-1] - times[0] > seconds / 6}])

    async def cancellation(self):
        mark = uuid.uuid4().hex

        async def state(field):
            return json.loads((await self.call("seen", {"mark": mark}))["content"][0]["text"])[field]

        slow = asyncio.create_task(self.call("slow", {"mark": mark}))
        await until("the start of the slow call", lambda: state("started"))
        slow.cancel()
        await until("the cancellation at the server", lambda: state("cancelled"))
        show("cancelled", True)

    async def everything(self):
        for name, arguments in [
            ("echo", {"message": "grüße, 你好"}),
            ("get-sum", {"a": 2, "b": 3}),
            ("get-structured-content", {"location": "Chicago"}),
            ("echo", {"wrong": 1}),
            ("no-such-tool", {}),
        ]:
            show(name, await self.call(name, arguments))
        await self.progress("trigger-long-running-operation", {"duration": 0.8, "steps": 5}, 0.6)
        show("sampling", await self.call("trigger-sampling-request", {"prompt": "why?", "maxTokens": 9}))
        show("asked", self.asked)
        resources = await self.client.list_resources()
        show("resources", resources)
        show("resource", await self.client.read_resource(resources[0].uri))
        show("prompt", await self.client.get_prompt("args-prompt", {"city": "Bern"}))

    async def fastmcp(self):
        for name, arguments in [("add", {"a": 2, "b": 3}), ("add", {"a": "x"}), ("fail", {}), ("no-such-tool", {})]:
            show(name, await self.call(name, arguments))
        await self.progress("steps", {"count": 5}, 0.6)
        text = "".join(chr(ord("a") + number % 23) for number in range(1 << 17))
        result = await self.call("repeat", {"text": text, "times": 3})
        show("bulk", result["content"][0]["text"] == text * 3)
        show("say", await self.call("say", {"text": "hello"}))

        async def logged():
            return len(self.logs) >= 2

        if self.args.mode == "legacy":
            await until("the log messages", logged)
            show("logs", self.logs)
            show("ask", await self.call("ask"))
            show("think", await self.call("think", {"prompt": "why?"}))
            show("asked", self.asked)
        for uri in ["note://one", "data://bytes"]:
            show(uri, await self.client.read_resource(uri))
        show("prompt", await self.client.get_prompt("review", {"text": "this"}))
        await self.cancellation()
        sums = await asyncio.gather(*(self.call("add", {"a": number, "b": 1000}) for number in range(20)))
        show("at once", [result["content"][0]["text"] for result in sums])

    async def main(self):
        async with self.client as client:
            told = [client.protocol_version, client.server_info, client.server_capabilities, client.instructions]
            show("server", told)
            show("tools", await client.list_tools())
            await getattr(self, self.args.kind)()
        show("end", None)


parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("kind", choices=["everything", "fastmcp"])
parser.add_argument("--mode", default="auto")
parser.add_argument("--key")
parser.add_argument("--ca")
asyncio.run(Walk(parser.parse_args()).main())
