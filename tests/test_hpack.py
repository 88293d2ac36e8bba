"""Header compression by the book: RFC 7541's own examples, its limits, its errors."""

from __future__ import annotations

import pytest

from fastpush.http2._hpack import Decoder, Encoder, HpackError, Indexing


def octets(text: str) -> bytes:
    """Octets as RFC 7541 Appendix C prints them: hexadecimal in groups."""
    return bytes.fromhex(text)


REQUESTS = (
    [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")],
    [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
        (b"cache-control", b"no-cache"),
    ],
    [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ],
)
REQUEST_TABLES = (
    (57, [(b":authority", b"www.example.com")]),
    (110, [(b"cache-control", b"no-cache"), (b":authority", b"www.example.com")]),
    (
        164,
        [
            (b"custom-key", b"custom-value"),
            (b"cache-control", b"no-cache"),
            (b":authority", b"www.example.com"),
        ],
    ),
)
AT_21 = b"Mon, 21 Oct 2013 20:13:21 GMT"
AT_22 = b"Mon, 21 Oct 2013 20:13:22 GMT"
COOKIE = b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
SITE = b"https://www.example.com"
RESPONSES = (
    [(b":status", b"302"), (b"cache-control", b"private"), (b"date", AT_21), (b"location", SITE)],
    [(b":status", b"307"), (b"cache-control", b"private"), (b"date", AT_21), (b"location", SITE)],
    [
        (b":status", b"200"),
        (b"cache-control", b"private"),
        (b"date", AT_22),
        (b"location", SITE),
        (b"content-encoding", b"gzip"),
        (b"set-cookie", COOKIE),
    ],
)
RESPONSE_TABLES = (
    (222, [(b"location", SITE), (b"date", AT_21), (b"cache-control", b"private"), (b":status", b"302")]),
    (222, [(b":status", b"307"), (b"location", SITE), (b"date", AT_21), (b"cache-control", b"private")]),
    (215, [(b"set-cookie", COOKIE), (b"content-encoding", b"gzip"), (b"date", AT_22)]),
)
# RFC 7541 C.3 to C.6: octets of each block, in its order.
C_3 = (
    "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
    "8286 84be 5808 6e6f 2d63 6163 6865",
    "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
)
C_4 = (
    "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
    "8286 84be 5886 a8eb 1064 9cbf",
    "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
)
C_5 = (
    """4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32
    3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d""",
    "4803 3330 37c1 c0bf",
    """88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970
    7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61
    6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31""",
)
C_6 = (
    """4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad
    1718 63c7 8f0b 97c8 e9ae 82ae 43d3""",
    "4883 640e ffc1 c0bf",
    """88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2
    e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07""",
)
STORIES = {
    "C.3": (4096, C_3, REQUESTS, REQUEST_TABLES),
    "C.4": (4096, C_4, REQUESTS, REQUEST_TABLES),
    "C.5": (256, C_5, RESPONSES, RESPONSE_TABLES),
    "C.6": (256, C_6, RESPONSES, RESPONSE_TABLES),
}


@pytest.mark.parametrize("name", STORIES)
def test_appendix_c_stories_are_decoded(name):
    """RFC 7541 C.3 to C.6: the header lists, and the dynamic table with its size after each block."""
    table_octets, blocks, lists, tables = STORIES[name]
    decoder = Decoder()
    if table_octets != 4096:
        assert decoder.decode(octets("3fe1 01")) == []
        assert decoder.table_limit == table_octets
    for block, fields, (size, entries) in zip(blocks, lists, tables, strict=True):
        assert decoder.decode(octets(block)) == fields
        assert decoder.dynamic_table == entries
        assert decoder.table_octets == size


@pytest.mark.parametrize("name", ["C.4", "C.6"])
def test_appendix_c_stories_are_encoded_octet_by_octet(name):
    """The RFC's encoder indexes everything too, and also takes the Huffman code that is no longer than the
    octets ("307", three either way), where ours leaves the octets as they are."""
    table_octets, blocks, lists, tables = STORIES[name]
    encoder = Encoder(max_octets=table_octets)
    expected = b"" if table_octets == 4096 else octets("3fe1 01")
    for block, fields, (size, entries) in zip(blocks, lists, tables, strict=True):
        expected += octets(block).replace(octets("4883 640e ff"), octets("4803 3330 37"))
        assert encoder.encode(fields) == expected
        expected = b""
        assert encoder.dynamic_table == entries
        assert encoder.table_octets == size


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("80", "index 0"),
        ("be", "beyond the dynamic table"),
        ("7f 00 01 61", "beyond the dynamic table"),
        ("ff ff ff ff ff 7f", "over 32 bits"),
        ("ff 80 80 80 80 80 00", "over 32 bits"),
        ("00 84 ff ff ff fc 00", "Huffman"),
        ("00 01 61 81 ff", "Huffman"),
        ("00 01 61 81 18", "Huffman"),
        ("3f e2 1f", "over our SETTINGS_HEADER_TABLE_SIZE"),
        ("82 20", "after a field"),
        ("00 01", "ends within a field"),
    ],
)
def test_broken_blocks_are_compression_errors(block, why):
    """Rows 36 and 37."""
    with pytest.raises(HpackError, match=why):
        Decoder().decode(octets(block))


def test_a_limit_lowered_and_raised_again_is_told_as_smallest_then_final():
    """Row 19: RFC 7541 §4.2."""
    encoder = Encoder()
    encoder.encode([(b"apns-topic", b"com.example")])
    encoder.resize(0)
    encoder.resize(4096)
    assert encoder.encode([(b"apns-topic", b"com.example", Indexing.PLAIN)]).startswith(
        octets("20 3fe1 1f 00")
    )
