"""What takes the requests of the ingest benchmark, in a process of its own.

python -m benchmarks.servers.ingest_server '{"kind": "gateway", "directory": …}'

Prints one line of JSON when it listens. Each line that it reads is answered with its counts. It ends with its
input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import trio

from benchmarks import data

APP = "opmanager"


async def main() -> None:
    job = json.loads(sys.argv[1])
    async with trio.open_nursery() as nursery:
        address, key, counts = await KINDS[job["kind"]](job, nursery)
        print(json.dumps({"address": address, "key": key}), flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(json.dumps(counts()), flush=True)
        nursery.cancel_scope.cancel()


async def gateway(job: dict[str, Any], nursery: trio.Nursery) -> tuple[str, str, Any]:
    """The whole gateway. Without a simulator it is paused: what it accepts stays where it is."""
    from fastpush.gateway.config.sections import (
        AdminSettings,
        AppSettings,
        Config,
        CredentialSettings,
        IngestSettings,
        StorageSettings,
        TLSSettings,
    )
    from fastpush.gateway.serve import Service

    simulator = job.get("simulator") or {"host": "127.0.0.1", "port": 9, "ca_file": None}
    if simulator["ca_file"] is not None:
        simulator["ca_file"] = Path(simulator["ca_file"])
    app = AppSettings(
        name=APP,
        topic=data.TOPIC,
        credential=CredentialSettings(
            key_file=Path(job["key_file"]), key_id=data.KEY_ID, team_id=data.TEAM_ID
        ),
        max_waiting=10_000_000,
        **simulator,
    )
    tls = (
        TLSSettings(certificate_file=Path(job["certificate"]), key_file=Path(job["certificate"]))
        if job["tls"]
        else None
    )
    config = Config(
        apps={APP: app},
        ingest=IngestSettings(listen=("127.0.0.1:0",), tls=tls, max_connections_per_address=1_024),
        admin=AdminSettings(listen=("127.0.0.1:0",)),
        storage=StorageSettings(
            path=Path(job["directory"]) / "gateway.db", low_water_mib=0, low_water_percent=0
        ),
    )
    started = await nursery.start(Service(config).run)
    _, key = await started.gateway.keys.create("benchmark", ("notify",), None, None)
    outbox = started.gateway.outbox
    if not job.get("simulator"):
        await outbox.pause(APP)

    def counts() -> dict[str, int]:
        waiting = outbox.waiting().get(APP)
        accepted = started.gateway.counters.notifications[APP]
        return {"accepted": accepted, "waiting": 0 if waiting is None else waiting.count}

    return started.ingest[0], key, counts


async def hypercorn(job: dict[str, Any], nursery: trio.Nursery) -> tuple[str, str, Any]:
    """Stock hypercorn, whose application reads the body and answers 202."""
    import hypercorn.trio
    from hypercorn.config import Config

    from benchmarks.servers import free_port

    port = free_port()
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = config.errorlog = None
    config.keep_alive_max_requests = 10**9  # as it comes, it leaves requests unanswered (its own issue 241)
    if job["tls"]:
        config.certfile = config.keyfile = job["certificate"]
    requests = 0

    async def read_and_answer(scope: Any, receive: Any, send: Any) -> None:
        nonlocal requests
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        while (await receive()).get("more_body"):
            pass
        requests += 1
        head = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 202, "headers": head})
        await send({"type": "http.response.body", "body": b"{}"})

    addresses = await nursery.start(hypercorn.trio.serve, read_and_answer, config)
    assert addresses
    scheme = "https" if job["tls"] else "http"
    return f"{scheme}://127.0.0.1:{port}", "none", lambda: {"accepted": requests, "waiting": 0}


KINDS = {"gateway": gateway, "hypercorn": hypercorn}

if __name__ == "__main__":
    trio.run(main)
