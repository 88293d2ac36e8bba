"""The parts of a push without sockets: values, payload to JSON, and the HTTP/2 engine; nanoseconds each.

Every figure is the lowest of many short runs on one processor: noise only ever adds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import data, measure
from benchmarks.reporting import Table

BATCH = 1_000  # pushes to one run


class Case(NamedTuple):
    """A function that handles the pushes `first` to `first + BATCH`; called with a new `first` each time."""

    group: str
    title: str
    run: Callable[[int], float]
    """Returns the seconds that the measured part of it took."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=200, help=f"of {BATCH:,} pushes; the lowest counts")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cores = measure.Cores.of_this_machine()
    affinity = os.sched_getaffinity(0) if cores.client is not None else None
    if cores.client is not None:
        os.sched_setaffinity(0, {cores.client})
    figures = []
    gc.disable()
    try:
        for case in [*value_cases(), *engine_cases()]:
            # A slow case needs fewer runs for a steady minimum.
            runs = arguments.runs if case.run(0) < 0.02 else max(arguments.runs // 10, 5)
            lowest = min(case.run(number * BATCH) for number in range(1, runs + 1))
            figures.append({"group": case.group, "case": case.title, "nanoseconds": 1e9 * lowest / BATCH})
            gc.collect()
    finally:
        gc.enable()
        if affinity is not None:
            os.sched_setaffinity(0, affinity)
    return {"benchmark": "micro", "conditions": measure.conditions(), "figures": figures}


def table(result: dict[str, Any]) -> Table:
    rows = Table(f"micro: lowest of many runs of {BATCH:,}", ("part", "ns each", "a second"))
    group = ""
    for one in result["figures"]:
        if one["group"] != group:
            group = one["group"]
            rows.add(group, "", "")
        rows.add("  " + one["case"], f"{one['nanoseconds']:,.0f}", f"{1e9 / one['nanoseconds']:,.0f}")
    return rows


def timed(work: Callable[[int], object]) -> Callable[[int], float]:
    def run(first: int) -> float:
        start = time.perf_counter()
        work(first)
        return time.perf_counter() - start

    return run


# Values and JSON: the payload of the benchmarks, 220 octets.


def value_cases() -> list[Case]:
    import orjson

    from fastpush import Alert, Notification, Payload

    tokens = list(data.device_tokens(1, BATCH))
    texts = [data.alert_body(index) for index in range(BATCH)]
    alerts = [Alert(title=data.TITLE, body=text) for text in texts]
    payloads = [Payload(alert=alert, sound=data.SOUND, thread_id=data.THREAD_ID) for alert in alerts]
    dictionaries = [data.content(index) for index in range(BATCH)]

    def make_alerts(first: int) -> None:
        for text in texts:
            Alert(title=data.TITLE, body=text)

    def make_payloads(first: int) -> None:
        for alert in alerts:
            Payload(alert=alert, sound=data.SOUND, thread_id=data.THREAD_ID)

    def make_notifications(first: int) -> None:
        for token, payload in zip(tokens, payloads, strict=True):
            Notification(
                token,
                payload,
                push_type=data.PUSH_TYPE,
                priority=data.PRIORITY,
                expiration=data.EXPIRATION,
            )

    def make_all(first: int) -> None:
        for token, text in zip(tokens, texts, strict=True):
            Notification(
                token,
                Payload(
                    alert=Alert(title=data.TITLE, body=text),
                    sound=data.SOUND,
                    thread_id=data.THREAD_ID,
                ),
                push_type=data.PUSH_TYPE,
                priority=data.PRIORITY,
                expiration=data.EXPIRATION,
            )

    def build(text: str) -> dict[str, Any]:
        return {
            "aps": {
                "alert": {"title": data.TITLE, "body": text},
                "sound": data.SOUND,
                "thread-id": data.THREAD_ID,
            }
        }

    def orjson_with_dictionary(first: int) -> None:
        for text in texts:
            orjson.dumps(build(text))

    def orjson_alone(first: int) -> None:
        for dictionary in dictionaries:
            orjson.dumps(dictionary)

    def json_with_dictionary(first: int) -> None:
        for text in texts:
            json.dumps(build(text), separators=(",", ":")).encode()

    group = "values and JSON"
    return [
        Case(group, "Alert", timed(make_alerts)),
        Case(group, "Payload, checked and encoded", timed(make_payloads)),
        Case(group, "Notification, checked", timed(make_notifications)),
        Case(group, "Alert + Payload + Notification", timed(make_all)),
        Case(group, "orjson.dumps of the same, its dictionaries built", timed(orjson_with_dictionary)),
        Case(group, "orjson.dumps of ready dictionaries", timed(orjson_alone)),
        Case(group, "json.dumps of the same, its dictionaries built", timed(json_with_dictionary)),
    ]


# The engine: a thousand requests, their octets taken; a thousand answers fed.

SETTINGS = bytes.fromhex("00000c 04 00 00000000 0003 000003e8 0004 0000ffff".replace(" ", ""))
"""SETTINGS (RFC 9113 §6.5): 1,000 streams, a window of 65,535 octets to each."""
SETTINGS_ACKNOWLEDGED = bytes.fromhex("000000040100000000")
WINDOW_UPDATE = bytes.fromhex("00000408000000000040000000")
"""One GiB more for the connection (§6.9)."""
APNS_ID = b"123e4567-e89b-12d3-a456-4266554400a0"


def answers(stream_ids: list[int]) -> bytes:
    """HEADERS with END_STREAM for each: `:status: 200` and an apns-id, in literals (RFC 7541 §6.2.2)."""
    block = b"\x88" + b"\x00\x07apns-id" + bytes([len(APNS_ID)]) + APNS_ID
    start = len(block).to_bytes(3, "big") + b"\x01\x05"
    return b"".join(start + stream_id.to_bytes(4, "big") + block for stream_id in stream_ids)


def engine_cases() -> list[Case]:
    from fastpush.http2 import CompiledEngine
    from fastpush.http2.reference import ReferenceEngine

    cases = []
    for title, engine in (("compiled", CompiledEngine), ("h2", ReferenceEngine)):
        group = f"engine, {title}"
        bench = EngineBench(engine)
        cases.append(Case(group, "request: HEADERS and DATA, octets taken", bench.requests))
        cases.append(Case(group, "answer, fed 16 KiB at a time", bench.answers_in_records))
        cases.append(Case(group, "answer, all fed at once", bench.answers_at_once))
    return cases


class EngineBench:
    """One connection that goes on from run to run, as a real one does."""

    def __init__(self, engine: Callable[[], Any]) -> None:
        self._engine = engine()
        self._engine.initiate(0.0)
        self._engine.data_to_send()
        self._engine.receive_data(SETTINGS + SETTINGS_ACKNOWLEDGED + WINDOW_UPDATE, 0.0)
        self._engine.data_to_send()
        self._template = self._engine.template(
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
        self._paths = [token.encode() for token in data.device_tokens(1, BATCH)]
        self._bodies = [data.body(index) for index in range(BATCH)]
        self._values = [APNS_ID, str(data.EXPIRATION).encode()]

    def requests(self, first: int) -> float:
        return self._round(1 << 20)[0]

    def answers_in_records(self, first: int) -> float:
        return self._round(16_384)[1]

    def answers_at_once(self, first: int) -> float:
        return self._round(1 << 20)[1]

    def _round(self, piece_octets: int) -> tuple[float, float]:
        """Open a thousand streams and answer all of them; the seconds of either half."""
        engine, template, values = self._engine, self._template, self._values
        if engine.send_window < BATCH * data.BODY_OCTETS:
            engine.receive_data(WINDOW_UPDATE, 0.0)
        begun = time.perf_counter()
        stream_ids = [
            engine.send_request(template, path, values, body, None, 0.0)
            for path, body in zip(self._paths, self._bodies, strict=True)
        ]
        written = engine.data_to_send()
        requests = time.perf_counter() - begun
        assert len(written) > BATCH * data.BODY_OCTETS
        octets = answers(stream_ids)
        pieces = [octets[place : place + piece_octets] for place in range(0, len(octets), piece_octets)]
        begun = time.perf_counter()
        events = [event for piece in pieces for event in engine.receive_data(piece, 0.0)]
        answered = time.perf_counter() - begun
        assert len(events) == BATCH
        assert all(event.status == 200 for event in events)
        engine.data_to_send()
        return requests, answered
