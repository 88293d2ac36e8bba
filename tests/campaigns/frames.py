"""Random and mutated frames for an engine, judged by hyperframe, hpack and the rules of RFC 9113.

    python -m tests.campaigns.frames --cases 1000000 --seed 7

Each case is a connection with three requests in flight and a dozen frames from its server: drawn at
random, or good ones with some octets changed. The judge reads the same octets with hyperframe and
hpack, which share no code with the engine, and says what must become of the connection and of each
request. Nothing may crash, hang, or end twice, and every difference that is not one of `LISTED` is
printed with the seed of its case. Exit code 0: none was found.
"""

import argparse
import collections
import os
import random
import re
import sys
import time

import hpack
from hyperframe.exceptions import HyperframeError, InvalidFrameError, InvalidPaddingError
from hyperframe.frame import Frame

from fastpush.http2 import CompiledEngine, ConnectionEnded, ErrorCode, Limits, StreamEnded
from tests.http2 import frames
from tests.http2.story import AFTER, BEFORE, PATH_PREFIX, VARIABLE

STREAMS = (1, 3, 5)
ALARM_AFTER = 5.0  # seconds for one case: more is a hang

NAME = re.compile(rb"[!-9;-@\[-~]+")
VALUE = re.compile(rb"([^\0\r\n \t]([^\0\r\n]*[^\0\r\n \t])?)?")
STATUS = re.compile(rb"[1-5][0-9][0-9]")
CONNECTION_FIELDS = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}

LISTED = {
    "header list": "a block over MAX_HEADER_LIST_SIZE may end its stream or the connection",
    "closed": "a frame on a stream that the peer has closed: an error of the stream or of the connection",
}


class Dead(Exception):
    """The connection must end with one of these codes."""

    def __init__(self, *codes):
        super().__init__(codes)
        self.codes = set(codes)


class Unjudged(Exception):
    """From here on the RFC leaves a choice (one of `LISTED`): only the general rules are checked."""


class Stream:
    def __init__(self):
        self.open = True
        self.status = None
        self.processed = None
        self.quiet = False  # closed, and whatever comes is ignored
        self.window = 65_535
        self.interim = 0
        self.announced = None
        self.received = 0


