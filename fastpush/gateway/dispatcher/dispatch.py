"""The dispatching of one app: claims to its lines, responses to ends, and when nothing goes out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import trio

from fastpush.errors import InvalidNotification
from fastpush.gateway.apps import App, Environment, Line
from fastpush.gateway.dispatcher.circuit import Circuit
from fastpush.gateway.dispatcher.making import Maker
from fastpush.gateway.dispatcher.newest import Newest
from fastpush.gateway.dispatcher.outlet import Outlet
from fastpush.gateway.dispatcher.settling import REPEAT_AFTER
from fastpush.gateway.dispatcher.upkeep import keep_up
from fastpush.gateway.dispatcher.verdicts import Way, judge, known_reason, verdict_of
from fastpush.gateway.dispatcher.walk import Walker
from fastpush.gateway.log import get_logger
from fastpush.gateway.outbox import Claimed, End, Outcome, Retry
from fastpush.gateway.storage import StorageFull, StorageUnknown
from fastpush.notification import Notification, Response
from fastpush.retry import rule_for

if TYPE_CHECKING:
    from fastpush.gateway.dispatcher import Dispatcher

__all__ = ["SUPERSEDED", "Dispatch"]

logger = get_logger("fastpush.gateway.dispatcher")

CLAIMED_AT_ONCE = 1_000
PROBED_AT_ONCE = (
    200  # while the device tokens look wrong as a whole; as many answers as the registry's breaker looks at
)
PROBE_EVERY = 60.0
# Of an app's slots retries may hold so much. They are the first to be claimed, and may be those that APNs is
# slow to answer: without a bound a storm of them would hold every slot, and all new pushes behind it.
RETRIES_SHARE, HIGH_RETRIES_SHARE = 0.25, 0.5
MOST_ENVIRONMENTS = 100_000  # device tokens whose environment is remembered here
SUPERSEDED = "Superseded"

Verdicts = list[tuple[str, int, str, "int | None", float]]


@final
class Dispatch:
    """One app.

    Attributes:
      held: nothing is given to a client now, high priority included.
      newest: which is the newest of a device and collapse id.
      circuit: holds back normal priority while APNs answers with errors.
    """

    def __init__(self, dispatcher: Dispatcher, app: App, nursery: trio.Nursery) -> None:
        self.app = app
        self.dispatcher = dispatcher
        self.nursery = nursery
        self.share = dispatcher.slots.add(app.settings.max_in_flight)
        self.maker = Maker(app.name, dispatcher.badge)
        self.newest = Newest()
        self.circuit = Circuit()
        self.held = False
        self.work = trio.Event()
        self._counters = dispatcher.counters
        self._paused = False
        self._stopped = False  # no line takes pushes
        self._catching_up: set[bool] = set()  # the priorities in which waits what came before a pause ended
        self._surveying = False
        self._probed_at = float("-inf")
        self._environments: dict[str, Environment] = {}
        self._retrying = 0  # claims that were tried before
        self._elsewhere: dict[int, Environment] = {}  # where a claim was tried first, by its id()
        self._outlets: dict[tuple[Environment, str], Outlet] = {}
        self._flows = {high: dispatcher.slots.flow(self.share, high=high) for high in (True, False)}
        self.walker = Walker(self)
        app.watchers.append(self._line_changed)

    @property
    def busy(self) -> bool:
        """Whether something is in flight."""
        return self.walker.busy or any(outlet.in_flight for outlet in self._outlets.values())

    @property
    def environment(self) -> Environment:
        """The usual one."""
        return self.app.settings.environments[0]

    def wake(self) -> None:
        """Something may be claimed."""
        self.work.set()
        self.work = trio.Event()

    # From claims to notifications.

    async def claim(self, high: bool) -> None:
        """Claim and send what has this priority, until cancelled."""
        flow, outbox, name = self._flows[high], self.dispatcher.outbox, self.app.name
        while True:
            most = CLAIMED_AT_ONCE if high else await self.may_send()
            granted = await flow.acquire(most)
            work = self.work
            claims: list[Claimed] = []
            try:
                claims = await outbox.claim(name, granted, high=high, retries=self._retries_left(high))
                self._retrying += _retries_among(claims)
            except (StorageFull, StorageUnknown) as error:
                logger.warning("claims wait for the disk", app=name, error=str(error))
                await trio.sleep(REPEAT_AFTER)
                continue
            finally:
                flow.release(granted - len(claims))
            if claims:
                await self._send(claims, high)
            else:
                self._catching_up.discard(high)
                await work.wait()

    def _retries_left(self, high: bool) -> int:
        """How many retries may be claimed now; of high priority also while the others have all of theirs."""
        share = HIGH_RETRIES_SHARE if high else RETRIES_SHARE
        return max(0, max(1, int(share * self.share.most)) - self._retrying)

    async def may_send(self) -> int:
        """Wait until normal priority may go out; returns how many at most."""
        dispatcher = self.dispatcher
        while True:
            now = trio.current_time()
            if self.circuit.is_open(now):
                await trio.sleep_until(self.circuit.until)
            elif dispatcher.devices.breaker(self.app.name) is None:
                return CLAIMED_AT_ONCE
            elif now >= self._probed_at + PROBE_EVERY:
                self._probed_at = now
                return PROBED_AT_ONCE
            else:
                with trio.move_on_at(self._probed_at + PROBE_EVERY):
                    await dispatcher.devices.breaker_closed(self.app.name)

    async def _send(self, claims: Sequence[Claimed], high: bool) -> None:
        now = self.dispatcher.clock()
        if len(self.app.settings.environments) > 1:
            await self._find_environments([claim.entry.device_token or "" for claim in claims])
        usual = self._outlet(self.environment)
        make, put = self.maker.notification, usual.put
        ended: list[Claimed] = []
        ends: list[End] = []
        for claim in claims:
            entry = claim.entry
            if 0 < entry.expiration < now:
                ended.append(claim)
                ends.append(end_of(claim, "expired", now))
                continue
            if entry.collapse_id is not None and self._is_superseded(claim, high):
                ended.append(claim)
                ends.append(end_of(claim, "expired", now, SUPERSEDED))
                continue
            try:
                notification = make(claim)
            except InvalidNotification as error:
                ended.append(claim)
                ends.append(end_of(claim, "failed", now, f"Invalid {error.field or 'notification'}"))
                continue
            if self._environments:
                environment = self._environments.get(entry.device_token or "", self.environment)
                if environment != self.environment:
                    outlet = self._outlet(environment)
                    outlet.put(notification, claim)
                    outlet.look()
                    continue
            put(notification, claim)
        usual.look()
        if ends:
            self.settle(ends, ended, (), ())

    def _is_superseded(self, claim: Claimed, high: bool) -> bool:
        """Whether a newer one makes it needless: one that waited in a pause, or is tried again."""
        entry = claim.entry
        assert entry.collapse_id is not None
        assert entry.device_token is not None
        name = (entry.device_token, entry.collapse_id, claim.batch, claim.index)
        waited = claim.attempts or claim.index < 0 or high in self._catching_up
        if waited and self.newest.is_superseded(*name):
            return True
        if claim.index >= 0:
            self.newest.see(*name)
        return False

    async def _find_environments(self, device_tokens: Sequence[str]) -> None:
        """Ask the registry for those that are not known here."""
        known = self._environments
        wanted = [device_token for device_token in device_tokens if device_token not in known]
        if wanted:
            if len(known) + len(wanted) > MOST_ENVIRONMENTS:
                known.clear()
            found = await self.dispatcher.devices.environments(self.app.name, wanted)
            known.update(found)

    def _outlet(self, environment: Environment) -> Outlet:
        line = self.app.best_line(environment)
        outlet = self._outlets.get((environment, line.role))
        if outlet is None:
            outlet = self._outlets[environment, line.role] = Outlet(self, line)
            self.nursery.start_soon(keep_up, self.app.name, outlet.run)
        return outlet

    # From responses to ends.

    def finished(self, outlet: Outlet, responses: list[Response]) -> None:
        """Judge a batch of responses."""
        now = self.dispatcher.clock()
        flying, seconds = outlet.flying, self._counters.apns_seconds[self.app.name]
        ends: list[End] = []
        claims: list[Claimed] = []
        retries: list[Retry] = []
        parked: list[Claimed] = []
        held: list[tuple[Notification, Claimed]] = []
        verdicts: Verdicts = []
        rest: list[Response] = []
        for response in responses:
            notification = response.notification
            claim = flying.pop(id(notification))
            if response.accepted:
                seconds.add(response.elapsed)
                ends.append(
                    End(
                        claim.batch, claim.index, "accepted", now, 200, "",
                        claim.attempts + response.attempts,
                        notification.device_token if claim.index < 0 else None,
                        response.apns_unique_id,
                    )
                )  # fmt: skip
                claims.append(claim)
                if id(claim) in self._elsewhere:
                    self.learn(notification.device_token, outlet.line.environment)
                continue
            rest.append(response)
            verdict = judge(
                response, claim.entry, batch=claim.batch, index=claim.index,
                device_token=notification.device_token if claim.index < 0 else None,
                before=claim.attempts, now=now, chance=random.random(), patience=self.dispatcher.patience,
            )  # fmt: skip
            if verdict is Way.HELD:
                held.append((notification, claim))
                continue
            if verdict is Way.ELSEWHERE:
                if self._try_elsewhere(outlet, notification, claim):
                    continue
                verdict = end_of(claim, "rejected", now, response.reason or "", response.status or 0)
            if response.status is not None:
                verdicts.append(verdict_of(response, now))
            if isinstance(verdict, Retry):
                retries.append(verdict)
                parked.append(claim)
            else:
                assert isinstance(verdict, End)
                ends.append(verdict)
                claims.append(claim)
        if held:
            self.hold(outlet.line)
            self._outlet(outlet.line.environment).put_back(held)
            self.dispatcher.landed()
        self.report(verdicts, responses, len(held), rest, now)
        if ends or retries:
            self.settle(ends, claims, retries, parked)

    def report(
        self, verdicts: Verdicts, batch: list[Response], held: int, rest: list[Response], now: float
    ) -> None:
        """Tell the registry of devices what APNs said, and the circuit whether it works.

        Args:
          verdicts: on what was not accepted.
          batch: all responses; `held` of them were none by APNs.
          rest: those not accepted.
        """
        self.dispatcher.devices.report(self.app.name, verdicts, accepted=len(batch) - len(rest))
        answered, failed = len(batch) - held, sum(map(is_failure, rest))
        moment = trio.current_time()
        if answered and self.circuit.count(answered - failed, failed, moment, random.random()):
            logger.warning(
                "APNs answers with errors, so normal priority waits", app=self.app.name,
                seconds=round(self.circuit.until - moment),
            )  # fmt: skip
            for outlet in self._outlets.values():
                outlet.ramp.begin(self.circuit.until)

    def hold(self, line: Line) -> None:
        """The line gave something back: nothing goes out through it."""
        stopped = None if line.client is None else line.client.statistics().stopped
        if stopped is not None and line.stopped is None:
            line.stop(stopped, refused=False)

    def _try_elsewhere(self, outlet: Outlet, notification: Notification, claim: Claimed) -> bool:
        """Try a device token once in the other environment, where the app has it."""
        environments, here = self.app.settings.environments, outlet.line.environment
        if len(environments) < 2 or id(claim) in self._elsewhere:
            return False
        other = self._outlet(environments[1] if here == environments[0] else environments[0])
        if other.line.stopped is not None:
            return False
        self._elsewhere[id(claim)] = here
        other.put_back([(notification, claim)])
        return True

    def learn(self, device_token: str, environment: Environment) -> None:
        """Remember where a device token belongs, here and in the registry."""
        self._environments[device_token] = environment
        name, write = self.app.name, self.dispatcher.devices.learn_environment
        self.nursery.start_soon(keep_up, name, write, name, device_token, environment)

    def settle(
        self,
        ends: list[End],
        claims: Sequence[Claimed],
        retries: Sequence[Retry],
        parked: Sequence[Claimed],
    ) -> None:
        """Hand outcomes over to be written; their slots come back then."""
        count = len(ends) + len(retries)
        self.count(ends, retries)
        if self._elsewhere:
            for claim in (*claims, *parked):
                self._elsewhere.pop(id(claim), None)
        retried = _retries_among(claims) + _retries_among(parked)

        def written() -> None:
            self._flows[False].release(count)
            if retried:
                self._retrying -= retried
                self.wake()  # others may have waited for their share

        self.dispatcher.settler.add(self.app.name, ends, claims, retries, parked, written)

    def count(self, ends: Sequence[End], retries: Sequence[Retry], accepted: int = 0) -> None:
        """Count them for the metrics."""
        name, outcomes = self.app.name, self._counters.outcomes
        for end in ends:
            if end.outcome == "accepted":
                accepted += 1
            else:
                outcomes[name, end.outcome, known_reason(end.reason)] += 1
        if accepted:
            outcomes[name, "accepted", ""] += accepted
            self._counters.accepted_at[name] = self.dispatcher.clock()
        for retry in retries:
            self._counters.retries[name, known_reason(retry.reason)] += 1

    # Stopping and going on.

    def _line_changed(self, line: Line) -> None:
        """A line of the app stopped, or goes on."""
        if line.stopped is not None:
            outlet = self._outlets.get((line.environment, line.role))
            if outlet is not None and not line.refused:
                outlet.withdraw()
        best = self.app.best_line(line.environment)
        if best.stopped is None:
            self._reroute(line.environment)
        if line.environment != self.environment:
            return
        was, self._stopped = self._stopped, best.stopped is not None
        if was and not self._stopped:
            self._catch_up()

    def _reroute(self, environment: Environment) -> None:
        """Move what is queued at a line that stopped to the one that takes it."""
        target = self._outlet(environment)
        for (where, _), outlet in list(self._outlets.items()):
            if where == environment and outlet is not target and outlet.line.stopped is not None:
                target.put_back(outlet.take())

    def take_back(self, outlet: Outlet) -> None:
        """Queue again what a client had and did not answer."""
        lost = outlet.take_back()
        lost.sort(key=lambda claim: (claim.batch, claim.index))
        outlet.put_back([(self.maker.notification(claim), claim) for claim in lost])
        self.dispatcher.landed()

    def _catch_up(self) -> None:
        """Nothing went out for a while. Before it does, find out which is the newest for each device."""
        for outlet in self._outlets.values():
            outlet.ramp.begin(trio.current_time())
        self._catching_up = {True, False}
        if not self._surveying:
            self._surveying = self.held = True
            self.nursery.start_soon(keep_up, self.app.name, self._survey)

    async def _survey(self) -> None:
        try:
            await self.walker.catch_up()
            for high in (True, False):
                after: int | None = 0
                while after is not None:
                    names, after = await self.dispatcher.outbox.survey(self.app.name, after, high=high)
                    for name in names:
                        self.newest.see(*name)
            now = self.dispatcher.clock()
            for outlet in self._outlets.values():
                claims = [claim for _, claim in outlet.take(self._is_older)]
                if claims:
                    self.settle([end_of(one, "expired", now, SUPERSEDED) for one in claims], claims, (), ())
        finally:
            self._surveying = self.held = False
            for outlet in self._outlets.values():
                outlet.look()

    def _is_older(self, notification: Notification, claim: Claimed) -> bool:
        collapse_id = claim.entry.collapse_id
        return collapse_id is not None and self.newest.is_superseded(
            notification.device_token, collapse_id, claim.batch, claim.index
        )

    def notice_pause(self, paused: bool) -> None:
        """Note whether an operator paused the app; to be called before what follows is claimed."""
        if self._paused and not paused:
            self._catch_up()
        self._paused = paused

    def look(self, *, paused: bool) -> None:
        """End what expired in the queues, and see to an operator's pause and the breaker; twice a second."""
        self.notice_pause(paused)
        wrong = self.dispatcher.devices.breaker(self.app.name)
        self.app.paused = "paused by an operator" if paused else wrong
        now = self.dispatcher.clock()
        for outlet in self._outlets.values():
            claims = [claim for _, claim in outlet.take(lambda found, _: 0 < (found.expiration or 0) < now)]
            if claims:
                self.settle([end_of(claim, "expired", now) for claim in claims], claims, (), ())

    def give_back(self) -> None:
        """Forget what was claimed and not given to a client."""
        now = self.dispatcher.clock()
        claims = [claim for outlet in self._outlets.values() for _, claim in outlet.take()]
        once = [claim for claim in claims if claim.entry.delivery == "once"]
        if once:  # they would end as unknown at the next start
            self.settle([], (), [_again(claim, now) for claim in once], once)


def is_failure(response: Response) -> bool:
    """Whether it tells that APNs does not work: a 5xx, or no answer at all."""
    if response.outcome == "rejected":
        return (response.status or 0) >= 500 and rule_for(response.status or 0, response.reason).retryable
    return response.outcome == "unknown"


def end_of(claim: Claimed, outcome: Outcome, now: float, reason: str = "", status: int = 0) -> End:
    """The end of a claim that was not judged by its response."""
    return End(
        claim.batch, claim.index, outcome, now, status, reason, claim.attempts + (status != 0),
        claim.entry.device_token if claim.index < 0 else None,
    )  # fmt: skip


def _retries_among(claims: Sequence[Claimed]) -> int:
    return sum([claim.attempts > 0 or claim.index < 0 for claim in claims])


def _again(claim: Claimed, now: float) -> Retry:
    device_token: Any = claim.entry.device_token if claim.index < 0 else None
    return Retry(claim.batch, claim.index, now, claim.attempts, now, 0, "Shutdown", device_token)
