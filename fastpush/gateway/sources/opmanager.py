"""ManageEngine OpManager's webhook: one post to one `Event`.

OpManager pastes variables into a template as they are. The template is the administrator's own, so that a
field goes by many names; a variable that means nothing for an alarm stays in it as `$IntfField(ifName)`;
and the text of an alarm may be anything that a device says of itself. docs/opmanager.md has the template
that we recommend, with the message last.

Two rules keep a device's text from passing as the sender's word. Of a key that comes twice the first
counts. And of two names for one thing that counts which stands before the message, however trustworthy
the name behind it would be.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping

from fastpush.gateway.sources import RANKS, Event, Severity
from fastpush.gateway.sources.bodies import Body, Fields, normalized, read_body

__all__ = ["APPLICATIONS_MANAGER_NUMBERS", "MAX_MESSAGE_CHARACTERS", "OPMANAGER_NUMBERS", "parse"]

MAX_MESSAGE_CHARACTERS = 8192
MAX_RAW_CHARACTERS = 2048
_MAX_TEXT_CHARACTERS = 256
_MAX_IDENTITY_CHARACTERS = 512

# ManageEngine, knowledge base "Alarm severity levels in OpManager". 4 is worse than 2 and 3.
OPMANAGER_NUMBERS: Mapping[int, Severity] = {
    1: "critical",
    2: "trouble",
    3: "attention",
    4: "service_down",
    5: "clear",
    6: "info",
}
# ManageEngine Applications Manager, "Generate Alert API": its 4 is a warning.
APPLICATIONS_MANAGER_NUMBERS: Mapping[int, Severity] = {1: "critical", 4: "attention", 5: "clear"}

_WORDS: Mapping[str, Severity] = {
    "critical": "critical",
    "down": "critical",
    "trouble": "trouble",
    "major": "trouble",
    "error": "trouble",
    "attention": "attention",
    "warning": "attention",
    "minor": "attention",
    "servicedown": "service_down",
    "clear": "clear",
    "cleared": "clear",
    "up": "clear",
    "normal": "clear",
    "ok": "clear",
    "resolved": "clear",
    "info": "info",
    "information": "info",
    "informational": "info",
}

# Each thing by its names, the most trustworthy first.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    name: tuple(dict.fromkeys(normalized(alias) for alias in aliases.split()))
    for name, aliases in {
        "alarm_id": "alarmid Alert_Id eventId id",
        "severity": "stringseverity severityString statusStr severity numericSeverity Alert_Severity"
        " statusNum status",
        "device": "displayName device_name Alert_AssetName device resource source host monitorname",
        "address": "ipAddress Alert_AssetIPAddress Device_IP",
        "message": "message text Alert_Message alarmMessage event INCIDENT_REASON",
        "entity": "entity Alert_AssetEntity",
        "category": "category Alert_Category group",
        "event_type": "eventType Alert_Type",
        "time": "modTimeLong strModTime modTime timestamp Alert_Time INCIDENT_TIME",
        "monitor": "monitor monitorname ifName",
        "parent": "parent dependent",
        "url": "url alarmUrl RCA_LINK",
        "source": "src",
    }.items()
}
_MESSAGE_KEYS = frozenset(_ALIASES["message"])
_SEVERITY_KEYS = frozenset(_ALIASES["severity"])
_KNOWN = frozenset(
    key for keys in _ALIASES.values() for key in keys
) | {"lastpolledvalue", "value", "vendor", "type"}  # fmt: skip

_UNEXPANDED = re.compile(r"\$[A-Za-z_]\w*(\([^()]*\))?")
# C0 and C1 controls but for the line feed, and marks that turn the direction of writing.
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]+")
_MILLISECONDS = re.compile(r"1[0-9]{12}")  # from 2001 to 2033
_ICON = re.compile(r"status([1-6])\.gif", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{0,512}>")


def parse(
    octets: bytes,
    content_type: str = "",
    *,
    source: str = "opmanager",
    numbers: Mapping[int, Severity] = OPMANAGER_NUMBERS,
) -> Event:
    """Read one post of OpManager's webhook, whatever it is.

    Never raises, and takes time and memory in proportion to the body's first 256 KiB. A body in which
    nothing is known gives an event that is `unreadable` and a test.

    Args:
      octets: the body; or the query of a GET, with the content type of a form.
      content_type: the header as it came.
      source: the name of the instance, where the body names none under `src`.
      numbers: what a bare number means as a severity; products differ on 4.
    """
    body = read_body(octets, content_type, _KNOWN)
    reader = _Reader(body)
    alarm_id, entity = reader.identities()
    device = reader.identity("device", _MAX_TEXT_CHARACTERS)
    severity = _severity(reader, numbers)
    address = reader.line("address")
    at, time_text = _time(reader)
    unreadable = not reader.found
    if unreadable:
        body.note("unreadable")
    message = reader.text("message") or (_cleaned(body.text)[:MAX_MESSAGE_CHARACTERS] if unreadable else "")
    # Without ids in the template a device and its severity are an alarm all the same. Ids that are there
    # and came without a value are those of a test.
    without_ids = not alarm_id and not entity
    is_test = without_ids and (
        severity is None or not (device or address) or reader.has("alarm_id") or reader.has("entity")
    )
    if without_ids and not is_test:
        body.note("no_ids")
    return Event(
        source=reader.source() or source,
        device=device or address,
        entity=entity,
        alarm_id=alarm_id,
        severity=severity or "unknown",
        category=reader.line("category"),
        monitor=reader.monitor(),
        event_type=reader.line("event_type"),
        address=address,
        parent=reader.line("parent"),
        message=message,
        at=at,
        time_text=time_text,
        url=reader.line("url"),
        raw=_CONTROLS.sub(" ", body.text[:MAX_RAW_CHARACTERS]),
        quirks=tuple(body.quirks),
        is_test=is_test,
    )


class _Reader:
    """The fields of a body by what they mean."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.found = False
        self.later_severities: list[str] = []
        self._first: dict[str, tuple[int, str]] = {}
        self._keys: set[str] = set()
        self._message_at = len(body.fields)
        self._take(body.fields)

    def _take(self, fields: Fields) -> None:
        for place, (key, value) in enumerate(fields):
            self.found = True
            if key in self._keys:
                self.body.note(f"twice:{key}")
                if key in _SEVERITY_KEYS:
                    self.later_severities.append(value.strip())
                continue
            self._keys.add(key)
            text = value.strip()
            if text[:1] == "$" and len(text) <= _MAX_TEXT_CHARACTERS and _UNEXPANDED.fullmatch(text):
                self.body.note(f"unexpanded:{key}")
            elif len(text) == 4 and text.casefold() == "null":
                self.body.note(f"null:{key}")
            elif text:
                self._first[key] = (place, text)
                if key in _MESSAGE_KEYS:
                    self._message_at = min(self._message_at, place)

    def has(self, name: str) -> bool:
        """Whether the template names it, with or without a value."""
        return any(key in self._keys for key in _ALIASES[name])

    def values(self, name: str, *, before_message: bool = False) -> list[tuple[str, str]]:
        """Key and value of each name it goes by: those before the message, then those behind it."""
        found = [(key, *self._first[key]) for key in _ALIASES[name] if key in self._first]
        if before_message:
            found = [item for item in found if item[1] < self._message_at]
        if len(found) > 1:
            found.sort(key=lambda item: item[1] > self._message_at)
        return [(key, value) for key, _, value in found]

    def text(self, name: str) -> str:
        """With its lines, up to the limit of a message."""
        for _, value in self.values(name):
            cleaned = _cleaned(value)
            if len(cleaned) > MAX_MESSAGE_CHARACTERS:
                self.body.note(f"cut:{name}")
            if cleaned:
                return cleaned[:MAX_MESSAGE_CHARACTERS]
        return ""

    def line(self, name: str, limit: int = _MAX_TEXT_CHARACTERS) -> str:
        """As one line."""
        for _, value in self.values(name):
            cleaned = _one_line(value)
            if len(cleaned) > limit:
                self.body.note(f"cut:{name}")
            if cleaned:
                return cleaned[:limit]
        return ""

    def before_message(self, name: str) -> bool:
        """Whether a value of it stands where no device can have written it."""
        return any(self._first[key][0] < self._message_at for key in _ALIASES[name] if key in self._first)

    def identities(self) -> tuple[str, str]:
        """Alarm id and entity; where one stands before the message the other counts only if it does too."""
        alarm_id, entity = self.identity("alarm_id"), self.identity("entity")
        if alarm_id and entity:
            if self.before_message("entity") and not self.before_message("alarm_id"):
                self.body.note("after_message:alarm_id")
                alarm_id = ""
            elif self.before_message("alarm_id") and not self.before_message("entity"):
                self.body.note("after_message:entity")
                entity = ""
        return alarm_id, entity

    def identity(self, name: str, limit: int = _MAX_IDENTITY_CHARACTERS) -> str:
        """As one line; one that is too long ends in a digest, so that no two become one."""
        for _, value in self.values(name):
            cleaned = _one_line(value)
            if len(cleaned) > limit:
                self.body.note(f"cut:{name}")
                digest = hashlib.sha256(cleaned.encode(errors="replace")).hexdigest()[:16]
                cleaned = f"{cleaned[: limit - 17]}~{digest}"
            if cleaned:
                return cleaned
        return ""

    def source(self) -> str:
        """The name of the instance; behind the message anybody may have written it."""
        if self.values("source") and not self.before_message("source"):
            self.body.note("after_message:source")
            return ""
        return self.line("source")

    def monitor(self) -> str:
        """`monitorname` is the device's name where nothing else is."""
        device = self.values("device")
        for key, value in self.values("monitor"):
            if not (device and device[0][0] == key):
                return _one_line(value)[:_MAX_TEXT_CHARACTERS]
        return ""


