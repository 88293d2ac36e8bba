"""The gateway's log: JSON off a terminal, readable on one, and nothing in it that must not be there.

Modules of the gateway log through structlog, by `get_logger`: an event, which is the same short sentence each
time, and the values as fields of their own. The library logs through `logging`; `open_log` gives both one
handler. Without it the gateway's lines go wherever `logging` takes them, like those of any other module.

A line tells of what went wrong, of a change of state, or of how an alarm was judged and what became of its
push. `request_id` names the request that a line is about; `batch`, the id of what was put into the outbox,
leads from there over the apns-id to APNs' own apns-unique-id.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Generator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast, final

import orjson
import trio

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

__all__ = [
    "DEBUG", "INFO", "LEVELS", "STORIES", "Allowance", "Form", "Repeats", "clean", "get_logger", "open_log",
    "request_id", "stdlib_logger",
]  # fmt: skip

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that the running task works on."""

CHATTY = ("httpx2", "watchfiles")
"""Libraries that tell of each thing that went well: a URL with its secrets, a file that changed. The log may
be a file beside those that are watched: each line would be the cause of the next one."""

LEVELS = ("debug", "info", "warning", "error", "critical")
DEBUG, INFO = logging.DEBUG, logging.INFO
Form = Literal["auto", "json", "text"]

_Event = MutableMapping[str, Any]

