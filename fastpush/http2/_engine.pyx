# cython: language_level=3, wraparound=False, auto_pickle=False
"""One HTTP/2 client connection without I/O, compiled; the contract is `fastpush.http2.Engine`.

A stream here is in one of three states, since a request is written in one go and nobody pushes
(RFC 9113 §5.1 has the whole diagram):

    idle ──open_stream──> open, known by a record ──the one end──> closed, known by its number alone
                             │ DATA may wait in the queue for a window
                             │ status 0 until a final response's header block came

The one end is `finish`, which tells `StreamEnded`, or `reset_stream`, which tells nothing. Both release
the record at once, so a closed stream costs nothing; of those that were reset the last few thousand are
remembered, since frames for them may still be under way (§5.1 "closed").

How it stays whole:
- `out` holds whole frames only. Whatever raises while a frame is written puts `out.length` back.
- A window is never left usable while DATA waits for it: each frame that opens one calls `send_queue` or
  `send_body`. So output depends on the frames that came, and not on how they were cut.
- Allocating an event may run the garbage collector and so any finalizer, which may call back. No pointer
  into `streams` is held across that; an index is, and `finish` looks whether the stream is still there.
- After an exception (in practice MemoryError) the connection counts as torn, and the next call ends it.
  The events told so far wait in `events`, so that none is lost or told twice.

Header fields are kept packed: for each field two int32_t, the lengths of name and value, then both.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.math cimport INFINITY
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memmove, memset

from fastpush._buffer cimport Buffer, buffer_free, buffer_reserve, buffer_write
from fastpush.http2._frames cimport *
from fastpush.http2._hpack cimport (
    HPACK_INTEGER_OCTETS,
    INDEX,
    PLAIN,
    Decoder,
    Encoder,
    Indexing,
    hpack_put_integer,
    hpack_put_raw,
)

from fastpush.http2 import (
    ConnectionEnded,
    ErrorCode,
    GoawayReceived,
    HeaderListTooLarge,
    Limits,
    LocalProtocolError,
    PingAcknowledged,
)
from fastpush.http2._hpack import HpackError

cdef bytes PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"          # RFC 9113 §3.4

cdef enum:
    PREFACE_OCTETS = 24
    FIELD_OVERHEAD = 32         # of each field of a header list, RFC 9113 §6.5.2
    FIRST_CAPACITY = 64         # stream records at the start
    SPARE_OUT_OCTETS = 2 * 1024 * 1024      # a larger output buffer is given back when it has been taken
    GOAWAY_OCTETS = 8           # of its payload without debug data

cdef enum:                      # what is wrong with a header block
    FAULT_NONE
    FAULT_LENGTH                # of its content-length field: the status stands
    FAULT_LIST                  # larger than we take: the status stands
    FAULT_NAME                  # from here on it is malformed, RFC 9113 §8.1.1
    FAULT_VALUE
    FAULT_CONNECTION
    FAULT_PSEUDO
    FAULT_STATUS

cdef enum:                      # how a stream that was reset ended
    RESET_GIVEN_UP = 1          # by reset_stream: a response may still come, and is counted
    RESET_SILENT = 2            # whatever comes is ignored
    RESET_BY_PEER = 3           # nothing should come: the first frame is answered
    RESET_REFUSED = 4           # the same, by REFUSED_STREAM: one STREAM_CLOSED may follow

cdef tuple ERROR_CODES = tuple(ErrorCode)       # by number: they have no gap
cdef tuple FAULTS = (
    "",
    "a content-length that is no number or was given twice",
    "header list too large",
    "a field name that is empty or has a forbidden octet",
    "a field value with a forbidden octet or space around it",
    "a connection-specific field",
    "a pseudo-header field that is unknown, repeated, or late",
    "no valid :status",
)

# Octets of a regular field's name, RFC 9113 §8.2.1.
cdef uint8_t NAME_OCTET[256]
cdef int _octet
for _octet in range(256):
    NAME_OCTET[_octet] = <uint8_t>(0x20 < _octet < 0x7F and not 0x41 <= _octet <= 0x5A and _octet != 0x3A)


# Leaf helpers.

cdef inline bint has_forbidden_octet(const uint8_t *at, Py_ssize_t length) noexcept nogil:
    """True for NUL, CR or LF in a field value (RFC 9113 §8.2.1).

    Eight octets at a time look for anything below 14, and only then one by one: a response with an apns-id
    takes 94 ns with this, and 107 with the plain loop (a thousand to one `receive_data`).
    """
    cdef uint64_t word
    cdef Py_ssize_t place = 0, end
    while place < length:
        if length - place >= 8:
            memcpy(&word, at + place, 8)
            if not ((word - <uint64_t>0x0E0E0E0E0E0E0E0E) & ~word & <uint64_t>0x8080808080808080):
                place += 8
                continue
        end = min(place + 8, length)
        while place < end:
            if at[place] < 14 and (at[place] == 0 or at[place] == 10 or at[place] == 13):
                return True
            place += 1
    return False


cdef inline bint is_space(uint8_t octet) noexcept nogil:
    return octet == 0x20 or octet == 0x09


cdef inline bint same(
    const uint8_t *at, Py_ssize_t length, const char *name, Py_ssize_t name_length
) noexcept nogil:
    return length == name_length and memcmp(at, name, <size_t>length) == 0


cdef inline bint is_connection_specific(
    const uint8_t *name, Py_ssize_t name_length, const uint8_t *value, Py_ssize_t value_length
) noexcept nogil:
    """RFC 9113 §8.2.2."""
    if name_length == 2:
        return same(name, 2, b"te", 2) and not same(value, value_length, b"trailers", 8)
    if name_length == 7:
        return same(name, 7, b"upgrade", 7)
    if name_length == 10:
        return same(name, 10, b"connection", 10) or same(name, 10, b"keep-alive", 10)
    if name_length == 16:
        return same(name, 16, b"proxy-connection", 16)
    if name_length == 17:
        return same(name, 17, b"transfer-encoding", 17)
    return False


cdef inline int read_status(const uint8_t *at, Py_ssize_t length) noexcept nogil:
    """The number of a valid :status, else 0. RFC 9110 §15: three digits, the first of them 1 to 5."""
    if length != 3 or not 0x31 <= at[0] <= 0x35 or not 0x30 <= at[1] <= 0x39 or not 0x30 <= at[2] <= 0x39:
        return 0
    return (at[0] - 0x30) * 100 + (at[1] - 0x30) * 10 + (at[2] - 0x30)


cdef inline int64_t read_decimal(const uint8_t *at, Py_ssize_t length) noexcept nogil:
    """The number of 1 to 18 digits, else -1."""
    cdef int64_t number = 0
    cdef Py_ssize_t place
    if not 1 <= length <= 18:
        return -1
    for place in range(length):
        if not 0x30 <= at[place] <= 0x39:
            return -1
        number = number * 10 + (at[place] - 0x30)
    return number


cdef int compare_ids(const void *one, const void *other) noexcept nogil:
    cdef int32_t a = (<const int32_t *>one)[0], b = (<const int32_t *>other)[0]
    return (a > b) - (a < b)


cdef object error_object(int64_t code):
    """The ErrorCode, or None for -1. An unknown code counts as INTERNAL_ERROR (RFC 9113 §7)."""
    if code < 0:
        return None
    return ERROR_CODES[code if code < len(ERROR_CODES) else INTERNAL_ERROR]


cdef str error_name(uint32_t code):
    if code < <uint32_t>len(ERROR_CODES):
        return ERROR_CODES[code].name
    return f"unknown error 0x{code:x}"


# Packed fields.

cdef uint8_t *put_field(
    uint8_t *at, const uint8_t *name, Py_ssize_t name_length, const uint8_t *value, Py_ssize_t value_length
) noexcept:
    """Write one packed field where 8 octets more than its name and value are free."""
    cdef int32_t lengths[2]
    lengths[0] = <int32_t>name_length
    lengths[1] = <int32_t>value_length
    memcpy(at, lengths, 8)
    memcpy(at + 8, name, <size_t>name_length)
    memcpy(at + 8 + name_length, value, <size_t>value_length)
    return at + 8 + name_length + value_length


cdef inline uint8_t *put_setting(uint8_t *at, uint32_t identifier, int64_t value) noexcept nogil:
    at[0] = 0
    at[1] = <uint8_t>identifier
    return put_uint32(at + 2, <uint32_t>value)


cdef int check_name(bytes name) except -1:
    """Refuse a regular field's name that RFC 9113 §8.2.1 forbids."""
    cdef int octet
    for octet in name:
        if not NAME_OCTET[<uint8_t>octet]:
            raise ValueError(f"{name!r} has an octet that no field name may have")
    if not name:
        raise ValueError("a field name is empty")
    return 0


