"""The clock of stories overtakes no thread, and every story has it."""

import re
import threading
from functools import partial
from pathlib import Path

import trio
import trio.testing

from fastpush.gateway.storage import open_storage
from tests.clocks import story_clock

TESTS = Path(__file__).resolve().parent


async def test_it_stands_still_while_a_thread_works_for_a_task():
    clock, done = story_clock(), threading.Event()
    async with trio.open_nursery() as nursery:
        limiter = trio.CapacityLimiter(1)
        nursery.start_soon(partial(trio.to_thread.run_sync, done.wait, limiter=limiter))
        await trio.testing.wait_all_tasks_blocked()
        before = clock.current_time()
        clock.jump(1.0)
        assert clock.current_time() == before
        done.set()
    clock.jump(1.0)
    assert clock.current_time() == before + 1.0


async def test_it_stands_still_while_a_storage_writes(tmp_path):
    clock, done = story_clock(), threading.Event()
    async with open_storage(tmp_path / "gateway.db") as storage, trio.open_nursery() as nursery:
        clock.holds.append(lambda: storage.pending_rows > 0)
        nursery.start_soon(storage.write, lambda _connection: done.wait())
        await trio.testing.wait_all_tasks_blocked()
        before = clock.current_time()
        clock.jump(1.0)
        assert clock.current_time() == before
        done.set()
    clock.jump(1.0)
    assert clock.current_time() == before + 1.0


def test_no_other_clock_jumps_by_itself():
    """Those of trio and pytest-trio overtake threads."""
    others = re.compile(r"\b(autojump_clock|MockClock)\b")
    found = [
        str(path.relative_to(TESTS))
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in ("clocks.py", Path(__file__).name) and others.search(path.read_text())
    ]
    assert not found, "take tests.clocks.story_clock instead"
