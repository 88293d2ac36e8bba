"""The program whose instructions `benchmarks/instructions.py` counts; it runs under callgrind, never by hand.

    python counted.py TREE

`fastpush` is imported from TREE, all else from the checkout that this file is in, so that two states of the
library are counted by the same program. It prints the name and length of each counted stretch, in order.
Every stretch stands between two calls of `getppid`, at which callgrind writes what it has counted since.

Each case runs at two lengths, after a warm-up. The difference of their counts is the cost of the pushes
alone: what the stretch itself costs, loops and lists set up included, is in both.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHORT = 200
LONG = 1_000  # as many streams as a connection has
LENGTHS = (LONG, SHORT, LONG)
"""The first is the warm-up, and not counted."""

counted: list[tuple[str, int]] = []


@contextmanager
def stretch(name: str, pushes: int, *, warm_up: bool = False) -> Iterator[None]:
    if warm_up:
        yield
        return
    os.getppid()
    yield
    os.getppid()
    counted.append((name, pushes))


def count(name: str, work: Callable[[int], object]) -> None:
    """Count a case that takes the number of pushes and needs nothing made for each run."""
    for run, pushes in enumerate(LENGTHS):
        with stretch(name, pushes, warm_up=run == 0):
            work(pushes)


def alarm_message(index: int) -> str:
    return (
        f"Device core-sw-{index:06d} is down: no answer to 5 ICMP requests since 14:07; last seen on port 48"
    )


def alarm_dictionary(index: int, message: str) -> dict[str, Any]:
    """An alarm of OpManager as the gateway sends it, for a JSON library: every key, and custom keys."""
    return {
        "aps": {
            "alert": {"title": "Critical: core-sw-01", "subtitle": "Switch, device down", "body": message},
            "badge": 7,
            "sound": "opm_critical.caf",
            "thread-id": "opm1/core-sw-01",
            "category": "OPM_ALARM_OPEN",
            "mutable-content": 1,
            "target-content-id": "alarm/4092",
            "interruption-level": "time-sensitive",
            "relevance-score": 1.0,
        },
        "opm": {
            "v": 1,
            "src": "opm1",
            "alarmid": "4092",
            "entity": "core-sw-01_Poll",
            "sev": 1,
            "state": "open",
            "ts": 1709902027793 + index,
            "url": "/alarm/4092",
        },
    }


def alarm_maker() -> Callable[[int, str], Any]:
    """What makes the same as a `Payload`."""
    from fastpush import Alert, Payload

    def alarm_payload(index: int, message: str) -> Payload:
        return Payload(
            alert=Alert(title="Critical: core-sw-01", subtitle="Switch, device down", body=message),
            badge=7,
            sound="opm_critical.caf",
            thread_id="opm1/core-sw-01",
            category="OPM_ALARM_OPEN",
            mutable_content=True,
            target_content_id="alarm/4092",
            interruption_level="time-sensitive",
            relevance_score=1.0,
            data={
                "opm": {
                    "v": 1,
                    "src": "opm1",
                    "alarmid": "4092",
                    "entity": "core-sw-01_Poll",
                    "sev": 1,
                    "state": "open",
                    "ts": 1709902027793 + index,
                    "url": "/alarm/4092",
                }
            },
        )

    return alarm_payload


def count_values() -> None:
    """Objects made and checked. A payload is in `encode`: its JSON is written when it is made."""
    from benchmarks import data
    from fastpush import Alert, Notification, Payload

    texts = [data.alert_body(index) for index in range(LONG)]
    tokens = list(data.device_tokens(1, LONG))
    alert = Alert(title=data.TITLE, body=texts[0])
    payload = Payload(alert=alert, sound=data.SOUND, thread_id=data.THREAD_ID)
    payload.encode()

    def alerts(pushes: int) -> None:
        for text in texts[:pushes]:
            Alert(title=data.TITLE, body=text)

    def notifications(pushes: int) -> None:
        for token in tokens[:pushes]:
            Notification(
                token, payload, push_type=data.PUSH_TYPE, priority=data.PRIORITY, expiration=data.EXPIRATION
            )

    count("values/alert", alerts)
    count("values/notification", notifications)


def count_encode() -> None:
    """Payloads made from a ready alert, and their JSON; in `alarm-whole` the alert is made too."""
    import orjson

    from benchmarks import data
    from fastpush import Alert, Payload

    alarm_payload = alarm_maker()
    messages = [alarm_message(index) for index in range(LONG)]
    usual_alerts = [Alert(title=data.TITLE, body=data.alert_body(index)) for index in range(LONG)]
    alarm_alerts = [
        Alert(title="Critical: core-sw-01", subtitle="Switch, device down", body=message)
        for message in messages
    ]
    custom = {"opm": alarm_dictionary(0, "")["opm"]}
    every_text = (
        *("title", "subtitle", "body", "launch_image", "title_loc_key", "subtitle_loc_key", "loc_key"),
        *("action_loc_key", "summary_arg"),
    )
    every_list = ("title_loc_args", "subtitle_loc_args", "loc_args")
    whole_alert = Alert(
        **dict.fromkeys(every_text, "A text of the alert"),  # type: ignore[arg-type]
        **{name: ["one", "two"] for name in every_list},  # type: ignore[arg-type]
        summary_arg_count=3,
    )

    def usual(pushes: int) -> None:
        for alert in usual_alerts[:pushes]:
            Payload(alert=alert, sound=data.SOUND, thread_id=data.THREAD_ID).encode()

    def alarm(pushes: int) -> None:
        for alert in alarm_alerts[:pushes]:
            Payload(
                alert=alert,
                badge=7,
                sound="opm_critical.caf",
                thread_id="opm1/core-sw-01",
                category="OPM_ALARM_OPEN",
                mutable_content=True,
                target_content_id="alarm/4092",
                interruption_level="time-sensitive",
                relevance_score=1.0,
                data=custom,
            ).encode()

    def of(alert: Any) -> Callable[[int], None]:
        def run(pushes: int) -> None:
            for _ in range(pushes):
                Payload(alert=alert).encode()

        return run

    count("encode/usual", usual)
    count("encode/alarm", alarm)
    count("encode/full-alert", of(whole_alert))
    count("encode/4-KB", of(Alert(body="No answer from any of the routers in hall 2. " * 88)))
    count(
        "encode/non-ASCII",
        of(Alert(title="核心交换机故障", body="Über 40 °C im Serverraum, Lüfter steht 🚨")),
    )

    def whole(pushes: int) -> None:
        for index, message in enumerate(messages[:pushes]):
            alarm_payload(index, message).encode()

    def by_orjson(pushes: int) -> None:
        for index, message in enumerate(messages[:pushes]):
            orjson.dumps(alarm_dictionary(index, message))

    assert alarm_payload(5, "x").encode() == orjson.dumps(alarm_dictionary(5, "x"))
    count("encode/alarm-whole", whole)
    count("yardstick/alarm-by-orjson", by_orjson)


SETTINGS = bytes.fromhex("00000c0400000000000003000003e800040000ffff")
"""SETTINGS (RFC 9113 §6.5): 1,000 streams, a window of 65,535 octets to each."""
SETTINGS_ACKNOWLEDGED = bytes.fromhex("000000040100000000")
WINDOW_UPDATE = bytes.fromhex("00000408000000000040000000")
"""One GiB more for the connection (§6.9)."""
APNS_ID = b"123e4567-e89b-12d3-a456-4266554400a0"


def open_engine() -> Any:
    from fastpush.http2 import CompiledEngine

    engine = CompiledEngine()
    engine.initiate(0.0)
    engine.receive_data(SETTINGS + SETTINGS_ACKNOWLEDGED + WINDOW_UPDATE, 0.0)
    engine.data_to_send()
    return engine


def answers(first_stream_id: int, pushes: int) -> bytes:
    """HEADERS with END_STREAM for each: `:status: 200` and an apns-id, in literals (RFC 7541 §6.2.2)."""
    block = b"\x88" + b"\x00\x07apns-id" + bytes([len(APNS_ID)]) + APNS_ID
    start = len(block).to_bytes(3, "big") + b"\x01\x05"
    stream_ids = range(first_stream_id, first_stream_id + 2 * pushes, 2)
    return b"".join(start + stream_id.to_bytes(4, "big") + block for stream_id in stream_ids)


def count_engine() -> None:
    """Requests written and taken; answers read and made events."""
    from benchmarks import data

    engine = open_engine()
    template = engine.template(
        [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.push.apple.com")],
        b"/3/device/",
        [
            (b"authorization", b"bearer " + b"x" * 190),
            (b"apns-topic", data.TOPIC.encode()),
            (b"apns-push-type", data.PUSH_TYPE.encode()),
            (b"apns-priority", str(data.PRIORITY).encode()),
        ],
        [b"apns-id", b"apns-expiration"],
    )
    paths = [token.encode() for token in data.device_tokens(1, LONG)]
    bodies = [data.body(index) for index in range(LONG)]
    values = [APNS_ID, str(data.EXPIRATION).encode()]
    next_stream_id = 1
    for run, pushes in enumerate(LENGTHS):
        with stretch("engine/request", pushes, warm_up=run == 0):
            for path, body in zip(paths[:pushes], bodies[:pushes], strict=True):
                engine.send_request(template, path, values, body, None, 0.0)
            engine.data_to_send()
        octets = answers(next_stream_id, pushes)
        next_stream_id += 2 * pushes
        with stretch("engine/answer", pushes, warm_up=run == 0):
            events = engine.receive_data(octets, 0.0)
        assert [event.status for event in events] == [200] * pushes
        engine.data_to_send()


def count_connection() -> None:
    """The compiled half of a connection: from notifications to octets, and back to responses; no socket."""
    from benchmarks import data
    from fastpush import Notification
    from fastpush._connection import Collector, Exchange, pull

    os.urandom = random.Random(7).randbytes  # apns-ids are drawn from it
    engine = open_engine()
    exchange = Exchange(engine, b"api.push.apple.com", lambda topic, push_type: data.TOPIC)
    exchange.authorize(b"bearer " + b"x" * 190)
    alarm_payload = alarm_maker()
    payloads = [alarm_payload(index, alarm_message(index)) for index in range(LONG)]
    notifications = [
        Notification(token, payload, priority=data.PRIORITY, expiration=data.EXPIRATION)
        for token, payload in zip(data.device_tokens(1, LONG), payloads, strict=True)
    ]
    next_stream_id = 1
    for run, pushes in enumerate(LENGTHS):
        queue: deque[Any] = deque()
        collector = Collector()
        source = iter(notifications[:pushes])
        with stretch("connection/request", pushes, warm_up=run == 0):
            pull(source, queue, collector, pushes, 0.0, float("inf"))
            opened = exchange.submit(queue, pushes, 0.0, 0.0, {}, [], [])
            engine.data_to_send()
        assert opened == pushes
        octets = answers(next_stream_id, pushes)
        next_stream_id += 2 * pushes
        with stretch("connection/answer", pushes, warm_up=run == 0):
            rest = exchange.settle(engine.receive_data(octets, 0.0), 0.0)
            responses = collector.take()
        assert not rest
        assert len(responses) == pushes
        engine.data_to_send()


def main(tree: Path) -> None:
    sys.path[:0] = [str(tree), str(Path(__file__).resolve().parent.parent)]
    import fastpush

    if Path(fastpush.__file__).resolve().parent.parent != tree.resolve():
        sys.exit(f"fastpush was imported from {fastpush.__file__}, not from {tree}")
    gc.disable()
    failed = {}
    for part in (count_values, count_encode, count_engine, count_connection):
        try:
            part()
        except (ImportError, AttributeError, TypeError) as error:
            # An older state of the library may not have a part yet, or have it in another shape.
            failed[part.__name__.removeprefix("count_")] = f"{type(error).__name__}: {error}"
    os.getppid()
    print(json.dumps({"stretches": counted, "failed": failed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
