"""Outcomes on their way to disk: gathered for a moment, written in few calls, then told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import msgspec
import trio

from fastpush.gateway.log import get_logger
from fastpush.gateway.outbox import Claimed, End, Fanout, Outbox, Retry
from fastpush.gateway.storage import StorageFull, StorageUnknown

__all__ = ["Outcomes", "Settler"]

logger = get_logger("fastpush.gateway.dispatcher")

GATHER_FOR = 0.02  # seconds at most from an outcome to the call that writes it, while the disk keeps up
ENOUGH = 1_000  # outcomes for which nothing more is gathered
REPEAT_AFTER = 0.25  # seconds, where the disk failed


class Outcomes(msgspec.Struct, frozen=True, gc=False):
    """What is on disk now about notifications of one app.

    Attributes:
      claims: the notification of each of `ends`, then of each of `retries`; of a fan-out's page empty.
      fanout: the fan-out, where it is a page of one; its `ends` are those not accepted, and few others.
      accepted: devices of the page that APNs accepted, those among `ends` left out.
      answered: the ends of these, where the page is a small one.
    """

    app: str
    ends: Sequence[End]
    retries: Sequence[Retry] = ()
    claims: Sequence[Claimed] = ()
    fanout: Fanout | None = None
    accepted: int = 0
    answered: Sequence[End] = ()


@final
class Gathered:
    """Of one app."""

    __slots__ = ("claims", "done", "ends", "parked", "retries")

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.claims: list[Claimed] = []
        self.retries: list[Retry] = []
        self.parked: list[Claimed] = []
        self.done: list[Callable[[], None]] = []


@final
class Settler:
    """Writes what the apps hand over, and tells the listeners when it is on disk.

    Args:
      written: called when all of what was gathered is on disk, and told.

    Attributes:
      listeners: called with `Outcomes`; they must return at once. What they raise is logged.
    """

    def __init__(self, outbox: Outbox, written: Callable[[], object]) -> None:
        self._outbox = outbox
        self._written = written
        self._gathered: dict[str, Gathered] = {}
        self._count = 0
        self._some = trio.Event()
        self._enough = trio.Event()
        self._hurry = False
        self._writing = False
        self.listeners: list[Callable[[Outcomes], object]] = []

    @property
    def busy(self) -> bool:
        """Whether something is not on disk yet."""
        return self._writing or bool(self._gathered)

    def add(
        self,
        app: str,
        ends: Sequence[End],
        claims: Sequence[Claimed],
        retries: Sequence[Retry],
        parked: Sequence[Claimed],
        done: Callable[[], None],
    ) -> None:
        """Take over ends and retries, each with its claim; `done` is called when they are on disk."""
        gathered = self._gathered.get(app)
        if gathered is None:
            gathered = self._gathered[app] = Gathered()
        gathered.ends += ends
        gathered.claims += claims
        gathered.retries += retries
        gathered.parked += parked
        gathered.done.append(done)
        self._count += len(ends) + len(retries)
        self._some.set()
        if self._count >= ENOUGH:
            self._enough.set()

    async def run(self) -> None:
        """Write, until cancelled."""
        while True:
            await self._some.wait()
            if not self._hurry:
                with trio.move_on_after(GATHER_FOR):
                    await self._enough.wait()
            gathered, self._gathered = self._gathered, {}
            self._writing = True
            self._count = 0
            self._some, self._enough = trio.Event(), trio.Event()
            ends = [end for each in gathered.values() for end in each.ends]
            retries = [retry for each in gathered.values() for retry in each.retries]
            await self.insist(lambda: self._outbox.settle(ends, retries))  # noqa: B023
            for app, each in gathered.items():
                self.tell(Outcomes(app, each.ends, each.retries, each.claims + each.parked))
                for done in each.done:
                    done()
            self._writing = False
            self._written()

    def hurry(self) -> None:
        """Gather no longer: the end is near."""
        self._hurry = True
        self._enough.set()

    async def insist(self, write: Callable[[], object]) -> None:
        """Write until the disk takes it; the storage gives up by itself when it fails too often."""
        while True:
            try:
                await write()  # type: ignore[misc]
                return
            except (StorageFull, StorageUnknown) as error:
                logger.warning("outcomes wait for the disk", error=str(error))
                await trio.sleep(REPEAT_AFTER)

    def tell(self, outcomes: Outcomes) -> None:
        for listener in self.listeners:
            try:
                listener(outcomes)
            except Exception as error:
                # Not its message: that of a KeyError may be a device token.
                logger.error("a listener failed on outcomes", app=outcomes.app, error=type(error).__name__)
