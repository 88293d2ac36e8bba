"""What the demo shows, scene by scene. Each is a function of the stage and prints by itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import orjson
import trio

from fastpush.gateway.demo.phone import Shown
from fastpush.gateway.demo.sender import Sender
from fastpush.gateway.demo.stage import DAYS_LEFT, DemoFailed, Stage, is_of, notice_of
from fastpush.simulator import Answer as Answered
from fastpush.simulator import Delivery

__all__ = ["SCENES", "closing", "draw_all", "opening"]

OUTAGE = 3.0  # seconds
MANY = 1_000
CONNECTIONS = 8
DELIVERED_WITHIN = 30.0
SECOND_COPY = 0.2  # seconds in which a copy that must not come would; its absence has no event

DEVICE = "core-sw-01"
MANY_DEVICES = "access-sw-"


def body(severity: str, message: str, device: str = DEVICE) -> bytes:
    """An alarm as OpManager sends it: its variables are pasted into the template without any escape.

    A line end in a message then stands literally within a text of the JSON, which is no JSON any more.
    """
    return (
        f'{{"displayName":"{device}","entity":"{device}_Poll","category":"Switch",'
        f'"stringseverity":"{severity}","message":"{message}"}}'
    ).encode()


POSTS: Sequence[tuple[str, bytes]] = (
    ("Attention", body("Attention", "CPU at 87 %")),
    ("Critical", body("Critical", "No answer to 5 polls")),
    (
        "Critical again, a raw line end in its message: no valid JSON",
        body("Critical", "No answer for 3 minutes\nuplink ge-0/0/1 is down"),
    ),
    ("Clear", body("Clear", "Answers again")),
)


def opening(stage: Stage) -> None:
    """Where it is, and the line to try."""
    say = stage.say
    say("Console (this link logs in, once, within ten minutes):")
    say(stage.console)
    say("")
    say("Post an alarm as OpManager does, from another terminal:")
    say(f"curl {stage.url} \\")
    say(f"  -H X-Api-Key:{stage.key} \\")
    say('  -d \'{"displayName":"edge-fw-02","stringseverity":"Trouble","message":"61 C"}\'')
    say("")
    say("Simulated: APNs (its rules and TLS are real, on this machine) and the phone.")
    say("Real: the gateway, `fastpush serve` in a process of its own, with a database")
    say(f"in {stage.folder}.")


async def one_alarm(stage: Stage) -> None:
    """An alarm's life: four posts for one device, a second apart, and the banner after each."""
    say = stage.say
    say("")
    say(f"One alarm of {DEVICE}, four posts of OpManager, as the phone shows them:")
    started = trio.current_time()
    for number, (name, post) in enumerate(POSTS):
        await trio.sleep_until(started + number)
        answer = await stage.sender.post("/v1/opmanager", post)
        if answer.status != 200 or "push" not in answer.body:
            raise DemoFailed(f"the webhook was answered with {answer.status}: {answer.body}")
        stage.alarms += 1
        shown = await stage.next_push(DEVICE)
        known_at = await _outcome(stage, answer.body["push"])
        stage.accepted += 1
        say("")
        say(f"  POST {name}")
        draw(stage, shown)
        since = [f"{(at - answer.asked_at) * 1_000:.1f}"
                 for at in (answer.answered_at, shown.delivery.at, known_at)]  # fmt: skip
        on_disk, sent, done = since
        apns_id = str(shown.delivery.apns_id)
        say(f"  webhook 0 ms · on disk {on_disk} · sent {sent} · APNs 200 {done} · apns-id …{apns_id[-8:]}")


async def _outcome(stage: Stage, push: str, within: float = 5.0) -> float:
    """Wait until the gateway has APNs' answer on record, and return the time."""
    with trio.move_on_after(within):
        while True:
            answer = await stage.watcher.get(f"/v1/batches/{push}")
            if answer.status == 200 and answer.body["outcomes"].get("accepted"):
                return answer.answered_at
            await trio.sleep(
                0.001
            )  # as exact as what is printed; the gateway has no answer that waits for it
    raise DemoFailed(f"the gateway has no outcome of the push {push} after {within:g} s")


def draw(stage: Stage, shown: Shown) -> None:
    """Print a banner."""
    for line in shown.lines():
        stage.say(f"  {line}")
    stage.say("  replaces the previous one" if shown.replaces else "  a new banner")