class Judge:
    """What a connection must make of these octets, by the RFC. Raises `Dead` where it must end."""

    def __init__(self, body_octets):
        self.decoder = hpack.Decoder(max_header_list_size=Limits().header_list_octets)
        self.streams = {stream_id: Stream() for stream_id in STREAMS}
        for stream in self.streams.values():
            stream.window -= body_octets
        self.window = 65_535 - body_octets * len(STREAMS)
        self.initial = 65_535
        self.last = None
        self.block = None  # (stream id, flags, octets, continuations)
        self.pings = 0
        self.settings = 0

    def read(self, octets):
        while len(octets) >= 9:
            length = int.from_bytes(octets[:3])
            if length > 16_384:
                raise Dead(ErrorCode.FRAME_SIZE_ERROR)
            if len(octets) < 9 + length:
                return
            self.take(octets[: 9 + length])
            octets = octets[9 + length :]

    def take(self, octets):
        kind, flags, stream_id = octets[3], octets[4], int.from_bytes(octets[5:9]) & 0x7FFF_FFFF
        payload = octets[9:]
        codes = self.form_errors(kind, flags, stream_id, payload, octets)
        if self.block and (kind != frames.CONTINUATION or stream_id != self.block[0]):
            codes.add(ErrorCode.PROTOCOL_ERROR)
        if codes:
            raise Dead(*codes)
        if kind < len(self.TAKERS):
            self.TAKERS[kind](self, stream_id, flags, payload)

    def form_errors(self, kind, flags, stream_id, payload, octets):
        """What hyperframe has against the form of this frame, corrected where it is known to be wrong."""
        if kind > frames.CONTINUATION:
            return set()
        if kind == frames.PUSH_PROMISE:
            return {ErrorCode.PROTOCOL_ERROR}
        if kind == frames.PRIORITY and stream_id and len(payload) != 5:
            return {ErrorCode.FRAME_SIZE_ERROR} if self.is_idle(stream_id) else set()  # else of the stream
        if kind == frames.SETTINGS and flags & frames.ACK and payload and not stream_id:
            return {ErrorCode.FRAME_SIZE_ERROR}
        if kind in (frames.WINDOW_UPDATE, frames.GOAWAY) and payload:
            payload = bytes([payload[0] & 0x7F]) + payload[1:]  # hyperframe keeps the reserved bit
        if kind == frames.WINDOW_UPDATE and payload == bytes(4) and stream_id:
            return {ErrorCode.PROTOCOL_ERROR} if self.is_idle(stream_id) else set()
        codes = set()
        if kind in (frames.DATA, frames.HEADERS) and flags & frames.PADDED and payload:
            extra = 5 if kind == frames.HEADERS and flags & 0x20 else 0
            if 1 + extra + payload[0] > len(payload):
                codes |= {ErrorCode.PROTOCOL_ERROR, *([ErrorCode.FRAME_SIZE_ERROR] if extra else [])}
        try:
            frame, _ = Frame.parse_frame_header(memoryview(octets)[:9])
            frame.parse_body(memoryview(payload))
        except InvalidPaddingError:
            if kind == frames.DATA:  # of HEADERS it refuses padding that leaves an empty fragment, too
                codes.add(ErrorCode.PROTOCOL_ERROR)
        except InvalidFrameError:
            codes.add(ErrorCode.FRAME_SIZE_ERROR)
        except HyperframeError:
            codes.add(ErrorCode.PROTOCOL_ERROR)
        if codes or (stream_id and kind in (frames.SETTINGS, frames.PING, frames.GOAWAY)):
            # Several things may be wrong at once, and each is a reason.
            on_stream = kind in (
                frames.DATA,
                frames.HEADERS,
                frames.PRIORITY,
                frames.RST_STREAM,
                frames.CONTINUATION,
            )
            if (on_stream and not stream_id) or self.is_idle(stream_id) or (not on_stream and stream_id):
                codes.add(ErrorCode.PROTOCOL_ERROR)
            sizes = {frames.RST_STREAM: 4, frames.PING: 8, frames.WINDOW_UPDATE: 4}
            wrong = len(payload) != sizes.get(kind, len(payload))
            wrong |= kind == frames.SETTINGS and bool(len(payload) % 6 or (flags & frames.ACK and payload))
            wrong |= kind == frames.GOAWAY and len(payload) < 8
            if wrong:
                codes.add(ErrorCode.FRAME_SIZE_ERROR)
        return codes

    def is_idle(self, stream_id):
        return bool(stream_id) and stream_id not in self.streams

    def stream_for(self, stream_id):
        """The open stream, None where the frame is to be ignored."""
        if self.is_idle(stream_id):
            raise Dead(ErrorCode.PROTOCOL_ERROR)
        stream = self.streams[stream_id]
        if stream.open:
            return stream
        if not stream.quiet:
            raise Unjudged("closed")
        return None

    def end(self, stream, processed=None, *, quiet=True):
        stream.open = False
        stream.quiet = quiet
        stream.processed = True if stream.status else processed

    def take_data(self, stream_id, flags, payload):
        stream = self.stream_for(stream_id)
        if stream is None:
            return
        pad = 1 + payload[0] if flags & frames.PADDED else 0
        stream.received += len(payload) - pad
        if stream.status is None:
            self.end(stream)
        else:
            self.check_length(stream, flags)

    def check_length(self, stream, flags):
        over = stream.announced is not None and stream.received > stream.announced
        ends = flags & frames.END_STREAM
        if over or ends:
            self.end(stream, quiet=over or bool(stream.announced not in (None, stream.received)))

    def take_headers(self, stream_id, flags, payload):
        if self.is_idle(stream_id):
            raise Dead(ErrorCode.PROTOCOL_ERROR)
        start = 0
        pad = 0
        if flags & frames.PADDED:
            pad, start = payload[0], 1
        if flags & 0x20:
            start += 5
        self.block = (stream_id, flags, payload[start : len(payload) - pad], 0)
        if flags & frames.END_HEADERS:
            self.take_block()

    def take_continuation(self, stream_id, flags, payload):
        if self.block is None:
            raise Dead(ErrorCode.PROTOCOL_ERROR)
        _, first, block, count = self.block
        if count == Limits().continuations:
            raise Dead(ErrorCode.ENHANCE_YOUR_CALM)
        self.block = (stream_id, first, block + payload, count + 1)
        if flags & frames.END_HEADERS:
            self.take_block()

    def take_block(self):
        stream_id, flags, block, _ = self.block
        self.block = None
        try:
            fields = [tuple(pair) for pair in self.decoder.decode(block, raw=True)]
        except hpack.OversizedHeaderListError:
            raise Unjudged("header list") from None
        except (hpack.HPACKError, ValueError, IndexError):
            raise Dead(ErrorCode.COMPRESSION_ERROR) from None
        stream = self.stream_for(stream_id)
        if stream is None:
            return
        trailers = stream.status is not None
        if trailers:
            good = flags & frames.END_STREAM and self.fields_are_good(fields, ())
            self.end(stream, quiet=not good or stream.announced not in (None, stream.received))
            return
        if not self.fields_are_good(fields, (b":status",)):
            self.end(stream)
            return
        status = int(fields[0][1])
        if status < 200:
            stream.interim += 1
            if status == 101 or flags & frames.END_STREAM or stream.interim > Limits().interim_responses:
                self.end(stream)
            return
        stream.status = status
        lengths = [value for name, value in fields if name == b"content-length"]
        if lengths:
            if len(set(lengths)) > 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
                self.end(stream)
                return
            stream.announced = (
                int(lengths[0]) if status != 304 else None
            )  # it tells of a body that does not come
        self.check_length(stream, flags)

    def fields_are_good(self, fields, pseudo):
        names = [name for name, _ in fields]
        if tuple(name for name in names if name[:1] == b":") != pseudo or names[: len(pseudo)] != [*pseudo]:
            return False
        if pseudo and not STATUS.fullmatch(fields[0][1]):
            return False
        return all(
            NAME.fullmatch(name)
            and VALUE.fullmatch(value)
            and name not in CONNECTION_FIELDS
            and (name != b"te" or value == b"trailers")
            for name, value in fields[len(pseudo) :]
        )

    def take_priority(self, stream_id, flags, payload):
        if len(payload) != 5 and self.streams[stream_id].open:
            self.end(self.streams[stream_id])

    def take_rst_stream(self, stream_id, flags, payload):
        if self.is_idle(stream_id):
            raise Dead(ErrorCode.PROTOCOL_ERROR)
        stream = self.streams[stream_id]
        if stream.open:
            self.end(stream, False if payload == b"\0\0\0\x07" else None, quiet=False)

    def take_settings(self, stream_id, flags, payload):
        if flags & frames.ACK:
            return
        for at in range(0, len(payload), 6):
            code, value = int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + 6])
            if code == frames.ENABLE_PUSH and value:
                raise Dead(ErrorCode.PROTOCOL_ERROR)
            if code == frames.MAX_FRAME_SIZE and not 16_384 <= value < 2**24:
                raise Dead(ErrorCode.PROTOCOL_ERROR)
            if code == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW:
                    raise Dead(ErrorCode.FLOW_CONTROL_ERROR)
                for stream in self.streams.values():
                    stream.window += value - self.initial
                    if stream.open and stream.window > frames.MAX_WINDOW:
                        raise Dead(ErrorCode.FLOW_CONTROL_ERROR)
                self.initial = value
        self.settings += 1

    def take_ping(self, stream_id, flags, payload):
        self.pings += not flags & frames.ACK

    def take_goaway(self, stream_id, flags, payload):
        last = int.from_bytes(payload[:4]) & 0x7FFF_FFFF
        if self.last is not None and last > self.last:
            raise Dead(ErrorCode.PROTOCOL_ERROR)
        self.last = last
        for stream_id, stream in self.streams.items():
            if stream_id > last and stream.open:
                self.end(stream, False)

    def take_window_update(self, stream_id, flags, payload):
        increment = int.from_bytes(payload) & 0x7FFF_FFFF
        if stream_id == 0:
            self.window += increment
            if self.window > frames.MAX_WINDOW:
                raise Dead(ErrorCode.FLOW_CONTROL_ERROR)
            return
        if self.is_idle(stream_id):
            raise Dead(ErrorCode.PROTOCOL_ERROR)
        stream = self.streams[stream_id]
        if stream.open:
            stream.window += increment
            if increment == 0 or stream.window > frames.MAX_WINDOW:
                self.end(stream)

    TAKERS = (
        take_data,
        take_headers,
        take_priority,
        take_rst_stream,
        take_settings,
        None,
        take_ping,
        take_goaway,
        take_window_update,
        take_continuation,
    )


