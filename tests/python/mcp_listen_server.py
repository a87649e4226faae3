"""An MCP server on the official SDK 2.x with a stream of changes, which is what the stateless era listens to.

    python mcp_listen_server.py READY_FILE

Serves http://127.0.0.1:PORT/mcp on a free port and writes {"port": ...} to READY_FILE first of all.
"""

import json
import os
import socket
import sys

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.subscriptions import InMemorySubscriptionBus


bus = InMemorySubscriptionBus()
server = MCPServer("sortie-test-listen", version="1.0", subscriptions=bus)


@server.tool()
async def announce(ctx: Context) -> str:
    """Tells whoever listens that the list of tools has changed."""
    await ctx.notify_tools_changed()
    return "announced"


@server.tool()
def listeners() -> str:
    """Tells how many streams are open."""
    return str(len(bus._listeners))


def main() -> None:
    ready_file = sys.argv[1]
    listener = socket.create_server(("127.0.0.1", 0))
    with open(f"{ready_file}.partial", "w", encoding="utf-8") as file:
        json.dump({"port": listener.getsockname()[1]}, file)
    os.rename(f"{ready_file}.partial", ready_file)
    config = uvicorn.Config(server.streamable_http_app(), log_level="info", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


main()
