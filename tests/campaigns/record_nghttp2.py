"""Record what nghttp2 writes to tests/data/nghttp2-blocks.json: `python -m tests.campaigns.record_nghttp2`.

nghttp talks to nghttpd over cleartext HTTP/2 on loopback, through a proxy of ours that keeps the octets.
The header blocks are cut out of them, with what our end would have to know about SETTINGS at each place;
the fields are those that nghttp's own log (`-v`) says it sent or received. Needs nghttp and nghttpd
(Debian's nghttp2-client and nghttp2-server); the tests need only the file.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tempfile
from pathlib import Path

import trio

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "nghttp2-blocks.json"
SETTINGS_HEADER_TABLE_SIZE = 1
HEADERS, SETTINGS, CONTINUATION = 1, 4, 9
ACK, PADDED, PRIORITY, END_HEADERS = 0x1, 0x8, 0x20, 0x4

PUSH = [
    "-H:method: POST",
    "-Hapns-topic: com.example.opmanager",
    "-Hapns-push-type: alert",
    "-Hapns-priority: 10",
    "-Hapns-id: eabeae54-14a8-11e5-b60b-1697f925ec7b",
    "-Hauthorization: bearer " + "eyJhbGciOiJFUzI1NiIsImtpZCI6IkFCQzEyM0RFRkcifQ." * 3,
    "-Hcookie: short",
]
TOKENS = [
    f"/3/device/{n:02x}fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0" for n in range(8)
]
# name: nghttp's options, paths, nghttpd's options
STORIES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "defaults": ([], ["/", "/index.html", "/nothing", "/?again", "/nothing?again"], []),
    "pushes": (PUSH, TOKENS, []),
    "client's table 0": (["-c0"], ["/", "/index.html", "/nothing"], []),
    "client's table 0, then 4096": (["-c0", "-c4096"], ["/", "/index.html", "/?again", "/nothing"], []),
    "client's table 100": (["-c100"], ["/", "/index.html", "/?again", "/nothing"], []),
    "client's table 65536, server uses it": (
        ["-c65536"],
        ["/", "/index.html", "/nothing"],
        ["--encoder-header-table-size=65536"],
    ),
    "server's encoder at 64": (
        [],
        ["/", "/index.html", "/?again", "/?more"],
        ["--encoder-header-table-size=64"],
    ),
    "client's encoder at 200": ([*PUSH, "--encoder-header-table-size=200"], TOKENS, []),
    "trailers and padding": (
        [],
        ["/", "/index.html", "/?again"],
        ["--trailer=apns-unique-id: 0a1b2c", "--trailer=x: ~", "-b100"],
    ),
}


async def pump(source: trio.SocketStream, sink: trio.SocketStream, kept: bytearray) -> None:
    try:
        async for octets in source:
            kept += octets
            await sink.send_all(octets)
        await sink.send_eof()
    except trio.BrokenResourceError:
        pass  # nghttp closes as soon as it has all responses.


async def record(
    client_options: list[str], paths: list[str], server_options: list[str]
) -> tuple[bytes, bytes, str]:
    """Run one story: the client's octets, the server's, and the client's log."""
    sent, received = bytearray(), bytearray()
    with tempfile.TemporaryDirectory() as htdocs:
        await trio.Path(htdocs, "index.html").write_text("hello\n")
        (free,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = free.socket.getsockname()[1]
        await free.aclose()
        command = ["nghttpd", "-v", "--no-tls", "-a127.0.0.1", f"-d{htdocs}", *server_options, str(port)]
        server = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        assert server.stdout is not None
        try:
            log = b""
            while b"listen 127.0.0.1" not in log:
                log += await server.stdout.receive_some()

            async def relay(client: trio.SocketStream) -> None:
                upstream = await trio.open_tcp_stream("127.0.0.1", port)
                async with client, upstream, trio.open_nursery() as pumps:
                    pumps.start_soon(pump, client, upstream, sent)
                    pumps.start_soon(pump, upstream, client, received)

            async with trio.open_nursery() as nursery:
                serve = functools.partial(trio.serve_tcp, relay, 0, host="127.0.0.1")
                (listener,) = await nursery.start(serve)
                address = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
                done = await trio.run_process(
                    ["nghttp", "-v", "-n", "--no-dep", *client_options, *(address + path for path in paths)],
                    capture_stdout=True,
                )
                nursery.cancel_scope.cancel()
        finally:
            server.kill()
            await server.wait()
    return bytes(sent), bytes(received), done.stdout.decode()


def frames(octets: bytes) -> list[tuple[int, int, bytes]]:
    """Type, flags and payload of each frame (RFC 9113 §4.1)."""
    found = []
    octets = octets.removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    while len(octets) >= 9:
        length = int.from_bytes(octets[:3])
        found.append((octets[3], octets[4], octets[9 : 9 + length]))
        octets = octets[9 + length :]
    return found


def table_sizes(octets: bytes) -> list[int]:
    """Each SETTINGS_HEADER_TABLE_SIZE of one side's first SETTINGS frame, in order."""
    payload = next(payload for kind, flags, payload in frames(octets) if kind == SETTINGS and not flags & ACK)
    entries = [payload[place : place + 6] for place in range(0, len(payload), 6)]
    return [
        int.from_bytes(entry[2:])
        for entry in entries
        if int.from_bytes(entry[:2]) == SETTINGS_HEADER_TABLE_SIZE
    ]


def events(octets: bytes, other: bytes, lists: list[list[list[str]]]) -> list[dict[str, object]]:
    """Cut out one direction's header blocks, with their fields, and its acknowledged table sizes."""
    found: list[dict[str, object]] = []
    expected = iter(lists)
    block = b""
    for kind, flags, payload in frames(octets):
        if kind == SETTINGS and flags & ACK:
            found += [{"acknowledges_table_size": size} for size in table_sizes(other)]
            other = b"\0\0\0\4\0\0\0\0\0"
        elif kind in (HEADERS, CONTINUATION):
            if kind == HEADERS:
                padding = payload[0] if flags & PADDED else 0
                payload = payload[bool(flags & PADDED) + 5 * bool(flags & PRIORITY) : len(payload) - padding]
            block += payload
            if flags & END_HEADERS:
                found.append({"block": block.hex(), "fields": next(expected)})
                block = b""
    assert next(expected, None) is None
    return found


def logged(log: str) -> tuple[list[list[list[str]]], list[list[list[str]]]]:
    """The header lists that nghttp's log says it sent, and those that it received."""
    sent: list[list[list[str]]] = []
    received: list[list[list[str]]] = []
    fields: list[list[str]] = []
    for line in log.splitlines():
        if "] send HEADERS frame" in line:
            sent.append([])
        elif field := re.fullmatch(r" {10}(:?[a-z0-9-]+): (.*)", line):
            sent[-1].append(list(field.groups()))
        elif field := re.fullmatch(r".*\] recv \(stream_id=[^)]*\) (:?[a-z0-9-]+): (.*)", line):
            fields.append(list(field.groups()))
        elif "] recv HEADERS frame" in line:
            received.append(fields)
            fields = []
    return sent, received


def main() -> None:
    version = subprocess.run(
        ["nghttp", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    stories = []
    for name, (client_options, paths, server_options) in STORIES.items():
        sent, received, log = trio.run(record, client_options, paths, server_options)
        requests, responses = logged(log)
        options = {"nghttp": client_options, "nghttpd": server_options}
        stories.append({"name": f"{name}: requests", **options, "events": events(sent, received, requests)})
        stories.append({"name": f"{name}: responses", **options, "events": events(received, sent, responses)})
    made = (
        f"{version} and its nghttpd, cleartext on loopback; made by python -m tests.campaigns.record_nghttp2"
    )
    # An event to a line.
    lines = [f'{{"made": {json.dumps(made)}, "stories": [']
    for story in stories:
        head = json.dumps({key: value for key, value in story.items() if key != "events"})
        lines += [f'{head[:-1]}, "events": [', ",\n".join(json.dumps(event) for event in story["events"])]
        lines.append("]}" if story is stories[-1] else "]},")
    DATA.write_text("\n".join([*lines, "]}"]) + "\n")
    blocks = [event for story in stories for event in story["events"] if "block" in event]
    print(f"{DATA.name}: {len(stories)} stories, {len(blocks)} header blocks")


if __name__ == "__main__":
    main()
