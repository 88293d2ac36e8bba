"""Who waits for something to claim is woken by a version: what comes between a claim and the wait counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import trio

from fastpush.gateway.outbox.lanes import NEVER, Memory

__all__ = ["Work"]


@final
class Work:
    """Something to claim, or a retry that falls due, in any lane of a `Memory`."""

    def __init__(self, memory: Memory, clock: Callable[[], float]) -> None:
        self._memory = memory
        self._clock = clock
        self._changed = trio.Event()
        self._version = 1
        self._announced = 0.0  # the due time, in milliseconds, that was told last

    def notify(self) -> None:
        """Something may be claimed that could not be before."""
        self._version += 1
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, seen: int) -> int:
        """Return another version than the one that was seen, as soon as there is one."""
        await trio.lowlevel.checkpoint()
        while self._version == seen:
            now = self._clock() * 1_000
            due = min(
                (
                    lane.next_due
                    for lane in self._memory.lanes.values()
                    if lane.next_due > self._announced and not lane.app.paused
                ),
                default=NEVER,
            )
            with trio.move_on_after(max(0.0, due - now) / 1_000) as waiting:
                await self._changed.wait()
            if waiting.cancelled_caught and self._clock() * 1_000 >= due:
                self._announced = due
                self._version += 1
        return self._version
