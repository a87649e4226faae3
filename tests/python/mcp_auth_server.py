"""An MCP server on the official SDK 2.x that is an OAuth resource server (RFC 9728).

    python mcp_auth_server.py READY_FILE PUBLIC_URL

Serves http://127.0.0.1:PORT/mcp on a free port, says of itself that it is PUBLIC_URL, takes the bearer token `theirs`
only, and writes {"port": ...} to READY_FILE first of all.
"""

import json
import os
import socket
import sys

import uvicorn
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        if token not in ("theirs", "narrow"):
            return None
        scopes = ["files:read"] if token == "theirs" else []
        return AccessToken(token=token, client_id="test", scopes=scopes)


def main() -> None:
    ready_file, public_url = sys.argv[1:3]
    settings = AuthSettings(
        issuer_url="https://id.example/",
        resource_server_url=public_url,
        required_scopes=["files:read"],
        validate_token_resource=False,
    )
    server = MCPServer("sortie-test-auth", version="1.0", auth=settings, token_verifier=Verifier())

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    listener = socket.create_server(("127.0.0.1", 0))
    with open(f"{ready_file}.partial", "w", encoding="utf-8") as file:
        json.dump({"port": listener.getsockname()[1]}, file)
    os.rename(f"{ready_file}.partial", ready_file)
    config = uvicorn.Config(server.streamable_http_app(), log_level="info", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


main()
