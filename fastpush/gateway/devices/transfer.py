"""Many devices at once, as CSV and as NDJSON: in and out as streams, in bounded memory.

The columns of CSV and the members of NDJSON's objects are those of `COLUMNS`. In CSV a device's tags stand
in one cell, apart by semicolons. A cell that a spreadsheet would take for a formula (it begins with =, +, -,
@ or a control character) is written with an apostrophe before it, as is one that begins with an apostrophe;
reading takes the apostrophe off again. So nothing is lost on the way out and in.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, final

import msgspec

from fastpush.gateway.devices.registry import Batch, Devices
from fastpush.gateway.devices.values import Device, Environment, Registration
from fastpush.gateway.problems import Problem

__all__ = ["COLUMNS", "Export", "Format", "Imported", "LineProblem", "import_devices"]

Format = Literal["csv", "ndjson"]
COLUMNS = ("device_token", "environment", "user", "tags", "locale", "registered_at")

MAX_LINE_OCTETS = 65_536
MAX_PROBLEMS = 1_000
AT_ONCE = 500
"""Rows in one commit."""
PAGE = 1_000
FORMULAS = frozenset("=+-@\t\r\n")
APOSTROPHE = "'"
TOO_LONG = f"is longer than {MAX_LINE_OCTETS:,} octets."
NOT_CLOSED = "has a quote that is not closed."


class LineProblem(msgspec.Struct, frozen=True):
    """What is wrong with a line; the first is 1, and of CSV it is the header."""

    line: int
    detail: str
    field: str | None = None


class Imported(msgspec.Struct, frozen=True):
    """What became of an import.

    Attributes:
      imported, refused: lines.
      problems: of the first thousand lines that were refused.
    """

    imported: int
    refused: int
    problems: tuple[LineProblem, ...]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of NDJSON."""

    device_token: str
    environment: Environment = "production"
    user: str | None = None
    tags: tuple[str, ...] | None = None
    locale: str | None = None
    registered_at: Annotated[float, msgspec.Meta(ge=0)] | None = None
    app: str | None = None
    seen_at: float | None = None
    dead_at: float | None = None
    dead_reason: str | None = None


class _Numbered(NamedTuple):
    """A line, or why it is none."""

    number: int
    text: bytes
    problem: str = ""


async def import_devices(devices: Devices, app: str, chunks: AsyncIterable[bytes], form: Format) -> Imported:
    """Register the devices of a file of any length.

    Lines that are wrong are told by their numbers, and the others are taken. What is left out of a line stays
    as it is in the registry. `registered_at` (UNIX seconds) may say that a device was registered earlier than
    now: what APNs has said of it since then counts.

    Raises:
      Problem: 422, the CSV has no header, or one with a column that is not known.
    """
    taking = _Taking(devices.open_batch(app), app, _csv_reader() if form == "csv" else _read_json)
    cutter = _Records() if form == "csv" else _Lines()
    async for chunk in chunks:
        for line in cutter.feed(chunk):
            await taking.take(line)
    for line in cutter.end():
        await taking.take(line)
    return await taking.finish()


class _Taking:
    """An import that is under way."""

    def __init__(self, batch: Batch, app: str, read: Callable[[bytes], _Line | None]) -> None:
        self._batch = batch
        self._app = app
        self._read = read
        self._refused = 0
        self._problems: list[LineProblem] = []

    async def take(self, line: _Numbered) -> None:
        if line.problem:
            self._refuse(LineProblem(line.number, line.problem))
            return
        try:
            found = self._read(line.text)
            if found is None:
                return
            if found.app not in (None, self._app):
                raise Problem(422, detail=f"is of another app than {self._app!r}.", field="app")
            self._batch.add(_registration(found), found.registered_at)
        except Problem as problem:
            if "line" in problem.members:  # the header: nothing can be read without it
                raise
            self._refuse(LineProblem(line.number, problem.detail, problem.field))
            return
        if len(self._batch) >= AT_ONCE:
            await self._batch.write()

    def _refuse(self, problem: LineProblem) -> None:
        self._refused += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)

    async def finish(self) -> Imported:
        await self._batch.write()
        return Imported(self._batch.written, self._refused, tuple(self._problems))


def _registration(line: _Line) -> Registration:
    return Registration(
        device_token=line.device_token,
        environment=line.environment,
        user=line.user,
        tags=line.tags,
        locale=line.locale,
    )


# Lines and records.


class _Lines:
    """Cuts octets into lines, numbered from 1, without their ends; what is too long is told, and not kept."""

    def __init__(self) -> None:
        self._kept = b""
        self._number = 0
        self._too_long = False

    def feed(self, chunk: bytes) -> Iterator[_Numbered]:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            yield self._line(self._kept + part)
        self._kept += rest
        if len(self._kept) > MAX_LINE_OCTETS:
            self._kept, self._too_long = b"", True

    def end(self) -> Iterator[_Numbered]:
        """What stands behind the last end of a line."""
        if self._kept or self._too_long:
            yield self._line(self._kept)

    def _line(self, text: bytes) -> _Numbered:
        self._number += 1
        too_long = self._too_long or len(text) > MAX_LINE_OCTETS
        self._kept, self._too_long = b"", False
        return _Numbered(
            self._number, b"" if too_long else text.removesuffix(b"\r"), TOO_LONG if too_long else ""
        )


