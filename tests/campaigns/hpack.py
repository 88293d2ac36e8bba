"""Header compression against the `hpack` library, by the million: `python -m tests.campaigns.hpack`.

Each story is one connection's direction: header blocks in a row, over tables that go on from block to
block. Five kinds are drawn in turn:

    ours     our encoder, `hpack` decodes
    theirs   `hpack` encodes, our decoder decodes
    mutated  blocks of `hpack`'s encoder with octets changed, cut, doubled or put in
    made     representations drawn at random: indexes, sizes, Huffman code, some of them wrong
    random   octets

Whatever comes in, both decoders must say the same: the same fields and the same dynamic table, or both an
error. `DIVERGENCES` lists where they may differ. A story is drawn from "seed:number" alone, so that what is
printed can be told again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import hpack
from hpack.exceptions import HPACKError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.struct import NeverIndexedHeaderTuple

from fastpush.http2._hpack import Decoder, Encoder, HeaderListOverflow, HpackError, Indexing

DIVERGENCES = {
    "lowered and raised": (
        "Our SETTINGS_HEADER_TABLE_SIZE went down and up again between two blocks, and the next block does"
        " not begin with an update to the smallest. RFC 7541 §4.2 demands that update, since entries may"
        " have been evicted; hpack looks at the last limit only."
    ),
}
"""What our decoder refuses or takes other than `hpack` 4.2, and why. Nothing else may differ.

Two more differences are no question of verdicts, and the comparison is made so that they do not matter.
`hpack` stops at the field with which a list gets too large and leaves its table behind; ours goes on
(RFC 9113 §10.5.1). So the oracle has no limit, and where a list is over it is counted here. And `hpack`'s
encoder tells every size that it was given between two blocks, where RFC 7541 §4.2 has the smallest and the
last, and none of them if the last was set twice; a size above the last is an error to either decoder. So
its encoder is given the smallest and the last.
"""

KINDS = ("ours", "theirs", "mutated", "made", "random")
LIST_OCTETS = 700
"""Small enough for many lists to be over it."""

NAMES = [name for name, _ in hpack.table.HeaderTable.STATIC_TABLE] + [
    b"apns-id",
    b"apns-topic",
    b"apns-unique-id",
    b"apns-collapse-id",
    b"x",
    b"",
    b"\xff\x00",
]
VALUES = [value for _, value in hpack.table.HeaderTable.STATIC_TABLE] + [
    b"com.example.opmanager",
    b"eabeae54-14a8-11e5-b60b-1697f925ec7b",
    b"0",
    b"\x00\xf9\x0a",
]
SIZES = (0, 1, 31, 32, 33, 64, 100, 129, 256, 1000, 2047, 4095, 4096)
huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@dataclass
class Divergence(Exception):
    """The two do not say the same."""

    kind: str
    story: str
    block: bytes
    ours: object
    theirs: object

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.story}: block {self.block.hex()}\n"
            f"    ours   {self.ours!r}\n    theirs {self.theirs!r}"
        )


class Pair:
    """Our decoder and `hpack`'s, fed with the same."""

    def __init__(self, kind: str, story: str) -> None:
        self.kind = kind
        self.story = story
        self.ours = Decoder(header_list_octets=LIST_OCTETS)
        self.theirs = hpack.Decoder(max_header_list_size=2**40)
        self.limits = [4096]

    def resize_limit(self, limit: int) -> None:
        self.ours.resize_limit(limit)
        self.theirs.max_allowed_table_size = limit
        self.limits.append(limit)

    def check(self, block: bytes) -> str:
        """Decode a block with both; "good", "overflow", "error", or the name of a listed divergence."""
        generation, table = self.ours.generation, self.ours.dynamic_table
        verdict, ours = "good", None
        try:
            ours = self.ours.decode(block)
        except HeaderListOverflow as overflow:
            verdict, ours = "overflow", overflow.fields
        except HpackError as error:
            verdict, ours = "error", error
        expected, theirs = "good", None
        try:
            theirs = [(bytes(name), bytes(value)) for name, value in self.theirs.decode(block, raw=True)]
        except HPACKError as error:
            expected, theirs = "error", error
        if expected == "good":
            octets = 0
            for place, (name, value) in enumerate(theirs):
                octets += len(name) + len(value) + 32
                if octets > LIST_OCTETS:
                    expected, theirs = "overflow", theirs[:place]
                    break
        if verdict == "error" and expected != "error" and self.smallest_ignored(block):
            (listed,) = DIVERGENCES
            return listed
        if (verdict, ours) != (expected, theirs) and not verdict == expected == "error":
            raise Divergence(self.kind, self.story, block, (verdict, ours), (expected, theirs))
        self.limits = self.limits[-1:]
        if verdict != "error":
            entries = [
                (bytes(name), bytes(value)) for name, value in self.theirs.header_table.dynamic_entries
            ]
            if self.ours.dynamic_table != entries:
                raise Divergence(self.kind, self.story, block, self.ours.dynamic_table, entries)
            if self.ours.dynamic_table != table and self.ours.generation == generation:
                raise Divergence(self.kind, self.story, block, "the table changed in one generation", table)
        return verdict

    def smallest_ignored(self, block: bytes) -> bool:
        """The limit was below the last one since the last block, and no leading update goes down to it."""
        updates = []
        while block and block[0] & 0xE0 == 0x20:
            size, octets = hpack.hpack.decode_integer(block, 5)
            updates.append(size)
            block = block[octets:]
        return min(self.limits) < self.limits[-1] and min(updates, default=2**32) > min(self.limits)


