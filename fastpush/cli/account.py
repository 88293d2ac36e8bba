"""The account of a run: how many notifications ended how, and how far it has come."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, Protocol, TextIO

import click
import orjson

from fastpush.notification import Response

__all__ = ["Account", "Meter", "Results", "open_meter", "reason_of"]

OUTCOMES = ("accepted", "rejected", "expired", "not_sent", "unknown")
_MOST_REASONS = 100
_OTHER = "other reasons"


class Ending(NamedTuple):
    """How notifications ended: outcome, APNs' status where it gave one, and the reason."""

    outcome: str
    status: int | None
    reason: str | None


def reason_of(response: Response) -> str | None:
    """APNs' word where it gave one, else why there is no verdict."""
    if response.reason is None and response.error is not None:
        return str(response.error)
    return response.reason


class Account:
    """Counts endings. Reasons are the server's words, so only so many different ones are kept apart."""

    def __init__(self) -> None:
        self.endings: Counter[Ending] = Counter()
        self.invalid = 0
        self.began = time.monotonic()

    def add(self, response: Response) -> None:
        ending = Ending(response.outcome, response.status, reason_of(response))
        if ending not in self.endings and len(self.endings) >= _MOST_REASONS:
            ending = Ending(response.outcome, None, _OTHER)
        self.endings[ending] += 1

    def add_unfinished(self, count: int) -> None:
        """Notifications that were handed over, and of which nothing was heard before the end."""
        if count:
            self.endings[Ending("unknown", None, "interrupted")] += count

    @property
    def total(self) -> int:
        return self.endings.total()

    def of(self, outcome: str) -> int:
        return sum(count for ending, count in self.endings.items() if ending.outcome == outcome)

    @property
    def good(self) -> bool:
        """Whether all that was asked for was accepted."""
        return not self.invalid and self.of("accepted") == self.total

    def as_json(self, *, interrupted: bool, read: int | None) -> dict[str, Any]:
        return {
            "notifications": self.total,
            **{outcome: self.of(outcome) for outcome in OUTCOMES},
            "invalid": self.invalid,
            "lines": read,
            "seconds": round(time.monotonic() - self.began, 3),
            "interrupted": interrupted,
            "reasons": [
                {**ending._asdict(), "count": count}
                for ending, count in self.endings.most_common()
                if ending.outcome != "accepted"
            ],
        }

    def as_text(self) -> str:
        """A few lines for a person, none wider than 80 columns."""
        seconds = time.monotonic() - self.began
        rate = f", {self.total / seconds:,.0f} a second" if seconds > 0.05 and self.total > 100 else ""
        lines = [f"{counted(self.total, 'notification')} in {seconds:.1f} s{rate}"]
        for outcome in OUTCOMES:
            if count := self.of(outcome):
                lines.append(f"{count:>12,}  {outcome.replace('_', ' ')}")
                for ending, part in self.endings.most_common():
                    if ending.outcome == outcome and (ending.reason or ending.status not in (None, 200)):
                        text = " ".join(str(word) for word in (ending.status, ending.reason) if word)
                        lines.append(f"{part:>16,}  {shortened(text, 62)}")
        if self.invalid:
            lines.append(f"{self.invalid:>12,}  not sent: the line is no notification")
        return "\n".join(lines)


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Results:
    """Writes one JSON object for each notification that has ended, in the order of ending."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file

    def write(self, line: int, response: Response) -> None:
        if self._file is None:
            return
        record: dict[str, Any] = {
            "line": line,
            "apns_id": response.apns_id,
            "outcome": response.outcome,
            "status": response.status,
            "reason": reason_of(response),
        }
        if response.unregistered_at is not None:
            record["unregistered_at"] = response.unregistered_at
        self._write(record)

    def flush(self) -> None:
        """Let a reader see what was written; for after each batch."""
        if self._file is not None:
            self._file.flush()

    def write_invalid(self, line: int, reason: str) -> None:
        self._write_other(line, "invalid", reason)

    def write_unfinished(self, line: int) -> None:
        self._write_other(line, "unknown", "interrupted")

    def _write_other(self, line: int, outcome: str, reason: str) -> None:
        self._write({"line": line, "apns_id": None, "outcome": outcome, "status": None, "reason": reason})

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(orjson.dumps(record) + b"\n")


class Meter(Protocol):
    """Shows how far a run has come."""

    def show(self, ended: int, octets: int) -> None:
        """Tell how many notifications have ended and how much of the input was read."""


class _Silent:
    def show(self, ended: int, octets: int) -> None:
        pass


class _Lines:
    """For a log: a plain line now and then."""

    EVERY = 5.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = time.monotonic() + self.EVERY
        self._before = 0

    def show(self, ended: int, octets: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        rate = (ended - self._before) / (now - self._next + self.EVERY)
        click.echo(f"{ended:,} done, {rate:,.0f} a second", file=self._stream)
        self._next, self._before = now + self.EVERY, ended


@contextlib.contextmanager
def open_meter(stream: TextIO, total_octets: int | None, *, quiet: bool) -> Iterator[Meter]:
    """A progress bar where the stream is a terminal, plain lines where it is none."""
    if quiet:
        yield _Silent()
    elif not stream.isatty():
        yield _Lines(stream)
    else:
        from fastpush.cli.bar import open_bar

        with open_bar(stream, total_octets) as bar:
            yield bar
