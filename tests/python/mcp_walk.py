"""Walks through an MCP server with the official SDK, 1.x or 2.x, and prints what it saw, one JSON array per line.

    python mcp_walk.py URL KIND [--mode auto|legacy] [--key KEY] [--ca FILE] [--restarted FILE]

KIND says what the server offers: `everything`, `fastmcp`, `listen` (2.x only), `polling` or `files`; `restart` waits in the
middle until FILE says that the server was started anew; `controlled` is refused some of it on the way. What differs from run to run (session ids) is replaced, so
that the same walk over another way to the same server prints the same lines. The client is used as it comes; names
below `.localhost` are resolved to 127.0.0.1, which not every system does.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import sys
import time
import uuid

import anyio

try:
    import httpx2 as httpx
    import mcp_types as types
    from mcp.client import Client

    MAJOR = 2
except ImportError:
    import httpx
    from mcp import ClientSession, types

    MAJOR = 1
from mcp.client.streamable_http import streamable_http_client

PATIENCE_SECONDS = 20
SESSION = "mcp-session-id"
ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")

resolve = socket.getaddrinfo


def resolve_localhost(host, *rest, **more):
    name = host.decode() if isinstance(host, bytes) else host
    return resolve("127.0.0.1" if name and name.endswith(".localhost") else host, *rest, **more)


socket.getaddrinfo = resolve_localhost


def show(step, value):
    text = json.dumps([step, value], sort_keys=True, ensure_ascii=False)
    # One write, so that what libraries log does not get in between.
    sys.stdout.write(ID.sub("<id>", text) + "\n")
    sys.stdout.flush()


def wire(model):
    return model and model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def until(what, look):
    """Waits for a condition, sync or async."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        found = look()
        if await found if asyncio.iscoroutine(found) else found:
            return
        await anyio.sleep(0.02)
    raise SystemExit(f"mcp_walk: {what} did not come within {PATIENCE_SECONDS} s")


