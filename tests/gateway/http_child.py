"""The server in a process of its own: `python -m tests.gateway.http_child [CERTIFICATE KEY]`.

Prints its port, ends at SIGTERM, and prints its counters before it ends.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import trio

from fastpush.gateway.http import ServerTLS, open_listener, serve
from tests.gateway.http_peers import Application


async def main(files):
    listener = open_listener("127.0.0.1:0", tls=ServerTLS(*files) if files else None)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:

        async def terminated():
            await anext(aiter(signals))

        async with trio.open_nursery() as nursery:

            async def run(task_status):
                await serve(
                    Application(),
                    [listener],
                    graceful_timeout=3,
                    shutdown_trigger=terminated,
                    task_status=task_status,
                )

            server = await nursery.start(run)
            print(listener.port, flush=True)
    print(json.dumps(server.statistics.refused), flush=True)


class Child:
    """The process, seen from a test."""

    def __init__(self, process, port):
        self.process, self.port = process, port

    async def end(self, within):
        """SIGTERM; the exit status, and seconds until it came."""
        began = trio.current_time()
        self.process.send_signal(signal.SIGTERM)
        with trio.fail_after(within):
            status = await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        return status, trio.current_time() - began

    def resident(self):
        """Octets of memory."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


@asynccontextmanager
async def child(*files):
    command = [sys.executable, "-W", "error", "-m", "tests.gateway.http_child", *map(str, files)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    try:
        with trio.fail_after(20):
            port = int(await trio.to_thread.run_sync(process.stdout.readline))
        yield Child(process, port)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