cdef bytes pack_fields(object fields):
    """Pack pairs of bytes."""
    cdef bytes name, value, packed
    cdef Py_ssize_t size = 0
    cdef uint8_t *at
    cdef list pairs = [(name, value) for name, value in fields]
    for name, value in pairs:
        if name is None or value is None:
            raise TypeError("a field is a pair of bytes, found None")
        if len(name) + len(value) > 0xFFFFFF:
            raise ValueError(f"a field of {len(name) + len(value)} octets; at most {0xFFFFFF} are possible")
        size += 8 + len(name) + len(value)
    packed = PyBytes_FromStringAndSize(NULL, size)
    at = <uint8_t *>PyBytes_AS_STRING(packed)
    for name, value in pairs:
        at = put_field(
            at,
            <const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name),
            <const uint8_t *>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value),
        )
    return packed


cdef inline bint next_field(bytes packed, Py_ssize_t *place, int32_t *lengths, const uint8_t **name) noexcept:
    """Step to the field at `place`: its two lengths, and its name, which the value follows."""
    if packed is None or place[0] >= PyBytes_GET_SIZE(packed):
        return False
    name[0] = <const uint8_t *>PyBytes_AS_STRING(packed) + place[0] + 8
    memcpy(lengths, name[0] - 8, 8)
    place[0] += 8 + lengths[0] + lengths[1]
    return True


# The open streams.

cdef inline int32_t find_stream(CompiledEngine engine, int64_t stream_id) noexcept:
    """The record's index, -1 when the stream is not open."""
    cdef int32_t index = engine.buckets[(stream_id >> 1) & engine.bucket_mask]
    while index >= 0 and engine.streams[index].stream_id != stream_id:
        index = engine.streams[index].next
    return index


cdef int grow_streams(CompiledEngine engine) except -1:
    """Double the records. Raises MemoryError and changes nothing that matters."""
    cdef int32_t capacity = <int32_t>(2 * engine.capacity if engine.capacity else FIRST_CAPACITY)
    cdef int32_t index, bucket, mask = 2 * capacity - 1
    cdef int32_t *buckets
    cdef Stream *streams
    engine.tags.extend([None] * (capacity - len(engine.tags)))
    streams = <Stream *>PyMem_Realloc(engine.streams, <size_t>capacity * sizeof(Stream))
    if streams is NULL:
        raise MemoryError()
    engine.streams = streams
    buckets = <int32_t *>PyMem_Malloc(<size_t>(mask + 1) * sizeof(int32_t))
    if buckets is NULL:
        raise MemoryError()
    # The new records are free ones; those in use are chained anew.
    memset(&streams[engine.capacity], 0, <size_t>(capacity - engine.capacity) * sizeof(Stream))
    for index in range(capacity - 1, engine.capacity - 1, -1):
        streams[index].next = engine.free
        engine.free = index
    memset(buckets, 0xFF, <size_t>(mask + 1) * sizeof(int32_t))
    for index in range(engine.capacity):
        if streams[index].stream_id:
            bucket = (streams[index].stream_id >> 1) & mask
            streams[index].next = buckets[bucket]
            buckets[bucket] = index
    PyMem_Free(engine.buckets)
    engine.buckets = buckets
    engine.bucket_mask = mask
    engine.capacity = capacity
    return 0


cdef inline void enqueue(CompiledEngine engine, int32_t index) noexcept:
    """Put a stream whose DATA waits at the end; its id is the highest there is."""
    engine.streams[index].queue_next = -1
    engine.streams[index].queue_previous = engine.queue_tail
    if engine.queue_tail >= 0:
        engine.streams[engine.queue_tail].queue_next = index
    else:
        engine.queue_head = index
    engine.queue_tail = index


cdef void dequeue(CompiledEngine engine, int32_t index) noexcept:
    """Forget the DATA that a stream has waiting."""
    cdef Stream *stream = &engine.streams[index]
    if stream.queue_previous >= 0:
        engine.streams[stream.queue_previous].queue_next = stream.queue_next
    else:
        engine.queue_head = stream.queue_next
    if stream.queue_next >= 0:
        engine.streams[stream.queue_next].queue_previous = stream.queue_previous
    else:
        engine.queue_tail = stream.queue_previous
    engine.queued_octets -= PyBytes_GET_SIZE(<bytes>stream.body) - stream.body_sent
    Py_XDECREF(stream.body)
    stream.body = NULL


cdef int release_stream(CompiledEngine engine, int32_t index) except -1:
    """Close a stream: give back its record and all it holds."""
    cdef Stream *stream = &engine.streams[index]
    cdef int32_t *link = &engine.buckets[(stream.stream_id >> 1) & engine.bucket_mask]
    # Dropped last, when the function ends: its finalizer may call back into the engine.
    tag = engine.tags[index]
    engine.tags[index] = None
    while link[0] != index:
        link = &engine.streams[link[0]].next
    link[0] = stream.next
    if stream.body is not NULL:
        dequeue(engine, index)
    Py_XDECREF(stream.packed)
    stream.packed = NULL
    if stream.kept.octets is not NULL:
        buffer_free(&stream.kept)
    stream.stream_id = 0
    stream.next = engine.free
    engine.free = index
    engine.open_count -= 1
    return 0


cdef int finish(
    CompiledEngine engine, int32_t index, int64_t error_code, str reason, bint unprocessed,
    const uint8_t *body=NULL, Py_ssize_t body_length=0,
) except -1:
    """End a stream and tell it. A status that came is the verdict, whatever ended the stream.

    `body` is the whole of the response's body where it came in one piece, else it is what was kept.
    """
    cdef int32_t stream_id = engine.streams[index].stream_id
    cdef StreamEnded event = StreamEnded.__new__(StreamEnded)
    cdef Stream *stream = &engine.streams[index]
    if stream.stream_id != stream_id:
        return 0        # a finalizer took it back, see the head of this file
    event.stream_id = stream_id
    event.status_code = stream.status
    event.processed = True if stream.status else False if unprocessed else None
    event.error_code = None if error_code < 0 else error_object(error_code)
    event.reason = reason
    event.packed = b"" if stream.packed is NULL else <bytes>stream.packed
    if body is NULL:
        body = stream.kept.octets
        body_length = stream.kept.length
    event.body = b"" if body_length == 0 else PyBytes_FromStringAndSize(<const char *>body, body_length)
    event.tag = engine.tags[index]
    engine.events.append(event)
    return release_stream(engine, index)


cdef int finish_above(
    CompiledEngine engine, int64_t last_stream_id, int64_t error_code, str reason
) except -1:
    """End all streams above an id, in their order.

    Those above the peer's GOAWAY, and those that were never taken from `out`, are surely not processed.
    """
    cdef int32_t *ids
    cdef int32_t place
    cdef int32_t count = 0, index
    if engine.open_count == 0:
        return 0
    ids = <int32_t *>PyMem_Malloc(<size_t>engine.capacity * sizeof(int32_t))
    if ids is NULL:
        raise MemoryError()
    try:
        for index in range(engine.capacity):
            if engine.streams[index].stream_id > last_stream_id:
                ids[count] = engine.streams[index].stream_id
                count += 1
        qsort(ids, <size_t>count, sizeof(int32_t), compare_ids)
        for place in range(count):
            index = find_stream(engine, ids[place])
            if index >= 0:
                finish(
                    engine, index, error_code, reason,
                    ids[place] >= engine.written_below or 0 <= engine.goaway_last < ids[place],
                )
    finally:
        PyMem_Free(ids)
    return 0


cdef inline void remember_reset(CompiledEngine engine, int64_t stream_id, int kind) noexcept:
    cdef Reset *reset = &engine.resets[(stream_id >> 1) & (RECENT_RESETS - 1)]
    reset.stream_id = <int32_t>stream_id
    reset.kind = <uint8_t>kind


cdef inline Reset *find_reset(CompiledEngine engine, int64_t stream_id) noexcept:
    cdef Reset *reset = &engine.resets[(stream_id >> 1) & (RECENT_RESETS - 1)]
    return reset if reset.stream_id == stream_id else NULL


# Writing frames.

cdef int write_frame(
    CompiledEngine engine, uint8_t kind, uint8_t flags, int64_t stream_id,
    const void *payload, Py_ssize_t length,
) except -1:
    cdef uint8_t *at
    buffer_reserve(&engine.out, FRAME_HEADER_OCTETS + length)
    at = put_frame_header(engine.out.octets + engine.out.length, length, kind, flags, <uint32_t>stream_id)
    memcpy(at, payload, <size_t>length)
    engine.out.length += FRAME_HEADER_OCTETS + length
    return 0


cdef int write_number(CompiledEngine engine, uint8_t kind, int64_t stream_id, uint32_t number) except -1:
    """RST_STREAM with an error code, WINDOW_UPDATE with an increment."""
    cdef uint8_t payload[4]
    put_uint32(payload, number)
    return write_frame(engine, kind, 0, stream_id, payload, 4)


