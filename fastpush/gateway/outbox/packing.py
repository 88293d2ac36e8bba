"""How batches and their ends lie in the file: columns of msgpack, and a column of equal values as one.

A row for each notification would cost ten times as much as the notification itself. A batch is two blobs:
its *head*, all but the payloads, and its *payloads*, each different one once, which are dropped earlier. What
became of its notifications is a *log*, one blob for each time that some of them were settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec

from fastpush.gateway.outbox import Attempt, End, Entry, Outcome, Retry

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
# A column each, in the order of the heads on disk: new fields go last, older heads then have their defaults.
_FIELDS = tuple(field for field in Entry.__struct_fields__ if field not in ("payload", "origin"))
_OUTCOMES: tuple[Outcome, ...] = ("accepted", "rejected", "expired", "failed", "unknown")
_NUMBERS = {outcome: number for number, outcome in enumerate(_OUTCOMES)}


def pack_entries(entries: Sequence[Entry]) -> tuple[bytes, bytes]:
    """Head and payloads of a batch."""
    places: dict[bytes, int] = {}
    found = [places.setdefault(entry.payload, len(places)) for entry in entries]
    head = [_column(found), *(_column([getattr(entry, field) for entry in entries]) for field in _FIELDS)]
    if entries[0].origin is not None:
        head.append([entries[0].origin])
    return _encode(head), _encode(list(places))


def _column(values: list[Any]) -> list[Any]:
    """[value] when all are equal, otherwise [None, values]."""
    first = values[0]
    return [first] if values.count(first) == len(values) else [None, values]


def unpack_entries(head: bytes, payloads: bytes | None, count: int) -> list[Entry]:
    """The entries of a batch; without payloads theirs are empty."""
    places, tokens, *columns = _decode(head)
    found: Iterable[int] = repeat(places[0], count) if len(places) == 1 else places[1]
    texts: Iterable[bytes] = repeat(b"", count)
    if payloads is not None:
        bodies = _decode(payloads)
        texts = [bodies[place] for place in found]
    others = [repeat(column[0], count) if len(column) == 1 else column[1] for column in columns]
    return list(map(Entry, tokens * count if len(tokens) == 1 else tokens[1], texts, *others))


def keep_payloads(head: bytes, payloads: bytes, count: int, indexes: set[int]) -> bytes:
    """The payloads with all emptied that none of these indexes needs."""
    places = _decode(head)[0]
    found = [places[0]] * count if len(places) == 1 else places[1]
    needed = {found[index] for index in indexes}
    return _encode([payload if place in needed else b"" for place, payload in enumerate(_decode(payloads))])


class Fate(NamedTuple):
    """One thing that happened to the notification of a place (and, in a fan-out, of a device token).

    The place REST stands for all that have no other end, PAGE for a page of a fan-out.
    """

    place: int
    device_token: str | None
    attempt: Attempt


class LogWriter:
    """Collects what is settled at once of one batch."""

    __slots__ = ("_accepted", "_base", "_others", "_times", "failed")

    def __init__(self, at: float) -> None:
        self._base = int(at * 1_000)
        self._accepted: list[int] = []
        self._times: list[int] = []
        self._others: list[tuple[Any, ...]] = []
        self.failed = 0

    def end(self, end: End) -> None:
        at = int(end.at * 1_000) - self._base
        unique_id = end.apns_unique_id
        if (
            end.outcome == "accepted"
            and end.attempts == 1
            and end.status == 200
            and end.device_token is None
            and unique_id is None
        ):
            self._accepted.append(end.index)
            self._times.append(at)
            return
        if end.outcome == "failed":
            self.failed += 1
        own = (
            end.index, _NUMBERS[end.outcome], at, end.status, end.reason, end.attempts, end.device_token
        )  # fmt: skip
        self._others.append(own if unique_id is None else (*own, None, unique_id))

    def end_all(self, indexes: Iterable[int], outcome: Outcome, reason: str, at: float) -> None:
        when = int(at * 1_000) - self._base
        for index in indexes:
            self._others.append((index, _NUMBERS[outcome], when, 0, reason, 1, None))

    def end_page(self, last_device_token: str, count: int, at: float) -> None:
        """A page of a fan-out of which nobody knows what went out: `attempts` of its fate is the count."""
        when = int(at * 1_000) - self._base
        self._others.append((PAGE, _NUMBERS["unknown"], when, 0, last_device_token, count, None))

    def retry(self, retry: Retry) -> None:
        due = int(retry.due_at * 1_000)
        at = int(retry.at * 1_000) - self._base
        self._others.append(
            (retry.index, -1, at, retry.status, retry.reason, retry.attempts, retry.device_token, due)
        )

    def packed(self) -> bytes:
        return _encode((self._base, self._accepted, self._times, self._others))


def pack_rest(outcome: Outcome, reason: str, at: float) -> bytes:
    """A log that ends all that have no end of their own."""
    return _encode((int(at * 1_000), [], [], [(None, _NUMBERS[outcome], 0, 0, reason, 0, None)]))


def read_log(log: bytes) -> Iterator[Fate]:
    """What a log tells."""
    base, accepted, times, others = _decode(log)
    for index, at in zip(accepted, times, strict=True):
        yield Fate(index, None, Attempt((base + at) / 1_000, "accepted", 200, "", 1))
    for index, number, at, status, reason, attempts, device_token, *more in others:
        due, unique_id = (*more, None, None)[:2]
        attempt = Attempt(
            (base + at) / 1_000,
            "retry" if number < 0 else _OUTCOMES[number],
            status,
            reason,
            attempts,
            None if due is None else due / 1_000,
            unique_id,
        )
        yield Fate(REST if index is None else index, device_token, attempt)


REST, PAGE = -2, -3
_ACCEPTED = ("accepted", "")


def read_ends(
    logs: Iterable[bytes],
) -> tuple[dict[int, tuple[str, str]], tuple[str, str] | None]:
    """Outcome and reason by index, and of all the rest; the first end is the one."""
    ends: dict[int, tuple[str, str]] = {}
    rest: tuple[str, str] | None = None
    for log in logs:
        _base, accepted, _times, others = _decode(log)
        ends = dict.fromkeys(accepted, _ACCEPTED) | ends
        for index, number, _at, _status, reason, _attempts, device_token, *_ in others:
            if number < 0 or device_token is not None:
                continue
            if index is None:
                rest = rest or (_OUTCOMES[number], reason)
            else:
                ends.setdefault(index, (_OUTCOMES[number], reason))
    return ends, rest


def read_only_end(logs: str) -> tuple[str, str] | None:
    """Outcome and reason of a batch of one, out of its logs in hexadecimal."""
    if " " not in logs:
        _base, accepted, _times, others = _decode(bytes.fromhex(logs))
        if accepted and not others:
            return _ACCEPTED
    ends, rest = read_ends([bytes.fromhex(log) for log in logs.split()])
    return ends.get(0, rest)


def read_marks(logs: Iterable[bytes]) -> tuple[set[int], set[int], bool]:
    """The indexes that ended, those that are parked, and whether all the rest ended too."""
    ended: set[int] = set()
    parked: set[int] = set()
    rest = False
    for log in logs:
        _base, accepted, _times, others = _decode(log)
        ended.update(accepted)
        for index, number, *_ in others:
            if index is None:
                rest = True
            elif number < 0:
                parked.add(index)
            else:
                ended.add(index)
    return ended, parked - ended, rest
