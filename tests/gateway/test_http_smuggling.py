"""Where two readers of the same octets could disagree, we refuse: forty raw requests and more.

Each is sent with a second request behind it. Either the first is refused and the connection ends, or exactly
those requests reach the application that the octets hold by RFC 9112.
"""

import json

import pytest
import trio

from .http_peers import serving, status


def get(*fields, target=b"/first"):
    return b"GET %b HTTP/1.1\r\nHost: a\r\n" % target + b"".join(f + b"\r\n" for f in fields) + b"\r\n"


NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"


def post(*fields, body=b"", version=b"HTTP/1.1", target=b"/first"):
    return (
        b"POST %b %b\r\nHost: a\r\n" % (target, version)
        + b"".join(f + b"\r\n" for f in fields)
        + b"\r\n"
        + body
    )


CHUNKED = b"Transfer-Encoding: chunked"
FIVE = b"Content-Length: 5"
LAST = b"0\r\n\r\n"

REFUSED = {
    "CL.TE": post(FIVE, CHUNKED, body=LAST + HIDDEN),
    "TE.CL": post(CHUNKED, FIVE, body=b"5\r\nhello\r\n" + LAST + HIDDEN),
    "TE.TE, second unknown": post(CHUNKED, b"Transfer-Encoding: x", body=LAST + HIDDEN),
    "TE.TE, twice chunked": post(CHUNKED, CHUNKED, body=LAST + HIDDEN),
    "TE xchunked": post(b"Transfer-Encoding: xchunked", body=LAST + HIDDEN),
    "TE gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=LAST + HIDDEN),
    "TE identity": post(b"Transfer-Encoding: identity", FIVE, body=b"hello" + HIDDEN),
    "TE with a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=LAST + HIDDEN),
    "TE before its colon a space": post(b"Transfer-Encoding : chunked", body=LAST + HIDDEN),
    "TE in HTTP/1.0": post(CHUNKED, version=b"HTTP/1.0", body=LAST + HIDDEN),
    "two lengths": post(FIVE, b"Content-Length: 6", body=b"hello" + HIDDEN),
    "two equal lengths": post(FIVE, FIVE, body=b"hello" + HIDDEN),
    "a list of lengths": post(b"Content-Length: 5, 5", body=b"hello" + HIDDEN),
    "length +5": post(b"Content-Length: +5", body=b"hello" + HIDDEN),
    "length 5_0": post(b"Content-Length: 5_0", body=b"hello" + HIDDEN),
    "length -5": post(b"Content-Length: -5", body=b"hello" + HIDDEN),
    "length 0x5": post(b"Content-Length: 0x5", body=b"hello" + HIDDEN),
    "length of 30 digits": post(b"Content-Length: " + b"9" * 30, body=b"hello" + HIDDEN),
    "chunk size 0x1": post(CHUNKED, body=b"0x1\r\na\r\n" + LAST + HIDDEN),
    "chunk size -1": post(CHUNKED, body=b"-1\r\na\r\n" + LAST + HIDDEN),
    "chunk size of 30 digits": post(CHUNKED, body=b"f" * 30 + b"\r\na\r\n" + LAST + HIDDEN),
    "chunk without its end": post(CHUNKED, body=b"1\r\nab\r\n" + LAST + HIDDEN),
    "chunk that ends with LF": post(CHUNKED, body=b"1\r\na\n" + LAST + HIDDEN),
    "chunk size that ends with LF": post(CHUNKED, body=b"1\na\r\n" + LAST + HIDDEN),
    "last chunk that ends with LF": post(CHUNKED, body=b"0\r\n\n" + HIDDEN),
    "trailer that ends with LF": post(CHUNKED, body=b"0\r\nX: y\n\r\n" + HIDDEN),
    "trailers that end with LF LF": post(CHUNKED, body=b"0\r\nX: y\n\n" + HIDDEN),
    "chunk extension of a mebioctet": post(CHUNKED, body=b"1;" + b"x" * 1_000_000 + b"\r\na\r\n" + LAST),
    "request line that ends with LF": b"GET /first HTTP/1.1\nHost: a\r\n\r\n" + HIDDEN,
    "field that ends with LF": b"GET /first HTTP/1.1\r\nHost: a\nX: y\r\n\r\n" + HIDDEN,
    "head that ends with LF LF": b"GET /first HTTP/1.1\r\nHost: a\n\n" + HIDDEN,
    "bare CR in a field": b"GET /first HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n" + HIDDEN,
    "folded field": b"GET /first HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n" + HIDDEN,
    "folded with a tab": b"GET /first HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n" + HIDDEN,
    "first field begins with a space": b"GET /first HTTP/1.1\r\n Host: a\r\n\r\n" + HIDDEN,
    "NUL in a field": b"GET /first HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n" + HIDDEN,
    "space before the colon": b"GET /first HTTP/1.1\r\nHost : a\r\n\r\n" + HIDDEN,
    "no Host": b"GET /first HTTP/1.1\r\n\r\n" + HIDDEN,
    "two Hosts": b"GET /first HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + HIDDEN,
    "no version": b"GET /first\r\n\r\n" + HIDDEN,
    "version 2.0": b"GET /first HTTP/2.0\r\nHost: a\r\n\r\n" + HIDDEN,
    "h2c by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "target of CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN,
    "target without a slash": b"GET first HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN,
    "target of another scheme": b"GET ftp://a/first HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN,
    "TLS on the plain port": bytes.fromhex("16030100c8010000c40303") + bytes(100),
    "head of 17 KiB": b"GET /first HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 17_000 + b"\r\n\r\n" + HIDDEN,
    "65 fields": get(*[b"X-%d: y" % number for number in range(64)]),
}

