"""What it costs to come from an alarm to its JSON: fastpush's values, beside orjson, msgspec and json.

On fastpush's side the `Alert` and `Payload` are made, checked and encoded; on the others' the dictionaries
are built, and encoded. The results are compared first. Every figure is the lowest of many short runs, and
the ratio the median over pairs of runs, one after the other.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from benchmarks import counted, measure
from benchmarks.reporting import Table

BATCH = 1_000  # payloads to one run
LONG_TEXT = "No answer from any of the routers in hall 2. " * 88  # some 4 KB
TEXT = "A text of the alert"
TITLE, BODY = "核心交换机故障", "Über 40 °C im Serverraum, Lüfter steht 🚨"
PAIR = ("fastpush", "orjson")
WRITERS = ("fastpush", "orjson", "msgspec", "json")


class Case(NamedTuple):
    title: str
    dictionary: Callable[[int, str], dict[str, Any]]
    """Builds the dictionary of the payload with this number and text."""
    payload: Callable[[int, str], Any]
    """Makes the same `Payload`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=300, help=f"of {BATCH:,} payloads each (default 300)")


def cases() -> list[Case]:
    from fastpush import Alert, Payload

    def full_dictionary(index: int, text: str) -> dict[str, Any]:
        return {
            "aps": {
                "alert": {
                    "title": TEXT,
                    "subtitle": TEXT,
                    "body": TEXT,
                    "launch-image": TEXT,
                    "title-loc-key": TEXT,
                    "title-loc-args": ["one", "two"],
                    "subtitle-loc-key": TEXT,
                    "subtitle-loc-args": ["one", "two"],
                    "loc-key": TEXT,
                    "loc-args": ["one", "two"],
                    "action-loc-key": TEXT,
                    "summary-arg": TEXT,
                    "summary-arg-count": 3,
                }
            }
        }

    def full_payload(index: int, text: str) -> Payload:
        return Payload(
            alert=Alert(
                title=TEXT,
                subtitle=TEXT,
                body=TEXT,
                launch_image=TEXT,
                title_loc_key=TEXT,
                title_loc_args=["one", "two"],
                subtitle_loc_key=TEXT,
                subtitle_loc_args=["one", "two"],
                loc_key=TEXT,
                loc_args=["one", "two"],
                action_loc_key=TEXT,
                summary_arg=TEXT,
                summary_arg_count=3,
            )
        )

    return [
        Case("alarm of OpManager, 8 custom keys", counted.alarm_dictionary, counted.alarm_maker()),
        Case("alert with every key", full_dictionary, full_payload),
        Case(
            "text of 4 KB",
            lambda index, text: {"aps": {"alert": {"body": LONG_TEXT}}},
            lambda index, text: Payload(alert=Alert(body=LONG_TEXT)),
        ),
        Case(
            "text beyond ASCII",
            lambda index, text: {"aps": {"alert": {"title": TITLE, "body": BODY}}},
            lambda index, text: Payload(alert=Alert(title=TITLE, body=BODY)),
        ),
    ]


def encoders() -> dict[str, Callable[[Any], bytes]]:
    """By name, what writes a dictionary as JSON without blanks."""
    import orjson

    found: dict[str, Callable[[Any], bytes]] = {"orjson": orjson.dumps}
    if find_spec("msgspec") is not None:
        import msgspec

        found["msgspec"] = msgspec.json.Encoder().encode
    compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    found["json"] = lambda value: compact(value).encode()
    return found


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cores = measure.Cores.of_this_machine()
    affinity = os.sched_getaffinity(0) if cores.client is not None else None
    if cores.client is not None:
        os.sched_setaffinity(0, {cores.client})
    gc.disable()
    try:
        figures = [figure(case, arguments.runs) for case in cases()]
    finally:
        gc.enable()
        if affinity is not None:
            os.sched_setaffinity(0, affinity)
    return {"benchmark": "encode", "conditions": measure.conditions(), "figures": figures}


def figure(case: Case, runs: int) -> dict[str, Any]:
    others = encoders()
    texts = [counted.alarm_message(index) for index in range(BATCH)]
    whole = case.payload(7, texts[7]).encode()
    for name, encode in others.items():
        if encode(case.dictionary(7, texts[7])) != whole:
            raise RuntimeError(f"{case.title}: {name} writes something else than fastpush")

    def of_values() -> None:
        make = case.payload
        for index, text in enumerate(texts):
            make(index, text).encode()

    def of_dictionaries(encode: Callable[[Any], bytes]) -> Callable[[], None]:
        def run() -> None:
            build = case.dictionary
            for index, text in enumerate(texts):
                encode(build(index, text))

        return run

    works = {"fastpush": of_values} | {name: of_dictionaries(encode) for name, encode in others.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    # The pair that is compared alone, so that nothing else comes between; then those that only have a figure.
    rest = [name for name in works if name not in PAIR]
    for names, times in ((PAIR, runs), (rest, max(runs // 5, 1))):
        for _ in range(times):
            for name in names:
                begun = time.perf_counter()
                works[name]()
                seconds[name].append(time.perf_counter() - begun)
    pairs = zip(seconds["fastpush"], seconds["orjson"], strict=True)
    return {
        "case": case.title,
        "octets": len(whole),
        "nanoseconds": {name: 1e9 * min(taken) / BATCH for name, taken in seconds.items()},
        "to_orjson": statistics.median(ours / theirs for ours, theirs in pairs),
    }


def table(result: dict[str, Any]) -> Table:
    rows = Table(
        "encode: ns from an alarm to its JSON; values or dictionaries made anew each time",
        ("payload", "octets", *WRITERS, "fastpush / orjson"),
    )
    for one in result["figures"]:
        each = one["nanoseconds"]
        rows.add(
            one["case"],
            f"{one['octets']:,}",
            *(f"{each[name]:,.0f}" if name in each else "" for name in WRITERS),
            f"{one['to_orjson']:.2f}",
        )
    if not all("msgspec" in one["nanoseconds"] for one in result["figures"]):
        rows.note("not run, msgspec: pip install msgspec")
    return rows
