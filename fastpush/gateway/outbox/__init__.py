"""What is accepted and not yet ended: the contract of an outbox, and its values.

    accept ──> waiting ──claim──> claimed ──settle──> ended: accepted, rejected, expired, failed, unknown
                  ^                  │
                  └── parked till its due time (settle with a Retry)

`accept` returns when the notifications survive a kill of the process and, if the disk honours flushes, a
power cut. From there on each has exactly one recorded end. What was claimed and not settled when the process
died is waiting again (`delivery="resend"`), or has ended as unknown (`delivery="once"`).

A *batch* is what one call accepted, and an *index* a notification's place in it. A *fan-out* is one
notification for an audience: one row, and a cursor that walks the registry of devices.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple, Protocol

import msgspec

from fastpush.gateway.storage import Value

__all__ = [
    "MAX_BATCH_ENTRIES",
    "MAX_BATCH_OCTETS",
    "Acceptance",
    "Attempt",
    "Audience",
    "BatchRecord",
    "Chunk",
    "Claimed",
    "End",
    "Entry",
    "Failures",
    "Fanout",
    "FanoutPage",
    "FanoutRecord",
    "Hit",
    "Idempotency",
    "IdempotencyConflict",
    "Outbox",
    "OutboxBusy",
    "Outcome",
    "Passage",
    "Record",
    "Retry",
    "SearchPage",
    "SentAgain",
    "StreamState",
    "Waiting",
]

MAX_BATCH_ENTRIES = 16_384
MAX_BATCH_OCTETS = 4 << 20

Outcome = Literal["accepted", "rejected", "expired", "failed", "unknown"]


class Entry(msgspec.Struct, gc=False):
    """One notification as it was accepted, checked before.

    Attributes:
      device_token: None in a fan-out's entry only.
      payload: encoded JSON.
      expiration: UNIX seconds; 0 is one attempt.
      delivery: whether it is sent again when the process died while it was sent.
      high: it overtakes what is not; one in a batch lets the whole batch do so.
      apns_id: 16 octets, where the sender brought its own. Otherwise None, and `Acceptance.apns_id` tells.
      trace: id of the request or alarm that it came from.
      badge: the number of open alarms is filled in when it is sent.
      origin: of what may be traced, as `origin.mark` writes it; the same for all of a batch.
    """

    device_token: str | None
    payload: bytes
    push_type: str = "alert"
    priority: int = 10
    expiration: int = 0
    collapse_id: str | None = None
    topic: str | None = None
    delivery: Literal["resend", "once"] = "resend"
    high: bool = False
    apns_id: bytes | None = None
    trace: str | None = None
    badge: bool = False
    origin: str | None = None


class Idempotency(msgspec.Struct, frozen=True):
    """A sender's own name for a request: the same name and content is accepted once, for 24 hours."""

    principal: str
    """Whose key it is; the same key of another principal is another key."""
    key: str
    digest: bytes
    """SHA-256 of the request's content."""


class Chunk(msgspec.Struct, frozen=True):
    """A part of a long upload, committed together with how far the upload has come.

    Attributes:
      stream: the upload's id, from `Outbox.open_stream`.
      lines_before, lines: the lines done before this chunk, and after it.
      running_hash: of all lines done after it.
    """

    stream: int
    lines_before: int
    lines: int
    running_hash: bytes


class StreamState(msgspec.Struct, frozen=True):
    """How far an upload has come. `answer` is what `finish_stream` was given, once it is finished."""

    stream: int
    lines: int
    running_hash: bytes
    entries: int
    answer: bytes | None


class Audience(msgspec.Struct, frozen=True, kw_only=True):
    """Who is meant by a fan-out: devices of the app by their tags. Without any tag, all of them."""

    any_of: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()

    def means(self, tags: Collection[str]) -> bool:
        """Whether a device that bears these tags is meant."""
        return (
            (not self.any_of or any(tag in tags for tag in self.any_of))
            and all(tag in tags for tag in self.all_of)
            and not any(tag in tags for tag in self.none_of)
        )