SERVED = {
    "two in a row": (post(FIVE, body=b"hello") + NEXT, [("/first", 5), ("/next", 0)]),
    "chunks": (
        post(CHUNKED, body=b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: u\r\n\r\n") + NEXT,
        [("/first", 5), ("/next", 0)],
    ),
    "chunked in capitals": (
        post(b"TRANSFER-ENCODING: CHUNKED", body=b"5\r\nhello\r\n" + LAST) + NEXT,
        [("/first", 5), ("/next", 0)],
    ),
    "a request inside a body": (
        post(b"Content-Length: %d" % len(HIDDEN), body=HIDDEN) + NEXT,
        [("/first", len(HIDDEN)), ("/next", 0)],
    ),
    "absolute target": (
        b"GET http://b/first?q HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT,
        [("/first", 0), ("/next", 0)],
    ),
    "h2c by Upgrade": (
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
        + NEXT,
        [("/first", 0), ("/next", 0)],
    ),
    "WebSocket": (
        get(
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        )
        + NEXT,
        [("/first", 0), ("/next", 0)],
    ),
    "64 fields": (get(*[b"X-%d: y" % number for number in range(63)]), [("/first", 0)]),
}


@pytest.mark.parametrize("octets", REFUSED.values(), ids=REFUSED.keys())
async def test_a_disputed_request_is_refused_and_the_connection_ends(octets):
    async with serving() as served:
        answer = await served.exchange(octets)
        assert status(answer) in (400, 408, 431, 501, 505), answer
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        assert b"connection: close" in head.lower()
        assert json.loads(body)["status"] == status(answer)  # and nothing after it
        assert served.app.seen == []
        assert sum(served.refused.values()) == 1


@pytest.mark.parametrize(("octets", "paths"), SERVED.values(), ids=SERVED.keys())
async def test_what_is_clear_is_served(octets, paths):
    async with serving() as served:
        closing = b"GET /bye HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        answer = await served.exchange(octets + closing)
        assert b"101" not in answer.split(b"\r\n", 1)[0]
        assert [(path, size) for _, path, size in served.app.seen] == [*paths, ("/bye", 0)]


@pytest.mark.parametrize(
    "name", ["CL.TE", "field that ends with LF", "folded field", "last chunk that ends with LF"]
)
async def test_octet_by_octet_it_is_refused_as_well(name):
    async with serving() as served:
        stream = await served.connect()
        async with stream:
            answer = b""
            with trio.fail_after(5):
                try:
                    for octet in REFUSED[name]:
                        await stream.send_all(bytes([octet]))
                        await trio.lowlevel.checkpoint()
                    answer = await stream.receive_some(65_536)
                except trio.BrokenResourceError:
                    answer = b"HTTP/1.1 400 "
            assert status(answer) == 400
            assert served.app.seen == []


async def test_an_absolute_target_brings_its_own_host():
    async with serving() as served:
        await served.exchange(b"GET http://b/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (b"host", b"b") in served.app.scopes[0]["headers"]
        assert (b"host", b"a") not in served.app.scopes[0]["headers"]
