"""Has the official SDK `anthropic` run tools of an MCP server: its tool runner, with its helpers around the client of `mcp`.

    python anthropic_mcp.py URL KEY ANTHROPIC

Runs on an environment that has `mcp` 2.x; ANTHROPIC is the interpreter of one that has `anthropic`, and the same versions
of what both need. The model is a stand-in: an HTTP server that asks for one tool after the other, and writes down what it
is told of each. Prints one JSON array per line: the tools that are listed, and of each call what the model was told.
"""

import asyncio
import glob
import json
import os
import site
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

url, key, beside = sys.argv[1:]
site.addsitedir(glob.glob(os.path.join(os.path.dirname(os.path.dirname(beside)), "lib", "python3*", "site-packages"))[0])

import httpx2 as httpx  # noqa: E402
import mcp_types as types  # noqa: E402
from anthropic import AsyncAnthropic  # noqa: E402
from anthropic.lib.tools.mcp import async_mcp_tool  # noqa: E402
from mcp.client import Client  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402

# What the model asks for, in order: a name for it, the tool, and its input.
WANTS = [
    ("allowed", "echo", {"text": "hello"}),
    ("tool", "fail", {}),
    ("argument", "echo", {"text": "canary-4711"}),
    ("still allowed", "echo", {"text": "again"}),
]


class Model(BaseHTTPRequestHandler):
    told = []

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        results = [block for block in asked["messages"][-1]["content"] if isinstance(block, dict)]
        self.told.extend(block for block in results if block["type"] == "tool_result")
        turn = len(self.told)
        content = [{"type": "text", "text": "done"}]
        if turn < len(WANTS):
            _, name, arguments = WANTS[turn]
            content = [{"type": "tool_use", "id": f"toolu_{turn}", "name": name, "input": arguments}]
        answer = {
            "id": f"msg_{turn}", "type": "message", "role": "assistant", "model": asked["model"], "content": content,
            "stop_reason": "tool_use" if turn < len(WANTS) else "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def show(step, value):
    print(json.dumps([step, value], sort_keys=True), flush=True)


async def main():
    model = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=model.serve_forever, daemon=True).start()
    client = AsyncAnthropic(api_key="unused", base_url=f"http://127.0.0.1:{model.server_port}", max_retries=0)
    async with httpx.AsyncClient(headers={"x-api-key": key}, timeout=60, trust_env=False) as http:
        async with Client(streamable_http_client(url, http_client=http)) as server:
            listed = (await server.list_tools()).tools
            show("tools", sorted(tool.name for tool in listed))
            # Hidden from the list, and yet asked for, as by an agent that remembers it.
            hidden = types.Tool(name="fail", description="Fails.", input_schema={"type": "object"})
            runner = client.beta.messages.tool_runner(
                model="stand-in", max_tokens=100, messages=[{"role": "user", "content": "Use your tools."}],
                tools=[async_mcp_tool(tool, server) for tool in [*listed, hidden]],
            )
            last = await runner.until_done()
    for (step, _, _), result in zip(WANTS, Model.told, strict=True):
        show(step, [bool(result.get("is_error")), json.dumps(result["content"])])
    show("end", last.stop_reason)


asyncio.run(main())
