"""Pictures of the console: the eight of docs/images, or each page at each width in both schemes.

    python -m tests.gateway.pictures
    python -m tests.gateway.pictures --all /tmp/pictures

The house and what happened in it are made up, by a seed.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
import uuid
from pathlib import Path

import trio

from fastpush.gateway.devices import Registration
from fastpush.gateway.outbox import Audience, Entry
from fastpush.gateway.vitals import DAY, HOUR, Sample
from fastpush.simulator.faults import Answer
from tests.gateway.browsing import chromium
from tests.gateway.console_house import open_house

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
HEIGHTS = {360: 740, 1280: 800, 2560: 1440}
PAGES = {
    "overview": "/",
    "overview-day": "/?span=day",
    "alarms": "/alarms",
    "notifications": "/notifications",
    "fanouts": "/batches",
    "webhooks": "/webhooks",
    "preview": "/webhooks/preview",
    "devices": "/devices",
    "credentials": "/credentials",
    "failures": "/failures",
    "no-such-alarm": "/alarms/none",
    "no-such-page": "/nowhere",
}
KEPT = {  # width, scheme, whether the whole page
    "overview": (1280, "light", True),
    "overview-phone": (360, "dark", False),
    "alarms": (1280, "dark", True),
    "alarm": (1280, "light", True),
    "alarm-phone": (360, "light", False),
    "notification": (1280, "light", True),
    "preview": (1280, "dark", True),
    "credentials": (1280, "light", True),
}
ALARMS = [
    ("fw-edge-02", "Attention", "CPU at 88 % for ten minutes", "Firewall"),
    ("db-07.example.net", "Trouble", "Disk /var is 91 % full", "Server"),
    ("ups-cellar", "Service Down", "On battery, 14 minutes left", "UPS"),
    ("ap-lobby-3", "Attention", "42 clients, 11 of them below -78 dBm", "Access point"),
    ("sw-core-01", "Critical", "Interface Gi0/3 is down: no answer for three polls", "Switch"),
]
ROUGH = [
    (
        "ap-" + "x" * 80,
        "Critical",
        "https://monitor.example.net/" + "segment" * 20 + " and then a long text. " * 12,
        "Switch",
    ),
]


async def live(house, *, rough: bool) -> dict[str, str]:
    """Let happen what an operator sees in a bad night; gives the pages that come of it."""
    chance, outbox = random.Random(7), house.gateway.outbox
    names = {}
    for number, (device, severity, message, category) in enumerate(ALARMS + (ROUGH if rough else [])):
        posted = await house.critical(
            device, message, stringseverity=severity, category=category, alarmid=str(number)
        )
        names[device] = posted["id"]
    await house.settled()
    await house.critical("sw-core-01", "Loses 40 % of its packets", stringseverity="Trouble", alarmid="4")
    await house.critical(
        "fw-edge-02", "CPU at 31 %", stringseverity="Clear", category="Firewall", alarmid="0"
    )
    if rough:
        await house.post(no="field that is known")
    await house.settled()
    alarm = await house.gateway.alarms.get(names["sw-core-01"])
    dead, flaky = (f"{chance.getrandbits(256):064x}" for _ in range(2))
    house.simulator.register(flaky)
    await house.gateway.devices.register(
        "opm", Registration(device_token=dead, tags=("storage",), user="bob")
    )
    body = (
        b'{"aps":{"alert":{"title":"Core switch down","subtitle":"Hall 3","body":"%s"},"sound":"default",'
        b'"badge":3,"interruption-level":"time-sensitive"}}'
    )
    texts = [b"No answer for one poll", b"No answer for three polls. " * 8]
    sent = []
    for text in texts:
        entry = Entry(house.tokens[0], body % text, collapse_id="sw-core-01")
        sent.append(await outbox.accept("opm", [entry], source="ops"))
        await house.settled()
    house.simulator.faults.add(Answer(status=410, reason="Unregistered", device_token=dead))
    refused = await outbox.accept("opm", [Entry(dead, b'{"aps":{"alert":"hello"}}')], source="ops")
    await outbox.accept_fanout("opm", Audience(any_of=("storage",)), Entry(None, b'{"aps":{"alert":"full"}}'))
    await house.settled()
    house.simulator.faults.add(Answer(status=503, reason="ServiceUnavailable", device_token=flaky))
    await outbox.accept("opm", [Entry(flaky, b'{"aps":{"alert":"to be tried again"}}')], source="ops")
    await outbox.pause("opm")
    lost = await outbox.accept("opm", [Entry(house.tokens[1], b'{"aps":{"alert":"purged"}}')] * 3)
    await outbox.purge("opm")
    await outbox.resume("opm")
    await house.gateway.devices.settle()
    draw(house.gateway.vitals, chance)
    push = alarm.verdicts[0][2].push
    passages = await outbox.passages([push], house.tokens[0])
    return {
        "alarm": f"/alarms/{names['sw-core-01']}",
        "rough-alarm": f"/alarms/{names[ROUGH[0][0]]}" if rough else "/alarms",
        "no-alarm-fits": "/alarms?device=nothing",
        "notification": f"/notifications/{id_of(sent[1])}",
        "refused": f"/notifications/{id_of(refused)}",
        "failed": f"/notifications/{id_of(lost)}",
        "batch": f"/batches/{lost.batch}",
        "fanout": f"/batches/{push}?device={house.tokens[0][-4:]}",
        "fanouts-of-device": f"/batches?app=opm&device={house.handle(house.tokens[0])}",
        "counted": f"/notifications/{uuid.UUID(bytes=passages[push].apns_id)}",
        "search": f"/notifications?device={house.tokens[0][-4:]}",
        "search-nothing": "/notifications?device=0123abcd",
        "search-wrong": "/notifications?device=xyz",
        "device": f"/devices/opm/{house.handle(house.tokens[0])}",
        "dead-device": f"/devices/opm/{house.handle(dead)}",
    }


def id_of(accepted) -> str:
    return str(uuid.UUID(bytes=accepted.apns_id(0)))


def draw(vitals, chance: random.Random) -> None:
    """A day of samples, with a restart in it."""
    now = time.time()
    usual = {
        "accepted": 900, "failed": 8, "apns_p50": 0.03, "apns_p99": 0.11, "waiting": 4000, "oldest": 9,
        "in_flight": 700, "stalled": 0.1, "requests": 40, "commit_p99": 0.006, "lag": 0.004,
    }  # fmt: skip
    for ring in (HOUR, DAY):
        step = ring.span / ring.slots
        samples = vitals._samples[ring]
        samples.clear()
        for number in range(ring.slots):
            if 0.3 < number / ring.slots < 0.34:
                continue
            wave = math.sin(number / 30) + 1.2 + chance.random() / 5
            values = {name: value * wave for name, value in usual.items()}
            at = now - (ring.slots - number) * step
            samples.append(Sample(at=at, **values, streams=2000.0, connections=2.0))


def take(house, folder: Path, pages: dict[str, str], shots: list[tuple[str, int, str, bool]]) -> None:
    """Pictures of some pages: name, width, scheme, whether the whole page."""
    with chromium() as browser:
        ticket = house.gateway.sessions.ticket(house.key_ids["alice"])
        first = browser.new_context()
        first.new_page().goto(f"{house.console}/login?ticket={ticket}")
        state = first.storage_state()
        for name, width, scheme, whole in shots:
            known = None if name.startswith("login") else state
            context = browser.new_context(
                viewport={"width": width, "height": HEIGHTS[width]},
                color_scheme=scheme,
                storage_state=known,
                timezone_id="Europe/Zurich",
            )
            page = context.new_page()
            page.goto(house.console + pages.get(name.removesuffix("-phone"), "/login"))
            if name == "login-wrong":
                page.get_by_label("Key of scope").fill("wrong")
                page.get_by_role("button", name="Log in").click()
            elif name == "preview-result":
                page.goto(f"{house.console}/webhooks/preview")
                page.get_by_role("button", name="Preview").click()
            elif name == "device-code":
                page.goto(f"{house.console}/devices")
                page.get_by_role("button", name="one-time code").click()
            elif name == "doctor":
                page.goto(f"{house.console}/credentials")
                page.get_by_role("button", name="Examine").first.click()
            page.wait_for_load_state()
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                print(f"{name} at {width} is {wide} wide")
            page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=whole)
            context.close()


async def _house(folder: Path, *, empty: bool, days: int, rough: bool, work) -> None:
    async with open_house(folder, days=days, phones=0 if empty else 3) as house:
        pages = dict(PAGES)
        if not empty:
            await house.browser()  # for the addresses of devices
            pages |= await live(house, rough=rough)
        await trio.to_thread.run_sync(work, house, pages)


def kept(house, pages: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shots = [(name, width, scheme, whole) for name, (width, scheme, whole) in KEPT.items()]
        take(house, Path(folder), pages, shots)
        for name, width, scheme, _ in shots:
            (Path(folder) / f"{name}-{width}-{scheme}.png").rename(Path(folder) / f"console-{name}.png")
            (IMAGES / f"console-{name}.png").write_bytes((Path(folder) / f"console-{name}.png").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, metavar="DIR", help="each page, into this directory")
    parser.add_argument("--only", nargs="*", default=[], help="names of pages")
    parser.add_argument("--widths", nargs="*", type=int, default=list(HEIGHTS))
    parser.add_argument("--schemes", nargs="*", default=["light", "dark"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.all is None:
            trio.run(lambda: _house(Path(folder), empty=False, days=9, rough=False, work=kept))
            return
        extra = ["login", "login-wrong", "preview-result", "device-code", "doctor"]

        def everything(kind: str):
            def work(house, pages: dict[str, str]) -> None:
                (arguments.all / kind).mkdir(parents=True, exist_ok=True)
                shots = [
                    (name, width, scheme, True)
                    for name in [*pages, *extra]
                    for width in arguments.widths
                    for scheme in arguments.schemes
                    if not arguments.only or name in arguments.only
                ]
                take(house, arguments.all / kind, pages, shots)

            return work

        for kind, days in (("data", 9), ("empty", 200)):
            place = Path(folder) / kind
            place.mkdir()
            trio.run(
                lambda place=place, kind=kind, days=days: _house(
                    place, empty=kind == "empty", days=days, rough=True, work=everything(kind)
                )
            )


if __name__ == "__main__":
    main()
