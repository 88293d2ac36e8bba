"""Which device tokens APNs' answers prove dead, and when the fault is rather ours.

A device token that is refused leaves the registry. But a wrong credential, topic or environment of ours makes
APNs refuse every one of them, and would empty it. So an app's last 200 answers are looked at as well: if
more than a fifth of them is BadDeviceToken, DeviceTokenNotForTopic or a 403, and more than ten, the app's
*breaker* opens: nothing is deleted, and the dispatch pauses until somebody has cured the cause.

What may be our fault is not believed at once: these verdicts wait until 200 more answers have come, or a
minute has gone by, and the breaker did not open. A 410 is about the device token alone and is believed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, final

import trio

from fastpush.gateway.devices.values import Verdict
from fastpush.gateway.log import get_logger

__all__ = ["Judge"]

logger = get_logger("fastpush.gateway.devices")

WINDOW = 200
"""Answers."""
SHARE, AT_LEAST = 0.2, 10
CLOSES_AT = 0.1
BELIEVED_AFTER = 60.0  # seconds
MOST = 100_000
"""Verdicts in memory. What is too much is forgotten: the next push finds these device tokens again."""

OURS_PERHAPS = frozenset(("BadDeviceToken", "DeviceTokenNotForTopic"))
DEAD = frozenset(("Unregistered", "ExpiredToken"))


class _App:
    """The answers of one app."""

    __slots__ = ("answers", "bad", "closed", "doubtful", "last_reason", "open", "seen")

    def __init__(self) -> None:
        self.answers: deque[bool] = deque(maxlen=WINDOW)  # True is one that may be our fault
        self.bad = 0
        self.seen = 0
        self.doubtful: deque[tuple[int, float, Verdict]] = deque()  # with `seen` and the time when it came
        self.open: str | None = None
        self.closed = trio.Event()  # of this opening
        self.last_reason = ""

    def add(self, bad: bool) -> None:
        if len(self.answers) == WINDOW:
            self.bad -= self.answers[0]
        self.answers.append(bad)
        self.bad += bad
        self.seen += 1

    def close(self) -> None:
        self.open = None
        self.closed.set()

    def add_good(self, count: int) -> None:
        self.seen += count
        if not self.bad or count >= WINDOW:
            self.answers.extend(repeat(False, min(count, WINDOW)))
            self.bad = 0
            return
        self.seen -= count
        for _ in range(count):
            self.add(False)


@final
class Judge:
    """Takes answers, gives verdicts to be written. Waits only in `wait` and `closed`; `now` is trio's."""

    def __init__(self) -> None:
        self._apps: dict[str, _App] = {}
        self._due: deque[tuple[str, Verdict]] = deque()
        self._count = 0
        self._changed = trio.Event()
        self.forgotten = 0

    def report(
        self, name: str, verdicts: Sequence[Verdict | tuple[Any, ...]], accepted: int, now: float
    ) -> None:
        app = self._apps.get(name)
        if app is None:
            app = self._apps[name] = _App()
        if accepted:
            app.add_good(accepted)
        before = self._count
        for found in verdicts:
            verdict = found if type(found) is Verdict else Verdict(*found)
            bad = verdict.reason in OURS_PERHAPS or verdict.status == 403
            app.add(bad)
            if bad:
                app.last_reason = verdict.reason
                self._look(name, app)
            if app.open is not None or self._count >= MOST:
                self.forgotten += app.open is None
            elif verdict.reason in OURS_PERHAPS:
                app.doubtful.append((app.seen, now, verdict))
                self._count += 1
            elif verdict.status == 410 or verdict.reason in DEAD:
                self._due.append((name, verdict))
                self._count += 1
        if app.open is not None and app.bad <= CLOSES_AT * len(app.answers) and len(app.answers) == WINDOW:
            logger.warning("APNs accepts again; devices are judged as before", app=name)
            app.close()
        if self._count > before or app.doubtful:
            self._changed.set()

    def _look(self, name: str, app: _App) -> None:
        if app.open is None and app.bad > max(AT_LEAST, SHARE * len(app.answers)):
            app.open = (
                f"{app.bad} of the last {len(app.answers)} answers of APNs were BadDeviceToken,"
                f" DeviceTokenNotForTopic or 403, the last one {app.last_reason or '403'}: is it the right"
                " topic, credential and environment? No device is deleted"
            )
            app.closed = trio.Event()
            self._count -= len(app.doubtful)
            app.doubtful.clear()
            kept = [due for due in self._due if due[0] != name]
            self._count -= len(self._due) - len(kept)
            self._due = deque(kept)
            logger.error("the breaker of an app's devices has opened", app=name, reason=app.open)

    def breaker(self, name: str) -> str | None:
        app = self._apps.get(name)
        return app.open if app is not None else None

    def close_breaker(self, name: str) -> None:
        app = self._apps.get(name)
        if app is not None:
            app.answers.clear()
            app.bad = 0
            app.close()

    async def closed(self, name: str) -> None:
        """Return when the breaker of an app is closed."""
        await trio.lowlevel.checkpoint()
        while (app := self._apps.get(name)) is not None and app.open is not None:
            await app.closed.wait()

    async def wait(self) -> None:
        """Return when `take` has something to give."""
        while True:
            self._changed = trio.Event()
            wait_for = self._ripe_after(trio.current_time())
            if self._due or wait_for <= 0:
                return
            with trio.move_on_after(wait_for):
                await self._changed.wait()

    def _ripe_after(self, now: float) -> float:
        """Seconds until the first doubtful verdict is believed."""
        first = float("inf")
        for app in self._apps.values():
            if app.doubtful:
                seen, came_at, _ = app.doubtful[0]
                if app.seen - seen >= WINDOW:
                    return 0.0
                first = min(first, came_at + BELIEVED_AFTER - now)
        return first

    def take(self, limit: int, now: float) -> list[tuple[str, Verdict]]:
        """At most so many verdicts that are believed."""
        for name, app in self._apps.items():
            while app.doubtful:
                seen, came_at, verdict = app.doubtful[0]
                if app.seen - seen < WINDOW and now - came_at < BELIEVED_AFTER:
                    break
                app.doubtful.popleft()
                self._due.append((name, verdict))
        taken = [self._due.popleft() for _ in range(min(limit, len(self._due)))]
        self._count -= len(taken)
        return taken

    def give_back(self, verdicts: Iterable[tuple[str, Verdict]]) -> None:
        """Those that could not be written."""
        before = len(self._due)
        self._due.extend(verdicts)
        self._count += len(self._due) - before
