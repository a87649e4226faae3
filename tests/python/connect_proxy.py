"""The kind of HTTP proxy that is the only way out of many networks: CONNECT for who knows the password, nothing else.

    python connect_proxy.py READY_FILE ADDRESS PORT USER:PASSWORD

Prints one line per request; writes {"port": ...} to READY_FILE when it serves.
"""

import asyncio
import base64
import contextlib
import json
import os
import sys


async def copy(reader, writer):
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def serve(wanted, reader, writer):
    head = await reader.readuntil(b"\r\n\r\n")
    line, *headers = head.decode("latin-1").split("\r\n")
    method, target, _ = line.split(" ")
    fields = [header.partition(":") for header in headers]
    known = [value.strip() for name, _, value in fields if name.lower() == "proxy-authorization"] == [wanted]
    print(method, target, "known" if known else "unknown", flush=True)
    if not known or method != "CONNECT":
        status = "405 Method Not Allowed" if known else "407 Proxy Authentication Required"
        fields = 'proxy-authenticate: Basic realm="way out"\r\ncontent-length: 0\r\n'
        writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n".encode())
        await writer.drain()
    else:
        host, _, port = target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        far_writer.close()
    writer.close()


async def main(ready_file, address, port, password):
    wanted = "Basic " + base64.b64encode(password.encode()).decode()

    async def client(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await serve(wanted, reader, writer)

    server = await asyncio.start_server(client, address, int(port))
    with open(f"{ready_file}.partial", "w", encoding="utf-8") as file:
        json.dump({"port": server.sockets[0].getsockname()[1]}, file)
    os.rename(f"{ready_file}.partial", ready_file)
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