# Hex digits that stand alone; a device token has 64 today and may have more.
_DEVICE_TOKEN = re.compile(r"(?<![0-9A-Za-z])([0-9A-Fa-f]{4})[0-9A-Fa-f]{24,}([0-9A-Fa-f]{4})(?![0-9A-Za-z])")
_CREDENTIAL = re.compile(
    r"""((?:[?&](?:token|key|secret)=)|(?:\b(?:bearer|basic)\s+)|(?:\bfp[a-z]_))[^\s&"',;]+""", re.IGNORECASE
)
_SECRET = re.compile(
    r"authorization|cookie|password|passphrase|secret|token|api_?key|private_?key", re.IGNORECASE
)
_CONTENT = frozenset({"payload", "body", "raw", "content"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Hex digits that are no device token, by the name of their field.
_DIGESTS = frozenset({"fingerprint", "apns_id", "apns_unique_id", "digest"})


class _Line(dict[str, Any]):
    """An event and its fields; as a text, for handlers that know nothing of fields, it is cleaned."""

    def __str__(self) -> str:
        told = _cleaned(None, "", {name: value for name, value in self.items() if name != "exc_info"})
        fields = " ".join(f"{name}={value!r}" for name, value in told.items() if name != "event")
        return f"{told.get('event', '')} {fields}".rstrip()


def _to_logging(logger: object, method: str, event: _Event) -> tuple[tuple[_Line], dict[str, Any]]:
    """The last step in structlog: a call of `logging`, as ProcessorFormatter knows it, for any handler."""
    about = {"_logger": logger, "_name": method}
    return (_Line(event),), {"extra": about, "exc_info": event.get("exc_info")}


class _Logger:
    """Becomes structlog's with its first line: a command that writes none is not to wait for the import."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        import structlog

        bound = structlog.wrap_logger(
            logging.getLogger(self._name),
            processors=[structlog.stdlib.filter_by_level, _to_logging],
            wrapper_class=structlog.stdlib.BoundLogger,
        ).bind()
        value = self.__dict__[attribute] = getattr(bound, attribute)
        return value


def get_logger(name: str) -> BoundLogger:
    """The logger of a part of the gateway: `logger.warning("the sentence", field=value)`.

    It does not depend on what the process has configured for structlog, nor on whether it has anything.
    """
    return cast("BoundLogger", _Logger(name))


def stdlib_logger(name: str) -> logging.Logger:
    """For libraries that want one of `logging`'s; its lines have no fields."""
    return logging.getLogger(name)


@contextmanager
def open_log(
    level: str = "info", form: Form = "auto", stream: TextIO | None = None
) -> Generator[Repeats, None, None]:
    """Take over all logging of the process until the block is left.

    Args:
      level: one of LEVELS; what is below is dropped.
      form: "json" is one object a line, "text" for people, "auto" text on a terminal.
      stream: standard error.

    Gives the filter of repeats, whose `run` is to be started where lines may stay away for long.
    """
    out = sys.stderr if stream is None else stream
    on_terminal = out.isatty()
    handler = logging.StreamHandler(out)
    repeats = Repeats(handler)
    handler.addFilter(repeats)
    handler.setFormatter(_formatter(form, on_terminal))
    root = logging.getLogger()
    before, level_before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    chatty = {logger: logger.level for logger in map(logging.getLogger, CHATTY)}
    for logger in chatty:
        logger.setLevel(max(logging.WARNING, root.level))
    try:
        yield repeats
    finally:
        repeats.tell_all()
        root.handlers[:] = before
        root.setLevel(level_before)
        for logger, its_level in chatty.items():
            logger.setLevel(its_level)


def _formatter(form: Form, on_terminal: bool) -> logging.Formatter:
    import structlog

    readable = form == "text" or (form == "auto" and on_terminal)
    last: list[Any]
    if readable:
        colours = on_terminal and not os.environ.get("NO_COLOR")
        last = [_visible, structlog.dev.ConsoleRenderer(colors=colours, timestamp_key="time", pad_event_to=0)]
    else:
        last = [_named_plainly, structlog.processors.JSONRenderer(_one_line)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            _stamped_for_people if readable else _stamped,
            _about_request,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _cleaned,
            *last,
        ],
    )


@final
class Allowance:
    """Lines that may go out: so many at once, and then so many a second."""

    __slots__ = ("_left", "_refilled_at", "at_once", "per_second")

    def __init__(self, at_once: int, per_second: float, now: float) -> None:
        self.at_once, self.per_second = at_once, per_second
        self._left, self._refilled_at = float(at_once), now

    def take(self, now: float) -> bool:
        """Whether one more may go out."""
        grown = max(0.0, now - self._refilled_at) * self.per_second
        self._left, self._refilled_at = min(self.at_once, self._left + grown), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


STORIES = frozenset({"alarm judged", "notification accepted", "notice raised", "notice over"})
"""Events of which no line repeats another: each tells of a thing of its own."""


@final
class Repeats(logging.Filter):
    """Lets a fault speak, and keeps it from shouting: of each kind of line some at once, then one a second.

    A kind is a logger, a level and the words before their values. What was held back is counted, and the
    count goes out with the next line of the kind, or with a line of its own once the kind is quiet. Lines of
    STORIES are let through in larger numbers: a storm of alarms is where they are looked for.
    """

    AT_ONCE = 5
    STORIES_AT_ONCE = 500
    STORIES_PER_SECOND = 50
    QUIET = 10.0  # seconds after which the count of what was held back is told by itself
    KINDS = 1_000

    def __init__(self, handler: logging.Handler | None = None) -> None:
        super().__init__()
        self._handler = handler
        self._kinds: dict[tuple[str, int, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record may go out now, by its own time."""
        if getattr(record, "summary", False):
            return True
        key = (record.name, record.levelno, _words(record))
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= self.KINDS:  # whoever makes up words for each line is not held back
                del self._kinds[next(iter(self._kinds))]
            kind = self._kinds[key] = _Kind(self.allowance(key[2], record.created), record.created)
        kind.at = record.created
        if not kind.allowance.take(record.created):
            kind.held_back += 1
            return False
        record.repeated, kind.held_back = kind.held_back, 0
        return True

    @classmethod
    def allowance(cls, words: str, now: float) -> Allowance:
        """What lines with these words may take."""
        if words in STORIES:
            return Allowance(cls.STORIES_AT_ONCE, cls.STORIES_PER_SECOND, now)
        return Allowance(cls.AT_ONCE, 1.0, now)

    def tell(self, now: float, quiet_for: float = QUIET) -> None:
        """Write the counts of kinds that have been quiet for so many seconds, and forget these."""
        for key, kind in list(self._kinds.items()):
            if now - kind.at >= quiet_for:
                del self._kinds[key]
                if kind.held_back and self._handler is not None:
                    name, level, words = key
                    record = logging.LogRecord(name, level, "", 0, words, None, None)
                    record.created = now
                    record.summary, record.repeated = True, kind.held_back
                    self._handler.handle(record)

    def tell_all(self) -> None:
        """Write all counts."""
        last = max((kind.at for kind in self._kinds.values()), default=0.0)
        self.tell(last, quiet_for=0.0)

    async def run(self) -> None:
        """Write counts as their kinds fall quiet, for ever."""
        while True:
            await trio.sleep(self.QUIET)
            self.tell(datetime.now(UTC).timestamp())


@final
class _Kind:
    __slots__ = ("allowance", "at", "held_back")

    def __init__(self, allowance: Allowance, now: float) -> None:
        self.allowance, self.at, self.held_back = allowance, now, 0


def _words(record: logging.LogRecord) -> str:
    if isinstance(record.msg, dict):  # structlog's
        return str(record.msg.get("event", ""))
    return str(record.msg)


def clean(text: str) -> str:
    """A text with its device tokens shortened, and the keys in its addresses and header fields hidden."""
    text = text.encode(errors="replace").decode()
    return _DEVICE_TOKEN.sub(r"\1…\2", _CREDENTIAL.sub(r"\1(hidden)", text))


def _cleaned(logger: object, method: str, event: _Event) -> _Event:
    """What may be shown; a field without a value is left out."""
    told: _Event = {}
    for name, value in event.items():
        if value is None:
            continue
        if isinstance(value, bytes) or (name in _CONTENT and isinstance(value, str)):
            told[name] = f"({len(value):,} octets)"
        elif name == "device_token":
            told[name] = _shortened(str(value))
        elif _SECRET.search(name):
            told[name] = "(hidden)"
        elif name in _DIGESTS or isinstance(value, (bool, int, float)):
            told[name] = value
        else:
            told[name] = clean(str(value))
    return told


def _visible(logger: object, method: str, event: _Event) -> _Event:
    """Control characters as escapes: what a sender wrote must not write on the operator's terminal."""
    for name, value in event.items():
        if isinstance(value, str) and name != "exception":
            event[name] = _CONTROL.sub(lambda found: repr(found[0])[1:-1], value)
    return event


def _shortened(device_token: str) -> str:
    return f"{device_token[:4]}…{device_token[-4:]}" if len(device_token) >= 16 else "(hidden)"


def _about_request(logger: object, method: str, event: _Event) -> _Event:
    number = request_id.get()
    if number is not None:
        event.setdefault("request", number)
    return event


def _stamped(logger: object, method: str, event: _Event) -> _Event:
    record: logging.LogRecord = event["_record"]
    at = datetime.fromtimestamp(record.created, UTC)
    return _counted(record, {"time": at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z", **event})


def _stamped_for_people(logger: object, method: str, event: _Event) -> _Event:
    record: logging.LogRecord = event["_record"]
    at = datetime.fromtimestamp(record.created, UTC).astimezone()
    return _counted(record, {"time": at.strftime("%H:%M:%S"), **event})


def _counted(record: logging.LogRecord, event: _Event) -> _Event:
    repeated = getattr(record, "repeated", 0)
    if repeated:
        event["repeated"] = repeated
    return event


def _named_plainly(logger: object, method: str, event: _Event) -> _Event:
    """The order in which a person reads a line of JSON."""
    first = {"time": event.pop("time"), "level": event.pop("level"), "event": event.pop("event")}
    return {**first, **event}


def _one_line(event: _Event, **_: object) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode(errors="replace")
