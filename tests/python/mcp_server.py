"""An MCP server on fastmcp that shows what clients did to it.

    python mcp_server.py READY_FILE [PORT]

Serves http://127.0.0.1:PORT/mcp (a free port when none is given) and writes {"port": ...} to READY_FILE first of all.
"""

import asyncio
import json
import os
import socket
import sys

import mcp_types as types
from fastmcp import Context, FastMCP

STEP_SECONDS = 0.15
LONGEST_SECONDS = 120

mcp = FastMCP("sortie-test-server", version="1.0")
started: set[str] = set()
cancelled: set[str] = set()


@mcp.tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@mcp.tool
async def steps(count: int, ctx: Context) -> str:
    """Reports its progress."""
    for step in range(1, count + 1):
        await asyncio.sleep(STEP_SECONDS)
        await ctx.report_progress(step, count, f"step {step}")
    return "done"


@mcp.tool
async def say(text: str, ctx: Context) -> str:
    """Logs to the client."""
    await ctx.info(text)
    await ctx.warning(f"{text}!")
    return "said"


@mcp.tool
async def ask(ctx: Context) -> str:
    """Asks the user."""
    answer = await ctx.elicit("What is your name?", str)
    return f"{answer.action}: {getattr(answer, 'data', None)}"


@mcp.tool
async def think(prompt: str, ctx: Context) -> str:
    """Asks the client's model."""
    message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=prompt))
    answer = await ctx.session.create_message([message], max_tokens=50, related_request_id=ctx.request_id)
    return f"{answer.model}: {answer.content.text}"


@mcp.tool
async def decide(ctx: Context):
    """Asks the user as the stateless era does: the call comes again with the answer."""
    if ctx.input_responses is None:
        schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        params = types.ElicitRequestFormParams(message="Who decides?", requested_schema=schema)
        asked = {"who": types.ElicitRequest(params=params)}
        return types.InputRequiredResult(input_requests=asked, request_state="round one")
    return f"{ctx.input_responses['who'].content['name']} decides, after {ctx.request_state}"


@mcp.tool
async def burst(count: int, ctx: Context) -> str:
    """Reports its progress as fast as it can."""
    for step in range(1, count + 1):
        await ctx.report_progress(step, count)
    return "done"


@mcp.tool
def repeat(text: str, times: int) -> str:
    """Answers at length."""
    return text * times


@mcp.tool
async def announce(ctx: Context) -> str:
    """Tells the session, outside of any call, that the list of tools has changed."""
    await ctx.session.send_tool_list_changed()
    return "announced"


@mcp.tool
async def slow(mark: str) -> str:
    """Takes very long, unless it is cancelled."""
    started.add(mark)
    try:
        await asyncio.sleep(LONGEST_SECONDS)
    except asyncio.CancelledError:
        cancelled.add(mark)
        raise
    return "slept"


@mcp.tool
def seen(mark: str) -> dict[str, bool]:
    """Tells what became of a slow call."""
    return {"started": mark in started, "cancelled": mark in cancelled}


@mcp.tool
def fail() -> str:
    """Always fails."""
    raise ValueError("this tool always fails")


@mcp.resource("note://{name}")
def note(name: str) -> str:
    """A note."""
    return f"the note {name}: grüße, 你好"


@mcp.resource("data://bytes", mime_type="application/octet-stream")
def raw() -> bytes:
    """Bytes of every value."""
    return bytes(range(256))


@mcp.prompt
def review(text: str) -> str:
    """Asks for a review."""
    return f"Please review: {text}"


def main() -> None:
    ready_file, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    port = listener.getsockname()[1]
    with open(f"{ready_file}.partial", "w", encoding="utf-8") as file:
        json.dump({"port": port}, file)
    os.rename(f"{ready_file}.partial", ready_file)
    # Some clients take a kept connection as open that the server is just closing: it is kept longer than any test waits.
    kept = {"timeout_keep_alive": LONGEST_SECONDS}
    where = {"host": "127.0.0.1", "port": port, "path": "/mcp", "sockets": [listener]}
    mcp.run("http", show_banner=False, uvicorn_config=kept, **where)


main()