cdef int send_body(CompiledEngine engine, int32_t index) except -1:
    """Write as much DATA of a queued stream as the windows let out."""
    cdef Stream *stream = &engine.streams[index]
    cdef Py_ssize_t left = PyBytes_GET_SIZE(<bytes>stream.body) - stream.body_sent
    cdef Py_ssize_t size
    cdef uint8_t *at
    while True:
        size = <Py_ssize_t>min(engine.window, engine.initial_window + stream.granted)
        if size <= 0:
            return 0
        size = min(size, left, engine.max_frame_size)
        buffer_reserve(&engine.out, FRAME_HEADER_OCTETS + size)
        at = put_frame_header(
            engine.out.octets + engine.out.length, size, FRAME_DATA, FLAG_END_STREAM if size == left else 0,
            <uint32_t>stream.stream_id,
        )
        memcpy(at, PyBytes_AS_STRING(<bytes>stream.body) + stream.body_sent, <size_t>size)
        engine.out.length += FRAME_HEADER_OCTETS + size
        engine.window -= size
        engine.queued_octets -= size
        stream.granted -= size
        stream.body_sent += size
        left -= size
        if left == 0:
            dequeue(engine, index)
            return 0


cdef int send_queue(CompiledEngine engine) except -1:
    """Write the DATA that waits, in the order of streams, until the connection's window is used up."""
    cdef int32_t following, index = engine.queue_head
    while index >= 0 and engine.window > 0:
        following = engine.streams[index].queue_next
        send_body(engine, index)
        index = following
    return 0


cdef int drop_unwritten(CompiledEngine engine) except -1:
    """Take back the frames of streams that never left `out`: those streams end as not processed."""
    cdef Py_ssize_t size, place = PREFACE_OCTETS if engine.preface_waits else 0
    cdef Py_ssize_t kept = place
    cdef uint8_t *octets = engine.out.octets
    if engine.written_below >= engine.next_id:
        return 0
    while place < engine.out.length:
        size = FRAME_HEADER_OCTETS + <Py_ssize_t>read_uint24(octets + place)
        if read_uint31(octets + place + 5) < engine.written_below:
            memmove(octets + kept, octets + place, <size_t>size)
            kept += size
        place += size
    engine.out.length = kept
    return 0


cdef int end_connection(CompiledEngine engine, uint32_t error_code, str reason, bint lost=False) except -1:
    """Queue GOAWAY unless the transport is lost, end every stream, tell ConnectionEnded.

    After an exception it may be called again, and goes on where it was.
    """
    cdef uint8_t payload[GOAWAY_OCTETS]
    if lost:
        engine.out.length = 0
    elif engine.is_initiated and not engine.is_ending:
        drop_unwritten(engine)
        put_uint32(put_uint32(payload, 0), error_code)      # 0: no stream of the peer's was processed
        write_frame(engine, FRAME_GOAWAY, 0, 0, payload, GOAWAY_OCTETS)
    engine.is_ending = True
    finish_above(engine, 0, -1 if lost else <int64_t>error_code, reason)
    engine.events.append(ConnectionEnded(error_object(error_code), reason))
    engine.is_closed = True
    engine.settings_deadline = INFINITY
    return 0


cdef int reset_with_error(CompiledEngine engine, int32_t index, uint32_t error_code, str reason) except -1:
    """A stream error (RFC 9113 §5.4.2): the stream ends, the others go on."""
    cdef int64_t stream_id = engine.streams[index].stream_id
    write_number(engine, FRAME_RST_STREAM, stream_id, error_code)
    remember_reset(engine, stream_id, RESET_SILENT)
    return finish(engine, index, error_code, reason, False)


cdef int count_control(CompiledEngine engine) except -1:
    """Count a frame that the peer made us queue; too many of them end the connection (RFC 9113 §10.5)."""
    engine.queued_control += 1
    if engine.queued_control > engine.max_queued_control:
        end_connection(
            engine, ENHANCE_YOUR_CALM, f"over {engine.max_queued_control} control frames wait to be sent"
        )
    return 0


# Writing a request.

cdef int write_fields(Encoder encoder, Buffer *out, bytes packed, Py_ssize_t *budget) except -1:
    """Write constant fields, indexed as long as one template's fields fit into the table together.

    Those that do not would push each other out with every request. What is larger than the whole table
    the encoder leaves out of it by itself.
    """
    cdef Py_ssize_t size, place = 0
    cdef int32_t lengths[2]
    cdef const uint8_t *name
    cdef Indexing indexing
    while next_field(packed, &place, lengths, &name):
        size = FIELD_OVERHEAD + lengths[0] + lengths[1]
        indexing = PLAIN if budget[0] < size <= encoder.table.limit else INDEX
        if size <= budget[0]:
            budget[0] -= size
        encoder.write(out, name, lengths[0], name + lengths[0], lengths[1], indexing)
    return 0


cdef int write_names(Encoder encoder, Template template) except -1:
    """Make the constant part of each variable field anew."""
    cdef bytes name
    cdef int place
    template.names.length = 0
    for place in range(template.variable_count):
        name = template.variable[place]
        encoder.write_name(
            &template.names, <const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), False
        )
        template.names_end[place] = template.names.length
    return 0


cdef inline uint8_t *put_path(
    uint8_t *at, Template template, const uint8_t *path, Py_ssize_t path_length
) noexcept:
    cdef Py_ssize_t prefix_length = PyBytes_GET_SIZE(template.path_prefix)
    at = hpack_put_integer(at, 0, 7, <uint64_t>(prefix_length + path_length))
    memcpy(at, PyBytes_AS_STRING(template.path_prefix), <size_t>prefix_length)
    memcpy(at + prefix_length, path, <size_t>path_length)
    return at + prefix_length + path_length


cdef inline uint8_t *put_values(uint8_t *at, Template template, const Octets *values) noexcept:
    cdef const uint8_t *name = template.names.octets
    cdef Py_ssize_t start = 0, length
    cdef int place
    for place in range(template.variable_count):
        if values[place].octets is not NULL:
            length = template.names_end[place] - start
            memcpy(at, name + start, <size_t>length)
            at = hpack_put_raw(at + length, values[place].octets, values[place].length)
        start = template.names_end[place]
    return at


cdef int write_block(
    CompiledEngine engine, Template template, const uint8_t *path, Py_ssize_t path_length,
    const Octets *values, Py_ssize_t list_octets,
) except -1:
    """Write a header block through the encoder, and keep its constant octets if the table stayed as it was.

    The block that puts fields into the table is sent once; the next one finds them all there.
    """
    cdef Buffer *out = &engine.out
    cdef Encoder encoder = engine.encoder
    cdef Py_ssize_t head, head_end, tail
    cdef Py_ssize_t budget = encoder.table.limit
    cdef uint32_t generation
    template.cached = False
    encoder.begin(out)
    generation = encoder.generation
    head = out.length
    write_fields(encoder, out, template.before, &budget)
    encoder.write_name(out, <const uint8_t *>b":path", 5, True)
    head_end = out.length
    buffer_reserve(out, list_octets)
    out.length = put_path(out.octets + out.length, template, path, path_length) - out.octets
    tail = out.length
    write_fields(encoder, out, template.after, &budget)
    write_names(encoder, template)
    if encoder.generation == generation:
        template.head.length = template.tail.length = 0
        buffer_write(&template.head, out.octets + head, head_end - head)
        buffer_write(&template.tail, out.octets + tail, out.length - tail)
        template.generation = generation
        template.cached = True
    buffer_reserve(out, list_octets)
    out.length = put_values(out.octets + out.length, template, values) - out.octets
    return 0


cdef int split_block(CompiledEngine engine, Py_ssize_t start, uint8_t flags, uint32_t stream_id) except -1:
    """Make HEADERS and CONTINUATION of a block that is over the peer's frame size (RFC 9113 §6.10)."""
    cdef Py_ssize_t most = engine.max_frame_size
    cdef Py_ssize_t length = engine.out.length - start - FRAME_HEADER_OCTETS
    cdef Py_ssize_t frame, size, count = (length - 1) // most       # of CONTINUATION frames
    cdef uint8_t *at
    buffer_reserve(&engine.out, count * FRAME_HEADER_OCTETS)
    at = engine.out.octets + start + FRAME_HEADER_OCTETS            # the block
    for frame in range(count, 0, -1):
        size = min(most, length - frame * most)
        memmove(at + frame * (most + FRAME_HEADER_OCTETS), at + frame * most, <size_t>size)
        put_frame_header(
            at + frame * (most + FRAME_HEADER_OCTETS) - FRAME_HEADER_OCTETS, size, FRAME_CONTINUATION,
            FLAG_END_HEADERS if frame == count else 0, stream_id,
        )
    put_frame_header(at - FRAME_HEADER_OCTETS, most, FRAME_HEADERS, flags, stream_id)
    engine.out.length += count * FRAME_HEADER_OCTETS
    return 0


cdef str why_no_room(CompiledEngine engine):
    if engine.is_closed or engine.is_ending or engine.is_torn:
        return "the connection is closed"
    if engine.goaway_last >= 0:
        return "the peer sent GOAWAY"
    if engine.next_id > engine.last_own_id:
        return "the stream ids are used up"
    if not engine.has_settings:
        return "the peer's SETTINGS have not come"
    if engine.window <= 0:
        return "the connection's window is used up"
    return f"{engine.open_count} streams are open, the peer allows {engine.max_streams}"


