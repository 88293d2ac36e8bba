"""Octets of a webhook to its fields: a ladder from strict parsing down to finding known keys in a ruin.

Senders that paste values into a template without escaping them send literal newlines, stray quotes and
trailing commas. And what is pasted was often written by a device (a trap's text, a host's name), which
may hold `","severity":"Clear`. So fields are a list in the order of the body, doubles included, and the
reader of fields takes the first of each.

Nothing here raises, whatever the octets, and each step takes time in proportion to their number: bodies
are cut to `MAX_BODY_OCTETS`, fields counted, and patterns never look at an octet again and again.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Set
from functools import lru_cache
from typing import Any
from urllib import parse
from xml.parsers import expat

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

__all__ = ["MAX_BODY_OCTETS", "MAX_FIELDS", "Body", "Fields", "normalized", "read_body"]

MAX_BODY_OCTETS = 256 * 1024
MAX_FIELDS = 256  # with known keys; OpManager's variables are about fifty
MAX_QUIRKS = 16
_MAX_KEY_CHARACTERS = 128
_MAX_PARTS = 4096
_BLANKS = " \t\r\n"  # what a body may have that says nothing; any other control octet is damage
_MAX_DEPTH = 64  # of XML; JSON is bounded by the interpreter's own stack

# What may stand round the fields. A text key of the same name holds a text and no object.
_ENVELOPES = {"alarm", "alert", "event", "data", "incident", "request"}
_JSON_IN_A_FIELD = {"payload", "inputdata"}

Fields = list[tuple[str, str]]


class Body(msgspec.Struct):
    """What was read of a body.

    Attributes:
      text: all of it, decoded.
      fields: known key, normalized, and text, in the order of the body; keys may come twice.
      quirks: what was repaired.
    """

    text: str = ""
    fields: Fields = []
    quirks: list[str] = []

    def note(self, quirk: str) -> None:
        if quirk not in self.quirks and len(self.quirks) < MAX_QUIRKS:
            self.quirks.append(quirk)


_SPELLING = re.compile(r"[\s_\-]+")


def normalized(key: str) -> str:
    """A key without what senders spell differently: case, blanks, `_` and `-`."""
    return _normalized(key[:_MAX_KEY_CHARACTERS])


@lru_cache(4096)  # a template's keys are always the same: 12 µs of a body's 58
def _normalized(key: str) -> str:
    return _SPELLING.sub("", key).casefold()


def read_body(octets: bytes, content_type: str, known: Set[str]) -> Body:
    """Read a body by what it looks like; the content type decides only where looks cannot.

    Args:
      octets: the body; what is beyond `MAX_BODY_OCTETS` is left out.
      content_type: the header's value, "" without one.
      known: normalized keys; only fields with these are given, and the lower rungs look for them.
    """
    body = Body()
    if len(octets) > MAX_BODY_OCTETS:
        octets = octets[:MAX_BODY_OCTETS]
        body.note("cut_body")
    body.text = decoded(octets, body)
    text = body.text.strip().strip("\0").strip()
    kind, options = _media_type(content_type)
    if not body.text.removesuffix("\0").strip(_BLANKS):  # a program in C may send the end of its string, too
        body.note("empty")
    elif not text:
        pass  # octets, and nothing to read in them: what was meant is lost, and somebody should know
    elif _looks_multipart(text, kind, options.get("boundary")):
        _note_if(body, kind != "multipart/form-data", "unexpected_multipart")
        _read_multipart(octets, options.get("boundary", ""), body, known)
    elif text[0] in "{[":
        _note_if(body, bool(kind) and "json" not in kind, "unexpected_json")
        _read_json(text, body, known)
    elif text[0] == "<" and _read_xml(text, body, known):
        _note_if(body, bool(kind) and "xml" not in kind, "unexpected_xml")
    elif _looks_urlencoded(text, kind):
        _read_urlencoded(octets.strip().removeprefix(b"\xef\xbb\xbf"), body, known)
    else:
        _read_lines(text, body, known)
    body.fields = [(key, value) for key, value in body.fields if key in known]
    if len(body.fields) > MAX_FIELDS:
        del body.fields[MAX_FIELDS:]
        body.note("too_many_fields")
    return body


def _looks_multipart(text: str, kind: str, boundary: str | None) -> bool:
    if kind == "multipart/form-data":
        return text.startswith("--") or (bool(boundary) and f"--{boundary}" in text)
    return re.match(r"--[^\r\n]{1,200}\r?\nContent-Disposition:", text, re.I) is not None


def _note_if(body: Body, condition: bool, quirk: str) -> None:
    if condition:
        body.note(quirk)


def _media_type(content_type: str) -> tuple[str, dict[str, str]]:
    """`multipart/form-data; boundary=…` in its parts."""
    kind, options = parse_options_header(content_type[:1024].encode("latin-1", "replace"))
    return kind.decode("latin-1"), {
        key.decode("latin-1"): value.decode("latin-1") for key, value in options.items()
    }


# ---------------------------------------------------------------------------------------------------------
# Characters


def decoded(octets: bytes, body: Body) -> str:
    """The text of some octets: UTF-8, then cp1252; UTF-16 where a byte order mark says so."""
    if octets.startswith((b"\xff\xfe", b"\xfe\xff")):
        body.note("utf16")
        return octets.decode("utf-16", "replace")
    octets = octets.removeprefix(b"\xef\xbb\xbf")
    try:
        return octets.decode()
    except UnicodeDecodeError as error:
        whole = octets[: error.start]
        if error.reason == "unexpected end of data" and not whole.isascii():
            # Cut inside a character; that there are others says that it is UTF-8.
            body.note("cut_character")
            return whole.decode()
    body.note("cp1252")
    return octets.decode("cp1252", "replace")


def _whole(text: str) -> str:
    """Pairs of surrogates, as `\\ud83d\\ude00` gives them, to characters; half pairs to U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---------------------------------------------------------------------------------------------------------
