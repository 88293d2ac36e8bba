"""Traces over OTLP, when configured: one span from the acceptance of a notification to its recorded end.

A span is made when the end is on disk, from what is known then: a push that is not traced pays nothing.
The share that is traced is chosen by the batch: all of a batch, or nothing of it. Needs the extra `tracing`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, final

import trio

from fastpush.gateway.config import TracingSettings

if TYPE_CHECKING:
    from fastpush.gateway.dispatcher import Outcomes

__all__ = ["Tracer", "TracingUnusable", "open_tracing"]

FLUSH_WITHIN = 3.0  # seconds at the end; a collector that is gone must not hold up the gateway
_NANOSECONDS = 1_000_000_000
_SPREAD = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: near numbers land far apart
_MASK = (1 << 64) - 1


class TracingUnusable(Exception):
    """Traces are configured, and cannot be sent from here; the message has the cure."""


@asynccontextmanager
async def open_tracing(settings: TracingSettings) -> AsyncGenerator[Tracer | None, None]:
    """Give a tracer, or None where none is configured; leaving the block sends what waits.

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
    except ImportError:
        raise TracingUnusable(
            "tracing.endpoint needs the packages of: pip install 'fastpush[tracing]'"
        ) from None
    endpoint = f"{str(settings.endpoint).rstrip('/')}/v1/traces"
    provider = TracerProvider(
        resource=Resource.create({"service.name": "fastpush"}), shutdown_on_exit=False
    )  # fmt: skip
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=2.0)))
    try:
        yield Tracer(provider.get_tracer("fastpush.gateway"), settings.sample_share)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(FLUSH_WITHIN):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


@final
class Tracer:
    """Makes the spans. `heard` is for `Dispatcher.on_outcomes`."""

    def __init__(self, tracer: Any, share: float) -> None:
        self._tracer = tracer
        self._below = share * (_MASK + 1)

    def is_traced(self, batch: int) -> bool:
        """Whether a batch or fan-out is among the share; always the same for the same one."""
        return (batch * _SPREAD) & _MASK < self._below

    def heard(self, outcomes: Outcomes) -> None:
        """Take ends that are on disk now."""
        if outcomes.fanout is not None:
            if self.is_traced(outcomes.fanout.id):
                self._page(outcomes)
            return
        for end, claim in zip(outcomes.ends, outcomes.claims, strict=False):
            if self.is_traced(end.batch):
                entry = claim.entry
                self._span(
                    "push",
                    end.batch,
                    end.at,
                    ok=end.outcome == "accepted",
                    attributes={
                        "fastpush.app": outcomes.app,
                        "fastpush.apns_id": str(uuid.UUID(bytes=claim.apns_id)),
                        "fastpush.request": entry.trace or "",
                        "fastpush.outcome": end.outcome,
                        "fastpush.reason": end.reason,
                        "fastpush.attempts": end.attempts,
                        "http.response.status_code": end.status,
                    },
                )

    def _page(self, outcomes: Outcomes) -> None:
        fanout = outcomes.fanout
        assert fanout is not None
        last = max((end.at for end in outcomes.ends), default=None)
        bad = sum(end.outcome != "accepted" for end in outcomes.ends)
        self._span(
            "fan-out page",
            fanout.id,
            last,
            ok=not bad,
            attributes={
                "fastpush.app": outcomes.app,
                "fastpush.batch": str(fanout.id),
                "fastpush.request": fanout.entry.trace or "",
                "fastpush.accepted": outcomes.accepted + len(outcomes.ends) - bad,
                "fastpush.not_accepted": bad,
                "fastpush.to_be_repeated": len(outcomes.retries),
            },
        )

    def _span(
        self, name: str, batch: int, end: float | None, *, ok: bool, attributes: dict[str, Any]
    ) -> None:
        from opentelemetry.trace import SpanKind, StatusCode

        began = (batch >> 20) * 1_000_000  # the id holds the milliseconds of its acceptance
        span = self._tracer.start_span(
            name, kind=SpanKind.PRODUCER, start_time=began, attributes=attributes
        )  # fmt: skip
        if not ok:
            span.set_status(StatusCode.ERROR, str(attributes.get("fastpush.reason", "")))
        span.end(None if end is None else max(began, round(end * _NANOSECONDS)))
