"""What the provider token costs: out of the cache, as for all pushes but one in half an hour, and signed."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import data, measure
from benchmarks.provider_token import SigningKeyFile
from benchmarks.reporting import Table

HITS = 100_000  # to one run
MISSES = 50
FIRST_SLOT = 1_800_000_000  # seconds since 1970; a multiple of half an hour


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=20, help="of which the lowest counts (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the key (default 1)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from fastpush.credentials import SLOT_SECONDS, SigningKey

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        key_file = SigningKeyFile(directory / "AuthKey.p8", arguments.seed)
        key = SigningKey.from_file(
            key_file.path, key_id=data.KEY_ID, team_id=data.TEAM_ID, token_cache_dir=directory
        )
        slot = FIRST_SLOT

        def hit() -> None:
            authorization, now = key.authorization, float(FIRST_SLOT)
            for _ in range(HITS):
                authorization(now)

        def miss() -> None:
            nonlocal slot
            for _ in range(MISSES):
                slot += SLOT_SECONDS
                key.authorization(float(slot))

        def every_time() -> None:
            for _ in range(MISSES):
                key_file.provider_token()

        cases: tuple[tuple[str, Callable[[], None], int], ...] = (
            ("cache hit: the slot of the last push", hit, HITS),
            ("cache miss: the first push of a slot", miss, MISSES),
            ("signed each time by cryptography, without a cache", every_time, MISSES),
        )
        figures = []
        for title, work, count in cases:
            key.authorization(float(FIRST_SLOT))
            lowest = min(seconds(work) for _ in range(arguments.runs))
            figures.append({"case": title, "nanoseconds": 1e9 * lowest / count})
    return {"benchmark": "sign", "conditions": measure.conditions(), "figures": figures}


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table(result: dict[str, Any]) -> Table:
    rows = Table("sign: lowest of many runs", ("provider token", "ns each"))
    for one in result["figures"]:
        rows.add(one["case"], f"{one['nanoseconds']:,.0f}")
    return rows