# JSON


class _Object(list[tuple[str, Any]]):
    """The members of a JSON object in their order, doubles included."""


_JSON = json.JSONDecoder(object_pairs_hook=_Object, parse_int=str, parse_float=str, parse_constant=str)
_JSON_WITH_CONTROLS = json.JSONDecoder(
    object_pairs_hook=_Object, parse_int=str, parse_float=str, parse_constant=str, strict=False
)
# A string literal, closed or not, or a comma with nothing to part.
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.?)*+"?|,(?=\s*+(?:[}\]]|\Z))', re.DOTALL)
_BAD_ESCAPE = re.compile(r'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|)', re.DOTALL)


def _read_json(text: str, body: Body, known: Set[str]) -> None:
    value = _json_value(text, body)
    if value is not None:
        fields = list(_flattened(value, body, known))
        if fields or value in ([], _Object()):
            body.fields += fields
            return
    body.note("recovered_json")
    body.fields += _anchored(text, known, body)


def _json_value(text: str, body: Body) -> Any:
    """The value of a JSON text after as little repair as will do; None where none does."""
    for decoder, repair, quirk in _RUNGS:
        candidate = repair(text)
        try:
            value, end = decoder.raw_decode(candidate)
        except (ValueError, RecursionError):
            continue
        tail = candidate[end:].strip("}], \t\r\n")
        if tail and tail[0] not in "{[":
            continue  # an unescaped quote and a brace made it end early
        if quirk:
            body.note(quirk)
        if tail:
            body.note("more_alarms")
        return value
    return None


def _repaired_json(text: str) -> str:
    """Trailing commas left out, and the backslashes of Windows paths doubled."""

    def repaired(found: re.Match[str]) -> str:
        if found[0] == ",":
            return ""
        return _BAD_ESCAPE.sub(lambda escape: escape[0] if escape[1] else r"\\", found[0])

    return _STRING_OR_COMMA.sub(repaired, text)


_RUNGS: tuple[tuple[json.JSONDecoder, Callable[[str], str], str], ...] = (
    (_JSON, str, ""),
    (_JSON_WITH_CONTROLS, str, "control_characters"),
    (_JSON_WITH_CONTROLS, _repaired_json, "repaired_json"),
)


def _flattened(value: Any, body: Body, known: Set[str], depth: int = 0) -> Iterator[tuple[str, str]]:
    """The fields of an object, with those of an envelope in its place."""
    if isinstance(value, list) and not isinstance(value, _Object):
        if len(value) > 1:
            body.note("more_alarms")
        value = value[0] if value else _Object()
    if not isinstance(value, _Object):
        return
    for key, member in value:
        name = normalized(_whole(key))
        if isinstance(member, str):
            envelope = name in _JSON_IN_A_FIELD or (name in _ENVELOPES and name not in known)
            if envelope and depth < 3 and member.lstrip()[:1] in ("{", "["):
                yield from _flattened(_json_value(member.strip(), body), body, known, depth + 1)
            else:
                yield name, _whole(member)
        elif isinstance(member, bool):
            yield name, "true" if member else "false"
        elif isinstance(member, list) and depth < 3 and name in _ENVELOPES | _JSON_IN_A_FIELD:
            yield from _flattened(member, body, known, depth + 1)