# Reading header blocks.

cdef int read_block(CompiledEngine engine, const uint8_t *block, Py_ssize_t length) except -1:
    """Decode a header block into `block_packed` and what it says. Raises HpackError."""
    cdef int fits
    cdef uint32_t generation = engine.decoder.generation
    # Many responses have equal blocks, and then nothing is decoded: `memo` is the last block if that left the
    # table alone, and nothing but a block changes the table. A response whose block is one octet, as haproxy
    # sends it, takes 42 ns with this and 58 without (a thousand to one `receive_data`).
    if length and engine.memo.length == length and memcmp(engine.memo.octets, block, <size_t>length) == 0:
        return 0
    engine.memo.length = 0
    engine.field_octets.length = 0
    engine.field_spans.length = 0
    fits = engine.decoder.decode_into(block, length, &engine.field_octets, &engine.field_spans)
    read_fields(engine)
    if fits < 0:
        engine.block_fault = max(engine.block_fault, <int>FAULT_LIST)
    elif engine.decoder.generation == generation:
        buffer_write(&engine.memo, block, length)
    return 0


cdef int read_fields(CompiledEngine engine) except -1:
    """Check the decoded fields (RFC 9113 §8.2, §8.3) and pack the regular ones."""
    cdef const uint8_t *octets = engine.field_octets.octets
    cdef const Py_ssize_t *span = <const Py_ssize_t *>engine.field_spans.octets
    cdef const Py_ssize_t *end = span + engine.field_spans.length // <Py_ssize_t>sizeof(Py_ssize_t)
    cdef const Py_ssize_t *regular = NULL       # the first regular field
    cdef const uint8_t *name
    cdef const uint8_t *value
    cdef uint8_t *at
    cdef Py_ssize_t place, name_length, value_length, size = 0
    cdef int64_t content_length
    cdef int fault = FAULT_NONE
    cdef uint8_t good
    engine.block_status = 0
    engine.block_pseudo = False
    engine.block_content_length = -1
    while span < end:
        name = octets + span[0]
        name_length = span[1]
        value = octets + span[2]
        value_length = span[3]
        if name_length and name[0] == 0x3A:
            if regular is not NULL or engine.block_pseudo or not same(name, name_length, b":status", 7):
                fault = max(fault, <int>FAULT_PSEUDO)
            else:
                engine.block_status = read_status(value, value_length)
            engine.block_pseudo = True
        else:
            if regular is NULL:
                regular = span
            good = name_length > 0
            for place in range(name_length):
                good &= NAME_OCTET[name[place]]
            if not good:
                fault = max(fault, <int>FAULT_NAME)
            if value_length and (
                is_space(value[0]) or is_space(value[value_length - 1])
                or has_forbidden_octet(value, value_length)
            ):
                fault = max(fault, <int>FAULT_VALUE)
            if is_connection_specific(name, name_length, value, value_length):
                fault = max(fault, <int>FAULT_CONNECTION)
            if same(name, name_length, b"content-length", 14):
                content_length = read_decimal(value, value_length)
                if content_length < 0 or engine.block_content_length not in (-1, content_length):
                    fault = max(fault, <int>FAULT_LENGTH)
                else:
                    engine.block_content_length = content_length
            size += 8 + name_length + value_length
        span += 4
    if fault >= FAULT_NAME:
        engine.block_status = 0
    engine.block_fault = fault
    if size == 0:
        engine.block_packed = b""
        return 0
    engine.block_packed = PyBytes_FromStringAndSize(NULL, size)
    at = <uint8_t *>PyBytes_AS_STRING(engine.block_packed)
    while regular < end:
        if octets[regular[0]] != 0x3A or regular[1] == 0:
            at = put_field(at, octets + regular[0], regular[1], octets + regular[2], regular[3])
        regular += 4
    return 0


cdef inline bint misses_content_length(Stream *stream, bint ended) noexcept:
    """True when the body cannot be what content-length promised (RFC 9113 §8.1.1). 304 has no body."""
    if stream.content_length < 0 or stream.status == 304:
        return False
    return stream.received > stream.content_length or (ended and stream.received != stream.content_length)


cdef int miss_content_length(CompiledEngine engine, int32_t index) except -1:
    return reset_with_error(
        engine, index, PROTOCOL_ERROR,
        f"content-length is {engine.streams[index].content_length}, "
        f"the body has {engine.streams[index].received} octets",
    )


cdef int complete_response(
    CompiledEngine engine, int32_t index, const uint8_t *body=NULL, Py_ssize_t body_length=0
) except -1:
    """END_STREAM came after a final status."""
    cdef Stream *stream = &engine.streams[index]
    if misses_content_length(stream, True):
        return miss_content_length(engine, index)
    if stream.body is not NULL:
        # The response is whole before the request is: nobody wants the rest (RFC 9113 §8.1).
        write_number(engine, FRAME_RST_STREAM, stream.stream_id, NO_ERROR)
    return finish(engine, index, -1, "", False, body, body_length)


cdef int take_block(
    CompiledEngine engine, int64_t stream_id, uint8_t flags, const uint8_t *block, Py_ssize_t length
) except -1:
    """Take a whole header block: response, interim response or trailers (RFC 9113 §8.1)."""
    cdef int32_t index
    cdef Stream *stream
    cdef str fault
    read_block(engine, block, length)
    index = find_stream(engine, stream_id)
    if index < 0:
        return take_closed(engine, stream_id, engine.block_status)
    stream = &engine.streams[index]
    if stream.status:
        if engine.block_fault or engine.block_pseudo:
            fault = FAULTS[engine.block_fault or FAULT_PSEUDO]
            return reset_with_error(engine, index, PROTOCOL_ERROR, f"malformed trailers: {fault}")
        if not flags & FLAG_END_STREAM:
            return reset_with_error(engine, index, PROTOCOL_ERROR, "a second header block without END_STREAM")
        return complete_response(engine, index)
    if engine.block_status == 0:
        if engine.block_fault == FAULT_LIST:
            return reset_with_error(engine, index, ENHANCE_YOUR_CALM, "header list too large")
        fault = FAULTS[engine.block_fault if engine.block_fault >= FAULT_NAME else FAULT_STATUS]
        return reset_with_error(engine, index, PROTOCOL_ERROR, f"malformed response: {fault}")
    if engine.block_status < 200:
        if flags & FLAG_END_STREAM or engine.block_status == 101:
            return reset_with_error(
                engine, index, PROTOCOL_ERROR,
                f"malformed response: {engine.block_status} cannot be the last one",
            )
        stream.interim += 1
        if stream.interim > engine.max_interim:
            return reset_with_error(
                engine, index, ENHANCE_YOUR_CALM, f"over {engine.max_interim} interim responses"
            )
        return 0
    stream.status = <int16_t>engine.block_status
    stream.content_length = engine.block_content_length
    Py_INCREF(engine.block_packed)
    stream.packed = <PyObject *>engine.block_packed
    if engine.block_fault == FAULT_LENGTH:
        return reset_with_error(engine, index, PROTOCOL_ERROR, f"malformed response: {FAULTS[FAULT_LENGTH]}")
    if engine.block_fault == FAULT_LIST:
        return reset_with_error(engine, index, ENHANCE_YOUR_CALM, "header list too large")
    if flags & FLAG_END_STREAM:
        return complete_response(engine, index)
    return 0


cdef int take_closed(CompiledEngine engine, int64_t stream_id, int status) except -1:
    """HEADERS or DATA came for a stream that has ended; `status` is 0 where there is none."""
    cdef Reset *reset = find_reset(engine, stream_id)
    if reset is not NULL and reset.kind <= RESET_SILENT:
        if reset.kind == RESET_GIVEN_UP and status >= 200:
            engine.late += 1
            reset.kind = RESET_SILENT
        return 0
    if 0 <= engine.goaway_last < stream_id:
        return 0            # the peer said that it would not
    remember_reset(engine, stream_id, RESET_SILENT)
    write_number(engine, FRAME_RST_STREAM, stream_id, STREAM_CLOSED)
    return count_control(engine)


# Reading frames. Each takes one whole frame; errors by the section of its type.

cdef inline bint is_idle(CompiledEngine engine, int64_t stream_id) noexcept:
    """True for a stream that we have not opened: of a number we have not reached, or of the peer's."""
    return stream_id >= engine.next_id or not stream_id & 1


cdef int protocol_error(CompiledEngine engine, str reason) except -1:
    return end_connection(engine, PROTOCOL_ERROR, reason)


cdef int frame_size_error(CompiledEngine engine, str name, Py_ssize_t size) except -1:
    return end_connection(engine, FRAME_SIZE_ERROR, f"{name} of {size} octets")