class Walk:
    def __init__(self, args):
        self.args = args
        self.exchanges = set()
        self.session_id = None
        self.logs, self.notes, self.asked = [], [], []
        headers = {"x-api-key": args.key} if args.key else {}
        verify = ssl.create_default_context(cafile=args.ca) if args.ca else True
        hooks = {"response": [self.on_response]}
        self.http = httpx.AsyncClient(headers=headers, verify=verify, timeout=60, event_hooks=hooks, trust_env=False)

    async def on_response(self, response):
        self.exchanges.add((response.request.method, response.status_code))
        self.session_id = response.headers.get(SESSION, self.session_id)
        problem = response.headers.get("sortie-hop")
        # While the server is away its clients look for it, and are told so; and one walk is to be refused.
        if problem not in (None, "upstream") and self.args.kind not in ("restart", "controlled"):
            raise SystemExit(f"mcp_walk: the call ended at {problem}: {await response.aread()}")

    async def on_log(self, params):
        self.logs.append([params.level, params.data])

    async def on_message(self, message):
        message = getattr(message, "root", message)
        self.notes.append(getattr(message, "method", None))

    async def on_sampling(self, _context, params):
        self.asked.append(wire(params).get("messages"))
        content = types.TextContent(type="text", text="a thought")
        return types.CreateMessageResult(role="assistant", content=content, model="test-model")

    async def on_elicitation(self, _context, params):
        self.asked.append(params.message)
        return types.ElicitResult(action="accept", content={"value": "Ada", "name": "Ada"})

    @contextlib.asynccontextmanager
    async def open(self):
        """A session, and what the server says of itself."""
        transport = streamable_http_client(self.args.url, http_client=self.http)
        callbacks = {
            "sampling_callback": self.on_sampling,
            "elicitation_callback": self.on_elicitation,
            "logging_callback": self.on_log,
            "message_handler": self.on_message,
        }
        if MAJOR == 2:
            async with Client(transport, mode=self.args.mode, log_level="debug", cache=None, **callbacks) as client:
                told = [client.protocol_version, wire(client.server_info), wire(client.server_capabilities)]
                yield client, told + [client.instructions]
        else:
            async with transport as (reader, writer, _), ClientSession(reader, writer, **callbacks) as session:
                yield session, wire(await session.initialize())

    async def call(self, client, name, arguments=None, **more):
        try:
            return wire(await client.call_tool(name, arguments or {}, **more))
        except Exception as error:  # What the server refuses has to look the same, too.
            return [type(error).__name__, str(error)]

    async def progress(self, client, name, arguments, seconds):
        """A call that reports: what came, and whether it came while the call ran rather than at its end."""
        came, times = [], []

        async def on_progress(progress, total, message):
            came.append([progress, total, message])
            times.append(time.monotonic())

        result = await self.call(client, name, arguments, progress_callback=on_progress)
        spread = times[-1] - times[0] if times else 0
        show("progress", [came, result, {"one by one": spread > seconds / 2}])

    async def burst(self, client):
        """Many notifications at once: all come, in their order."""
        came = []

        async def on_progress(progress, _total, _message):
            came.append(progress)

        await self.call(client, "burst", {"count": 500}, progress_callback=on_progress)
        show("burst", [len(came), came == sorted(came)])

    async def bulk(self, client):
        """More than fits into any buffer on the way, in both directions."""
        for size, times in [(1 << 20, 0), (1 << 17, 3)]:
            text = "".join(chr(ord("a") + number % 23) for number in range(size))
            result = await self.call(client, "repeat", {"text": text, "times": times})
            whole = isinstance(result, dict) and result["content"][0]["text"] == text * times
            show("bulk", [size, times, whole or str(result)[:1000]])

    async def resumption(self):
        """A stream that broke goes on where it was, for who names the last event that came."""
        headers = {"accept": "application/json, text/event-stream", SESSION: self.session_id}
        arguments = {"duration": 1, "steps": 4}
        params = {"name": "trigger-long-running-operation", "arguments": arguments, "_meta": {"progressToken": "again"}}
        call = {"jsonrpc": "2.0", "id": "resumed", "method": "tools/call", "params": params}
        last, came = None, []
        async with self.http.stream("POST", self.args.url, json=call, headers=headers) as answer:
            async for line in answer.aiter_lines():
                last = line.removeprefix("id: ") if line.startswith("id: ") else last
                if line.startswith("data: {"):
                    came.append(json.loads(line.removeprefix("data: ")))
                    break
        # This server replays what it has by then, and sends nothing after it.
        await anyio.sleep(1.5)
        headers["last-event-id"] = last
        async with self.http.stream("GET", self.args.url, headers=headers) as answer:
            with anyio.fail_after(PATIENCE_SECONDS):
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        came.append(json.loads(line.removeprefix("data: ")))
                    if came[-1].get("id") == "resumed":
                        break
        show("resumed", [message for message in came if message.get("method") != "notifications/message"])

    async def cancellation(self, client):
        """A slow call that is given up: the server has to learn of it."""
        mark = uuid.uuid4().hex

        async def state(field):
            return json.loads((await self.call(client, "seen", {"mark": mark}))["content"][0]["text"])[field]

        async with anyio.create_task_group() as group:
            request_id = None
            scope = anyio.CancelScope()

            async def slow():
                nonlocal request_id
                request_id = None if MAJOR == 2 else client._request_id
                with scope:
                    await self.call(client, "slow", {"mark": mark})

            group.start_soon(slow)
            await until("the start of the slow call", lambda: state("started"))
            show("cancelled before", await state("cancelled"))
            if MAJOR == 1:
                # This SDK sends the notification only when it is told to.
                params = types.CancelledNotificationParams(requestId=request_id, reason="test")
                note = types.CancelledNotification(method="notifications/cancelled", params=params)
                await client.send_notification(types.ClientNotification(note))
            scope.cancel()
        await until("the cancellation at the server", lambda: state("cancelled"))
        show("cancelled after", True)

    async def everything(self, client):
        for name, arguments in [
            ("echo", {"message": "grüße, 你好"}),
            ("get-sum", {"a": 2, "b": 3}),
            ("get-tiny-image", {}),
            ("get-structured-content", {"location": "Chicago"}),
            ("get-annotated-message", {"messageType": "error", "includeImage": False}),
            ("get-resource-links", {"count": 2}),
            ("echo", {"wrong": 1}),
            ("no-such-tool", {}),
        ]:
            show(name, await self.call(client, name, arguments))
        await self.progress(client, "trigger-long-running-operation", {"duration": 0.8, "steps": 5}, 0.6)
        await self.resumption()
        show("sampling", await self.call(client, "trigger-sampling-request", {"prompt": "why?", "maxTokens": 9}))
        show("elicitation", await self.call(client, "trigger-elicitation-request"))
        show("asked", self.asked)
        listed = wire(await client.list_resources())
        show("resources", listed)
        show("resource", wire(await client.read_resource(listed["resources"][0]["uri"])))
        show("templates", wire(await client.list_resource_templates()))
        show("prompts", wire(await client.list_prompts()))
        show("prompt", wire(await client.get_prompt("args-prompt", {"city": "Bern"})))
        # These come outside of any call, on the session's own stream; which level comes first is random.
        await until("the stream of the session", lambda: ("GET", 200) in self.exchanges)
        await client.set_logging_level("debug")
        show("logging", await self.call(client, "toggle-simulated-logging"))
        await until("a log message", lambda: self.logs)
        show("stopped", await self.call(client, "toggle-simulated-logging"))

    async def fastmcp(self, client):
        show("add", await self.call(client, "add", {"a": 2, "b": 3}))
        for name, arguments in [("add", {"a": "x"}), ("fail", {}), ("no-such-tool", {})]:
            show(f"refused {name}", await self.call(client, name, arguments))
        await self.progress(client, "steps", {"count": 5}, 0.6)
        await self.burst(client)
        await self.bulk(client)
        show("decide", await self.call(client, "decide"))
        show("say", await self.call(client, "say", {"text": "hello"}))
        await until("the log messages", lambda: len(self.logs) >= 2)
        show("logs", self.logs)
        show("ask", await self.call(client, "ask"))
        show("think", await self.call(client, "think", {"prompt": "why?"}))
        show("asked", self.asked)
        show("resources", wire(await client.list_resources()))
        show("templates", wire(await client.list_resource_templates()))
        for uri in ["note://one", "data://bytes"]:
            show(uri, wire(await client.read_resource(uri)))
        show("prompt", wire(await client.get_prompt("review", {"text": "this"})))
        if self.session_id:
            await until("the stream of the session", lambda: ("GET", 200) in self.exchanges)
            show("announce", await self.call(client, "announce"))
            await until("the announcement", lambda: "notifications/tools/list_changed" in self.notes)
        await self.cancellation(client)
        async with anyio.create_task_group() as group:
            sums = {}

            async def add(number):
                result = await self.call(client, "add", {"a": number, "b": 1000})
                sums[number] = result["content"][0]["text"]

            for number in range(20):
                group.start_soon(add, number)
        show("at once", [sums[number] for number in range(20)])

    async def listen(self, client):
        """The stateless era's stream of changes."""
        events = []
        async with client.listen(tools_list_changed=True) as changes:
            show("honoured", wire(changes.honored))
            for _ in range(3):
                show("announce", await self.call(client, "announce"))
                with anyio.fail_after(PATIENCE_SECONDS):
                    events.append(type(await anext(changes)).__name__)
        show("events", events)
        await until("the end of the stream at the server", lambda: self.listeners(client, 0))

    async def listeners(self, client, wanted):
        return (await self.call(client, "listeners"))["content"][0]["text"] == str(wanted)

    async def polling(self, client):
        """A call whose stream ends in its midst: the client comes back, and the rest is there for it."""
        came = []

        async def on_progress(progress, _total, _message):
            came.append(progress)

        show("result", await self.call(client, "poll", progress_callback=on_progress))
        show("came", came)

    async def files(self, client):
        for name, arguments in [
            ("list", {"depth": 2}),
            ("read", {"path": "docs/a.md"}),
            ("search", {"query": "HELLO"}),
            ("read", {"path": "../secret"}),
            ("read", {}),
            ("no-such-tool", {}),
        ]:
            show(name, await self.call(client, name, arguments))

    async def controlled(self, client):
        """What is allowed, what is not, and what somebody has to say yes to."""
        for step, name, arguments in [
            ("allowed", "echo", {"text": "hello"}),
            ("denied", "fail", {}),
            ("unknown", "no-such-tool", {}),
            ("still allowed", "echo", {"text": "again"}),
            ("headers", "headers", {}),
            ("asked", "slow", {"ms": 1}),
        ]:
            with anyio.fail_after(PATIENCE_SECONDS):
                show(step, await (self.call(client, name, arguments) if MAJOR == 2 else self.apart(name, arguments)))

    async def apart(self, name, arguments):
        """A call in a session of its own: a refusal ends a whole session of 1.x."""
        again = Walk(self.args)
        try:
            async with again.http, again.open() as (client, _):
                return await again.call(client, name, arguments)
        except BaseExceptionGroup as group:
            first = group.exceptions[0]
            return [type(first).__name__, str(first)]

    async def restart(self, client):
        """The session is gone with the server: only a 404 tells a client so."""
        show("before", await self.call(client, "add", {"a": 2, "b": 3}))
        await until("the restart", lambda: os.path.exists(self.args.restarted))
        show("after", await self.call(client, "add", {"a": 2, "b": 3}))
        again = Walk(self.args)
        async with again.http, again.open() as (client, _):
            show("again", await self.call(client, "add", {"a": 2, "b": 3}))

    async def main(self):
        async with self.http:
            async with self.open() as (client, told):
                show("server", told)
                show("tools", wire(await client.list_tools()))
                await getattr(self, self.args.kind)(client)
            show("exchanges", sorted(self.exchanges))
            if self.session_id:
                headers = {"accept": "application/json, text/event-stream", SESSION: self.session_id}
                ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
                answer = await self.http.post(self.args.url, json=ping, headers=headers)
                show("after the end", [answer.status_code, answer.text])
        show("end", None)


parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("kind", choices=["everything", "fastmcp", "listen", "polling", "files", "restart", "controlled"])
parser.add_argument("--mode", default="auto")
parser.add_argument("--key")
parser.add_argument("--ca")
parser.add_argument("--restarted")
asyncio.run(Walk(parser.parse_args()).main())
