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


cdef inline uint32_t read_32(const uint8_t *octets) noexcept nogil:
    return (
        (<uint32_t>octets[0] << 24) | (<uint32_t>octets[1] << 16) | (<uint32_t>octets[2] << 8) | octets[3]
    )


cdef inline void write_32(uint8_t *octets, uint32_t value) noexcept nogil:
    octets[0] = <uint8_t>(value >> 24)
    octets[1] = <uint8_t>(value >> 16 & 0xFF)
    octets[2] = <uint8_t>(value >> 8 & 0xFF)
    octets[3] = <uint8_t>(value & 0xFF)


cdef inline void write_frame_header(
    uint8_t *octets, Py_ssize_t length, uint8_t kind, uint8_t flags, int64_t stream_id
) noexcept nogil:
    octets[0] = <uint8_t>(length >> 16 & 0xFF)
    octets[1] = <uint8_t>(length >> 8 & 0xFF)
    octets[2] = <uint8_t>(length & 0xFF)
    octets[3] = kind
    octets[4] = flags
    write_32(octets + 5, <uint32_t>stream_id)


cdef inline bint is_hex(uint8_t octet) noexcept nogil:
    return c'0' <= octet <= c'9' or c'a' <= octet <= c'f' or c'A' <= octet <= c'F'