class Acceptance(msgspec.Struct, frozen=True):
    """What is durable now.

    Attributes:
      batch: its id, a positive number of at most 63 bits that grows with time.
      count: how many notifications; for a fan-out 0, since nobody has counted the devices yet.
      received_at: UNIX seconds.
      repeated: it was accepted before, under the same idempotency key; nothing was added now.
      tag: the batch's own random number, part of its apns-ids.
      own_ids: index to apns-id of the entries that brought one.
    """

    batch: int
    count: int
    received_at: float
    repeated: bool
    tag: int
    own_ids: dict[int, bytes] = {}

    def apns_id(self, index: int) -> bytes:
        """The 16 octets by which the notification is known to APNs and here, for life."""
        own = self.own_ids.get(index)
        return own if own is not None else _batch_apns_id(self.batch, self.tag, index)


class Claimed(msgspec.Struct, gc=False):
    """A notification handed out to be sent now.

    Attributes:
      batch, index: which; the index of a fan-out's is -1.
      attempts: how often it was tried before, as the last Retry had it.
    """

    batch: int
    index: int
    apns_id: bytes
    entry: Entry
    attempts: int = 0


class End(msgspec.Struct, gc=False):
    """What became of a notification.

    Attributes:
      status: of APNs' answer, 0 without one.
      reason: of a rejection or failure, "" otherwise.
      at: UNIX seconds.
      attempts: how often it was tried.
      device_token: for a fan-out, whose batch and index -1 name many.
      apns_unique_id: Apple's own id of the push, where its answer had one.
    """

    batch: int
    index: int
    outcome: Outcome
    at: float
    status: int = 0
    reason: str = ""
    attempts: int = 1
    device_token: str | None = None
    apns_unique_id: str | None = None


class Retry(msgspec.Struct, gc=False):
    """A notification to be claimed again at `due_at` (UNIX seconds), also after a restart."""

    batch: int
    index: int
    due_at: float
    attempts: int
    at: float
    status: int = 0
    reason: str = ""
    device_token: str | None = None


class Fanout(msgspec.Struct):
    """A fan-out that is still walked.

    Attributes:
      cursor: the last device token whose page is done, "" at the start.
      accepted, ended: devices so far: accepted by APNs, and ended otherwise.
    """

    id: int
    app: str
    audience: Audience
    entry: Entry
    received_at: float
    cursor: str
    tag: int
    accepted: int = 0
    ended: int = 0

    def apns_id(self, device_token: str) -> bytes:
        """The same each time, so that a page walked twice repeats its ids."""
        return fanout_apns_id(self.id, self.tag, device_token)


class Attempt(msgspec.Struct, frozen=True):
    """One thing that happened to a notification: an end, or a retry with its due time.

    `apns_unique_id` is Apple's own id of the push; the development environment alone gives one.
    """

    at: float
    outcome: Outcome | Literal["retry"]
    status: int
    reason: str
    attempts: int
    due_at: float | None = None
    apns_unique_id: str | None = None


class Record(msgspec.Struct, frozen=True):
    """All that is known of one notification.

    Attributes:
      entry: its payload is b"" once the bodies of its time are dropped.
      outcome: None while it has no end.
    """

    batch: int
    index: int
    apns_id: bytes
    app: str
    source: str
    received_at: float
    entry: Entry
    outcome: Outcome | None
    attempts: tuple[Attempt, ...]
    sent_again: bytes | None = None
    """The apns-id under which it was sent again."""
    again_of: bytes | None = None
    """The apns-id of the dead letter that this sends again."""


class Hit(msgspec.Struct, frozen=True):
    """A notification that was searched for.

    Attributes:
      index: -1 for a fan-out itself, which has no device token, and for its devices.
      outcome: None while it has no end; then `ended_at` is None too.
      status: of APNs' answer, 0 without one.
      sent_again: the apns-id under which it was sent again.
    """

    apns_id: bytes
    batch: int
    index: int
    device_token: str | None
    app: str
    source: str
    received_at: float
    outcome: Outcome | None
    reason: str = ""
    status: int = 0
    ended_at: float | None = None
    sent_again: bytes | None = None