# A known key with its quotes, after which a value begins. The key's length is bounded, so that a body of
# quotes alone is looked at once.
_ANCHOR = re.compile(
    r"""(?:\A|[{,\[])\s{0,64}["'“”]\s{0,8}([A-Za-z_][\w\- ]{0,40}?)\s{0,8}["'“”]\s{0,64}:\s{0,64}"""
)
_ESCAPE = re.compile(r'\\(?:(["\\/bfnrt])|u([0-9a-fA-F]{4}))')
_ESCAPED = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def _anchored(text: str, known: Set[str], body: Body) -> Fields:
    """Fields by the known keys in a text that is no JSON: a value goes on until the next known key.

    A key that was there already ends no value: it is part of a text that someone made look like a template.
    """
    anchors: list[tuple[str, int, int]] = []
    seen = set()
    for found in _ANCHOR.finditer(text):
        key = normalized(found[1])
        if key in known and key not in seen and text[found.end() : found.end() + 1] not in ("{", "["):
            seen.add(key)
            anchors.append((key, found.start(), found.end()))
    fields: Fields = []
    for place, (key, _, start) in enumerate(anchors):
        if place + 1 < len(anchors):
            value = text[start : anchors[place + 1][1]].strip()
        else:
            value = text[start:].rstrip("}], \t\r\n")
        if value[:1] in ('"', "'", "“", "”"):
            if len(value) > 1 and value[-1] in "\"'“”":
                value = value[1:-1]
            else:
                value = value[1:]
                body.note("unterminated")
        fields.append((key, _whole(_unescaped(value))))
    return fields


def _unescaped(value: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPED[found[1]] if found[1] else chr(int(found[2], 16)), value)


# ---------------------------------------------------------------------------------------------------------
# Forms


def _looks_urlencoded(text: str, kind: str) -> bool:
    """By its content type if it has a pair at all; without one if it is one line of pairs."""
    if "urlencoded" in kind:
        return "=" in text
    return kind not in ("text/plain",) and re.match(r"[\w.\-]{1,64}=[^\n]*&[\w.\-]{1,64}=", text) is not None


def _read_urlencoded(octets: bytes, body: Body, known: Set[str]) -> None:
    pairs: list[list[bytes]] = []
    for piece in octets.split(b"&", _MAX_PARTS)[:_MAX_PARTS]:
        key, equals, value = piece.partition(b"=")
        if equals and re.fullmatch(rb"[\w.\-+%\[\]]{1,128}", key):
            pairs.append([key, value])
        elif pairs and piece:  # an ampersand that nobody encoded
            pairs[-1][1] += b"&" + piece
            body.note("bare_ampersand")
    own = Body()
    for key, value in pairs:
        _add_form_field(_percent_decoded(key, own), _percent_decoded(value, own), body, known)
    for quirk in own.quirks:
        body.note(quirk)


def _percent_decoded(octets: bytes, body: Body) -> str:
    return decoded(parse.unquote_to_bytes(octets.replace(b"+", b" ")), body)


def _add_form_field(key: str, value: str, body: Body, known: Set[str]) -> None:
    name = normalized(key)
    if name in _JSON_IN_A_FIELD and value.lstrip()[:1] in ("{", "["):
        body.note("json_in_form")
        _read_json(value.strip(), body, known)
    else:
        body.fields.append((name, value))


def _read_multipart(octets: bytes, boundary: str, body: Body, known: Set[str]) -> None:
    if b"\r\n" not in octets:
        octets = octets.replace(b"\n", b"\r\n")
        body.note("bare_newlines")
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    if not boundary or delimiter not in octets:
        # The first line says what the header should have said.
        octets = octets.lstrip()
        delimiter = octets.partition(b"\r\n")[0].rstrip()
        body.note("wrong_boundary")
    if not delimiter.startswith(b"--") or not 2 < len(delimiter) <= 256:
        body.note("broken_multipart")
        return
    octets = octets[octets.index(delimiter) :]  # a preamble says nothing
    parts = _Parts()
    try:
        parser = MultipartParser(delimiter[2:], parts.callbacks())
        parser.write(octets)
        parser.finalize()
    except FormParserError:
        body.note("broken_multipart")
    if parts.open:  # the end is missing: what there was of the last part
        body.note("unterminated")
        parts.end()
    _note_if(body, not parts.found, "broken_multipart")
    for name, content in parts.found:
        own = Body()
        _add_form_field(decoded(name, own), decoded(content, own), body, known)
        for quirk in own.quirks:
            body.note(quirk)