def draw_octets(rng: random.Random, most: int = 40) -> bytes:
    kind = rng.random()
    if kind < 0.5:
        return bytes(rng.choices(b"0123456789abcdef-./", k=rng.randrange(most)))
    if kind < 0.6:
        return rng.randbytes(rng.randrange(12 * most))
    return rng.randbytes(rng.randrange(most))


def draw_fields(rng: random.Random) -> list[tuple[bytes, bytes]]:
    fields = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 8))):
        name = rng.choice(NAMES) if rng.random() < 0.8 else draw_octets(rng)
        value = rng.choice(VALUES) if rng.random() < 0.6 else draw_octets(rng)
        fields.append((name, value))
    return fields


def draw_sizes(rng: random.Random, before: int) -> list[int]:
    """Table sizes for the time between two blocks; most often none. None equals the one before it."""
    sizes: list[int] = []
    while rng.random() < 0.2:
        size = rng.choice(SIZES)
        if size != before:
            sizes.append(size)
            before = size
    return sizes


def draw_integer(rng: random.Random, pattern: int, prefix_bits: int, most: int) -> bytes:
    """Draw an integer that is most often 1 to `most`."""
    kind = rng.random()
    if kind < 0.9:
        integer = rng.randrange(1, most + 1)
    elif kind < 0.98:
        integer = rng.randrange(1 << rng.randrange(1, 14))
    else:
        integer = rng.randrange(1 << rng.randrange(1, 36))
    octets = hpack.hpack.encode_integer(integer, prefix_bits)
    octets[0] |= pattern
    if len(octets) > 1 and rng.random() < 0.1:
        # The same integer with zeros that say nothing.
        octets[-1] |= 0x80
        octets += bytes([0x80] * rng.randrange(5) + [0])
    return bytes(octets)


def draw_string(rng: random.Random) -> bytes:
    kind = rng.random()
    octets = draw_octets(rng)
    if kind < 0.4:
        return bytes(hpack.hpack.encode_integer(len(octets), 7)) + octets
    if kind < 0.95:
        octets = huffman.encode(octets)
        if octets and rng.random() < 0.05:
            octets = octets[:-1] + bytes([octets[-1] ^ 1 << rng.randrange(8)])
        if rng.random() < 0.05:
            octets += rng.choice((b"\xff", b"\xff\xff\xff\xff", b"\x00"))
    length = hpack.hpack.encode_integer(len(octets), 7)
    length[0] |= 0x80
    if rng.random() < 0.01:
        length[0] ^= 1 << rng.randrange(8)
    return bytes(length) + octets


def draw_block(rng: random.Random, limit: int, entries: int) -> bytes:
    """Draw representations for a decoder whose table may have `limit` octets and has so many entries."""
    parts = []
    while rng.random() < 0.15:
        parts.append(draw_integer(rng, 0x20, 5, limit or 1))
    for _ in range(rng.randrange(6)):
        kind = rng.random()
        if kind < 0.4:
            parts.append(draw_integer(rng, 0x80, 7, 61 + entries))
        elif kind < 0.98:
            pattern, bits = rng.choice(((0x40, 6), (0x40, 6), (0x00, 4), (0x10, 4)))
            if rng.random() < 0.5:
                parts += [bytes([pattern]), draw_string(rng), draw_string(rng)]
            else:
                parts += [draw_integer(rng, pattern, bits, 61 + entries), draw_string(rng)]
        else:
            parts.append(draw_integer(rng, 0x20, 5, limit or 1))
    block = b"".join(parts)
    return block[: rng.randrange(len(block))] if block and rng.random() < 0.05 else block