class SearchPage(NamedTuple):
    """What was found, newest first; the cursor for what follows, None at the end."""

    rows: list[Hit]
    cursor: str | None


class Failures(msgspec.Struct, frozen=True):
    """How many dead letters an app has for a reason."""

    app: str
    reason: str
    count: int


class SentAgain(msgspec.Struct, frozen=True):
    """What became of dead letters that were to be sent again.

    Attributes:
      count: accepted now, under new apns-ids.
      batches: their ids.
      gone: of which the payload is no longer kept.
      meanwhile: that somebody else sent again at the same moment.
      stopped: why the rest was not taken, "" where there is none; it may be sent again later.
    """

    count: int
    batches: tuple[int, ...]
    gone: int
    meanwhile: int = 0
    stopped: str = ""


class BatchRecord(msgspec.Struct, frozen=True):
    """All that is known of a batch, a fan-out or a stream.

    Attributes:
      count: of its notifications; for a fan-out of the devices seen so far.
      outcomes: how many ended how.
      waiting: how many have no end; for a fan-out None while it is walked.
      batches: of a stream: the ids of its batches, up to the limit.
    """

    batch: int
    app: str
    source: str
    received_at: float
    kind: Literal["batch", "fanout", "stream"]
    count: int
    waiting: int | None
    outcomes: dict[str, int]
    batches: tuple[int, ...] = ()
    entry: Entry | None = None
    """What a fan-out brings to each device; its payload is b"" once the bodies of its time are dropped."""
    audience: Audience | None = None
    """Whom a fan-out means."""


class FanoutRecord(msgspec.Struct, frozen=True):
    """A fan-out in a list.

    Attributes:
      accepted, ended: devices so far: accepted by APNs, and ended otherwise.
      walking: it still has devices to be sent to.
    """

    batch: int
    app: str
    source: str
    received_at: float
    audience: Audience
    accepted: int
    ended: int
    walking: bool


class FanoutPage(NamedTuple):
    """Fan-outs, newest first, and the id below which others may be; None where there are no more."""

    rows: list[FanoutRecord]
    below: int | None


class Passage(msgspec.Struct, frozen=True):
    """What became of one device in a fan-out, if it was among those that were meant.

    Attributes:
      apns_id: of its notification.
      outcome: None while it is to be sent to, or to be tried again.
      attempt: what is written down of it, or of all that had no end; None of most that were accepted: what is
        counted only.
    """

    batch: int
    apns_id: bytes
    outcome: Outcome | None
    attempt: Attempt | None


class Waiting(msgspec.Struct, frozen=True):
    """What an app has waiting, in flight included.

    Attributes:
      count: notifications without an end. After a restart it may count ended ones of a batch that is not
        wholly ended, until that batch is read.
      fanouts: on their way, or with devices that are to be tried again.
      oldest_high_at, oldest_normal_at: when the oldest of all these was accepted, by priority; UNIX seconds,
        as of the last second; None without one.
    """

    count: int
    fanouts: int
    oldest_high_at: float | None
    oldest_normal_at: float | None
    paused: bool

    @property
    def oldest_at(self) -> float | None:
        """When the oldest of all was accepted."""
        return min(
            (at for at in (self.oldest_high_at, self.oldest_normal_at) if at is not None), default=None
        )


class IdempotencyConflict(Exception):
    """The idempotency key was used before, for another content."""


