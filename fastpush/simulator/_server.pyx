# cython: language_level=3
"""The server's side of one HTTP/2 connection without I/O, and the log of what it saw; compiled.

Octets in, octets out: `ServerConnection.receive_data` takes what the client sent, `data_to_send` gives
what is to be written, `check_time` does what is due. Nothing waits, and `now` is an argument. All of RFC
9113 that a server needs is here; what APNs answers is not: a request goes to `host`, a Python object,
unless its constant headers equal those of an earlier good one of the same connection and its own fields
are plainly good. Then it is answered here, without a Python call ("the fast lane").

The caller must write the octets in the order in which they were taken, and must look at `closing` after
each call: it says how the transport is to be ended.
"""

import heapq
from collections import deque

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from fastpush._buffer cimport Buffer, buffer_free, buffer_init, buffer_reserve, buffer_write
from fastpush.http2._hpack cimport INDEX, NEVER, PLAIN, Decoder, Encoder

from fastpush.http2._hpack import HpackError

cdef enum:
    # Frame types and flags (RFC 9113 §6).
    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9
    ACK = 0x1
    END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    HAS_PRIORITY = 0x20

    # Settings (§6.5.2).
    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6

    # Error codes (§7).
    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB

    FRAME_HEADER_OCTETS = 9
    FRAME_OCTETS = 16_384           # our SETTINGS_MAX_FRAME_SIZE: the default
    WINDOW_OCTETS = 65_535          # both windows, as APNs has them
    WINDOW_RETURNED_AT = 32_768     # APNs gives back about so many octets at a time (pushy issue 356)
    BODY_OCTETS = 16_384            # a body longer than this is refused before it has ended
    BLOCK_OCTETS = 65_536           # a longer header block ends the connection
    CONTINUATIONS = 32
    QUEUED_CONTROL_FRAMES = 10_000  # answers to PING and SETTINGS within one `receive_data`
    RESETS_REMEMBERED = 4_096
    MEMOS = 8                       # kinds of constant headers remembered to one connection

cdef int64_t LARGEST_WINDOW = 2_147_483_647     # §6.9.1
cdef int64_t LARGEST_STREAM_ID = 2_147_483_647

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # §3.4

# What became of a request. The first three were processed.
ACCEPTED = 0        # answered 200, or to be: it counts as delivered
UNANSWERED = 1      # delivered, and never answered
REJECTED = 2        # answered, with another status
REFUSED = 3         # surely not processed: REFUSED_STREAM, or above a GOAWAY's last stream id
SWALLOWED = 4       # not processed, and never answered
CANCELLED = 5       # reset by the client, or gone with the connection, before it was processed
MALFORMED = 6       # reset by us: no HTTP/2 message

FATES = ("accepted", "unanswered", "rejected", "refused", "swallowed", "cancelled", "malformed")

cdef enum:
    FATE_COUNT = 7

# The parts, to be read in this order.
include "_server_octets.pxi"        # leaf helpers on raw octets
include "_server_shared.pxi"        # the log, and what else all connections have in common
include "_server_stream.pxi"        # a request: its fields and its body; what is remembered of good ones

cdef class ServerConnection         # at the end; its attributes are explained there

include "_server_reading.pxi"       # frames in, one function for each type
include "_server_judging.pxi"       # what becomes of a request: the fast lane, the host, the log
include "_server_writing.pxi"       # frames out, windows, and the end of the connection