class _Parts:
    """Collects name and content of each part, at most `_MAX_PARTS`."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []
        self.open = False
        self._field = bytearray()
        self._value = bytearray()
        self._name = b""
        self._content = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self.begin,
            "on_part_data": lambda octets, start, end: self._content.extend(octets[start:end]),
            "on_part_end": self.end,
            "on_header_begin": self.begin_header,
            "on_header_field": lambda octets, start, end: self._field.extend(octets[start:end]),
            "on_header_value": lambda octets, start, end: self._value.extend(octets[start:end]),
            "on_header_end": self.end_header,
        }

    def begin(self) -> None:
        if len(self.found) >= _MAX_PARTS:
            raise FormParserError("too many parts")
        self._name = b""
        self._content.clear()

    def begin_header(self) -> None:
        self._field.clear()
        self._value.clear()

    def end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name = options.get(b"name", b"")
            self.open = bool(self._name)

    def end(self) -> None:
        if self.open:
            self.found.append((self._name, bytes(self._content)))
        self.open = False


# ---------------------------------------------------------------------------------------------------------
# XML

_BARE_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9a-fA-F]{1,6});)")
_BARE_LESS_THAN = re.compile(r"<(?![A-Za-z_/?!])")
# What XML 1.0 §2.2 does not allow.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OPENING_TAG = re.compile(r"<([A-Za-z_][\w.\-]{0,64})\s{0,64}>")


class _Refused(Exception):
    """A document type declaration, or elements nested without end."""


class _Elements:
    """Takes the elements and attributes of a document as fields; what is inside of a text is text."""

    def __init__(self, known: Set[str]) -> None:
        self.known = known
        self.fields: Fields = []
        self.open: list[tuple[str, list[str]]] = []
        self.inside = 0  # elements open in that of a known key

    def parse(self, text: str) -> None:
        """Raises `ExpatError` where it is not well-formed, `_Refused` with a DTD."""
        parser = expat.ParserCreate("utf-8")  # whatever its declaration says: it was decoded already
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.characters
        parser.StartDoctypeDeclHandler = self.refuse
        parser.Parse(text.encode(errors="replace"), True)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self.open) + self.inside >= _MAX_DEPTH:
            raise _Refused
        key = normalized(name.rpartition(":")[2])
        if self.open and self.open[-1][0] in self.known - _ENVELOPES:
            self.inside += 1
            return
        if self.open:
            self.open[-1][1].clear()  # blanks before a child
        self.open.append((key, []))
        if key not in self.known - _ENVELOPES:
            self.fields += [(normalized(name), value) for name, value in attributes.items()]

    def characters(self, text: str) -> None:
        if self.open:
            self.open[-1][1].append(text)

    def end(self, _: str) -> None:
        if self.inside:
            self.inside -= 1
            return
        key, texts = self.open.pop()
        text = "".join(texts)
        if text.strip() or key in self.known:
            self.fields.append((key, text))

    def refuse(self, *_: object) -> None:
        raise _Refused


def _read_xml(text: str, body: Body, known: Set[str]) -> bool:
    """Whether it was XML; if not nothing is changed."""
    for repair, quirk in ((str, ""), (_repaired_xml, "repaired_xml")):
        elements = _Elements(known)
        try:
            elements.parse(repair(text))
        except _Refused:
            body.note("refused_xml")
            return True
        except expat.ExpatError:
            continue
        if quirk:
            body.note(quirk)
        body.fields += elements.fields
        return True
    fields = _between_tags(text, known, body)
    if fields:
        body.note("recovered_xml")
    body.fields += fields
    return bool(fields)


def _repaired_xml(text: str) -> str:
    return _NOT_XML.sub("", _BARE_LESS_THAN.sub("&lt;", _BARE_AMPERSAND.sub("&amp;", text)))


def _between_tags(text: str, known: Set[str], body: Body) -> Fields:
    """What stands between the tags of known keys, each key once."""
    fields: Fields = []
    seen = set()
    place = 0
    while found := _OPENING_TAG.search(text, place):
        place = found.end()
        key = normalized(found[1])
        if key not in known - _ENVELOPES or key in seen:
            continue
        seen.add(key)
        end = text.find("</" + found[1], place)
        if end < 0:
            end = len(text)
            body.note("unterminated")
        fields.append((key, html.unescape(text[place:end])))
        place = end
    return fields


# ---------------------------------------------------------------------------------------------------------
# Text

_LINE = re.compile(r"\s{0,64}([A-Za-z][\w\- ]{0,40}?)\s{0,16}[:=](.*)")


def _read_lines(text: str, body: Body, known: Set[str]) -> None:
    """Lines of `key: value` with known keys; other lines go on with the value before them."""
    values: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        found = _LINE.match(line)
        key = normalized(found[1]) if found else ""
        if found and key in known and key not in values:
            current = values[key] = [found[2].strip()]
        elif current is not None:
            current.append(line)
    body.fields += [(key, "\n".join(lines)) for key, lines in values.items()]