class OutboxBusy(Exception):
    """Too much waits to be written, or to be sent. Nothing of this was stored."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Outbox(Protocol):
    """What ingest, alarms and dispatcher may ask of an outbox. Instants are UNIX seconds.

    Whatever writes raises what the storage raises: StorageFull (nothing was stored) or StorageUnknown.

    Attributes:
      max_waiting: by app: when so many notifications and fan-outs wait nothing more of it is taken, of normal
        priority at nine tenths of it. May be changed at any time.
    """

    max_waiting: dict[str, int]

    async def accept(
        self,
        app: str,
        entries: Sequence[Entry],
        *,
        source: str = "",
        idempotency: Idempotency | None = None,
        chunk: Chunk | None = None,
        also: Callable[[sqlite3.Connection], object] | None = None,
    ) -> Acceptance:
        """Take 1 to MAX_BATCH_ENTRIES notifications, all or none; they are durable on return.

        `also` writes in the same transaction, and is left out when the request is a repetition.

        Raises:
          IdempotencyConflict, OutboxBusy
        """

    async def accept_fanout(
        self,
        app: str,
        audience: Audience,
        entry: Entry,
        *,
        source: str = "",
        idempotency: Idempotency | None = None,
        also: Callable[[sqlite3.Connection], object] | None = None,
        rows: Callable[[int], Sequence[Sequence[Value]]] | None = None,
    ) -> Acceptance:
        """Take one notification for an audience of any size, at the price of one row.

        `rows`, called with the fan-out's id, gives rows of the storage's funnel that are written in the same
        transaction: what `also` does, but in the call into SQLite that all acceptances share. It is not for
        requests with an idempotency key, of which nobody knows beforehand whether they are repetitions.
        """

    async def take_up_doubtful(self) -> None:
        """After StorageUnknown: let those fan-outs go out that are stored all the same."""

    async def open_stream(
        self, app: str, *, source: str = "", idempotency: Idempotency | None = None
    ) -> StreamState:
        """Begin an upload in chunks, or find how far the same one came; the digest is not looked at."""

    async def finish_stream(self, stream: int, answer: bytes) -> None:
        """Keep the answer for a repetition."""

    async def claim(
        self, app: str, limit: int, *, high: bool | None = None, retries: int | None = None
    ) -> list[Claimed]:
        """Take at most `limit` notifications that nobody else has, high priority first; none while paused.

        `high` restricts it to those of high priority, or to the others; at most `retries` of them were parked
        before, and these come first. Those with `delivery="once"` are
        marked on disk before this returns.
        """

    async def survey(
        self, app: str, after: int, *, high: bool
    ) -> tuple[list[tuple[str, str, int, int]], int | None]:
        """What waits under a collapse id, claimed or not, by pages in the order of acceptance.

        Returns device token, collapse id, batch and index of each, and what to give as `after` for the next
        page; None: there is none. The first `after` is 0.
        """

    async def claim_fanouts(self, app: str) -> list[Fanout]:
        """The fan-outs of an app that are not walked to their end, oldest first, high priority before."""

    async def begin_page(self, fanout: int, last_device_token: str, count: int) -> None:
        """Say that a page is about to be sent; needed for `delivery="once"`, and does nothing otherwise."""

    async def settle(self, ends: Sequence[End], retries: Sequence[Retry] = ()) -> None:
        """Record ends and retries, all or none. Repeating it does no harm."""

    async def settle_page(
        self,
        fanout: int,
        cursor: str,
        *,
        accepted: int,
        ends: Sequence[End],
        retries: Sequence[Retry],
        last: bool,
    ) -> None:
        """Record a page of a fan-out and move its cursor; `ends` are those that were not accepted."""

    async def find(self, apns_id: bytes) -> Record | None:
        """One notification by its apns-id; of a fan-out only those that were not accepted."""

    async def find_batch(self, batch: int, *, limit: int = 1_000) -> BatchRecord | None:
        """A batch, fan-out or stream by its id."""

    async def search(
        self,
        *,
        app: str | None = None,
        outcome: str | None = None,
        reason: str | None = None,
        device_ends: str | None = None,
        source: str | None = None,
        apns_id_prefix: str | None = None,
        after: float | None = None,
        before: float | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> SearchPage:
        """Find notifications, newest first. None is anything; what is given must all hold.

        Args:
          outcome: "waiting" for what has no end.
          device_ends: the last characters of the device token.
          apns_id_prefix: hex digits, with or without hyphens.
          after, before: UNIX seconds of the acceptance; for a fan-out's devices of their end.
          cursor: of the page before.

        Of a fan-out's devices only those are found that were not accepted, and the fan-out itself. What ended
        in the last seconds may be missing from a search for its outcome.

        Raises ValueError: the cursor is none of ours.
        """

    async def fanouts(
        self,
        *,
        app: str | None = None,
        source: str | None = None,
        tags: Collection[str] | None = None,
        after: float | None = None,
        before: float | None = None,
        below: int | None = None,
        limit: int = 50,
    ) -> FanoutPage:
        """Fan-outs, newest first; looks through 5,000 at most, and gives from where to go on.

        Args:
          tags: only those that mean a device which bears these.
          after, before: UNIX seconds of the acceptance.
          below: only those with a smaller id; what the page before gave.
        """

    async def passages(self, batches: Sequence[int], device_token: str) -> dict[int, Passage]:
        """What became of a device in these fan-outs, by their ids.

        Whom a fan-out meant is not kept: whether the device was among them is for the caller to know.
        """

    async def wait_for_index(self, batch: int) -> None:
        """Return when all up to this batch is searched for in the index; some 20 s after its acceptance."""

    async def failures(self, app: str | None = None) -> list[Failures]:
        """The dead letters, by app and reason, most first."""

    async def send_again(
        self,
        *,
        apns_id: bytes | None = None,
        app: str | None = None,
        reason: str | None = None,
        expires_after: float = 86_400.0,
    ) -> SentAgain:
        """Accept what failed once more, with the same content, linked to it: one, or all of a reason.

        None is sent again twice. With `apns_id` also what was rejected, expired, or is unknown. What was
        accepted before something stood in the way stays accepted, and is told.

        Raises:
          LookupError: there is no such notification, or it has no such end; the message says which.
          OutboxBusy, StorageError: and nothing was accepted.
        """

    def walking(self) -> dict[int, Fanout]:
        """The fan-outs that have devices without an end, by id."""

    @property
    def starts(self) -> int:
        """How often it was opened since the file was made, this time included."""

    def waiting(self) -> dict[str, Waiting]:
        """What waits, by app."""

    async def wait_for_work(self, seen: int = 0) -> int:
        """Return when something may be claimed, or a fan-out walked, that could not be before.

        Give it what it returned the last time, before the claims that found nothing:
        what comes between a claim and the wait is then not missed.
        """

    async def pause(self, app: str) -> None:
        """Hand out nothing of this app, also after a restart; accepting goes on."""

    async def resume(self, app: str) -> None: ...

    async def purge(self, app: str) -> int:
        """End all that wait as failed ("Purged"); what is in flight gets its own end. Returns how many."""


def _batch_apns_id(batch: int, tag: int, index: int) -> bytes:
    return (apns_id_base(batch, tag) | index << 32).to_bytes(16, "big")


def fanout_apns_id(fanout: int, tag: int, device_token: str) -> bytes:
    drawn = blake2b(device_token.encode(), digest_size=7, key=tag.to_bytes(4, "big")).digest()
    low = int.from_bytes(drawn, "big") & ((1 << 54) - 1)
    return (apns_id_base(fanout, 0) | low).to_bytes(16, "big")


def apns_id_base(batch: int, tag: int) -> int:
    """A UUID of version 7 (RFC 9562 §5.7) that holds the batch's id: milliseconds, then its sequence.

    The 54 bits that are left are 22 of the index and 32 of the tag, or all of a fan-out's device. So a
    notification is found by its apns-id without an index on disk.
    """
    sequence = batch & 0xFFFFF
    return (batch >> 20) << 80 | 7 << 76 | (sequence >> 8) << 64 | 2 << 62 | (sequence & 0xFF) << 54 | tag


def batch_of(apns_id: bytes) -> int:
    """The batch's id that an apns-id of ours holds; any number for one of others."""
    number = int.from_bytes(apns_id, "big")
    return (number >> 80) << 20 | ((number >> 64) & 0xFFF) << 8 | (number >> 54) & 0xFF