cdef int take_headers(
    CompiledEngine engine, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef Py_ssize_t skip = 0, padding = 0
    if is_idle(engine, stream_id):
        return protocol_error(engine, f"HEADERS on stream {stream_id}, which is not open")
    if flags & (FLAG_PADDED | FLAG_PRIORITY):
        skip = (1 if flags & FLAG_PADDED else 0) + (5 if flags & FLAG_PRIORITY else 0)
        if size < skip:
            return frame_size_error(engine, "HEADERS", size)
        if flags & FLAG_PADDED:
            padding = payload[0]
            if padding > size - skip:
                return protocol_error(engine, "HEADERS with more padding than payload")
    payload += skip
    size -= skip + padding
    if flags & FLAG_END_HEADERS:
        return take_block(engine, stream_id, flags, payload, size)
    engine.block.length = 0
    buffer_write(&engine.block, payload, size)
    engine.block_stream = stream_id
    engine.block_flags = flags
    engine.continuations = 0
    return 0


cdef int take_continuation(
    CompiledEngine engine, uint8_t flags, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef int64_t stream_id = engine.block_stream
    engine.continuations += 1
    if engine.continuations > engine.max_continuations:
        return end_connection(
            engine, ENHANCE_YOUR_CALM,
            f"over {engine.max_continuations} CONTINUATION frames to one header block",
        )
    if size == 0 and not flags & FLAG_END_HEADERS:
        count_empty(engine)
        if engine.is_closed:
            return 0
    buffer_write(&engine.block, payload, size)
    if not flags & FLAG_END_HEADERS:
        return 0
    engine.block_stream = 0
    return take_block(engine, stream_id, engine.block_flags, engine.block.octets, engine.block.length)


cdef int count_empty(CompiledEngine engine) except -1:
    engine.empty_frames += 1
    if engine.empty_frames > engine.max_empty_frames:
        end_connection(engine, ENHANCE_YOUR_CALM, f"over {engine.max_empty_frames} empty frames in a row")
    return 0


cdef int credit_connection(CompiledEngine engine, Py_ssize_t size) except -1:
    """Take DATA off our window for the connection, and give it back when half of it is used."""
    engine.uncredited += size
    if engine.uncredited > engine.receive_window:
        return end_connection(engine, FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
    if engine.uncredited >= engine.receive_window // 2:
        write_number(engine, FRAME_WINDOW_UPDATE, 0, <uint32_t>engine.uncredited)
        engine.uncredited = 0
    return 0


cdef int take_data(
    CompiledEngine engine, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef Py_ssize_t length = size
    cdef int32_t index
    cdef Stream *stream
    if is_idle(engine, stream_id):
        return protocol_error(engine, f"DATA on stream {stream_id}, which is not open")
    if flags & FLAG_PADDED:
        if size == 0:
            return frame_size_error(engine, "padded DATA", size)
        length = size - 1 - payload[0]
        if length < 0:
            return protocol_error(engine, "DATA with more padding than payload")
        payload += 1
    if size:
        credit_connection(engine, size)
        if engine.is_closed:
            return 0
    if length or flags & FLAG_END_STREAM:
        engine.empty_frames = 0
    else:
        count_empty(engine)
        if engine.is_closed:
            return 0
    index = find_stream(engine, stream_id)
    if index < 0:
        return take_closed(engine, stream_id, 0)
    stream = &engine.streams[index]
    if stream.status == 0:
        return reset_with_error(engine, index, PROTOCOL_ERROR, "malformed response: DATA before HEADERS")
    stream.uncredited += <int32_t>size
    if stream.uncredited > DEFAULT_WINDOW:
        return reset_with_error(engine, index, FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
    stream.received += length
    if flags & FLAG_END_STREAM and stream.kept.length == 0 and length <= engine.body_octets:
        return complete_response(engine, index, payload, length)
    if stream.kept.length < engine.body_octets:
        buffer_write(&stream.kept, payload, min(length, engine.body_octets - stream.kept.length))
    if flags & FLAG_END_STREAM:
        return complete_response(engine, index)
    if misses_content_length(stream, False):
        return miss_content_length(engine, index)
    if stream.uncredited >= DEFAULT_WINDOW // 2:
        write_number(engine, FRAME_WINDOW_UPDATE, stream_id, <uint32_t>stream.uncredited)
        stream.uncredited = 0
    return 0


cdef int take_rst_stream(
    CompiledEngine engine, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef uint32_t error_code
    cdef int32_t index
    cdef Reset *reset
    if stream_id == 0 or is_idle(engine, stream_id):
        return protocol_error(engine, f"RST_STREAM on stream {stream_id}, which is not open")
    if size != 4:
        return frame_size_error(engine, "RST_STREAM", size)
    error_code = read_uint32(payload)
    index = find_stream(engine, stream_id)
    if index < 0:
        # A server that refuses HEADERS may then refuse their DATA too (row 11).
        reset = find_reset(engine, stream_id)
        if reset is not NULL and reset.kind == RESET_REFUSED and error_code == STREAM_CLOSED:
            reset.kind = RESET_BY_PEER
            return 0
    engine.resets_seen += 1
    if engine.resets_seen > (
        engine.second_open + (engine.next_id - engine.second_next_id) // 2 + engine.resets_above_in_flight
    ):
        return end_connection(engine, ENHANCE_YOUR_CALM, "too many RST_STREAM frames in a second")
    if index < 0:
        return 0
    remember_reset(engine, stream_id, RESET_REFUSED if error_code == REFUSED_STREAM else RESET_BY_PEER)
    return finish(
        engine, index, error_code, f"the peer reset the stream: {error_name(error_code)}",
        error_code == REFUSED_STREAM,
    )


cdef int take_settings(
    CompiledEngine engine, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef const uint8_t *end = payload + size
    if stream_id:
        return protocol_error(engine, f"SETTINGS on stream {stream_id}")
    if flags & FLAG_ACK:
        if size:
            return frame_size_error(engine, "SETTINGS acknowledgement", size)
        if engine.settings_deadline != INFINITY:
            engine.settings_deadline = INFINITY
            if engine.decoder_table_octets < DEFAULT_HEADER_TABLE_OCTETS:
                engine.decoder.set_limit(<uint32_t>engine.decoder_table_octets)
                engine.memo.length = 0      # the next block must begin with a size update, RFC 7541 §4.2
        return 0
    if size % SETTING_OCTETS:
        return frame_size_error(engine, "SETTINGS", size)
    engine.settings_seen += 1
    if engine.settings_seen > engine.settings_per_second:
        return end_connection(
            engine, ENHANCE_YOUR_CALM, f"over {engine.settings_per_second} SETTINGS frames in a second"
        )
    if size // SETTING_OCTETS > engine.settings_entries:
        return end_connection(
            engine, ENHANCE_YOUR_CALM, f"over {engine.settings_entries} entries in one SETTINGS frame"
        )
    while payload < end:
        take_setting(engine, read_uint16(payload), read_uint32(payload + 2))
        if engine.is_closed:
            return 0
        payload += SETTING_OCTETS
    engine.has_settings = True
    write_frame(engine, FRAME_SETTINGS, FLAG_ACK, 0, payload, 0)
    count_control(engine)
    if engine.is_closed:
        return 0
    return send_queue(engine)


cdef int take_setting(CompiledEngine engine, uint32_t identifier, uint32_t value) except -1:
    """Apply one setting (RFC 9113 §6.5.2). What is not known here is ignored."""
    cdef int32_t index
    if identifier == SETTINGS_HEADER_TABLE_SIZE:
        engine.encoder.set_limit(<uint32_t>min(<int64_t>value, engine.encoder_table_octets))
    elif identifier == SETTINGS_ENABLE_PUSH:
        if value != 0:
            return protocol_error(engine, f"SETTINGS_ENABLE_PUSH is {value}")
    elif identifier == SETTINGS_MAX_CONCURRENT_STREAMS:
        engine.max_streams = value
    elif identifier == SETTINGS_INITIAL_WINDOW_SIZE:
        if value > MAX_WINDOW:
            return end_connection(engine, FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE is {value}")
        for index in range(engine.capacity if value > engine.initial_window else 0):
            if engine.streams[index].stream_id and engine.streams[index].granted + value > MAX_WINDOW:
                return end_connection(
                    engine, FLOW_CONTROL_ERROR,
                    f"SETTINGS_INITIAL_WINDOW_SIZE of {value} overflows the window of stream "
                    f"{engine.streams[index].stream_id}",
                )
        engine.initial_window = value
    elif identifier == SETTINGS_MAX_FRAME_SIZE:
        if not MIN_MAX_FRAME_SIZE <= value <= MAX_MAX_FRAME_SIZE:
            return protocol_error(engine, f"SETTINGS_MAX_FRAME_SIZE is {value}")
        engine.max_frame_size = value
    elif identifier == SETTINGS_MAX_HEADER_LIST_SIZE:
        engine.max_header_list = value
    return 0


cdef int take_ping(
    CompiledEngine engine, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef bytes opaque
    if stream_id:
        return protocol_error(engine, f"PING on stream {stream_id}")
    if size != 8:
        return frame_size_error(engine, "PING", size)
    if flags & FLAG_ACK:
        if engine.pings:
            opaque = PyBytes_FromStringAndSize(<const char *>payload, 8)
            if opaque in engine.pings:
                engine.events.append(PingAcknowledged(opaque))
                engine.pings.remove(opaque)
        return 0
    engine.pings_seen += 1
    if engine.pings_seen > engine.pings_per_second:
        return end_connection(
            engine, ENHANCE_YOUR_CALM, f"over {engine.pings_per_second} PING frames in a second"
        )
    write_frame(engine, FRAME_PING, FLAG_ACK, 0, payload, 8)
    return count_control(engine)


cdef int take_goaway(
    CompiledEngine engine, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef int64_t last_stream_id
    cdef uint32_t error_code
    cdef bytes debug_data
    if stream_id:
        return protocol_error(engine, f"GOAWAY on stream {stream_id}")
    if size < GOAWAY_OCTETS:
        return frame_size_error(engine, "GOAWAY", size)
    last_stream_id = read_uint31(payload)
    error_code = read_uint32(payload + 4)
    if 0 <= engine.goaway_last < last_stream_id:
        return protocol_error(
            engine, f"GOAWAY raised its last stream id from {engine.goaway_last} to {last_stream_id}"
        )
    debug_data = PyBytes_FromStringAndSize(
        <const char *>payload + GOAWAY_OCTETS, min(size - GOAWAY_OCTETS, engine.goaway_debug_octets)
    )
    engine.goaway_last = last_stream_id
    finish_above(engine, last_stream_id, error_code, f"the peer went away: {error_name(error_code)}")
    engine.events.append(GoawayReceived(last_stream_id, error_object(error_code), debug_data))
    return 0


cdef int take_window_update(
    CompiledEngine engine, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef int64_t increment
    cdef bint used_up
    cdef int32_t index
    cdef Stream *stream
    if size != 4:
        return frame_size_error(engine, "WINDOW_UPDATE", size)
    increment = read_uint31(payload)
    if stream_id == 0:
        if increment == 0:
            return protocol_error(engine, "WINDOW_UPDATE of 0 for the connection")
        if engine.window + increment > MAX_WINDOW:
            return end_connection(engine, FLOW_CONTROL_ERROR, "WINDOW_UPDATE overflows its window")
        used_up = engine.window <= 0
        engine.window += increment
        # Where the window was open before, nothing waits for it.
        return send_queue(engine) if used_up else 0
    if is_idle(engine, stream_id):
        return protocol_error(engine, f"WINDOW_UPDATE on stream {stream_id}, which is not open")
    index = find_stream(engine, stream_id)
    if index < 0:
        return 0
    if increment == 0:
        return reset_with_error(engine, index, PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
    stream = &engine.streams[index]
    if engine.initial_window + stream.granted + increment > MAX_WINDOW:
        return reset_with_error(engine, index, FLOW_CONTROL_ERROR, "WINDOW_UPDATE overflows its window")
    stream.granted += increment
    if stream.body is not NULL and engine.window > 0:
        return send_body(engine, index)
    return 0


cdef int take_priority(CompiledEngine engine, int64_t stream_id, Py_ssize_t size) except -1:
    """PRIORITY says nothing to a client, but may be malformed (RFC 9113 §6.3)."""
    cdef int32_t index
    if stream_id == 0:
        return protocol_error(engine, "PRIORITY on stream 0")
    if size == 5:
        return 0
    index = find_stream(engine, stream_id)
    if index >= 0:
        return reset_with_error(engine, index, FRAME_SIZE_ERROR, f"PRIORITY of {size} octets")
    if is_idle(engine, stream_id):
        return frame_size_error(engine, "PRIORITY", size)
    return 0


cdef int take_frame(CompiledEngine engine, const uint8_t *frame, Py_ssize_t size) except -1:
    """Take one whole frame whose payload has `size` octets; `check_frame` has seen its header."""
    cdef uint8_t kind = frame[3], flags = frame[4]
    cdef int64_t stream_id = read_uint31(frame + 5)
    cdef const uint8_t *payload = frame + FRAME_HEADER_OCTETS
    if engine.block_stream:
        if kind != FRAME_CONTINUATION or stream_id != engine.block_stream:
            return protocol_error(engine, f"a frame of type {kind} inside a header block")
        return take_continuation(engine, flags, payload, size)
    if kind == FRAME_HEADERS:
        engine.empty_frames = 0
        return take_headers(engine, flags, stream_id, payload, size)
    if kind == FRAME_DATA:
        return take_data(engine, flags, stream_id, payload, size)
    engine.empty_frames = 0
    if kind == FRAME_WINDOW_UPDATE:
        return take_window_update(engine, stream_id, payload, size)
    if kind == FRAME_RST_STREAM:
        return take_rst_stream(engine, stream_id, payload, size)
    if kind == FRAME_SETTINGS:
        return take_settings(engine, flags, stream_id, payload, size)
    if kind == FRAME_PING:
        return take_ping(engine, flags, stream_id, payload, size)
    if kind == FRAME_GOAWAY:
        return take_goaway(engine, stream_id, payload, size)
    if kind == FRAME_PRIORITY:
        return take_priority(engine, stream_id, size)
    if kind == FRAME_PUSH_PROMISE:
        return protocol_error(engine, "PUSH_PROMISE, although push is off")
    if kind == FRAME_CONTINUATION:
        return protocol_error(engine, "CONTINUATION without HEADERS")
    return 0        # unknown types are ignored (RFC 9113 §5.5)


cdef int check_frame(CompiledEngine engine, const uint8_t *frame, Py_ssize_t size) except -1:
    """Refuse by the nine octets of a frame's header what must not be waited for."""
    if not engine.has_settings and (
        frame[3] != FRAME_SETTINGS or frame[4] & FLAG_ACK or read_uint31(frame + 5) != 0
    ):
        return protocol_error(engine, "peer does not speak HTTP/2")
    if size > engine.frame_octets:
        return end_connection(
            engine, FRAME_SIZE_ERROR, f"a frame of {size} octets; at most {engine.frame_octets} are taken"
        )
    return 0


cdef int take_octets(CompiledEngine engine, const uint8_t *at, Py_ssize_t length) except -1:
    """Cut octets into frames. Whole frames are read where they are; only a rest is copied."""
    cdef const uint8_t *end = at + length
    cdef Buffer *partial = &engine.partial
    cdef Py_ssize_t size, more
    if partial.length:
        if partial.length < FRAME_HEADER_OCTETS:
            more = min(FRAME_HEADER_OCTETS - partial.length, end - at)
            buffer_write(partial, at, more)
            at += more
            if partial.length < FRAME_HEADER_OCTETS:
                return 0
        size = <Py_ssize_t>read_uint24(partial.octets)
        check_frame(engine, partial.octets, size)
        if engine.is_closed:
            return 0
        more = min(FRAME_HEADER_OCTETS + size - partial.length, end - at)
        buffer_write(partial, at, more)
        at += more
        if partial.length < FRAME_HEADER_OCTETS + size:
            return 0
        take_frame(engine, partial.octets, size)
        partial.length = 0
    while not engine.is_closed and end - at >= FRAME_HEADER_OCTETS:
        size = <Py_ssize_t>read_uint24(at)
        if size > engine.frame_octets or not engine.has_settings:
            check_frame(engine, at, size)
            if engine.is_closed:
                return 0
        if end - at < FRAME_HEADER_OCTETS + size:
            break
        take_frame(engine, at, size)
        at += FRAME_HEADER_OCTETS + size
    if not engine.is_closed and at < end:
        buffer_write(partial, at, end - at)
    return 0


cdef void begin_second(CompiledEngine engine, double now) noexcept:
    """Limits by the second count in windows; each begins with the first call after the last one's end."""
    if now - engine.second >= 1.0:
        engine.second = now
        engine.pings_seen = 0
        engine.settings_seen = 0
        engine.resets_seen = 0
        engine.second_open = engine.open_count
        engine.second_next_id = engine.next_id


cdef list take_events(CompiledEngine engine):
    cdef list fresh = [], events = engine.events
    engine.events = fresh
    return events


cdef int end_torn(CompiledEngine engine) except -1:
    """End the connection after a call that raised half way."""
    return end_connection(engine, INTERNAL_ERROR, "an earlier call failed half way")


# What others hold.

@cython.final
cdef class Template:
    """The part of a request that many share; made by `CompiledEngine.template`."""

    def __dealloc__(self):
        buffer_free(&self.head)
        buffer_free(&self.tail)
        buffer_free(&self.names)


@cython.final
@cython.no_gc               # octets, numbers, and a tag that is the caller's: it does not lead back to this event
@cython.freelist(1024)      # one full set of streams ends in one batch
cdef class StreamEnded:
    """The one end of a stream.

    Attributes:
      stream_id: of the request.
      tag: what `send_request` was given.
      status: of the final response, 200 to 599; None when none came. It is the verdict, whatever came
        after it.
      processed: True with a status; else False (surely not, RFC 9113 §8.7) or None (unknown).
      error_code: of RST_STREAM, GOAWAY or our own error; None after a complete response, and when the
        transport was lost.
      fields: the response's regular fields in their order, as pairs of octets; `:status` is not among them.
      body: at most `Limits.body_octets` of it.
      reason: "" with a complete response, else one short line.
    """

    def __init__(
        self, stream_id, tag, *, status=None, processed=None, error_code=None, fields=(),
        bytes body not None=b"", str reason not None="",
    ):
        if status is not None and not 100 <= status <= 599:
            raise ValueError(f"status is {status}; it may be 100 to 599")
        self.stream_id = stream_id
        self.tag = tag
        self.status_code = 0 if status is None else status
        self.processed = processed
        self.error_code = error_code
        self.packed = pack_fields(fields)
        self.pairs = None
        self.body = body
        self.reason = reason

    @property
    def status(self):
        return self.status_code or None

    @property
    def fields(self):
        cdef Py_ssize_t place = 0
        cdef int32_t lengths[2]
        cdef const uint8_t *name
        cdef list pairs
        if self.pairs is None:
            pairs = []
            while next_field(self.packed, &place, lengths, &name):
                pairs.append((
                    PyBytes_FromStringAndSize(<const char *>name, lengths[0]),
                    PyBytes_FromStringAndSize(<const char *>name + lengths[0], lengths[1]),
                ))
            self.pairs = tuple(pairs)
        return self.pairs

    cdef bytes find(self, const char *name, Py_ssize_t length):
        cdef Py_ssize_t place = 0
        cdef int32_t lengths[2]
        cdef const uint8_t *at
        while next_field(self.packed, &place, lengths, &at):
            if same(at, lengths[0], name, length):
                return PyBytes_FromStringAndSize(<const char *>at + length, lengths[1])
        return None

    def field(self, bytes name not None):
        """The value of the first field of that lower-case name, None without one."""
        return self.find(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))

    def __eq__(self, other):
        cdef StreamEnded that
        if not isinstance(other, StreamEnded):
            return NotImplemented
        that = other
        return (
            self.stream_id == that.stream_id and self.tag == that.tag and self.status_code == that.status_code
            and self.processed is that.processed and self.error_code == that.error_code
            and self.packed == that.packed and self.body == that.body and self.reason == that.reason
        )

    def __hash__(self):
        return hash(self.stream_id)

    def __repr__(self):
        # Neither tag nor fields: they may hold device tokens.
        return (
            f"StreamEnded(stream_id={self.stream_id}, status={self.status}, processed={self.processed}, "
            f"error_code={self.error_code!r}, reason={self.reason!r})"
        )


@cython.final
cdef class CompiledEngine:
    """One client connection without I/O; every method is described in `fastpush.http2.Engine`.

    Args:
      limits: what is taken from the peer.
      first_stream_id: of the first request; odd.

    Raises:
      ValueError: a limit that RFC 9113 does not allow.
    """

    # Not in __init__: no object is ever without its parts. What is not set here begins as zero.
    def __cinit__(self, *, limits=Limits(), first_stream_id=1):
        if not (1 <= first_stream_id <= MAX_WINDOW and first_stream_id % 2):
            raise ValueError(f"first_stream_id is {first_stream_id}; it must be odd and at most {MAX_WINDOW}")
        if not MIN_MAX_FRAME_SIZE <= limits.frame_octets <= MAX_MAX_FRAME_SIZE:
            raise ValueError(f"frame_octets is {limits.frame_octets}; RFC 9113 allows 16384 to 16777215")
        if not DEFAULT_WINDOW <= limits.connection_window_octets <= MAX_WINDOW:
            raise ValueError(
                f"connection_window_octets is {limits.connection_window_octets}; "
                f"it may be {DEFAULT_WINDOW} to {MAX_WINDOW}"
            )
        self.frame_octets = limits.frame_octets
        self.header_list_octets = limits.header_list_octets
        self.max_continuations = limits.continuations
        self.decoder_table_octets = limits.decoder_table_octets
        self.encoder_table_octets = limits.encoder_table_octets
        self.body_octets = limits.body_octets
        self.max_queued_control = limits.queued_control_frames
        self.pings_per_second = limits.pings_per_second
        self.settings_per_second = limits.settings_per_second
        self.settings_entries = limits.settings_entries
        self.max_empty_frames = limits.empty_frames_in_a_row
        self.resets_above_in_flight = limits.resets_above_in_flight
        self.max_interim = limits.interim_responses
        self.goaway_debug_octets = limits.goaway_debug_octets
        self.settings_acknowledged_within = limits.settings_acknowledged_within
        self.receive_window = limits.connection_window_octets
        self.last_own_id = min(limits.last_stream_id, MAX_WINDOW)
        self.encoder = Encoder(limits.encoder_table_octets)
        # A smaller table than the default binds the peer only when it has acknowledged our SETTINGS.
        self.decoder = Decoder(
            max(limits.decoder_table_octets, DEFAULT_HEADER_TABLE_OCTETS), limits.header_list_octets
        )

        self.tags = []
        self.events = []
        self.pings = []
        self.max_streams = limits.default_stream_limit
        self.initial_window = DEFAULT_WINDOW
        self.max_frame_size = MIN_MAX_FRAME_SIZE
        self.max_header_list = 0x7FFFFFFFFFFFFFFF
        self.window = DEFAULT_WINDOW
        self.next_id = first_stream_id
        self.first_id = first_stream_id
        self.written_below = first_stream_id
        self.goaway_last = -1
        self.free = -1
        self.queue_head = -1
        self.queue_tail = -1
        self.settings_deadline = INFINITY
        self.second = -INFINITY
        self.second_next_id = first_stream_id
        grow_streams(self)

    def __dealloc__(self):
        cdef int32_t index
        for index in range(self.capacity):
            Py_XDECREF(self.streams[index].body)
            Py_XDECREF(self.streams[index].packed)
            buffer_free(&self.streams[index].kept)
        PyMem_Free(self.streams)
        PyMem_Free(self.buckets)
        buffer_free(&self.out)
        buffer_free(&self.partial)
        buffer_free(&self.block)
        buffer_free(&self.field_octets)
        buffer_free(&self.field_spans)
        buffer_free(&self.memo)

    # What one may look at.

    @property
    def settings_received(self):
        return self.has_settings

    @property
    def draining(self):
        return self.goaway_last >= 0 or self.next_id > self.last_own_id

    @property
    def closed(self):
        return self.is_closed

    @property
    def streams_open(self):
        return self.open_count

    @property
    def stream_limit(self):
        return self.max_streams if self.has_settings else 0

    @property
    def send_window(self):
        return max(self.window - self.queued_octets, 0)

    @property
    def window_blocked(self):
        return self.queue_head >= 0 or self.window <= 0

    @property
    def requests_sent(self):
        return (self.next_id - self.first_id) // 2

    @property
    def late_responses(self):
        return self.late

    cdef Py_ssize_t count_room(self) noexcept:
        if (
            not self.has_settings or self.goaway_last >= 0 or self.window <= 0
            or self.is_ending or self.is_torn or self.next_id > self.last_own_id
        ):
            return 0
        # An open window means that no DATA waits for it: see the head of this file.
        return <Py_ssize_t>max(
            min(self.max_streams - self.open_count, (self.last_own_id - self.next_id) // 2 + 1), 0
        )

    def room(self):
        return self.count_room()

    # Sending.

    def initiate(self, double now):
        cdef uint8_t payload[3 * SETTING_OCTETS + 2 * SETTING_OCTETS]
        cdef uint8_t *at = payload
        if self.is_initiated or self.is_closed:
            raise LocalProtocolError("the connection was initiated before")
        buffer_reserve(&self.out, 256)
        buffer_write(&self.out, PyBytes_AS_STRING(PREFACE), PREFACE_OCTETS)
        at = put_setting(at, SETTINGS_ENABLE_PUSH, 0)
        if self.decoder_table_octets != DEFAULT_HEADER_TABLE_OCTETS:
            at = put_setting(at, SETTINGS_HEADER_TABLE_SIZE, self.decoder_table_octets)
        if self.frame_octets != MIN_MAX_FRAME_SIZE:
            at = put_setting(at, SETTINGS_MAX_FRAME_SIZE, self.frame_octets)
        at = put_setting(at, SETTINGS_MAX_HEADER_LIST_SIZE, self.header_list_octets)
        write_frame(self, FRAME_SETTINGS, 0, 0, payload, at - payload)
        if self.receive_window > DEFAULT_WINDOW:
            write_number(self, FRAME_WINDOW_UPDATE, 0, <uint32_t>(self.receive_window - DEFAULT_WINDOW))
        self.is_initiated = True
        self.preface_waits = True
        self.settings_deadline = now + self.settings_acknowledged_within

    def template(self, before, bytes path_prefix not None, after, variable):
        cdef Template template = Template.__new__(Template)
        cdef bytes name, value
        cdef int place = 0
        # memcpy takes no NULL, not even for nothing.
        buffer_reserve(&template.head, 1)
        buffer_reserve(&template.tail, 1)
        buffer_reserve(&template.names, 1)
        template.engine = self
        template.before = pack_fields(before)
        template.path_prefix = path_prefix
        template.after = pack_fields(after)
        template.variable = tuple(variable)
        template.list_octets = FIELD_OVERHEAD + len(b":path") + len(path_prefix)
        for name, value in before:
            if name == b":path" or name[:1] != b":":
                raise ValueError(f"{name!r} cannot come before :path; only pseudo-header fields can")
            template.list_octets += FIELD_OVERHEAD + len(name) + len(value)
        for name, value in after:
            check_name(name)
            template.list_octets += FIELD_OVERHEAD + len(name) + len(value)
        if len(template.variable) > MAX_VARIABLE_FIELDS:
            raise ValueError(
                f"{len(template.variable)} variable fields; at most {MAX_VARIABLE_FIELDS} are possible"
            )
        for name in template.variable:
            check_name(name)
            template.name_lengths[place] = len(name)
            place += 1
        template.variable_count = place
        return template

    cdef int64_t open_stream(
        self, Template template, const uint8_t *path, Py_ssize_t path_length,
        Octets *values, bytes body, object tag,
    ) except -1:
        cdef Buffer *out = &self.out
        cdef Encoder encoder = self.encoder
        cdef Py_ssize_t list_octets = template.list_octets + path_length
        cdef Py_ssize_t start, length, frames_octets, body_length = PyBytes_GET_SIZE(body)
        cdef int64_t stream_id
        cdef uint32_t generation
        cdef uint8_t flags
        cdef uint8_t *at
        cdef Stream *stream
        cdef int32_t index, bucket
        cdef int place
        cdef bint updates

        # Everything that may refuse comes first.
        if self.free < 0:
            grow_streams(self)
        if self.count_room() <= 0:
            raise LocalProtocolError(why_no_room(self))
        if template.engine is not self:
            raise ValueError("the template was made by another engine")
        for place in range(template.variable_count):
            if values[place].octets is not NULL:
                list_octets += FIELD_OVERHEAD + template.name_lengths[place] + values[place].length
        if list_octets > self.max_header_list:
            raise HeaderListTooLarge(
                f"the header list has {list_octets} octets; the peer takes {self.max_header_list}"
            )
        stream_id = self.next_id
        start = out.length
        # Room for all frames, so that what follows cannot fail: a field's octets in a block are never more
        # than its own and the 32 that a list counts for it; no frame but the last is smaller than 16,384.
        frames_octets = min(body_length, <Py_ssize_t>self.window)
        frames_octets += FRAME_HEADER_OCTETS * ((list_octets >> 14) + (frames_octets >> 14) + 2)
        buffer_reserve(out, list_octets + frames_octets)
        if template.cached and template.generation == encoder.generation and not encoder.must_update():
            at = out.octets + start + FRAME_HEADER_OCTETS
            memcpy(at, template.head.octets, <size_t>template.head.length)
            at = put_path(at + template.head.length, template, path, path_length)
            memcpy(at, template.tail.octets, <size_t>template.tail.length)
            at = put_values(at + template.tail.length, template, values)
            out.length = at - out.octets
        else:
            generation = encoder.generation
            updates = encoder.must_update()
            out.length += FRAME_HEADER_OCTETS
            try:
                write_block(self, template, path, path_length, values, list_octets)
                buffer_reserve(out, frames_octets)
            except:
                out.length = start
                # The peer would never see what the table has taken in.
                if updates or encoder.generation != generation:
                    self.is_torn = True
                raise
        length = out.length - start - FRAME_HEADER_OCTETS
        flags = 0 if body_length else FLAG_END_STREAM
        if length <= self.max_frame_size:
            put_frame_header(
                out.octets + start, length, FRAME_HEADERS, flags | FLAG_END_HEADERS, <uint32_t>stream_id
            )
        else:
            split_block(self, start, flags, <uint32_t>stream_id)

        index = self.free
        stream = &self.streams[index]
        self.free = stream.next
        bucket = <int32_t>(stream_id >> 1) & self.bucket_mask
        stream.stream_id = <int32_t>stream_id
        stream.next = self.buckets[bucket]
        self.buckets[bucket] = index
        stream.granted = 0
        stream.content_length = -1
        stream.received = 0
        stream.uncredited = 0
        stream.status = 0
        stream.interim = 0
        self.tags[index] = tag
        self.next_id += 2
        self.open_count += 1

        if (
            body_length <= self.window and body_length <= self.initial_window
            and body_length <= self.max_frame_size
        ):
            if body_length:
                at = put_frame_header(
                    out.octets + out.length, body_length, FRAME_DATA, FLAG_END_STREAM, <uint32_t>stream_id
                )
                memcpy(at, PyBytes_AS_STRING(body), <size_t>body_length)
                out.length += FRAME_HEADER_OCTETS + body_length
                self.window -= body_length
                stream.granted -= body_length
        else:
            Py_INCREF(body)
            stream.body = <PyObject *>body
            stream.body_sent = 0
            self.queued_octets += body_length
            enqueue(self, index)
            send_body(self, index)
        return stream_id

    def send_request(
        self, Template template not None, bytes path not None, values, bytes body not None, tag, double now
    ):
        cdef Octets octets[MAX_VARIABLE_FIELDS]
        cdef int place = 0
        cdef bytes value
        cdef tuple kept = tuple(values)
        cdef int64_t expected, opened
        cdef object stream_id
        if len(kept) != template.variable_count:
            raise ValueError(
                f"{len(kept)} values; the template has {template.variable_count} variable fields"
            )
        for value in kept:
            octets[place].octets = NULL
            if value is not None:
                octets[place].octets = <const uint8_t *>PyBytes_AS_STRING(value)
                octets[place].length = PyBytes_GET_SIZE(value)
            place += 1
        # The int comes first: once the stream is open nothing may fail.
        expected = self.next_id
        stream_id = expected
        opened = self.open_stream(
            template, <const uint8_t *>PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), octets, body, tag
        )
        return stream_id if opened == expected else opened

    def reset_stream(self, stream_id, error_code=CANCEL):
        cdef int32_t index
        cdef uint32_t code = error_code
        if not 0 < stream_id < self.next_id:
            return False
        index = find_stream(self, stream_id)
        if index < 0:
            return False
        write_number(self, FRAME_RST_STREAM, stream_id, code)
        remember_reset(self, stream_id, RESET_SILENT if self.streams[index].status else RESET_GIVEN_UP)
        release_stream(self, index)
        return True

    def ping(self, bytes opaque not None):
        if len(opaque) != 8:
            raise ValueError(f"opaque has {len(opaque)} octets; a PING has 8")
        if self.is_ending or not self.is_initiated:
            raise LocalProtocolError("the connection is not open")
        buffer_reserve(&self.out, FRAME_HEADER_OCTETS + 8)
        self.pings.append(opaque)
        write_frame(self, FRAME_PING, 0, 0, PyBytes_AS_STRING(opaque), 8)

    def close(self, error_code=NO_ERROR):
        cdef uint32_t code = error_code
        if not self.is_closed:
            try:
                end_connection(self, code, "the connection was closed")
            except:
                self.is_torn = True
                raise
        return take_events(self)

    def data_to_send(self):
        cdef bytes octets = PyBytes_FromStringAndSize(<const char *>self.out.octets, self.out.length)
        self.out.length = 0
        self.written_below = self.next_id
        self.preface_waits = False
        self.queued_control = 0
        if self.out.capacity > SPARE_OUT_OCTETS:
            buffer_free(&self.out)
        return octets

    # Receiving.

    def receive_data(self, octets, double now):
        cdef Py_buffer view
        if self.is_closed:
            return take_events(self)
        if self.is_receiving:
            raise RuntimeError("receive_data was called from within itself")
        PyObject_GetBuffer(octets, &view, PyBUF_SIMPLE)
        self.is_receiving = True
        try:
            if self.is_torn:
                end_torn(self)
            else:
                begin_second(self, now)
                take_octets(self, <const uint8_t *>view.buf, view.len)
        except HpackError as error:
            self.is_torn = True     # should the next line fail
            end_connection(self, COMPRESSION_ERROR, f"header compression: {error}")
        except:
            self.is_torn = True
            raise
        finally:
            self.is_receiving = False
            PyBuffer_Release(&view)
        return take_events(self)

    def connection_lost(self, str reason not None):
        if not self.is_closed:
            try:
                end_connection(self, NO_ERROR, reason, True)
            except:
                self.is_torn = True
                raise
        return take_events(self)

    def check_time(self, double now):
        if not self.is_closed:
            try:
                if self.is_torn:
                    end_torn(self)
                elif now >= self.settings_deadline:
                    end_connection(self, SETTINGS_TIMEOUT, "the peer did not acknowledge SETTINGS in time")
            except:
                self.is_torn = True
                raise
        return take_events(self)

    def next_time(self):
        return self.settings_deadline
