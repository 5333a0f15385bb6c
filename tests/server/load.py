"""Fifty listeners and twenty scrapes a second, until killed: `python load.py URL`. Prints `loaded`
once all listen."""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import urlsplit

LISTENERS, SCRAPES_PER_S = 50, 20


async def ask(host: str, port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert b" 200 " in await reader.readline()
    return reader, writer


async def listen(host: str, port: int) -> None:
    reader, writer = await ask(host, port, "/events")
    while await reader.read(1 << 16):
        pass
    writer.close()


async def main(url: str) -> None:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    listeners = [asyncio.create_task(listen(host, port)) for _ in range(LISTENERS)]
    await asyncio.sleep(1)
    assert not any(task.done() for task in listeners)
    print("loaded", flush=True)
    while True:
        reader, writer = await ask(host, port, "/metrics")
        assert b"gratis_" in await reader.read()
        writer.close()
        await asyncio.sleep(1 / SCRAPES_PER_S)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
