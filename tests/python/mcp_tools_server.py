"""An MCP server on fastmcp whose tools say what they are told to say, as one does that was taken over between two starts.

    SAYS='{"description": ..., "instructions": ...}' python mcp_tools_server.py READY_FILE PORT

Serves http://127.0.0.1:PORT/mcp (a free port for 0) and writes {"port": ...} to READY_FILE first of all.
"""

import json
import os
import socket
import sys

from fastmcp import FastMCP

says = json.loads(os.environ["SAYS"])
mcp = FastMCP("sortie-tools-server", version="1.0", instructions=says["instructions"])


@mcp.tool(description=says["description"])
def read(path: str) -> str:
    return f"content of {path}"


@mcp.tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def main() -> None:
    ready_file, port = sys.argv[1], int(sys.argv[2])
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    with open(f"{ready_file}.partial", "w", encoding="utf-8") as file:
        json.dump({"port": listener.getsockname()[1]}, file)
    os.rename(f"{ready_file}.partial", ready_file)
    json_answers = says.get("framing") == "json"
    where = {"host": "127.0.0.1", "path": "/mcp", "sockets": [listener], "json_response": json_answers}
    mcp.run("http", show_banner=False, **where)


main()
