"""Who may have how many notifications in memory: deficit round robin among apps. Without I/O.

A slot is held from the claim of a notification until its end is on disk, so slots bound the memory, and a
slow disk or a slow APNs is felt by the claims. Three rules share them out:

- Each app may hold at most its own limit. A quarter of all slots is divided among the apps: so many each of
  them may always have, however long the others keep theirs.
- The last tenth, of the whole and of each app's, is for high priority.
- Who waits gets slots in turns of a quantum each, high priority before the rest: deficit round robin
  (Shreedhar and Varghese, "Efficient fair queueing using deficit round robin"). Every notification costs one
  slot, so a turn leaves no deficit; who came to nothing for lack of slots is the first of the next round.
"""

from __future__ import annotations

from collections import deque
from typing import final

import trio

__all__ = ["HIGH_SHARE", "Flow", "Share", "Slots"]

QUANTUM = 256
HIGH_SHARE = 0.1
GUARANTEED_SHARE = 0.25


@final
class Share:
    """What one app holds."""

    __slots__ = ("held", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0


@final
class Flow:
    """One kind of traffic of one app, served in the order in which it asks."""

    __slots__ = ("_event", "_granted", "_wanted", "high", "share", "slots")

    def __init__(self, slots: Slots, share: Share, *, high: bool) -> None:
        self.slots = slots
        self.share = share
        self.high = high
        self._wanted = 0
        self._granted = 0
        self._event: trio.Event | None = None

    async def acquire(self, most: int) -> int:
        """Wait for 1 to `most` slots and return how many they are. One task at a time."""
        if self._event is not None:
            raise trio.BusyResourceError("another task waits for slots of this flow")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._event, self._wanted, self._granted = trio.Event(), most, 0
        self.slots._wait(self)
        try:
            await self._event.wait()
        except trio.Cancelled:
            self.slots._forget(self)
            self.release(self._granted)
            raise
        finally:
            self._event = None
        return self._granted

    def release(self, count: int) -> None:
        """Give slots back."""
        self.share.held -= count
        self.slots._released(count)


@final
class Slots:
    """All slots, and the turns of those who wait for some."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.held = 0
        self._shares: list[Share] = []
        self._high: deque[Flow] = deque()
        self._normal: deque[Flow] = deque()

    def add(self, most: int) -> Share:
        """Make room for an app that may hold `most`."""
        share = Share(min(most, self.total))
        self._shares.append(share)
        return share

    def flow(self, share: Share, *, high: bool) -> Flow:
        """A queue for slots of an app."""
        return Flow(self, share, high=high)

    def free(self, flow: Flow) -> int:
        """How many slots this flow could have now."""
        share, keep = flow.share, 0.0 if flow.high else HIGH_SHARE
        certain = max(1, int(GUARANTEED_SHARE * self.total) // len(self._shares))
        common = self.total - certain * len(self._shares)
        taken = sum([each.held - certain for each in self._shares if each.held > certain])
        own = share.most - int(keep * share.most) - share.held
        left = max(0, certain - share.held) + max(0, common - int(keep * self.total) - taken)
        return max(0, min(own, left))

    def _wait(self, flow: Flow) -> None:
        (self._high if flow.high else self._normal).append(flow)
        self._share_out()

    def _forget(self, flow: Flow) -> None:
        queue = self._high if flow.high else self._normal
        if flow in queue:
            queue.remove(flow)

    def _released(self, count: int) -> None:
        self.held -= count
        if self._high or self._normal:
            self._share_out()

    def _share_out(self) -> None:
        """Give what is free in turns of a quantum; who got nothing keeps its place."""
        for queue in (self._high, self._normal):
            turns = deque(queue)
            while turns:
                flow = turns.popleft()
                granted = min(QUANTUM, flow._wanted - flow._granted, self.free(flow))
                flow._granted += granted
                flow.share.held += granted
                self.held += granted
                if granted == QUANTUM and flow._granted < flow._wanted:
                    turns.append(flow)
            for flow in [flow for flow in queue if flow._granted]:
                queue.remove(flow)
                assert flow._event is not None
                flow._event.set()
