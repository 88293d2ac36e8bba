"""hypercorn on trio: answers 200 with the request's apns-id once the body is read; last, prints its count.

python asgi_server.py HOST PORT CERTIFICATE_WITH_KEY
"""

import json
import signal
import sys
from typing import Any

import hypercorn
import hypercorn.trio
import trio

paths: set[str] = set()
answered = 0
body_octets = 0


async def app(scope: Any, receive: Any, send: Any) -> None:
    global answered, body_octets
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        body_octets += len(message["body"])
        more = message["more_body"]
    answered += 1
    paths.add(scope["path"])
    headers = [field for field in scope["headers"] if field[0] == b"apns-id"]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def main() -> None:
    host, port, pem = sys.argv[1:]
    config = hypercorn.Config()
    config.bind = [f"{host}:{port}"]
    config.certfile = config.keyfile = pem
    # Its default. With 1,000 its priority tree (package priority, at most 1,000 streams) overflows, since
    # streams leave it late, and the exception ends the whole process.
    config.h2_max_concurrent_streams = 100
    # At this count hypercorn 0.18 sends GOAWAY and then drops requests it had taken; 1,000 is its default.
    config.keep_alive_max_requests = 10**9
    config.graceful_timeout = 1.0
    config.errorlog = None
    ended = trio.Event()

    async def wait_for_signal(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                ended.set()
                return

    async with trio.open_nursery() as nursery:
        await nursery.start(wait_for_signal)
        await hypercorn.trio.serve(app, config, shutdown_trigger=ended.wait)
        nursery.cancel_scope.cancel()
    print(
        json.dumps({"answered": answered, "device_tokens": len(paths), "body_octets": body_octets}),
        flush=True,
    )


trio.run(main)
