"""Traces over OTLP, when configured: one span from a webhook's arrival to APNs' answer.

A span is made when the end is on disk, from what is known then: a push that is not traced pays nothing. A
notification has a span of its own, a fan-out one for all its devices, that ends with the last answer. What is
traced is the sender's choice where its request names its span, otherwise a share, chosen by the batch: all
of a batch, or nothing of it. Needs the extra `tracing`.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, final

import trio

from fastpush.gateway.config import TracingSettings
from fastpush.gateway.outbox.origin import read_origin

if TYPE_CHECKING:
    from fastpush.gateway.dispatcher import Outcomes
    from fastpush.gateway.outbox import End, Entry, Fanout

__all__ = ["Tracer", "TracingUnusable", "open_tracing"]

FLUSH_WITHIN = 3.0  # seconds at the end; a collector that is gone must not hold up the gateway
MOST_WALKS = 1_000
ANSWERS = 100  # of a fan-out's devices that its span has one by one; the counts are of all
_NANOSECONDS = 1_000_000_000
_SPREAD = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: near numbers land far apart
_MASK = (1 << 64) - 1


class TracingUnusable(Exception):
    """Traces are configured, and cannot be sent from here; the message has the cure."""


@asynccontextmanager
async def open_tracing(
    settings: TracingSettings,
    walking: Callable[[], Mapping[int, Fanout]] = dict,
    clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Tracer | None, None]:
    """Give a tracer, or None where none is configured; leaving the block sends what waits.

    `walking` and `clock` are for the `Tracer`.

    Raises:
      TracingUnusable: the packages are not there.
    """
    if settings.endpoint is None:
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    except ImportError:
        raise TracingUnusable(
            "tracing.endpoint needs the packages of: pip install 'fastpush[tracing]'"
        ) from None
    endpoint = f"{str(settings.endpoint).rstrip('/')}/v1/traces"
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # the tracer below has chosen
        resource=Resource.create({"service.name": "fastpush"}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=2.0)))
    try:
        yield Tracer(provider.get_tracer("fastpush.gateway"), settings.sample_share, walking, clock)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(FLUSH_WITHIN):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


@final
class _Walk:
    """What was heard of a fan-out that is traced."""

    __slots__ = ("answers", "fanout", "last")

    def __init__(self, fanout: Fanout) -> None:
        self.fanout = fanout
        self.last = fanout.received_at
        self.answers: list[tuple[float, dict[str, Any]]] = []

    def add(self, end: End, apns_id: bytes) -> None:
        self.last = max(self.last, end.at)
        if len(self.answers) < ANSWERS:
            self.answers.append((end.at, _told(end, apns_id)))


@final
class Tracer:
    """Makes the spans. `heard` is for `Dispatcher.on_outcomes`.

    Args:
      share: of batches and fan-outs that are traced, where the sender has not decided.
      walking: the fan-outs that have devices without an end, by id.
      clock: UNIX seconds.
    """

    def __init__(
        self,
        tracer: Any,
        share: float,
        walking: Callable[[], Mapping[int, Fanout]] = dict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tracer = tracer
        self._below = share * (_MASK + 1)
        self._walking = walking
        self._clock = clock
        # Those of an earlier start, too: only their last device may be left.
        self._walks = {
            number: _Walk(fanout) for number, fanout in walking().items() if self._wants(number, fanout.entry)
        }
        self._done: deque[int] = deque(maxlen=64)

    def is_traced(self, batch: int) -> bool:
        """Whether a batch or fan-out is among the share; always the same for the same one."""
        return (batch * _SPREAD) & _MASK < self._below

    def _wants(self, batch: int, entry: Entry) -> bool:
        """As the sender's span is recorded or not; by the share where it has none."""
        parent = read_origin(entry.origin).traceparent
        return bool(int(parent[-2:], 16) & 1) if parent else self.is_traced(batch)

    def heard(self, outcomes: Outcomes) -> None:
        """Take ends that are on disk now."""
        if outcomes.fanout is not None:
            self._page(outcomes, outcomes.fanout)
            return
        devices: set[int] = set()
        for end, claim in zip(outcomes.ends, outcomes.claims, strict=False):
            if claim.index < 0:
                if end.batch in self._walks:
                    self._walks[end.batch].add(end, claim.apns_id)
                    devices.add(end.batch)
            elif self._wants(end.batch, claim.entry):
                told = _told(end, claim.apns_id)
                self._span(
                    "push", outcomes.app, end.batch, claim.entry, end.at, end.outcome, end.reason, told
                )
        for number in devices - self._walking().keys():
            self._end(number)

    def _page(self, outcomes: Outcomes, fanout: Fanout) -> None:
        if fanout.id in self._done or not self._wants(fanout.id, fanout.entry):
            return
        walk = self._walks.setdefault(fanout.id, _Walk(fanout))
        for end in (*outcomes.ends, *outcomes.answered):
            walk.add(end, fanout.apns_id(end.device_token or ""))
        if outcomes.accepted > len(outcomes.answered):  # of so many the time of each is not kept
            walk.last = max(walk.last, self._clock())
        if fanout.id not in self._walking():
            self._end(fanout.id)

    def _end(self, number: int) -> None:
        """All devices of a fan-out have their end."""
        walk = self._walks.pop(number)
        fanout = walk.fanout
        self._done.append(number)
        if len(self._walks) > MOST_WALKS:  # some were purged
            walking = self._walking()
            self._walks = {other: one for other, one in self._walks.items() if other in walking}
        outcome = "accepted" if not fanout.ended else "partly accepted" if fanout.accepted else "not accepted"
        reasons = [told["fastpush.reason"] for _, told in walk.answers if told["fastpush.reason"]]
        counts = {"fastpush.accepted": fanout.accepted, "fastpush.not_accepted": fanout.ended}
        self._span(
            "fan-out", fanout.app, fanout.id, fanout.entry, walk.last, outcome,
            reasons[0] if reasons else "", counts, walk.answers,
        )  # fmt: skip

    def _span(
        self,
        name: str,
        app: str,
        batch: int,
        entry: Entry,
        at: float,
        outcome: str,
        reason: str,
        attributes: dict[str, Any],
        answers: Sequence[tuple[float, dict[str, Any]]] = (),
    ) -> None:
        from opentelemetry.trace import SpanKind, StatusCode

        came_at, parent, source = read_origin(entry.origin)
        stored = (batch >> 20) * 1_000_000  # the id holds the milliseconds of its acceptance
        began = stored if came_at is None else came_at
        span = self._tracer.start_span(
            name,
            context=_context(parent),
            kind=SpanKind.PRODUCER,
            start_time=began,
            attributes={
                "fastpush.app": app,
                "fastpush.batch": str(batch),
                "fastpush.source": source,
                "fastpush.request": entry.trace or "",
                "fastpush.outcome": outcome,
                "fastpush.reason": reason,
                **attributes,
            },
        )
        span.add_event("given to the disk", timestamp=max(began, stored))
        for answered_at, told in answers:
            span.add_event("answer", told, max(began, round(answered_at * _NANOSECONDS)))
        if outcome != "accepted":
            span.set_status(StatusCode.ERROR, reason or outcome)
        span.end(max(began, round(at * _NANOSECONDS)))


def _told(end: End, apns_id: bytes) -> dict[str, Any]:
    """One notification's end; nothing of its device and of its text."""
    return {
        "fastpush.apns_id": str(uuid.UUID(bytes=apns_id)),
        "fastpush.outcome": end.outcome,
        "fastpush.reason": end.reason,
        "fastpush.attempts": end.attempts,
        "http.response.status_code": end.status,
    }


def _context(parent: str) -> Any:
    """With the sender's span, so that ours is below it; never that of the task that happens to run."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if not parent:
        return Context()
    _, trace, span, flags = parent.split("-")
    remote = SpanContext(
        int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )
    return set_span_in_context(NonRecordingSpan(remote), Context())