async def the_promise(stage: Stage) -> None:
    """What is accepted is delivered, once: APNs is down while a thousand alarms come in."""
    say, phone = stage.say, stage.phone
    arrived: Counter[str] = Counter()
    complete = trio.Event()

    def count(delivery: Delivery) -> None:
        if notice_of(delivery) is not None or not is_of(delivery, MANY_DEVICES):
            stage.ring(delivery)  # the watchdog's, or an alarm of the reader's own: drawn later
            return
        phone.take(delivery)
        arrived[orjson.loads(delivery.payload)["opm"]["id"]] += 1
        if len(arrived) >= MANY:
            complete.set()

    say("")
    say(f"Now APNs answers 503 for {OUTAGE:g} s, while {MANY:,} alarms come in:")
    outage = Answered(status=503, reason="ServiceUnavailable")
    stage.simulator.faults.add(outage)
    stage.simulator.on_delivery(phone.device_token, count)
    ids: set[str] = set()
    accepted = lost = doubled = 0
    cpu, started = stage.cpu_seconds(), trio.current_time()
    try:
        await _post_many(stage, ids)
        posted = trio.current_time() - started
        say(f"  {posted:4.1f} s  {len(ids):,} accepted, all on disk; waiting {len(ids) - len(arrived):,}")
        await trio.sleep_until(started + OUTAGE)
        stage.simulator.faults.remove(outage)
        say(f"  {trio.current_time() - started:4.1f} s  APNs is back; waiting {len(ids) - len(arrived):,}")
        with trio.move_on_after(DELIVERED_WITHIN):
            await complete.wait()
            await trio.sleep(SECOND_COPY)
        lost = len(ids) - sum(arrived[name] > 0 for name in ids)
    finally:
        stage.simulator.faults.clear()
        stage.simulator.on_delivery(phone.device_token, stage.ring)
        accepted = sum(arrived[name] > 0 for name in ids)
        doubled = sum(count - 1 for count in arrived.values())
        stage.alarms += len(ids)
        stage.accepted += accepted
        stage.lost += lost
        stage.doubled += doubled
    after = f"{trio.current_time() - started:4.1f} s"
    say(f"  {after}  {accepted:,} accepted by APNs, {lost} lost, {doubled} doubled (simulator's count)")
    used = stage.cpu_seconds()
    if cpu is not None and used is not None:
        each = (used - cpu) / len(ids) * 1_000
        say(f"          CPU of the gateway {each:.2f} ms each, from webhook to recorded outcome")


async def _post_many(stage: Stage, ids: set[str]) -> None:
    """Post alarms of as many devices, and note the ids of those that were accepted."""
    numbers = iter(range(MANY))

    async def post() -> None:
        async with Sender(stage.ingest_port, stage.key) as sender:
            for number in numbers:
                alarm = body("Critical", "No answer to 5 polls", f"{MANY_DEVICES}{number:04}")
                answer = await sender.post("/v1/opmanager", alarm)
                if answer.status != 200:
                    raise DemoFailed(f"the webhook was answered with {answer.status}: {answer.body}")
                ids.add(answer.body["id"])

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(post)


async def the_warning(stage: Stage) -> None:
    """The certificate has nine days left: who is told, and the line that cures it without a restart."""
    say = stage.say
    shown = await stage.next_notice()
    notices = await stage.watcher.get("/v1/notices")
    title = notices.body["notices"][0]["title"]
    say("")
    say(f"The certificate of this demo has {DAYS_LEFT} days left; the watchdog has told the phone:")
    draw(stage, shown)
    say(f"  GET /v1/notices: {title}")
    say("Renew it from another terminal; nothing needs a restart:")
    say(f"  cp {stage.folder}/renewed.pem \\")
    say(f"     {stage.folder}/push.pem")


def closing(stage: Stage) -> None:
    """What to do next."""
    say = stage.say
    say("")
    say("Next: post alarms with the curl above and see them here, or begin for yourself:")
    say("  cp fastpush.example.toml fastpush.toml   # your key, your app, your routes")
    say("  fastpush serve --config fastpush.toml")
    say("Ctrl-C ends the demo.")


async def draw_all(stage: Stage) -> None:
    """Draw what else reaches the phone, such as alarms of the reader's own; until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_draw_notices, stage)
        while True:
            shown = await stage.next_push(within=math.inf)
            stage.alarms += 1
            stage.accepted += 1
            stage.say("")
            draw(stage, shown)


async def _draw_notices(stage: Stage) -> None:
    """Draw what the watchdog says, such as that the certificate was renewed."""
    while True:
        shown = await stage.next_notice(within=math.inf)
        stage.say("")
        draw(stage, shown)
        if (notice_of(shown.delivery) or {}).get("state") != "withdrawn":
            continue
        notices = await stage.watcher.get("/v1/notices")
        left = "warning withdrawn" if not notices.body["notices"] else "another warning stands"
        stage.say(f"  renewed, {stage.lost} pushes lost, {left}")


SCENES: Sequence[Callable[[Stage], Awaitable[None]]] = (one_alarm, the_promise, the_warning)