# The cases.

BLOCKS = [
    b"\x88",
    b"\x8c\x00\x07apns-id\x011",
    b"\x08\x03410\x40\x07apns-id\x0212",
    b"\x88\xbe",
    b"\x20\x3f\xe1\x1f\x88",
    b"\x08\x03100",
    b"\x08\x03103",
    b"\x88\x0f\x0d\x012",
    b"\x00\x01a\x01b",
    b"\x08\x03abc",
    b"",
]


def random_frame(rng):
    """Any frame: every part of it is more often near what is right than not."""
    kind = rng.randrange(11) if rng.random() < 0.95 else rng.randrange(256)
    flags = (
        rng.choice((0, 1, 4, 5, 5, 5, 8, 9, 0x0D, 0x25, 0x2D)) if rng.random() < 0.9 else rng.randrange(256)
    )
    stream_id = rng.choice((1, 3, 5, 1, 3, 5, 0, 7, 2)) if rng.random() < 0.95 else rng.randrange(2**31)
    if kind in (4, 6, 7) and rng.random() < 0.9:
        stream_id = 0
    if kind in (1, 9) and rng.random() < 0.85:
        payload = rng.choice(BLOCKS)
        if flags & 0x20:
            payload = bytes(5) + payload
        if flags & 8:
            pad = rng.randrange(4)
            payload = bytes([pad]) + payload + bytes(pad)
    elif kind == 4 and rng.random() < 0.9:
        values = (0, 1, 100, 4_096, 16_384, 16_385, 65_535, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
        entries = [(rng.randrange(9), rng.choice(values)) for _ in range(rng.randrange(4))]
        payload = b"".join(code.to_bytes(2) + value.to_bytes(4) for code, value in entries)
        flags &= 0xFE if payload else 0xFF
    elif kind in (3, 7, 8) and rng.random() < 0.9:
        numbers = (0, 1, 3, 5, 7, 8, 100, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
        payload = b"".join(rng.choice(numbers).to_bytes(4) for _ in range(2 if kind == 7 else 1))
    else:
        payload = rng.randbytes(rng.choice((0, 1, 4, 5, 8, 8, 8, rng.randrange(40))))
    return frames.raw(kind, flags, stream_id, payload, reserved=rng.random() < 0.02)


def good_frames(rng, server):
    """What an honest server may send now."""
    stream_id = rng.choice(STREAMS)
    return rng.choice(
        (
            lambda: server.accept(stream_id),
            lambda: server.reject(stream_id, rng.choice((400, 410, 429, 503))),
            lambda: server.headers(stream_id, 103) + server.accept(stream_id),
            lambda: server.headers(stream_id, 200, pad=3) + frames.data(stream_id, b"{}", pad=5),
            lambda: server.headers(stream_id, 200) + server.trailers(stream_id),
            lambda: (
                server.headers(stream_id, 400, [(b"content-length", b"2")], cuts=[1, 3])
                + frames.data(stream_id, b"{}", end_stream=True)
            ),
            lambda: frames.rst_stream(stream_id, rng.randrange(15)),
            lambda: frames.window_update(rng.choice((0, stream_id)), rng.randrange(1, 2**20)),
            lambda: frames.settings(max_concurrent_streams=rng.randrange(2_000)),
            lambda: frames.settings(
                initial_window_size=rng.randrange(2**20), header_table_size=rng.randrange(5_000)
            ),
            lambda: frames.ping(rng.randbytes(8)),
            lambda: frames.goaway(rng.choice((0, 1, 3, 5, 2**31 - 1)), rng.randrange(15), b"debug"),
            lambda: frames.raw(0x20, 3, stream_id, b"unknown"),
            lambda: frames.priority(stream_id),
        )
    )()


def mutate(rng, octets):
    octets = bytearray(octets)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        at = rng.randrange(len(octets) + 1)
        match rng.randrange(6):
            case 0 if at < len(octets):
                octets[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(octets):
                octets[at] = rng.randrange(256)
            case 2:
                del octets[at : at + rng.randrange(1, 5)]
            case 3:
                octets[at:at] = rng.randbytes(rng.randrange(1, 5))
            case 4:
                octets[at:at] = octets[at : at + 20]
            case 5 if at < len(octets):
                octets[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(octets)


def case_octets(kind, rng):
    if kind == "random":
        return b"".join(random_frame(rng) for _ in range(rng.randrange(1, 8)))
    server = frames.ServerFrames()
    return mutate(rng, b"".join(good_frames(rng, server) for _ in range(rng.randrange(1, 8))))


HANDSHAKE = frames.settings(max_concurrent_streams=1_000) + frames.settings_ack()
PATHS = [b"%064x" % number for number in STREAMS]
BODY = b"{}"


def run_case(make_engine, kind, case_seed):
    """Run one case; return a line for each thing that is wrong, and how the judge saw it end."""
    rng = random.Random(case_seed)
    octets = case_octets(kind, rng)
    engine = make_engine()
    engine.initiate(0.0)
    events = engine.receive_data(HANDSHAKE, 0.0)
    template = engine.template(BEFORE, PATH_PREFIX, AFTER, VARIABLE)
    for path, tag in zip(PATHS, STREAMS, strict=True):
        engine.send_request(template, path, (None, None, None), BODY, tag, 5.0)
    engine.data_to_send()

    began = time.perf_counter()
    rest = octets
    while rest:
        size = rng.choice((1, 9, 20, len(rest)))
        events += engine.receive_data(rest[:size], 10.0)
        rest = rest[size:]
    sent = engine.data_to_send()
    died = events[-1].error_code if events and isinstance(events[-1], ConnectionEnded) else None
    events += engine.connection_lost("the case is over")
    took = time.perf_counter() - began

    wrong = [f"took {took:.1f} s"] if took > ALARM_AFTER else []
    if sum(isinstance(event, ConnectionEnded) for event in events) != 1 or not isinstance(
        events[-1], ConnectionEnded
    ):
        wrong.append("the connection did not end once")
    outcomes = [event for event in events if isinstance(event, StreamEnded)]
    if sorted(event.tag for event in outcomes) != list(STREAMS):
        wrong.append(f"outcomes {[event.tag for event in outcomes]}")
    wrong += read_sent(sent, died)

    judge = Judge(len(BODY))
    verdict = "alive"
    try:
        judge.read(octets)
    except Unjudged:
        return wrong, "unjudged"
    except Dead as dead:
        verdict = "dead"
        if died is None:
            wrong.append(f"lives, but must end with {sorted(dead.codes)}")
        elif died not in dead.codes:
            wrong.append(f"ended with {died!r}, must be one of {sorted(dead.codes)}")
    else:
        if died is not None:
            wrong.append(f"ended with {died!r} ({events[-1].reason}), must live")
        elif [sent.count(b"\0\0\x08\x06\x01\0\0\0\0"), sent.count(b"\0\0\0\x04\x01\0\0\0\0")] != [
            judge.pings,
            judge.settings,
        ]:
            wrong.append(f"must acknowledge {judge.pings} PING and {judge.settings} SETTINGS")
    for event in outcomes:
        stream = judge.streams[event.tag]
        expected = (stream.status, stream.processed if not stream.open else True if stream.status else None)
        if (event.status, event.processed) != expected:
            wrong.append(
                f"stream {event.tag} is {(event.status, event.processed)}, must be {expected}: {event.reason}"
            )
    return wrong, verdict


def read_sent(sent, died):
    """What the engine sent must be whole frames, with GOAWAY last if it ended the connection."""
    view, last = memoryview(sent), None
    while view:
        last, length = Frame.parse_frame_header(view[:9], strict=True)
        last.parse_body(view[9 : 9 + length])
        view = view[9 + length :]
    if died is not None and type(last).__name__ != "GoAwayFrame":
        return ["ended without GOAWAY"]
    return []


def run(cases, seed, kinds=("random", "mutated"), make_engine=CompiledEngine, examples=10, progress=None):
    """Run the campaign; return the number of differences and how the cases ended."""
    found, ends = 0, collections.Counter()
    for number in range(cases):
        kind = kinds[number % len(kinds)]
        case_seed = f"{seed}/{number}"
        try:
            wrong, end = run_case(make_engine, kind, case_seed)
        except Exception as error:
            wrong, end = [f"raised {error!r}"], "crash"
        ends[end] += 1
        if wrong:
            found += 1
            if found <= examples:
                octets = case_octets(kind, random.Random(case_seed))
                print(f"{kind} case {case_seed}: {'; '.join(wrong)}\n    {octets.hex()}")
        if progress and number % 100_000 == 99_999:
            progress(number + 1)
    return found, ends


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", default=os.environ.get("FASTPUSH_SEED") or str(random.randrange(2**32)))
    parser.add_argument("--kind", choices=["random", "mutated", "both"], default="both")
    parser.add_argument("--engine", choices=["compiled", "h2"], default="compiled")
    options = parser.parse_args()
    kinds = ("random", "mutated") if options.kind == "both" else (options.kind,)
    make_engine = CompiledEngine
    if options.engine == "h2":
        from fastpush.http2.reference import ReferenceEngine as make_engine
    print(
        f"seed {options.seed}, {options.cases:,} cases, {' and '.join(kinds)}, engine {options.engine}",
        flush=True,
    )
    began = time.perf_counter()
    found, ends = run(
        options.cases,
        options.seed,
        kinds,
        make_engine,
        progress=lambda done: print(f"  {done:,}", flush=True),
    )
    took = time.perf_counter() - began
    print(f"{options.cases / took:,.0f} cases/s; the judge saw {dict(ends)}; {found} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