def mutate(rng: random.Random, block: bytes) -> bytes:
    octets = bytearray(block)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        place = rng.randrange(len(octets) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            octets.insert(place, rng.randrange(256))
        elif kind == 1:
            del octets[place : place + rng.randrange(1, 4)]
        elif kind == 2 and octets:
            octets[place % len(octets)] ^= 1 << rng.randrange(8)
        elif kind == 3 and octets:
            octets[place % len(octets)] = rng.choice(
                (0x00, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0xFF, rng.randrange(256))
            )
        elif kind == 4:
            octets[place:place] = octets[place : place + rng.randrange(1, 9)]
        else:
            del octets[place:]
    return bytes(octets)


def tell_ours(rng: random.Random, story: str) -> Iterator[str]:
    """Our encoder against `hpack`'s decoder: same fields, same table, sensitive fields never indexed."""
    ours = Encoder()
    theirs = hpack.Decoder(max_header_list_size=2**40)
    for _ in range(rng.randrange(1, 12)):
        for size in draw_sizes(rng, -1):
            ours.resize(size)
            theirs.max_allowed_table_size = size
        fields = [
            (name, value, rng.choice((Indexing.INDEX, Indexing.INDEX, Indexing.PLAIN, Indexing.NEVER)))
            for name, value in draw_fields(rng)
        ]
        generation, table = ours.generation, ours.dynamic_table
        block = ours.encode(fields)
        try:
            decoded = list(theirs.decode(block, raw=True))
        except HPACKError as error:
            raise Divergence("ours", story, block, fields, error) from error
        told = [(*field, isinstance(field, NeverIndexedHeaderTuple)) for field in decoded]
        if told != [(name, value, indexing == Indexing.NEVER) for name, value, indexing in fields]:
            raise Divergence("ours", story, block, fields, decoded)
        entries = list(theirs.header_table.dynamic_entries)
        if ours.dynamic_table != entries or ours.table_limit != theirs.header_table.maxsize:
            raise Divergence("ours", story, block, ours.dynamic_table, entries)
        if ours.dynamic_table != table and ours.generation == generation:
            raise Divergence("ours", story, block, "the table changed in one generation", table)
        kept_out = {field[:2] for field in fields if field[2] != Indexing.INDEX}
        kept_out -= {field[:2] for field in fields if field[2] == Indexing.INDEX}
        if any(entry in kept_out and entry not in table for entry in entries):
            raise Divergence("ours", story, block, "a field got into the table that must not", entries)
        yield "good"


def tell(kind: str, story: str) -> Iterator[str]:
    """Yield the verdict on each block of a story; raise `Divergence` at the first that is not agreed upon."""
    rng = random.Random(f"{story}:{kind}")
    if kind == "ours":
        yield from tell_ours(rng, story)
        return
    pair = Pair(kind, story)
    encoder = hpack.Encoder()
    for _ in range(rng.randrange(1, 12)):
        sizes = draw_sizes(rng, pair.limits[-1])
        for size in sizes:
            pair.resize_limit(size)
        if sizes and (kind == "theirs" or rng.random() < 0.8):
            encoder.header_table_size = min(sizes)
            if sizes[-1] != min(sizes):
                encoder.header_table_size = sizes[-1]
        if kind == "made":
            block = draw_block(rng, pair.limits[-1], len(pair.ours.dynamic_table))
        elif kind == "random":
            block = rng.randbytes(rng.choice((1, 2, 3, 5, 8, 20, 60)))
        else:
            fields = [(name, value, rng.random() < 0.2) for name, value in draw_fields(rng)]
            block = encoder.encode(fields, huffman=rng.random() < 0.7)
            if kind == "mutated" and rng.random() < 0.5:
                block = mutate(rng, block)
        verdict = pair.check(block)
        if kind == "theirs" and verdict not in ("good", "overflow"):
            raise Divergence(kind, story, block, verdict, fields)
        yield verdict
        if verdict not in ("good", "overflow"):
            return  # Both tables are void.


def run(cases: int, seed: str) -> tuple[Counter[str], list[Divergence]]:
    """Try that many header blocks; verdicts by kind, and unlisted divergences (at most 10)."""
    verdicts: Counter[str] = Counter()
    divergences: list[Divergence] = []
    done = dict.fromkeys(KINDS, 0)
    number = 0
    while sum(done.values()) < cases and len(divergences) < 10:
        kind = min(KINDS, key=done.__getitem__)
        try:
            for verdict in tell(kind, f"{seed}:{number}"):
                verdicts[f"{kind}: {verdict}"] += 1
                done[kind] += 1
        except Divergence as divergence:
            divergences.append(divergence)
            done[kind] += 1
        number += 1
    return verdicts, divergences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1_000_000, help="header blocks to try (%(default)s)")
    parser.add_argument("--seed", default=None, help="replays a run; drawn where it is not given")
    parser.add_argument("--story", default=None, help="tells one story again: KIND SEED:NUMBER", nargs=2)
    arguments = parser.parse_args()
    if arguments.story:
        for verdict in tell(*arguments.story):
            print(verdict)
        return 0
    seed = arguments.seed or str(random.SystemRandom().randrange(2**32))
    print(f"seed {seed}, hpack {hpack.__version__}", flush=True)
    began = time.perf_counter()
    verdicts, divergences = run(arguments.cases, seed)
    seconds = time.perf_counter() - began
    for verdict, count in sorted(verdicts.items()):
        print(f"{count:>10,}  {verdict}")
    cases = verdicts.total() + len(divergences)
    print(f"{cases:,} cases in {seconds:.1f} s, {cases / seconds:,.0f} cases/s")
    print(f"{len(divergences)} unlisted divergences")
    for divergence in divergences:
        print(divergence)
    return 1 if divergences else 0


if __name__ == "__main__":
    sys.exit(main())
