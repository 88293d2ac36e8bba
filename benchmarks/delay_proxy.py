"""A longer way on loopback: a TCP proxy that delivers every octet a fixed time after it came, both ways.

It delays and does not throttle: what comes together leaves together. It opens its own connection when the
client's has been open for one delay, as a distant server would be reached; half of the round trip is spent in
either direction. The kernel's timers round a wait up by as much as a millisecond.

    python -m benchmarks.delay_proxy PORT SERVER_PORT ROUND_TRIP_SECONDS
"""

from __future__ import annotations

import sys
from collections import deque

import trio

AT_ONCE = 256 * 1024
MOST_UNDER_WAY = 256 * 1024 * 1024  # octets in one direction; beyond it the sender's TCP waits


class Delay:
    """Octets in one direction, each with the time at which it is due."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._under_way: deque[tuple[float, bytes]] = deque()  # b"": the end
        self._octets = 0
        self._changed = trio.Event()

    def add(self, octets: bytes) -> None:
        """Take octets that came just now; b"" for the end."""
        self._under_way.append((trio.current_time() + self._seconds, octets))
        self._octets += len(octets)
        self._wake()

    async def next(self) -> bytes:
        """Wait for the next that are due, and return all that are; b"" is the end."""
        while not self._under_way:
            await self._changed.wait()
        await trio.sleep_until(self._under_way[0][0])
        now = trio.current_time()
        due: list[bytes] = []
        while self._under_way and self._under_way[0][0] <= now:
            if not self._under_way[0][1]:
                if due:  # the end waits for its own turn
                    break
                return b""
            due.append(self._under_way.popleft()[1])
        octets = b"".join(due)
        self._octets -= len(octets)
        self._wake()
        return octets

    async def room(self) -> None:
        """Wait while too much is under way."""
        while self._octets >= MOST_UNDER_WAY:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


async def forward(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream, seconds: float) -> None:
    """Carry one direction to its end; a broken end ends both."""
    delay = Delay(seconds)

    async def take() -> None:
        while True:
            await delay.room()
            octets = bytes(await source.receive_some(AT_ONCE))
            delay.add(octets)
            if not octets:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        while octets := await delay.next():
            await sink.send_all(octets)
        await sink.send_eof()


async def carry(client: trio.SocketStream, host: str, port: int, round_trip: float) -> None:
    """Serve one connection."""
    async with client:
        await trio.sleep(round_trip / 2)
        async with await trio.open_tcp_stream(host, port) as server:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(forward, client, server, round_trip / 2)
                    nursery.start_soon(forward, server, client, round_trip / 2)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass


async def serve(port: int, server_port: int, round_trip: float, host: str = "127.0.0.1") -> None:
    """Listen until cancelled."""

    async def one(client: trio.SocketStream) -> None:
        await carry(client, host, server_port, round_trip)

    await trio.serve_tcp(one, port, host=host)


if __name__ == "__main__":
    trio.run(serve, int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
