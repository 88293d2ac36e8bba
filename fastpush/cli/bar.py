"""The progress bar; apart, because importing rich takes as long as sending a thousand notifications."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["open_bar"]

_EVERY = 0.1  # seconds between two updates


class Bar:
    """Moves with the octets read; says how many notifications have ended, how fast, and the time left."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._began = time.monotonic()
        self._next = 0.0

    def show(self, ended: int, octets: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY
            rate = ended / max(now - self._began, 0.001)
            self._progress.update(self._task, completed=octets, ended=f"{ended:,}", rate=f"{rate:,.0f}/s")


@contextlib.contextmanager
def open_bar(stream: TextIO, total_octets: int | None) -> Iterator[Bar]:
    """Draw on a terminal until the block ends; without a total there is no time left to show."""
    columns = [BarColumn(), TextColumn("{task.fields[ended]} done"), TextColumn("{task.fields[rate]}")]
    left = [] if total_octets is None else [TimeRemainingColumn()]
    with Progress(*columns, *left, console=Console(file=stream), transient=True) as progress:
        yield Bar(progress, progress.add_task("sending", total=total_octets, ended="0", rate=""))
