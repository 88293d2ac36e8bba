"""The head of an HTTP/1.1 request as octets: where readers could disagree, we refuse (RFC 9112 §2.2, §5, §6).

h11 is lenient where the RFC lets it be: a bare LF ends a line, a folded line continues one, equal
Content-Lengths are one. A proxy before us may read the same octets otherwise, and what it takes for a body
would be a request to us.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ._limits import Limits, Refusal

DISPUTED_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:[^\r]*(?:,|\r\ncontent-length[ \t]*:)", re.DOTALL)
SCHEME = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


def flaw_of_head(received: bytes, limits: Limits) -> Refusal | None:
    """What is wrong with a head of which `received` is all we have so far; more may follow it."""
    end = received.find(b"\r\n\r\n")
    head = received[: end + 2] if end >= 0 else received
    if len(head) > limits.head_octets:
        return Refusal(431, "head too large", f"The request's head exceeds {limits.head_octets} octets.")
    lines = head.count(b"\r\n")
    if lines > limits.head_fields + 1:
        return Refusal(431, "too many fields", f"The request has over {limits.head_fields} header fields.")
    if head.count(b"\n") != lines or head.count(b"\r") != lines + (end < 0 and head.endswith(b"\r")):
        return Refusal(400, "bare CR or LF", "A line of the request's head does not end with CR LF.")
    if b"\r\n " in head or b"\r\n\t" in head:
        return Refusal(400, "folded header", "The request has a header field over more than one line.")
    lowered = head.lower()
    if lowered.count(b"\r\ncontent-length") > 1 or DISPUTED_LENGTH.search(lowered):
        return Refusal(400, "disputed length", "The request has more than one Content-Length.")
    return None


def flaw_of_framing(version: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
    """Whether the length of the body has two answers (RFC 9112 §6.1); names in lower case."""
    names = {name for name, _ in headers}
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return Refusal(400, "two framings", "The request has both Content-Length and Transfer-Encoding.")
    if version < b"1.1":
        return Refusal(400, "two framings", "Transfer-Encoding is not for HTTP/1.0.")
    return None


def flaw_of_chunked_end(consumed: bytes) -> Refusal | None:
    """Whether last chunk and trailers, the octets that ended the body, have lines that end with LF alone."""
    if consumed.count(b"\n") != consumed.count(b"\r\n") or not consumed.endswith(b"\r\n"):
        return Refusal(400, "bare CR or LF", "A line at the end of the chunked body does not end with CR LF.")
    return None


def origin_form(
    target: bytes, headers: list[tuple[bytes, bytes]]
) -> tuple[bytes, list[tuple[bytes, bytes]]] | None:
    """Path, query and headers of a target in origin or absolute form; None for any other.

    The authority of an absolute target replaces Host (RFC 9112 §3.2.2).
    """
    if target.startswith(b"/") or target == b"*":
        return target, headers
    absolute = SCHEME.match(target)
    if absolute is None or not absolute[1]:
        return None
    rest = target[absolute.end() :]
    others = [(name, value) for name, value in headers if name != b"host"]
    return rest if rest.startswith(b"/") else b"/" + rest, [(b"host", absolute[1]), *others]