@cython.final
cdef class ServerConnection:
    """One connection. The host drives it by the methods below, also from within its own callbacks.

    The host is an object with two methods:
      consult(connection, number, device_token) -> (delay, faults): called for a request that has ended,
        where `ask_from`, `Shared.ask_from` or `Shared.scripted` say so. Seconds before it is judged, and
        anything but None to have `handle` called for it.
      handle(connection, stream_id, fields, body, faults) -> (good_until, payload_limit) or None: judge it
        and call `answer`, `swallow` or `reset` for it. A pair lets alike requests pass without a call.
    """

    cdef readonly Shared shared
    cdef readonly object host
    cdef readonly int32_t number
    """Of this connection, from 1."""
    cdef Decoder decoder
    cdef Encoder encoder
    cdef Buffer incoming            # octets that are no whole frame yet
    cdef Buffer out
    cdef Buffer block               # of a header block that CONTINUATION goes on
    cdef int64_t block_stream       # 0: none
    cdef uint8_t block_flags
    cdef int block_frames
    cdef int preface                # octets of the preface that have come; -1: the first SETTINGS too
    cdef dict streams               # by stream id: not yet answered, or answered and not wholly sent
    cdef list spare                 # Stream objects for further use
    cdef Py_ssize_t unseen          # answered, but the octets are not taken yet: the client counts them
    cdef dict resets                # ids of streams we reset: DATA may still come. Value: tell STREAM_CLOSED
    cdef list memos
    cdef int32_t generation
    cdef bint apns_id_indexed
    cdef object delayed             # heap of (due, order, stream id)
    cdef int64_t order
    cdef object limits              # of SETTINGS not acknowledged: limits to enforce then
    cdef int64_t enforced_limit
    cdef bint strict                # streams over the limit were refused as APNs does it: with two codes
    cdef int64_t send_window
    cdef int64_t peer_initial_window
    cdef int64_t peer_frame_octets
    cdef int64_t unreturned         # octets of DATA not given back to the connection's window
    cdef int64_t outstanding        # octets the client may still send on the connection
    cdef int control_frames
    cdef bint queues_blocked

    cdef readonly int64_t last_stream_id
    """The highest stream id seen."""
    cdef readonly int64_t judged_stream_id
    """The highest stream id whose request was answered, delivered or is being handled."""
    cdef readonly int64_t goaway_stream_id
    """The last stream id of the lowest GOAWAY sent; 2**62 without one."""
    cdef readonly int64_t stream_limit
    """What the last SETTINGS allows."""
    cdef readonly int64_t requests
    """Whole requests on this connection."""
    cdef readonly int64_t pings
    cdef readonly int64_t resets_received
    cdef readonly object client_goaway
    """Error code of the client's GOAWAY; None without one."""
    cdef public str closing
    """How to end the transport: "" not yet; "flush": write all, close_notify, FIN; "cut": write all, FIN
    without close_notify; "reset": TCP RST at once; "alert": a fatal TLS alert."""
    cdef readonly str error
    """Why this side closed it with an error; "" otherwise."""
    cdef public bint drains
    """Close once every stream that a GOAWAY left has been answered."""
    cdef public int64_t ask_from
    """The host is asked about every request from this number on, counted on this connection."""
    cdef public double latency
    """Seconds from a whole request to its answer."""
    cdef public bint answers_pings
    cdef public bint acknowledges_settings
    cdef public bint returns_window
    cdef public object state
    """The host's own."""

    def __cinit__(self):
        buffer_init(&self.incoming)
        buffer_init(&self.out)
        buffer_init(&self.block)

    def __init__(
        self, Shared shared not None, host, int32_t number, *,
        Decoder decoder not None, Encoder encoder not None,
    ):
        self.shared = shared
        self.host = host
        self.number = number
        self.decoder = decoder
        self.encoder = encoder
        self.block_stream = 0
        self.preface = 0
        self.streams = {}
        self.spare = []
        self.unseen = 0
        self.resets = {}
        self.memos = []
        self.generation = shared.generation
        self.apns_id_indexed = False
        self.delayed = []
        self.order = 0
        self.limits = deque()
        self.enforced_limit = 2 ** 31
        self.stream_limit = 2 ** 31
        self.strict = False
        self.send_window = self.peer_initial_window = WINDOW_OCTETS
        self.peer_frame_octets = FRAME_OCTETS
        self.unreturned = 0
        self.outstanding = WINDOW_OCTETS
        self.control_frames = 0
        self.queues_blocked = False
        self.last_stream_id = self.judged_stream_id = 0
        self.goaway_stream_id = 2 ** 62
        self.requests = self.pings = self.resets_received = 0
        self.client_goaway = None
        self.closing = ""
        self.error = ""
        self.drains = False
        self.ask_from = 2 ** 62
        self.latency = 0.0
        self.answers_pings = self.acknowledges_settings = self.returns_window = True
        self.state = None

    def __dealloc__(self):
        buffer_free(&self.incoming)
        buffer_free(&self.out)
        buffer_free(&self.block)

    @property
    def streams_open(self):
        """Streams not answered yet."""
        return len(self.streams)

    # Receiving.

    def receive_data(self, const uint8_t[::1] octets not None, double now):
        """Take octets from the client, cut anywhere, and act on every whole frame.

        Nothing is raised for what a client sends. After a connection error the rest is ignored.
        """
        cdef Py_ssize_t length = octets.shape[0]
        cdef Py_ssize_t used
        self.control_frames = 0
        if length and not self.closing:
            if self.incoming.length:
                buffer_write(&self.incoming, &octets[0], length)
                # Nothing below writes to `incoming`, so the pointer holds.
                used = read_frames(self, self.incoming.octets, self.incoming.length, now)
                self.incoming.length -= used
                memmove(self.incoming.octets, self.incoming.octets + used, <size_t>self.incoming.length)
            else:
                used = read_frames(self, &octets[0], length, now)
                buffer_write(&self.incoming, &octets[0] + used, length - used)
            give_window_back(self)
        finish_drain(self)

    # What the host does.

    cdef Stream waiting(self, int64_t stream_id):
        cdef Stream stream = self.streams.get(stream_id)
        if stream is None or stream.unsent is not None:
            raise ValueError(f"stream {stream_id} waits for no answer")
        return stream

    def initiate(self, settings not None):
        """Queue the first SETTINGS frame. `settings` is a dict of identifiers and values."""
        self.send_settings(settings, False)
        self.enforced_limit = self.stream_limit

    def send_settings(self, settings not None, bint strict):
        """Queue a SETTINGS frame.

        A raised stream limit holds as soon as the frame is taken to be written. A lowered one holds when
        the client has acknowledged it, or with `strict` at once, as APNs was seen to do: then what the
        client opened in good faith is refused.
        """
        cdef int64_t limit = self.stream_limit
        cdef uint8_t entry[6]
        cdef Py_ssize_t start = self.out.length
        buffer_reserve(&self.out, FRAME_HEADER_OCTETS + 6 * len(settings))
        write_frame_header(self.out.octets + start, 6 * len(settings), SETTINGS, 0, 0)
        self.out.length += FRAME_HEADER_OCTETS
        for kind, value in settings.items():
            if kind == MAX_CONCURRENT_STREAMS:
                limit = value
            elif kind == HEADER_TABLE_SIZE and value > 4_096:
                # A client may use a larger table as soon as it knows; of a smaller one it may only use less.
                self.decoder.resize_limit(min(value, 65_536))
            entry[0] = <uint8_t>(<int>kind >> 8 & 0xFF)
            entry[1] = <uint8_t>(<int>kind & 0xFF)
            write_32(entry + 2, <uint32_t>value)
            buffer_write(&self.out, entry, 6)
        self.strict = strict
        self.limits.append(limit)
        if strict:
            self.enforced_limit = limit
        self.stream_limit = limit

    def answer(self, int64_t stream_id, int status, fields not None, bytes body not None, int fate):
        """Answer a request: HEADERS, and DATA where there is a body. The fate goes into the log.

        Args:
          fields: pairs of octets, after `:status` and `apns-id`.
        """
        cdef Stream stream = self.waiting(stream_id)
        cdef uint8_t made[36]
        if stream.apns_id.octets is NULL or not is_uuid(stream.apns_id.octets, stream.apns_id.length):
            self.shared.draw_uuid(made)
            stream.apns_id.octets = made
            stream.apns_id.length = 36
        remember(self, stream, status, fate)
        write_headers(
            self, stream_id, status, stream.apns_id, fields, not body,
            status == 200 and self.shared.development,
        )
        if body:
            stream.unsent = body
            send_body(self, stream)
        else:
            release(self, stream)

    def begin_answer(self, int64_t stream_id, int status, fields not None, bint apns_id=True):
        """Write the HEADERS of an answer and nothing else: its end is left to `finish_answer`, or missing."""
        cdef Stream stream = self.waiting(stream_id)
        cdef Slice absent
        absent.octets = NULL
        absent.length = 0
        write_headers(self, stream_id, status, stream.apns_id if apns_id else absent, fields, False, False)

    def send_data(self, int64_t stream_id, bytes octets not None, bint end_stream, Py_ssize_t padding=0):
        """Write one DATA frame of an answer as it is given, windows or not."""
        cdef Py_ssize_t length = len(octets)
        cdef Py_ssize_t whole = length + (1 + padding if padding else 0)
        cdef Py_ssize_t start = self.out.length
        if not 0 <= padding <= 255 or whole > FRAME_OCTETS:
            raise ValueError("the frame is over 16,384 octets, or its padding over 255")
        buffer_reserve(&self.out, FRAME_HEADER_OCTETS + whole)
        write_frame_header(
            self.out.octets + start, whole, DATA,
            <uint8_t>((END_STREAM if end_stream else 0) | (PADDED if padding else 0)), stream_id,
        )
        self.out.length += FRAME_HEADER_OCTETS
        if padding:
            self.out.octets[self.out.length] = <uint8_t>padding
            self.out.length += 1
        buffer_write(&self.out, PyBytes_AS_STRING(octets), length)
        while padding:
            self.out.octets[self.out.length] = 0
            self.out.length += 1
            padding -= 1
        self.send_window -= whole

    def send_trailers(self, int64_t stream_id, fields not None):
        """Write the HEADERS that end an answer (§8.1)."""
        cdef bytes name, value
        cdef Py_ssize_t start = self.out.length
        buffer_reserve(&self.out, FRAME_HEADER_OCTETS)
        self.out.length += FRAME_HEADER_OCTETS
        self.encoder.begin(&self.out)
        for name, value in fields:
            write_field(
                self, PyBytes_AS_STRING(name), len(name),
                <const uint8_t *>PyBytes_AS_STRING(value), len(value), PLAIN,
            )
        write_frame_header(
            self.out.octets + start, self.out.length - start - FRAME_HEADER_OCTETS, HEADERS,
            END_HEADERS | END_STREAM, stream_id,
        )

    def end_answer(self, int64_t stream_id, int status, int fate):
        """An answer written by hand is over: log it and free the stream."""
        cdef Stream stream = self.waiting(stream_id)
        remember(self, stream, status, fate)
        release(self, stream)

    def swallow(self, int64_t stream_id, int fate):
        """Never answer it. The stream stays open until the client resets it."""
        cdef Stream stream = self.waiting(stream_id)
        remember(self, stream, 0, fate)
        stream.unsent = b""

    def reset(self, int64_t stream_id, uint32_t error_code, int fate):
        """End a request with RST_STREAM."""
        cdef Stream stream = self.waiting(stream_id)
        write_rst_stream(self, stream_id, error_code)
        self.unseen += 1
        drop(self, stream, fate)

    def send_rst_stream(self, int64_t stream_id, uint32_t error_code):
        """Write an RST_STREAM frame and do nothing else."""
        write_rst_stream(self, stream_id, error_code)

    def send_frame(self, uint8_t kind, uint8_t flags, int64_t stream_id, bytes payload not None):
        """Write any frame as it is given; what it means is not looked at."""
        if not 0 <= stream_id <= 0xFFFFFFFF or len(payload) > 16_777_215:
            raise ValueError("stream_id is of 32 bits, a payload of at most 2**24 - 1 octets")
        write_frame(self, kind, flags, stream_id, <const uint8_t *>PyBytes_AS_STRING(payload), len(payload))

    def send_octets(self, bytes octets not None):
        """Write any octets, frame or not."""
        buffer_write(&self.out, PyBytes_AS_STRING(octets), len(octets))

    def send_goaway(self, int64_t last_stream_id, uint32_t error_code, bytes debug_data not None):
        """Write GOAWAY. Requests above `last_stream_id` that wait are not processed, nor are later ones."""
        cdef Stream stream
        cdef uint8_t head[8]
        if not 0 <= last_stream_id <= LARGEST_STREAM_ID:
            raise ValueError(f"last_stream_id is {last_stream_id}; it may be 0 to 2**31 - 1")
        write_32(head, <uint32_t>last_stream_id)
        write_32(head + 4, error_code)
        buffer_reserve(&self.out, FRAME_HEADER_OCTETS + 8 + len(debug_data))
        write_frame_header(self.out.octets + self.out.length, 8 + len(debug_data), GOAWAY, 0, 0)
        self.out.length += FRAME_HEADER_OCTETS
        buffer_write(&self.out, head, 8)
        buffer_write(&self.out, PyBytes_AS_STRING(debug_data), len(debug_data))
        if last_stream_id < self.goaway_stream_id:
            self.goaway_stream_id = last_stream_id
        for stream in [each for each in self.streams.values() if (<Stream>each).id > last_stream_id]:
            remember_reset(self, stream.id, False)
            drop(self, stream, REFUSED)

    def connection_error(self, uint32_t error_code, str reason not None):
        """Close the connection with GOAWAY (§5.4.1)."""
        fail(self, error_code, reason)

    def connection_lost(self):
        """The transport is gone: what was not processed never will be."""
        for stream in list(self.streams.values()):
            drop(self, stream, CANCELLED)
        self.delayed = []

    def data_to_send(self):
        """Take all octets that are ready, empty if none."""
        cdef bytes octets = PyBytes_FromStringAndSize(<const char *>self.out.octets, self.out.length)
        self.out.length = 0
        self.unseen = 0
        if self.stream_limit > self.enforced_limit:
            self.enforced_limit = self.stream_limit
        return octets

    def octets_ready(self):
        """Tell how many octets wait for `data_to_send`."""
        return self.out.length

    def discard_output(self, Py_ssize_t keep=0):
        """Forget octets that are ready, all but the first `keep`: they were never written."""
        self.out.length = min(self.out.length, max(keep, <Py_ssize_t>0))

    # Time.

    def next_time(self):
        """When `check_time` must be called next; infinity if not at all."""
        return self.delayed[0][0] if self.delayed else INFINITY

    def check_time(self, double now):
        """Finish the requests whose delay is over."""
        cdef Stream stream
        self.control_frames = 0
        while self.delayed and self.delayed[0][0] <= now and not self.closing:
            stream = self.streams.get(heapq.heappop(self.delayed)[2])
            # The client may have reset it, or a GOAWAY may have left it out.
            if stream is not None and stream.ended and stream.unsent is None:
                finish(self, stream, stream.body.octets, stream.body.length)
        finish_drain(self)