def _cleaned(text: str) -> str:
    """Without what would move the text round it: controls, marks of direction, carriage returns."""
    return _CONTROLS.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _one_line(text: str) -> str:
    return " ".join(_CONTROLS.sub(" ", text).split())


def _severity(reader: _Reader, numbers: Mapping[int, Severity]) -> Severity | None:
    """By the first word that is known, else by the first number; None where neither is there.

    Where all of them stand behind the message any may be a device's own: then none closes an alarm that
    another calls open.
    """
    values = [value for _, value in reader.values("severity", before_message=True)]
    if not any(_by_word(value) or _by_number(value, numbers) for value in values):
        values = [value for _, value in reader.values("severity")]
    words = [severity for value in values if (severity := _by_word(value)) is not None]
    read = [severity for value in values if (severity := _by_number(value, numbers)) is not None]
    if not words and not read:
        if reader.has("severity"):
            reader.body.note("unknown_severity")
        return None
    severity = (words or read)[0]
    if severity == "clear" and not reader.values("severity", before_message=True):
        later = [_by_word(value) or _by_number(value, numbers) for value in reader.later_severities]
        worst = max((*words, *read, *(other for other in later if other)), key=lambda found: RANKS[found])
        if worst != "clear":
            reader.body.note("severities_disagree")
            return worst
    return severity


def _by_word(value: str) -> Severity | None:
    text = html.unescape(_TAG.sub(" ", value[:1024]))
    return _WORDS.get(re.sub(r"[\W_]+", "", text).casefold())


def _by_number(value: str, numbers: Mapping[int, Severity]) -> Severity | None:
    """A number by itself, or the icon `status3.gif`."""
    found = re.fullmatch(r"([0-9])(?:\.0{1,8})?", value) or _ICON.search(value[:1024])
    return numbers.get(int(found[1])) if found else None


def _time(reader: _Reader) -> tuple[int | None, str]:
    """Source time in milliseconds where one of the fields is that, and the text of one that is not.

    Behind the message it does not count: a device that names an earlier time would have its own alarm, or
    the end of it, passed over.
    """
    at, shown = None, ""
    for _, value in reader.values("time"):
        if not _MILLISECONDS.fullmatch(value):
            shown = shown or _one_line(value)[:_MAX_TEXT_CHARACTERS]
        elif reader.before_message("time"):
            at = at or int(value)
        else:
            reader.body.note("after_message:time")
    return at, shown
