"""The header blocks that an engine writes, read by hpack (RFC 7541), and looked at octet by octet.

That each block decodes into exactly its request is asserted for every request of every story, see
`Story.obey_headers`. Here is how it is written: what may be kept in a table, and what never.
"""

import hpack
import pytest
from hpack.hpack import decode_integer
from hpack.table import HeaderTable

from . import frames
from .frames import settings
from .story import AFTER, BEFORE, VARIABLE, kinds, script


def representations(block):
    """The kinds of RFC 7541 §6 in this block, in order, with the octets of each."""
    found = []
    while block:
        first = block[0]
        if first & 0x80:
            kind, prefix = "indexed", 7
        elif first & 0x40:
            kind, prefix = "with indexing", 6
        elif first & 0x20:
            kind, prefix = "size update", 5
        elif first & 0x10:
            kind, prefix = "never indexed", 4
        else:
            kind, prefix = "without indexing", 4
        index, used = decode_integer(block, prefix)
        if kind not in ("indexed", "size update"):
            for _ in range(1 if index else 2):
                length, octets = decode_integer(block[used:], 7)
                used += octets + length
        found.append((kind, index, block[:used]))
        block = block[used:]
    return found


def headers_of(story, count=1, **kw):
    story.open(count, take=False, **kw)
    return [frame for frame in story.sent() if kinds([frame]) == ["Headers"]]


@script()
def test_the_device_token_is_never_indexed(story):
    """RFC 7541 §7.1.3: the flag says it to every hop; hpack hands it on as `NeverIndexedHeaderTuple`."""
    story.start()
    for frame in headers_of(story, 50):
        (path,) = (pair for pair in frame.fields if pair[0] == b":path")
        assert isinstance(path, hpack.NeverIndexedHeaderTuple)
        never = [
            (index, octets) for kind, index, octets in representations(frame.block) if kind == "never indexed"
        ]
        assert HeaderTable.STATIC_TABLE[never[0][0] - 1][0] == b":path"
    assert not any(name == b":path" for name, _ in story.decoder.header_table.dynamic_entries)


@script()
def test_what_comes_with_each_request_stays_out_of_the_table(story):
    story.start()
    for number in range(50):
        story.open(values=(b"id-%d" % number, b"%d" % number, b"collapse-%d" % number))
    values = [value for _, value in story.decoder.header_table.dynamic_entries]
    assert not any(value.startswith((b"id-", b"collapse-")) for value in values)
    assert len(values) <= len(BEFORE) + len(AFTER) + 3  # a name alone may be kept


@script()
def test_what_is_constant_is_sent_once(story):
    """After its first use a request's constant fields are indexes of one or two octets each."""
    story.start()
    first, second, third = headers_of(story, 3)
    assert len(first.block) > 180
    constant = len(BEFORE) + len(AFTER)
    for frame in (second, third):
        indexed = [octets for kind, _, octets in representations(frame.block) if kind == "indexed"]
        assert len(indexed) == constant
        assert sum(map(len, indexed)) <= 2 * constant
        literals = sum(len(value) for kind, value in frame.fields if kind in (b":path", *VARIABLE))
        assert len(frame.block) < literals + 40


@script()
def test_two_templates_take_turns(story):
    """Two topics, four provider tokens, one connection: each block is made for the table as it is then."""
    story.start()
    shapes = [
        (
            BEFORE,
            b"/3/device/",
            ((b"authorization", b"bearer " + b"%d" % number * 90), (b"apns-topic", topic)),
            (b"apns-id",),
        )
        for number in range(4)
        for topic in (b"com.example.one", b"com.example.two.voip")
    ]
    templates = []
    for shape in shapes:
        story.make_template(*shape)
        templates.append((story.template, story.shape))
    for turn in range(64):
        story.template, story.shape = templates[turn * 5 % len(templates)]
        story.transcript.append(("use_template", (1 + turn * 5 % len(templates),)))
        story.open(values=(b"id-%d" % turn,))


@script(size=(0, 40, 100, 300))
def test_a_table_too_small_for_the_constant_fields(story, size):
    """They go out as literals each time, and the blocks still decode."""
    story.start(max_concurrent_streams=1_000, header_table_size=size)
    for _ in range(20):
        story.open()
    held = sum(len(name) + len(value) + 32 for name, value in story.decoder.header_table.dynamic_entries)
    assert held <= size


@script()
def test_the_table_is_evicted_between_requests(story):
    """RFC 7541 §4.3: forty provider tokens of 200 octets do not fit into 4,096."""
    story.start()
    for number in range(40):
        fields = ((b"authorization", b"bearer %d " % number + b"x" * 180), (b"apns-topic", b"com.example"))
        story.make_template(BEFORE, b"/3/device/", fields, ())
        for _ in range(2):
            story.open(values=())


@script()
def test_the_table_is_resized_between_requests(story):
    story.start()
    for size in (0, 4_096, 50, 60, 4_096, 100, 0, 0, 2_000):
        story.server(settings(header_table_size=size))
        story.sent()
        first, second = headers_of(story, 2)
        assert all(kind != "size update" for kind, _, _ in representations(second.block))
        updates = [index for kind, index, _ in representations(first.block) if kind == "size update"]
        assert updates in ([size], [])
        assert story.decoder.header_table_size == size


@script()
def test_a_block_larger_than_a_frame_goes_on_in_continuation(story):
    """§4.3, §6.10: one HEADERS frame, then CONTINUATION frames, nothing between."""
    story.start((frames.MAX_CONCURRENT_STREAMS, 10))
    story.make_template(after=((b"x-long", bytes(range(33, 126)) * 400),))
    story.open(take=False)
    sent = story.sent()
    assert kinds(sent)[:3] == ["Headers", "Continuation", "Continuation"]
    assert kinds(sent)[-1] == "Data"
    assert "END_HEADERS" not in sent[0].flags


@pytest.mark.parametrize("path", [b"", b"a", b"~!$&", b"ff" * 5_000])
def test_any_path_arrives(story, path):
    story.start()
    story.send_request(path, (None, None, None), b"{}", "tag")
    story.sent()


@pytest.mark.parametrize("value", [b"", b"a", bytes(range(33, 256)), b"x" * 20_000])
def test_any_value_arrives(story, value):
    story.start()
    story.send_request(b"ab", (value, None, value), b"{}", "tag")
    story.sent()
