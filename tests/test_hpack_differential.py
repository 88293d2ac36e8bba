"""Header compression against two others: `hpack`, fed with the same, and nghttp2's encoder, recorded."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpush.http2._hpack import Decoder, Encoder, HpackError, Indexing
from tests.campaigns import hpack as campaign

DATA = Path(__file__).parent / "data"
RECORDED = json.loads((DATA / "nghttp2-blocks.json").read_text())

names = st.sampled_from(campaign.NAMES) | st.binary(max_size=70)
values = st.sampled_from(campaign.VALUES) | st.binary(max_size=300)
table_sizes = st.lists(st.integers(0, 5000), max_size=3)
SEED = os.environ.get("FASTPUSH_SEED") or str(random.SystemRandom().randrange(2**32))


@given(
    st.lists(
        st.tuples(table_sizes, st.lists(st.tuples(names, values, st.sampled_from(Indexing)), max_size=8))
    )
)
def test_hpack_reads_what_we_write(blocks):
    """Fields, tables and never-indexed marks agree on every block, also as the peer's table sizes change."""
    encoder = Encoder()
    decoder = hpack.Decoder(max_header_list_size=2**40)
    for sizes, fields in blocks:
        for size in sizes:
            encoder.resize(size)
            decoder.max_allowed_table_size = size
        decoded = list(decoder.decode(encoder.encode(fields), raw=True))
        assert decoded == [(name, value) for name, value, _ in fields]
        never = [isinstance(field, hpack.NeverIndexedHeaderTuple) for field in decoded]
        assert never == [indexing == Indexing.NEVER for _, _, indexing in fields]
        assert encoder.dynamic_table == list(decoder.header_table.dynamic_entries)
        assert encoder.table_limit == decoder.header_table_size <= 4096


@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(0, 5000), st.lists(st.tuples(names, values, st.booleans()), max_size=8)
        )
    ),
    st.booleans(),
)
def test_we_read_what_hpack_writes(blocks, huffman):
    """The same the other way round: our SETTINGS_HEADER_TABLE_SIZE changes, hpack's encoder follows."""
    encoder = hpack.Encoder()
    decoder = Decoder(header_list_octets=2**20)
    for size, fields in blocks:
        if size is not None:
            decoder.resize_limit(size)
            encoder.header_table_size = size
        block = encoder.encode(fields, huffman=huffman)
        assert decoder.decode(block) == [(name, value) for name, value, _ in fields]
        assert decoder.dynamic_table == list(encoder.header_table.dynamic_entries)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_octets_mean_the_same_to_both(blocks):
    """Hypothesis looks for a block on which the two differ; it shrinks what it finds."""
    pair = campaign.Pair("random", "hypothesis")
    for block in blocks:
        if pair.check(block) not in ("good", "overflow"):
            break


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_any_huffman_code_means_the_same_to_both(code):
    length = bytes([0x80 | len(code)])
    campaign.Pair("huffman", "hypothesis").check(b"\x00" + length + code + b"\x00")


@given(st.binary(max_size=600))
def test_our_huffman_code_is_hpacks(octets):
    """A never-indexed literal with an indexed name, so that all that is left of the block is the value."""
    block = Encoder().encode([(b":path", octets, Indexing.NEVER)])
    code = campaign.huffman.encode(octets)
    value, flag = (code, 0x80) if len(code) < len(octets) else (octets, 0)
    length = hpack.hpack.encode_integer(len(value), 7)
    length[0] |= flag
    assert block == b"\x14" + length + value


def test_short_lane_of_the_campaign():
    """Encoded, mutated, made and random blocks; `python -m tests.campaigns.hpack` runs a million."""
    verdicts, divergences = campaign.run(20_000, SEED)
    assert not divergences, f"seed {SEED}: " + "\n".join(map(str, divergences))
    # Nothing is proved by a lane in which everything is good, or nothing.
    for kind in ("mutated", "made", "random"):
        assert verdicts[f"{kind}: error"] > 500, f"seed {SEED}: {verdicts}"
    for kind in ("ours", "theirs", "mutated", "made"):
        assert verdicts[f"{kind}: good"] > 500, f"seed {SEED}: {verdicts}"
    for kind in ("theirs", "mutated"):
        assert verdicts[f"{kind}: overflow"] > 5, f"seed {SEED}: {verdicts}"


def test_the_listed_divergence_is_there():
    """The day `hpack` sees it too, the table of divergences is to be emptied."""
    pair = campaign.Pair("listed", "lowered and raised")
    assert pair.check(b"\x40\x01a\x01b") == "good"
    pair.resize_limit(0)
    pair.resize_limit(4096)
    assert pair.check(b"\xbe") == "lowered and raised"


@pytest.mark.parametrize("story", RECORDED["stories"], ids=lambda story: story["name"])
def test_nghttp2_blocks_are_read_as_they_were_meant(story):
    """We decode what nghttp logged, and what `hpack` decodes; each story is one connection."""
    decoder = Decoder()
    oracle = hpack.Decoder()
    blocks = 0
    for event in story["events"]:
        if "acknowledges_table_size" in event:
            decoder.resize_limit(event["acknowledges_table_size"])
            oracle.max_allowed_table_size = event["acknowledges_table_size"]
            continue
        block = bytes.fromhex(event["block"])
        fields = decoder.decode(block)
        assert fields == [(name.encode(), value.encode()) for name, value in event["fields"]]
        assert fields == [(bytes(name), bytes(value)) for name, value in oracle.decode(block, raw=True)]
        assert decoder.dynamic_table == list(oracle.header_table.dynamic_entries)
        blocks += 1
    assert blocks > 2


def test_nghttp2_stories_use_the_dynamic_table_and_its_updates():
    """The recording holds what it was made for: indexes above 61, and blocks that begin with size updates."""
    stories = {
        story["name"]: [event["block"] for event in story["events"] if "block" in event]
        for story in RECORDED["stories"]
    }
    assert len(stories["pushes: requests"]) == 8
    assert stories["client's table 0: responses"][0].startswith("20")
    assert stories["client's table 0, then 4096: responses"][0].startswith("203fe11f")
    assert any(octet >= 0xBE for octet in bytes.fromhex(stories["defaults: responses"][1]))
    with pytest.raises(HpackError):
        # Without what came before, it cannot be read.
        Decoder().decode(bytes.fromhex(stories["defaults: responses"][1]))