class _Records:
    """Cuts octets into records of CSV, which may hold ends of lines within quotes.

    They are numbered by the line that they begin at.
    """

    def __init__(self) -> None:
        self._lines = _Lines()
        self._begun: list[bytes] = []
        self._first = self._octets = self._quotes = 0

    def feed(self, chunk: bytes) -> Iterator[_Numbered]:
        for line in self._lines.feed(chunk):
            yield from self._add(line)

    def end(self) -> Iterator[_Numbered]:
        for line in self._lines.end():
            yield from self._add(line)
        if self._begun:
            yield _Numbered(self._first, b"", NOT_CLOSED)

    def _add(self, line: _Numbered) -> Iterator[_Numbered]:
        if not self._begun:
            self._first, self._octets, self._quotes = line.number, 0, 0
        self._begun.append(line.text)
        self._octets += len(line.text) + 1
        self._quotes += line.text.count(b'"')
        problem = line.problem
        if not problem and self._quotes % 2:
            if self._octets <= MAX_LINE_OCTETS:
                return
            problem = NOT_CLOSED
        yield _Numbered(self._first, b"" if problem else b"\n".join(self._begun), problem)
        self._begun = []


# What a line says.


_decode = msgspec.json.Decoder(_Line).decode


def _read_json(text: bytes) -> _Line | None:
    if not text.strip():
        return None
    try:
        return _decode(text)
    except msgspec.ValidationError as error:
        sentence, _, place = str(error).partition(" - at `$.")
        raise Problem(422, detail=f"{sentence}.", field=place.rstrip("`") or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(422, detail="is not JSON.") from None


def _csv_reader() -> Callable[[bytes], _Line | None]:
    """A reader whose first record is the header."""
    columns: list[str] = []

    def read(text: bytes) -> _Line | None:
        if not text.strip():
            return None
        try:
            decoded = text.decode("utf-8-sig" if not columns else "utf-8")
        except UnicodeDecodeError:
            raise Problem(422, detail="is not UTF-8.") from None
        try:
            (cells,) = csv.reader(io.StringIO(decoded, newline=""), strict=True)
        except (csv.Error, ValueError):
            raise Problem(422, detail="is not CSV.") from None
        if not columns:
            columns.extend(_header(cells))
            return None
        if len(cells) != len(columns):
            raise Problem(422, detail=f"has {len(cells)} cells; the header has {len(columns)}.")
        return _from_cells(dict(zip(columns, cells, strict=True)))

    return read


def _header(cells: list[str]) -> list[str]:
    columns = [cell.strip().lower() for cell in cells]
    unknown = [column for column in columns if column not in _Line.__struct_fields__]
    if unknown or "device_token" not in columns or len(set(columns)) < len(columns):
        found = f"a column {unknown[0][:40]!r}" if unknown else "no column device_token, or one twice"
        detail = f"The first line has {found}; it may have {', '.join(COLUMNS)}."
        raise Problem(422, "no header", detail, line=1)
    return columns


def _from_cells(cells: dict[str, str]) -> _Line:
    """An empty cell says nothing, but for tags and user: there it says none."""
    values: dict[str, Any] = {
        name: _plain(cell) for name, cell in cells.items() if cell or name in ("tags", "user")
    }
    if "tags" in values:
        values["tags"] = [tag for tag in values["tags"].split(";") if tag]
    try:
        return msgspec.convert(values, _Line, strict=False)
    except msgspec.ValidationError as error:
        sentence, _, place = str(error).partition(" - at `$.")
        raise Problem(422, detail=f"{sentence}.", field=place.rstrip("`") or None) from None


def _plain(cell: str) -> str:
    if len(cell) > 1 and cell[0] == APOSTROPHE and (cell[1] in FORMULAS or cell[1] == APOSTROPHE):
        return cell[1:]
    return cell


def _safe(cell: str) -> str:
    return APOSTROPHE + cell if cell[:1] in FORMULAS or cell.startswith(APOSTROPHE) else cell


# Out.


@final
class Export:
    """All living devices of an app, in the order of their device tokens, in a form that can be imported.

    An iterator of octets, some thousand devices at a time; it may be left at any point.
    """

    def __init__(self, devices: Devices, app: str, form: Format) -> None:
        self._devices = devices
        self._app = app
        self._write = _write_csv if form == "csv" else _write_json
        self._head = ",".join(COLUMNS).encode() + b"\r\n" if form == "csv" else b""
        self._after = ""
        self._ended = False

    def __aiter__(self) -> Export:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            page = await self._devices.list(self._app, after=self._after, limit=PAGE)
            self._ended = len(page) < PAGE
            if page:
                self._after = page[-1].device_token
            text = self._head + self._write(device for device in page if device.dead_at is None)
            self._head = b""
            if text:
                return text
        raise StopAsyncIteration


def _write_json(page: Iterable[Device]) -> bytes:
    return b"".join(
        msgspec.json.encode({name: getattr(device, name) for name in COLUMNS}) + b"\n" for device in page
    )


def _write_csv(page: Iterable[Device]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    for device in page:
        writer.writerow(
            (
                device.device_token, device.environment, _safe(device.user), _safe(";".join(device.tags)),
                _safe(device.locale), f"{device.registered_at:.3f}",
            )
        )  # fmt: skip
    return text.getvalue().encode()