cdef inline bint is_uuid(const uint8_t *octets, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i
    if length != 36:
        return False
    for i in range(36):
        if i == 8 or i == 13 or i == 18 or i == 23:
            if octets[i] != c'-':
                return False
        elif not is_hex(octets[i]):
            return False
    return True


cdef inline int64_t read_digits(const uint8_t *octets, Py_ssize_t length) noexcept nogil:
    """The number that 1 to 18 decimal digits are; -1 for anything else."""
    cdef int64_t value = 0
    cdef Py_ssize_t i
    if not 0 < length <= 18:
        return -1
    for i in range(length):
        if not c'0' <= octets[i] <= c'9':
            return -1
        value = value * 10 + (octets[i] - c'0')
    return value


cdef inline bint equal(const uint8_t *octets, Py_ssize_t length, const char *text, Py_ssize_t size) noexcept nogil:
    return length == size and memcmp(octets, text, <size_t>size) == 0


cdef inline bint is_clean(const uint8_t *octets, Py_ssize_t length) noexcept nogil:
    """Whether a field's value has no octet that may not be in it, nor any that is seldom meant (§8.2.1)."""
    cdef Py_ssize_t i
    for i in range(length):
        if octets[i] < 0x20:
            return False
    return length == 0 or (octets[0] != 0x20 and octets[length - 1] != 0x20)


cdef struct Slice:
    const uint8_t *octets       # NULL: absent
    Py_ssize_t length


cdef struct Record:
    double at                   # UNIX seconds
    int64_t expires_at          # -1: no apns-expiration, or none that can be read
    Py_ssize_t text             # where in `texts` the apns-id starts; the device token follows it
    int32_t stream_id
    int32_t connection
    uint16_t device_token_length
    uint16_t status             # 0: no answer
    uint8_t apns_id_length
    uint8_t fate


@cython.final
cdef class Log:
    """What the server saw, one record to each request, kept in plain memory: about 150 octets each."""

    cdef Buffer records
    cdef Buffer texts
    cdef uint64_t counts[FATE_COUNT]
    cdef readonly bint keeps
    """Off: requests are counted only."""

    def __cinit__(self, bint keeps=True):
        cdef int i
        buffer_init(&self.records)
        buffer_init(&self.texts)
        self.keeps = keeps
        for i in range(FATE_COUNT):
            self.counts[i] = 0

    def __dealloc__(self):
        buffer_free(&self.records)
        buffer_free(&self.texts)

    cdef int add(
        self, double at, int32_t connection, int64_t stream_id, Slice apns_id, Slice device_token,
        int64_t expires_at, int status, int fate,
    ) except -1:
        cdef Record *record
        self.counts[fate] += 1
        if not self.keeps:
            return 0
        buffer_reserve(&self.records, sizeof(Record))
        # Longer ones are no apns-id and no device token; what is cut off was never good for anything.
        apns_id.length = min(apns_id.length, <Py_ssize_t>255)
        device_token.length = min(device_token.length, <Py_ssize_t>1024)
        record = <Record *>(self.records.octets + self.records.length)
        record.at = at
        record.expires_at = expires_at
        record.text = self.texts.length
        record.stream_id = <int32_t>stream_id
        record.connection = connection
        record.device_token_length = <uint16_t>device_token.length
        record.status = <uint16_t>status
        record.apns_id_length = <uint8_t>apns_id.length
        record.fate = <uint8_t>fate
        buffer_write(&self.texts, apns_id.octets, apns_id.length)
        buffer_write(&self.texts, device_token.octets, device_token.length)
        self.records.length += <Py_ssize_t>sizeof(Record)
        return 0

    def __len__(self):
        return self.records.length // <Py_ssize_t>sizeof(Record)

    def count(self, int fate):
        """Tell how many requests had this fate, from the beginning, kept or not."""
        if not 0 <= fate < FATE_COUNT:
            raise ValueError(f"fate is {fate}; it may be 0 to {FATE_COUNT - 1}")
        return self.counts[fate]

    def read(self, Py_ssize_t start):
        """Give the kept records from number `start` on.

        Returns:
          Tuples of apns-id, device token, stream id, connection, UNIX seconds, fate, status (0: not
          answered) and expiration (-1: none).
        """
        cdef Py_ssize_t count = self.records.length // <Py_ssize_t>sizeof(Record)
        cdef Record *record
        cdef const char *text
        cdef list found = []
        if start < 0:
            raise ValueError("start is below 0")
        while start < count:
            record = <Record *>self.records.octets + start
            text = <const char *>self.texts.octets + record.text
            found.append((
                text[:record.apns_id_length].decode("latin-1"),
                text[record.apns_id_length:record.apns_id_length + record.device_token_length].decode("latin-1"),
                record.stream_id, record.connection, record.at, record.fate, record.status, record.expires_at,
            ))
            start += 1
        return found

    def forget(self):
        """Drop the kept records; the counts stay."""
        self.records.length = 0
        self.texts.length = 0


@cython.final
cdef class Stream:
    """One request on its way: its decoded header list and as much of its body as is here."""

    cdef int64_t id
    cdef Buffer octets          # names and values
    cdef Buffer spans           # four Py_ssize_t to a field
    cdef Buffer body
    cdef int64_t window         # what the client lets us send on this stream
    cdef int64_t received       # octets of DATA, padding included
    cdef bint ended             # END_STREAM came
    cdef bint oversized         # the header list was over the limit
    cdef int64_t number         # of this request on its connection, from 1
    cdef object faults          # what the host wants to happen to it, or None
    cdef object unsent          # octets of the answer's body that wait for a window, or None
    # Found in the header list when it was decoded; they point into `octets`.
    cdef Slice method, scheme, authority, path, host
    cdef Slice authorization, topic, push_type, priority
    cdef Slice apns_id, expiration, collapse_id, content_length
    cdef Slice device_token
    cdef bint plain             # nothing in the list calls for a second look

    def __cinit__(self):
        buffer_init(&self.octets)
        buffer_init(&self.spans)
        buffer_init(&self.body)

    def __dealloc__(self):
        buffer_free(&self.octets)
        buffer_free(&self.spans)
        buffer_free(&self.body)

    cdef void begin(self, int64_t stream_id, int64_t window) noexcept:
        self.id = stream_id
        self.octets.length = self.spans.length = self.body.length = 0
        self.window = window
        self.received = 0
        self.ended = self.oversized = False
        self.number = 0
        self.faults = self.unsent = None

    cdef void find_fields(self) noexcept:
        """Point the slices at the fields that matter, and judge whether the list is a plain one."""
        cdef Py_ssize_t *span = <Py_ssize_t *>self.spans.octets
        cdef Py_ssize_t count = self.spans.length // <Py_ssize_t>(4 * sizeof(Py_ssize_t))
        cdef Py_ssize_t i, size
        cdef const uint8_t *name
        cdef bint regular = False
        cdef Slice *place
        cdef Slice value
        cdef Slice absent
        absent.octets = NULL
        absent.length = 0
        self.method = self.scheme = self.authority = self.path = self.host = absent
        self.authorization = self.topic = self.push_type = self.priority = absent
        self.apns_id = self.expiration = self.collapse_id = self.content_length = absent
        self.device_token = absent
        self.plain = not self.oversized
        for i in range(count):
            name = self.octets.octets + span[0]
            size = span[1]
            value.octets = self.octets.octets + span[2]
            value.length = span[3]
            span += 4
            place = NULL
            if size == 5:
                if memcmp(name, b":path", 5) == 0:
                    place = &self.path
            elif size == 7:
                if memcmp(name, b"apns-id", 7) == 0:
                    place = &self.apns_id
                elif memcmp(name, b":method", 7) == 0:
                    place = &self.method
                elif memcmp(name, b":scheme", 7) == 0:
                    place = &self.scheme
            elif size == 10:
                if memcmp(name, b"apns-topic", 10) == 0:
                    place = &self.topic
                elif memcmp(name, b":authority", 10) == 0:
                    place = &self.authority
                elif memcmp(name, b"user-agent", 10) == 0:
                    regular = True
                    self.plain = self.plain and is_clean(value.octets, value.length)
                    continue
            elif size == 13:
                if memcmp(name, b"authorization", 13) == 0:
                    place = &self.authorization
                elif memcmp(name, b"apns-priority", 13) == 0:
                    place = &self.priority
            elif size == 14:
                if memcmp(name, b"apns-push-type", 14) == 0:
                    place = &self.push_type
                elif memcmp(name, b"content-length", 14) == 0:
                    place = &self.content_length
            elif size == 15:
                if memcmp(name, b"apns-expiration", 15) == 0:
                    place = &self.expiration
            elif size == 16:
                if memcmp(name, b"apns-collapse-id", 16) == 0:
                    place = &self.collapse_id
            elif size == 12:
                if memcmp(name, b"content-type", 12) == 0:
                    regular = True
                    self.plain = self.plain and is_clean(value.octets, value.length)
                    continue
            elif size == 4:
                if memcmp(name, b"host", 4) == 0:
                    place = &self.host
            if place is NULL or place.octets is not NULL:
                # Unknown or repeated: for the host to judge. Of a repeated one the first stays.
                self.plain = False
                continue
            place[0] = value
            if name[0] == c':':
                if regular:
                    self.plain = False
            else:
                regular = True
        if self.authority.octets is not NULL and self.host.octets is not NULL:
            self.plain = False
        if not is_clean(self.authority.octets, self.authority.length) or not is_clean(self.host.octets, self.host.length):
            self.plain = False
        if self.path.length > 10 and memcmp(self.path.octets, b"/3/device/", 10) == 0:
            self.device_token.octets = self.path.octets + 10
            self.device_token.length = self.path.length - 10

    cdef list list_fields(self):
        cdef Py_ssize_t *span = <Py_ssize_t *>self.spans.octets
        cdef Py_ssize_t count = self.spans.length // <Py_ssize_t>(4 * sizeof(Py_ssize_t))
        cdef const char *octets = <const char *>self.octets.octets
        cdef list fields = []
        cdef Py_ssize_t i
        for i in range(count):
            fields.append((octets[span[0]:span[0] + span[1]], octets[span[2]:span[2] + span[3]]))
            span += 4
        return fields


@cython.final
cdef class Memo:
    """Constant headers of a request that was good, and until when that holds."""

    cdef bytes authorization, topic, push_type, priority    # None: absent
    cdef double good_until      # UNIX seconds
    cdef Py_ssize_t payload_limit


cdef inline bint same(bytes known, Slice given) noexcept:
    if known is None or given.octets is NULL:
        return known is None and given.octets is NULL
    return PyBytes_GET_SIZE(known) == given.length and memcmp(
        PyBytes_AS_STRING(known), given.octets, <size_t>given.length
    ) == 0


cdef bytes take(Slice given):
    if given.octets is NULL:
        return None
    return PyBytes_FromStringAndSize(<const char *>given.octets, given.length)


@cython.final
cdef class Shared:
    """What all connections of one simulator have in common."""

    cdef readonly Log log
    cdef public int64_t requests
    """Whole requests over all connections."""
    cdef public int64_t ask_from
    """The host is asked about every request from this number on, counted over all connections."""
    cdef public dict scripted
    """Device tokens (octets, lower case) about which the host is always asked."""
    cdef public int32_t generation
    """Raised when what is good has changed: every connection forgets its memos."""
    cdef public double wall
    """UNIX seconds, as of the last wake-up."""
    cdef public bint development
    """Accepted requests are answered with apns-unique-id too."""
    cdef uint64_t randomness

    def __cinit__(self, Log log not None, uint64_t seed):
        self.log = log
        self.requests = 0
        self.ask_from = 2 ** 62
        self.scripted = {}
        self.generation = 0
        self.wall = 0.0
        self.development = False
        self.randomness = seed

    cdef uint64_t draw(self) noexcept:
        """The next number of splitmix64: no secret, only ids that differ and repeat with the seed."""
        cdef uint64_t mixed
        self.randomness += 0x9E3779B97F4A7C15u
        mixed = self.randomness
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu
        return mixed ^ (mixed >> 31)

    cdef void draw_uuid(self, uint8_t *out) noexcept:
        """Write 36 octets: a random UUID (RFC 9562 §5.4)."""
        cdef const char *digits = b"0123456789abcdef"
        cdef uint64_t numbers[2]
        cdef int i, at = 0
        numbers[0] = (self.draw() & 0xFFFFFFFFFFFF0FFFu) | 0x4000u
        numbers[1] = (self.draw() & 0x3FFFFFFFFFFFFFFFu) | 0x8000000000000000u
        for i in range(32):
            if i == 8 or i == 12 or i == 16 or i == 20:
                out[at] = c'-'
                at += 1
            out[at] = <uint8_t>digits[numbers[i >> 4] >> (60 - 4 * (i & 15)) & 15]
            at += 1


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

    def __init__(self, Shared shared not None, host, int32_t number, *, Decoder decoder not None, Encoder encoder not None):
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
                used = self.read_frames(self.incoming.octets, self.incoming.length, now)
                self.incoming.length -= used
                memmove(self.incoming.octets, self.incoming.octets + used, <size_t>self.incoming.length)
            else:
                used = self.read_frames(&octets[0], length, now)
                buffer_write(&self.incoming, &octets[0] + used, length - used)
            self.give_window_back()
        self.finish_drain()

    cdef Py_ssize_t read_frames(self, const uint8_t *octets, Py_ssize_t length, double now) except -1:
        """Act on whole frames and tell how many octets they took."""
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t size
        cdef const char *preface
        if 0 <= self.preface < 24:
            preface = PyBytes_AS_STRING(PREFACE)
            size = min(24 - self.preface, length)
            if memcmp(octets, preface + self.preface, <size_t>size) != 0:
                self.fail(PROTOCOL_ERROR, "the client does not speak HTTP/2")
                return length
            self.preface += <int>size
            at = size
            if self.preface < 24:
                return at
        while length - at >= FRAME_HEADER_OCTETS:
            size = <Py_ssize_t>(read_32(octets + at) >> 8)
            if size > FRAME_OCTETS:
                self.fail(FRAME_SIZE_ERROR, "a frame is over SETTINGS_MAX_FRAME_SIZE")
                return length
            if length - at < FRAME_HEADER_OCTETS + size:
                break
            self.read_frame(
                octets[at + 3], octets[at + 4], <int64_t>(read_32(octets + at + 5) & 0x7FFFFFFF),
                octets + at + FRAME_HEADER_OCTETS, size, now,
            )
            if self.closing:
                return length
            at += FRAME_HEADER_OCTETS + size
        return at

    cdef int read_frame(
        self, uint8_t kind, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length, double now
    ) except -1:
        if self.block_stream and (kind != CONTINUATION or stream_id != self.block_stream):
            return self.fail(PROTOCOL_ERROR, "a header block is interrupted")
        if self.preface >= 0:
            if kind != SETTINGS or flags & ACK:
                return self.fail(PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self.preface = -1
        if kind == DATA:
            return self.read_data(flags, stream_id, payload, length, now)
        if kind == HEADERS:
            return self.read_headers(flags, stream_id, payload, length, now)
        if kind == CONTINUATION:
            return self.read_continuation(flags, payload, length, now)
        if kind == WINDOW_UPDATE:
            return self.read_window_update(stream_id, payload, length)
        if kind == PING:
            return self.read_ping(flags, stream_id, payload, length)
        if kind == SETTINGS:
            return self.read_settings(flags, stream_id, payload, length)
        if kind == RST_STREAM:
            return self.read_rst_stream(stream_id, length)
        if kind == GOAWAY:
            if stream_id:
                return self.fail(PROTOCOL_ERROR, "GOAWAY on a stream")
            if length < 8:
                return self.fail(FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 octets")
            self.client_goaway = read_32(payload + 4)
            return 0
        if kind == PRIORITY:
            if not stream_id:
                return self.fail(PROTOCOL_ERROR, "PRIORITY on stream 0")
            if length != 5:
                return self.fail(FRAME_SIZE_ERROR, "PRIORITY is not of 5 octets")
            return 0
        if kind == PUSH_PROMISE:
            return self.fail(PROTOCOL_ERROR, "a client must not push")
        return 0        # unknown types are ignored (§4.1)

    cdef int read_headers(
        self, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length, double now
    ) except -1:
        cdef Py_ssize_t padding = 0
        if not stream_id & 1:
            return self.fail(PROTOCOL_ERROR, "HEADERS on a stream that is not the client's")
        if flags & PADDED:
            if length < 1:
                return self.fail(FRAME_SIZE_ERROR, "HEADERS without its pad length")
            padding = payload[0]
            payload += 1
            length -= 1
        if flags & HAS_PRIORITY:
            if length < 5:
                return self.fail(FRAME_SIZE_ERROR, "HEADERS without its priority")
            payload += 5
            length -= 5
        if padding > length:
            return self.fail(PROTOCOL_ERROR, "padding is longer than the frame")
        length -= padding
        if flags & END_HEADERS:
            return self.read_block(flags, stream_id, payload, length, now)
        self.block.length = 0
        buffer_write(&self.block, payload, length)
        self.block_stream = stream_id
        self.block_flags = flags
        self.block_frames = 0
        return 0

    cdef int read_continuation(self, uint8_t flags, const uint8_t *payload, Py_ssize_t length, double now) except -1:
        cdef int64_t stream_id = self.block_stream
        if not stream_id:
            return self.fail(PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self.block_frames += 1
        if self.block_frames > CONTINUATIONS or self.block.length + length > BLOCK_OCTETS:
            return self.fail(ENHANCE_YOUR_CALM, "a header block does not end")
        buffer_write(&self.block, payload, length)
        if flags & END_HEADERS:
            self.block_stream = 0
            return self.read_block(self.block_flags, stream_id, self.block.octets, self.block.length, now)
        return 0

    cdef int read_block(
        self, uint8_t flags, int64_t stream_id, const uint8_t *block, Py_ssize_t length, double now
    ) except -1:
        """A whole header block is here: it must be decoded whatever becomes of its stream (§4.3)."""
        cdef Stream stream
        cdef int decoded
        if self.spare:
            stream = <Stream>self.spare.pop()
        else:
            stream = Stream()
        stream.begin(stream_id, self.peer_initial_window)
        try:
            decoded = self.decoder.decode_into(block, length, &stream.octets, &stream.spans)
        except HpackError:
            return self.fail(COMPRESSION_ERROR, "a header block cannot be decoded")
        stream.oversized = decoded == -1
        if stream_id <= self.last_stream_id:
            return self.read_trailers(flags, stream_id, stream, now)
        self.last_stream_id = stream_id
        stream.find_fields()
        if stream_id > self.goaway_stream_id:
            # The GOAWAY said it: surely not processed (§6.8).
            self.remember(stream, 0, REFUSED)
            self.remember_reset(stream_id, False)
            self.spare.append(stream)
            return 0
        if <int64_t>len(self.streams) + self.unseen >= self.enforced_limit:
            self.remember(stream, 0, REFUSED)
            self.write_rst_stream(stream_id, REFUSED_STREAM)
            if not flags & END_STREAM:
                self.remember_reset(stream_id, self.strict)
            self.spare.append(stream)
            return 0
        self.streams[stream_id] = stream
        if flags & END_STREAM:
            return self.end_request(stream, NULL, 0, now)
        return 0

    cdef int read_trailers(self, uint8_t flags, int64_t stream_id, Stream trailers, double now) except -1:
        cdef Stream stream = self.streams.get(stream_id)
        self.spare.append(trailers)
        if stream is None:
            if stream_id in self.resets:
                if flags & END_STREAM:
                    del self.resets[stream_id]
                return 0
            return self.fail(STREAM_CLOSED, "HEADERS on a closed stream")
        if stream.ended or not flags & END_STREAM:
            return self.reset_malformed(stream)
        return self.end_request(stream, NULL, 0, now)

    cdef int read_data(
        self, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length, double now
    ) except -1:
        cdef Stream stream
        cdef Py_ssize_t whole = length
        cdef Py_ssize_t padding = 0
        if not stream_id or stream_id > self.last_stream_id:
            return self.fail(PROTOCOL_ERROR, "DATA on an idle stream")
        if whole > self.outstanding:
            return self.fail(FLOW_CONTROL_ERROR, "DATA is over the connection's window")
        self.outstanding -= whole
        self.unreturned += whole
        if flags & PADDED:
            if length < 1:
                return self.fail(FRAME_SIZE_ERROR, "DATA without its pad length")
            padding = payload[0]
            payload += 1
            length -= 1
            if padding > length:
                return self.fail(PROTOCOL_ERROR, "padding is longer than the frame")
            length -= padding
        stream = self.streams.get(stream_id)
        if stream is None or stream.ended:
            return self.read_stray_data(flags, stream_id, stream)
        stream.received += whole
        if stream.received > WINDOW_OCTETS:
            self.write_rst_stream(stream_id, FLOW_CONTROL_ERROR)
            self.drop(stream, MALFORMED)
            return 0
        if flags & END_STREAM:
            if stream.body.length == 0:
                return self.end_request(stream, payload, length, now)
            buffer_write(&stream.body, payload, length)
            return self.end_request(stream, NULL, 0, now)
        if stream.body.length + length > BODY_OCTETS:
            # Nothing gives this stream's window back, so it is answered now (§8.1).
            buffer_write(&stream.body, payload, length)
            self.remember_reset(stream_id, False)
            self.end_request(stream, NULL, 0, now)
            if stream_id not in self.streams:
                self.write_rst_stream(stream_id, NO_ERROR)
            return 0
        buffer_write(&stream.body, payload, length)
        return 0

    cdef int read_stray_data(self, uint8_t flags, int64_t stream_id, Stream stream) except -1:
        """DATA for a stream that is answered, reset, or has ended already."""
        cdef object tell = self.resets.get(stream_id)
        if stream is not None and stream_id not in self.resets:
            self.write_rst_stream(stream_id, STREAM_CLOSED)
            self.drop(stream, MALFORMED)
            return 0
        if tell:
            # APNs resets such a stream twice: REFUSED_STREAM, then STREAM_CLOSED (pushy issue 476).
            self.write_rst_stream(stream_id, STREAM_CLOSED)
            self.resets[stream_id] = False
        if flags & END_STREAM:
            self.resets.pop(stream_id, None)
        return 0

    cdef int read_window_update(self, int64_t stream_id, const uint8_t *payload, Py_ssize_t length) except -1:
        cdef int64_t increment
        cdef Stream stream
        if length != 4:
            return self.fail(FRAME_SIZE_ERROR, "WINDOW_UPDATE is not of 4 octets")
        increment = <int64_t>(read_32(payload) & 0x7FFFFFFF)
        if stream_id == 0:
            if increment == 0:
                return self.fail(PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            if self.send_window + increment > LARGEST_WINDOW:
                return self.fail(FLOW_CONTROL_ERROR, "the connection's window is over 2**31 - 1")
            self.send_window += increment
        else:
            if stream_id > self.last_stream_id:
                return self.fail(PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
            stream = self.streams.get(stream_id)
            if stream is None:
                return 0
            if increment == 0 or stream.window + increment > LARGEST_WINDOW:
                self.write_rst_stream(
                    stream_id, <uint32_t>PROTOCOL_ERROR if increment == 0 else <uint32_t>FLOW_CONTROL_ERROR
                )
                self.drop(stream, MALFORMED)
                return 0
            stream.window += increment
        if self.queues_blocked:
            self.send_blocked()
        return 0

    cdef int read_ping(self, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length) except -1:
        if stream_id:
            return self.fail(PROTOCOL_ERROR, "PING on a stream")
        if length != 8:
            return self.fail(FRAME_SIZE_ERROR, "PING is not of 8 octets")
        if flags & ACK:
            return 0
        self.pings += 1
        if self.answers_pings and self.count_control_frame():
            self.write_frame(PING, ACK, 0, payload, 8)
        return 0

    cdef int read_settings(self, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length) except -1:
        cdef Py_ssize_t at
        cdef int64_t value, difference
        cdef Stream stream
        cdef int kind
        if stream_id:
            return self.fail(PROTOCOL_ERROR, "SETTINGS on a stream")
        if length % 6 or (flags & ACK and length):
            return self.fail(FRAME_SIZE_ERROR, "SETTINGS has a wrong length")
        if flags & ACK:
            if self.limits:
                # The client may still act on any SETTINGS that it has not acknowledged (§6.5.3).
                limit = self.limits.popleft()
                self.enforced_limit = self.stream_limit if self.strict else max(limit, *self.limits, 0)
            return 0
        for at in range(0, length, 6):
            kind = payload[at] << 8 | payload[at + 1]
            value = <int64_t>read_32(payload + at + 2)
            if kind == HEADER_TABLE_SIZE:
                self.encoder.resize(min(value, <int64_t>4096))
                self.apns_id_indexed = False
            elif kind == ENABLE_PUSH:
                if value > 1:
                    return self.fail(PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
            elif kind == INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    return self.fail(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is over 2**31 - 1")
                difference = value - self.peer_initial_window
                self.peer_initial_window = value
                for stream in self.streams.values():
                    if stream.window + difference > LARGEST_WINDOW:
                        return self.fail(FLOW_CONTROL_ERROR, "a stream's window is over 2**31 - 1")
                    stream.window += difference
            elif kind == MAX_FRAME_SIZE:
                if not 16_384 <= value <= 16_777_215:
                    return self.fail(PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
                self.peer_frame_octets = value
        if self.queues_blocked:
            self.send_blocked()
        if self.acknowledges_settings and self.count_control_frame():
            self.write_frame(SETTINGS, ACK, 0, NULL, 0)
        return 0

    cdef int read_rst_stream(self, int64_t stream_id, Py_ssize_t length) except -1:
        cdef Stream stream
        if length != 4:
            return self.fail(FRAME_SIZE_ERROR, "RST_STREAM is not of 4 octets")
        if not stream_id or stream_id > self.last_stream_id:
            return self.fail(PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        self.resets_received += 1
        self.resets.pop(stream_id, None)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.drop(stream, CANCELLED)
        return 0

    cdef bint count_control_frame(self) except -1:
        self.control_frames += 1
        if self.control_frames > QUEUED_CONTROL_FRAMES:
            self.fail(ENHANCE_YOUR_CALM, "too many PING or SETTINGS frames")
            return False
        return True

    # Requests.

    cdef int end_request(self, Stream stream, const uint8_t *body, Py_ssize_t length, double now) except -1:
        """END_STREAM came, with the last octets of the body. Decide whether it waits or is finished now."""
        cdef double delay = self.latency
        cdef object faults
        stream.ended = True
        self.requests += 1
        self.shared.requests += 1
        stream.number = self.requests
        if (
            self.requests >= self.ask_from
            or self.shared.requests >= self.shared.ask_from
            or (
                self.shared.scripted
                and stream.device_token.octets is not NULL
                and take(stream.device_token).lower() in self.shared.scripted
            )
        ):
            delay, faults = self.host.consult(self, stream.number, take(stream.device_token))
            stream.faults = faults
        if delay > 0.0:
            if body is not NULL:
                buffer_write(&stream.body, body, length)
            self.order += 1
            heapq.heappush(self.delayed, (now + delay, self.order, stream.id))
            return 0
        if body is NULL:
            return self.finish(stream, stream.body.octets, stream.body.length)
        return self.finish(stream, body, length)

    cdef int finish(self, Stream stream, const uint8_t *body, Py_ssize_t length) except -1:
        cdef object good
        cdef Memo memo
        if stream.id > self.judged_stream_id:
            self.judged_stream_id = stream.id
        if stream.faults is None and stream.plain and self.is_good(stream, body, length):
            self.accept(stream)
            return 0
        if stream.oversized:
            self.answer(stream.id, 431, (), b"", REJECTED)
            return 0
        good = self.host.handle(
            self, stream.id, stream.list_fields(),
            PyBytes_FromStringAndSize(<const char *>body, length) if length else b"", stream.faults,
        )
        if good is not None and stream.plain:
            memo = Memo()
            memo.good_until, memo.payload_limit = good
            memo.authorization = take(stream.authorization)
            memo.topic = take(stream.topic)
            memo.push_type = take(stream.push_type)
            memo.priority = take(stream.priority)
            if len(self.memos) >= MEMOS:
                self.memos.pop()
            self.memos.insert(0, memo)
        return 0

    cdef bint is_good(self, Stream stream, const uint8_t *body, Py_ssize_t length) noexcept:
        """Whether the host would surely accept it: all it may vary in is plainly good."""
        cdef Py_ssize_t i
        cdef Memo memo
        cdef Memo found = None
        if self.generation != self.shared.generation:
            self.generation = self.shared.generation
            self.memos = []
        for i in range(len(self.memos)):
            memo = <Memo>(<list>self.memos)[i]
            if (
                same(memo.authorization, stream.authorization) and same(memo.topic, stream.topic)
                and same(memo.push_type, stream.push_type) and same(memo.priority, stream.priority)
            ):
                found = memo
                break
        if found is None or self.shared.wall > found.good_until:
            return False
        if not 2 <= length <= found.payload_limit or body[0] != c'{' or body[length - 1] != c'}':
            return False
        if not equal(stream.method.octets, stream.method.length, b"POST", 4):
            return False
        if not equal(stream.scheme.octets, stream.scheme.length, b"https", 5):
            return False
        if stream.device_token.length < 2 or stream.device_token.length & 1:
            return False
        for i in range(stream.device_token.length):
            if not is_hex(stream.device_token.octets[i]):
                return False
        if stream.apns_id.octets is not NULL and not is_uuid(stream.apns_id.octets, stream.apns_id.length):
            return False
        if stream.expiration.octets is not NULL and read_digits(stream.expiration.octets, stream.expiration.length) < 0:
            return False
        if stream.collapse_id.octets is not NULL and (
            not 0 < stream.collapse_id.length <= 64
            or not is_clean(stream.collapse_id.octets, stream.collapse_id.length)
        ):
            return False
        return stream.content_length.octets is NULL or read_digits(
            stream.content_length.octets, stream.content_length.length
        ) == length

    cdef int accept(self, Stream stream) except -1:
        """Answer 200 in the fast lane."""
        cdef uint8_t made[36]
        if stream.apns_id.octets is NULL:
            self.shared.draw_uuid(made)
            stream.apns_id.octets = made
            stream.apns_id.length = 36
        self.remember(stream, 200, ACCEPTED)
        self.write_headers(stream.id, 200, stream.apns_id, (), True, self.shared.development)
        self.release(stream)
        return 0

    cdef int remember(self, Stream stream, int status, int fate) except -1:
        """Write the log."""
        cdef int64_t expires_at = -1
        if stream.expiration.octets is not NULL:
            expires_at = read_digits(stream.expiration.octets, stream.expiration.length)
        return self.shared.log.add(
            self.shared.wall, self.number, stream.id, stream.apns_id, stream.device_token, expires_at, status, fate
        )

    cdef void release(self, Stream stream) except *:
        """The stream is over for us; the client counts it until it has our octets."""
        self.unseen += 1
        del self.streams[stream.id]
        stream.faults = stream.unsent = None
        self.spare.append(stream)

    cdef int drop(self, Stream stream, int fate) except -1:
        """End a stream without an answer."""
        if stream.unsent is None:
            self.remember(stream, 0, fate)
        if not stream.ended:
            self.remember_reset(stream.id, False)
        del self.streams[stream.id]
        stream.faults = stream.unsent = None
        self.spare.append(stream)
        return 0

    cdef int reset_malformed(self, Stream stream) except -1:
        self.write_rst_stream(stream.id, PROTOCOL_ERROR)
        return self.drop(stream, MALFORMED)

    cdef int remember_reset(self, int64_t stream_id, bint tell) except -1:
        self.resets[stream_id] = tell
        if len(self.resets) > RESETS_REMEMBERED:
            del self.resets[next(iter(self.resets))]
        return 0

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
                # A client may use the larger table as soon as it knows; a smaller one it may only use less of.
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
        self.remember(stream, status, fate)
        self.write_headers(
            stream_id, status, stream.apns_id, fields, not body, status == 200 and self.shared.development
        )
        if body:
            stream.unsent = body
            self.send_body(stream)
        else:
            self.release(stream)

    def begin_answer(self, int64_t stream_id, int status, fields not None, bint apns_id=True):
        """Write the HEADERS of an answer and nothing else: its end is left to `finish_answer`, or missing."""
        cdef Stream stream = self.waiting(stream_id)
        cdef Slice absent
        absent.octets = NULL
        absent.length = 0
        self.write_headers(stream_id, status, stream.apns_id if apns_id else absent, fields, False, False)

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
            self.write_field(
                PyBytes_AS_STRING(name), len(name), <const uint8_t *>PyBytes_AS_STRING(value), len(value), PLAIN
            )
        write_frame_header(
            self.out.octets + start, self.out.length - start - FRAME_HEADER_OCTETS, HEADERS,
            END_HEADERS | END_STREAM, stream_id,
        )

    def end_answer(self, int64_t stream_id, int status, int fate):
        """An answer written by hand is over: log it and free the stream."""
        cdef Stream stream = self.waiting(stream_id)
        self.remember(stream, status, fate)
        self.release(stream)

    def swallow(self, int64_t stream_id, int fate):
        """Never answer it. The stream stays open until the client resets it."""
        cdef Stream stream = self.waiting(stream_id)
        self.remember(stream, 0, fate)
        stream.unsent = b""

    def reset(self, int64_t stream_id, uint32_t error_code, int fate):
        """End a request with RST_STREAM."""
        cdef Stream stream = self.waiting(stream_id)
        self.write_rst_stream(stream_id, error_code)
        self.unseen += 1
        self.drop(stream, fate)

    def send_rst_stream(self, int64_t stream_id, uint32_t error_code):
        """Write an RST_STREAM frame and do nothing else."""
        self.write_rst_stream(stream_id, error_code)

    def send_frame(self, uint8_t kind, uint8_t flags, int64_t stream_id, bytes payload not None):
        """Write any frame as it is given; what it means is not looked at."""
        if not 0 <= stream_id <= 0xFFFFFFFF or len(payload) > 16_777_215:
            raise ValueError("stream_id is of 32 bits, a payload of at most 2**24 - 1 octets")
        self.write_frame(kind, flags, stream_id, <const uint8_t *>PyBytes_AS_STRING(payload), len(payload))

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
            self.remember_reset(stream.id, False)
            self.drop(stream, REFUSED)

    def connection_error(self, uint32_t error_code, str reason not None):
        """Close the connection with GOAWAY (§5.4.1)."""
        self.fail(error_code, reason)

    def connection_lost(self):
        """The transport is gone: what was not processed never will be."""
        for stream in list(self.streams.values()):
            self.drop(stream, CANCELLED)
        self.delayed = []

    def data_to_send(self):
        """Take all octets that are ready, empty if none."""
        octets = PyBytes_FromStringAndSize(<const char *>self.out.octets, self.out.length) if self.out.length else b""
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
                self.finish(stream, stream.body.octets, stream.body.length)
        self.finish_drain()

    # Writing.

    cdef int finish_drain(self) except -1:
        cdef Stream stream
        if self.drains and not self.closing:
            for stream in self.streams.values():
                # Those that are swallowed stay for ever.
                if stream.unsent is None or len(stream.unsent):
                    return 0
            self.closing = "flush"
        return 0

    cdef int fail(self, uint32_t error_code, str reason) except -1:
        cdef bytes debug = reason.encode()
        cdef int64_t last = min(self.judged_stream_id, self.goaway_stream_id)
        if not self.closing:
            self.error = reason
            self.send_goaway(last, error_code, debug)
            self.closing = "flush"
        return 0

    cdef int write_frame(
        self, uint8_t kind, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length
    ) except -1:
        buffer_reserve(&self.out, FRAME_HEADER_OCTETS + length)
        write_frame_header(self.out.octets + self.out.length, length, kind, flags, stream_id)
        self.out.length += FRAME_HEADER_OCTETS
        if length:
            memcpy(self.out.octets + self.out.length, payload, <size_t>length)
            self.out.length += length
        return 0

    cdef int write_rst_stream(self, int64_t stream_id, uint32_t error_code) except -1:
        cdef uint8_t payload[4]
        write_32(payload, error_code)
        return self.write_frame(RST_STREAM, 0, stream_id, payload, 4)

    cdef int write_field(self, const char *name, Py_ssize_t name_length, const uint8_t *value, Py_ssize_t length, int indexing) except -1:
        if indexing == INDEX:
            return self.encoder.write(&self.out, <const uint8_t *>name, name_length, value, length, INDEX)
        return self.encoder.write(&self.out, <const uint8_t *>name, name_length, value, length, PLAIN)

    cdef int write_headers(
        self, int64_t stream_id, int status, Slice apns_id, object fields, bint end_stream, bint unique_id
    ) except -1:
        """One HEADERS frame. Constant fields are indexed; the first apns-id is, so that its name has an index."""
        cdef Py_ssize_t start = self.out.length
        cdef uint8_t digits[3]
        cdef uint8_t made[36]
        cdef bytes name, value
        if not 100 <= status <= 999:
            raise ValueError(f"status is {status}; it may be 100 to 999")
        buffer_reserve(&self.out, FRAME_HEADER_OCTETS)
        self.out.length += FRAME_HEADER_OCTETS
        self.encoder.begin(&self.out)
        digits[0] = <uint8_t>(c'0' + status // 100)
        digits[1] = <uint8_t>(c'0' + status // 10 % 10)
        digits[2] = <uint8_t>(c'0' + status % 10)
        self.write_field(b":status", 7, digits, 3, INDEX)
        if apns_id.octets is not NULL:
            self.write_field(b"apns-id", 7, apns_id.octets, apns_id.length, PLAIN if self.apns_id_indexed else INDEX)
        if unique_id:
            self.shared.draw_uuid(made)
            self.write_field(b"apns-unique-id", 14, made, 36, PLAIN if self.apns_id_indexed else INDEX)
        if apns_id.octets is not NULL:
            self.apns_id_indexed = True
        for name, value in fields:
            self.write_field(
                PyBytes_AS_STRING(name), len(name), <const uint8_t *>PyBytes_AS_STRING(value), len(value), INDEX
            )
        write_frame_header(
            self.out.octets + start, self.out.length - start - FRAME_HEADER_OCTETS, HEADERS,
            <uint8_t>(END_HEADERS | (END_STREAM if end_stream else 0)), stream_id,
        )
        return 0

    cdef int send_body(self, Stream stream) except -1:
        """Write as much of an answer's body as the windows let out."""
        cdef bytes body = stream.unsent
        cdef Py_ssize_t length = len(body)
        cdef Py_ssize_t room = <Py_ssize_t>min(self.send_window, stream.window, self.peer_frame_octets)
        if room < length:
            if room > 0:
                self.write_frame(DATA, 0, stream.id, <const uint8_t *>PyBytes_AS_STRING(body), room)
                self.send_window -= room
                stream.window -= room
                stream.unsent = body[room:]
            self.queues_blocked = True
            return 0
        self.write_frame(DATA, END_STREAM, stream.id, <const uint8_t *>PyBytes_AS_STRING(body), length)
        self.send_window -= length
        self.release(stream)
        return 0

    cdef int send_blocked(self) except -1:
        cdef Stream stream
        self.queues_blocked = False
        for stream in list(self.streams.values()):
            if stream.unsent:
                self.send_body(stream)
        return 0

    cdef int give_window_back(self) except -1:
        cdef uint8_t payload[4]
        if self.returns_window and self.unreturned >= WINDOW_RETURNED_AT and not self.closing:
            write_32(payload, <uint32_t>self.unreturned)
            self.write_frame(WINDOW_UPDATE, 0, 0, payload, 4)
            self.outstanding += self.unreturned
            self.unreturned = 0
        return 0
