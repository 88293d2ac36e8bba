"""How long the console's pages take, with a million outcomes stored: from the request to the whole page.

The application is asked in the same process, without a server or a browser in between. The outcomes are
those of one app, eight sources and fifty thousand device tokens, all registered; one in twenty was not
accepted. Beside them are a thousand fan-outs to all of these devices, of which a hundred each were refused.
"""

from __future__ import annotations

import argparse
import random
import secrets
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio

from benchmarks import measure
from benchmarks.reporting import Table, say

TOPIC = "com.example.opmanager"
CONFIG = """
[ingest]
listen = ["127.0.0.1:0"]
[admin]
listen = ["127.0.0.1:0"]
[storage]
path = "gateway.db"
history_mib = 8192
max_file_mib = 16384
[apps.opm]
topic = "{topic}"
host = "127.0.0.1"
port = {port}
ca_file = "authorities.pem"
[apps.opm.credential]
certificate_file = "provider.p12"
"""
APP = "archive"  # which nobody dispatches: the benchmark itself says how its notifications ended
AT_ONCE = 10_000
REASONS = ("BadDeviceToken", "Unregistered", "PayloadTooLarge", "TooManyRequests", "ServiceUnavailable")
ALARMS = 2_000
DEVICES, FANOUTS, REFUSED = 50_000, 1_000, 100
INDEXED_WITHIN = 300.0  # seconds after the last was accepted
ASKED = {"page": 200.0, "search": 500.0}  # milliseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--outcomes", type=int, default=1_000_000, help="stored before (default 1,000,000)")
    parser.add_argument("--runs", type=int, default=15, help="of each page (default 15)")
    parser.add_argument("--seed", type=int, default=1, help="of what is stored (default 1)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return trio.run(_run, Path(folder), arguments)


async def _run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from fastpush.gateway.app import admin_app
    from fastpush.gateway.config import load_config
    from fastpush.gateway.serve import Service
    from fastpush.simulator import open_simulator

    async with open_simulator(topics=[TOPIC]) as simulator, trio.open_nursery() as nursery:
        certificate = simulator.authority.issue_provider_certificate(
            TOPIC, not_after=datetime.now(UTC) + timedelta(days=200)
        )
        (folder / "provider.p12").write_bytes(certificate.to_pkcs12(None))
        (folder / "provider.p12").chmod(0o600)
        (folder / "authorities.pem").write_bytes(simulator.ca_pem)
        (folder / "fastpush.toml").write_text(CONFIG.format(topic=TOPIC, port=simulator.port))
        service = Service(load_config(folder / "fastpush.toml", {}))
        gateway = (await nursery.start(service.run)).gateway
        chance = random.Random(arguments.seed)
        known = await fill(gateway, arguments.outcomes, chance)
        alarm = await raise_alarms(gateway)
        made = await gateway.keys.create("benchmark", ["admin"])
        cookie, _ = await gateway.sessions.begin(made.key_id)
        ask = asker(admin_app(gateway), cookie)
        figures = []
        for title, kind, path in pages(known, alarm):
            seconds = []
            for _ in range(arguments.runs):
                began = time.perf_counter()
                status = await ask(path)
                seconds.append(time.perf_counter() - began)
                if status != 200:
                    raise SystemExit(f"{path} was answered with {status}")
            seconds.sort()
            figures.append(
                {
                    "page": title,
                    "kind": kind,
                    "median_ms": 1e3 * seconds[len(seconds) // 2],
                    "worst_ms": 1e3 * seconds[-1],
                    "asked_ms": ASKED[kind],
                }
            )
        service.stop()
    return {
        "benchmark": "console",
        "conditions": measure.conditions(),
        "outcomes": arguments.outcomes,
        "figures": figures,
    }


async def fill(gateway: Any, count: int, chance: random.Random) -> dict[str, str]:
    """Accept so many notifications and let them end; gives marks of one of them."""
    from fastpush.gateway.outbox import End, Entry

    devices = [f"{chance.getrandbits(256):064x}" for _ in range(DEVICES)]
    await register(gateway, devices)
    payload = b'{"aps":{"alert":{"title":"Critical: sw-core-01","body":"No answer for three polls"}}}'
    known: dict[str, str] = {}
    done = 0
    while done < count:
        entries = [Entry(chance.choice(devices), payload) for _ in range(min(AT_ONCE, count - done))]
        accepted = await gateway.outbox.accept(APP, entries, source=f"opm-{chance.randrange(8)}")
        claims = await gateway.outbox.claim(APP, len(entries))
        now = time.time()
        ends = []
        for claim in claims:
            if chance.random() < 0.05:
                reason = chance.choice(REASONS)
                outcome = "failed" if reason == "ServiceUnavailable" else "rejected"
                ends.append(End(claim.batch, claim.index, outcome, now, 400, reason))  # type: ignore[arg-type]
            else:
                ends.append(End(claim.batch, claim.index, "accepted", now, 200))
        await gateway.outbox.settle(ends)
        done += len(entries)
        apns_id = accepted.apns_id(0).hex()
        known = {"apns_id": apns_id, "device": str(entries[0].device_token), "batch": str(accepted.batch)}
        if done % 200_000 == 0:
            say(f"{done:,} stored")
    known["fanout"] = last = await fan_out(gateway, devices, chance)
    say("waiting for the index")
    with trio.fail_after(INDEXED_WITHIN):
        await gateway.outbox.wait_for_index(int(last))
    return known


async def register(gateway: Any, devices: list[str]) -> None:
    from fastpush.gateway.devices import Registration

    batch = gateway.devices.open_batch(APP)
    for device_token in devices:
        batch.add(Registration(device_token=device_token, tags=("network",)))
    await batch.write()


async def fan_out(gateway: Any, devices: list[str], chance: random.Random) -> str:
    """Accept fan-outs to all devices, which were walked to their end; gives the id of the last."""
    from fastpush.gateway.outbox import Audience, End, Entry

    audience = Audience(any_of=("network",))
    for _ in range(FANOUTS):
        accepted = await gateway.outbox.accept_fanout(APP, audience, Entry(None, b'{"aps":{"alert":"down"}}'))
        now = time.time()
        ends = [
            End(accepted.batch, -1, "rejected", now, 410, "Unregistered", 1, device_token)
            for device_token in chance.sample(devices, REFUSED)
        ]
        await gateway.outbox.settle_page(
            accepted.batch, "ff" * 32, accepted=DEVICES - REFUSED, ends=ends, retries=[], last=True
        )
    return str(accepted.batch)


async def raise_alarms(gateway: Any) -> str:
    from fastpush.gateway.sources import Event

    for number in range(ALARMS):
        recorded = await gateway.alarms.record(
            Event(
                source="opm", device=f"sw-{number % 500}", entity=f"e{number}", severity="critical",
                message="down", raw='{"entity": "e"}',
            )
        )  # fmt: skip
    return str(recorded.id)


def asker(app: Any, cookie: str) -> Any:
    """A function that asks for a page as a browser that is logged in, and gives the status."""

    async def ask(path: str) -> int:
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.4", "version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"127.0.0.1"), (b"cookie", f"fastpush={cookie}".encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
            "extensions": {},
        }
        answers: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            answers.append(message)

        await app(scope, receive, send)
        return int(answers[0]["status"])

    return ask


def pages(known: dict[str, str], alarm: str) -> list[tuple[str, str, str]]:
    """Title, kind and path of what is asked for."""
    missing = secrets.token_hex(4)
    return [
        ("overview", "page", "/"),
        ("overview, 24 h", "page", "/?span=day"),
        ("alarms", "page", "/alarms"),
        ("one alarm", "page", f"/alarms/{alarm}"),
        ("notifications", "page", "/notifications"),
        ("one notification", "page", f"/notifications/{known['apns_id']}"),
        ("one batch", "page", f"/batches/{known['batch']}"),
        ("fan-outs", "page", "/batches"),
        ("one fan-out, for a device", "page", f"/batches/{known['fanout']}?device={known['device'][-8:]}"),
        ("webhooks", "page", "/webhooks"),
        ("preview", "page", "/webhooks/preview"),
        ("devices", "page", "/devices"),
        ("credentials", "page", "/credentials"),
        ("dead letters", "page", "/failures"),
        ("by device", "search", f"/notifications?device={known['device'][-8:]}"),
        ("by device, and its fan-outs", "search", f"/notifications?device={known['device'][-8:]}&app={APP}"),
        ("by a device that is not there", "search", f"/notifications?device={missing}"),
        ("by part of an apns-id", "search", f"/notifications?id={known['apns_id'][:12]}"),
        ("by reason", "search", "/notifications?reason=PayloadTooLarge"),
        ("by outcome and source", "search", "/notifications?outcome=failed&source=opm-3"),
        ("by a reason that never was", "search", "/notifications?reason=BadTopic"),
        ("by time", "search", "/notifications?before=2026-01-01T00:00"),
    ]


def table(result: dict[str, Any]) -> Table:
    rows = Table(
        f"console: pages with {result['outcomes']:,} outcomes stored",
        ("page", "median ms", "worst ms", "asked"),
    )
    for one in result["figures"]:
        title = one["page"] if one["kind"] == "page" else f"search {one['page']}"
        asked = f"{'holds' if one['worst_ms'] <= one['asked_ms'] else 'MISSES'} {one['asked_ms']:.0f}"
        rows.add(title, f"{one['median_ms']:.1f}", f"{one['worst_ms']:.1f}", asked)
    return rows
