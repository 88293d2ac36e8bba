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
- Dropping a tag may run any finalizer, and so may allocating an event that the garbage collector sees (all
  but `StreamEnded`); a finalizer may call back. No pointer into `streams` is held across that, nor an index
  used again: the number is, and looked up anew.
- After an exception (in practice MemoryError) the connection counts as torn, and the next call ends it.
  The events told so far wait in `events`, so that none is lost or told twice.
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

# The parts, to be read in this order.
include "_engine_fields.pxi"        # header fields: what is allowed in them, and how they are kept
include "_engine_events.pxi"        # what is told: error codes, the end of a stream
include "_engine_streams.pxi"       # the table of open streams, and the one end of each
include "_engine_output.pxi"        # frames out: control frames, DATA that waited, the connection's end
include "_engine_requests.pxi"      # templates, and the header block of a request
include "_engine_responses.pxi"     # header blocks in: response, interim response, trailers
include "_engine_input.pxi"         # frames in, one function for each type


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
        # A size update that waits (RFC 7541 §4.2) has changed the generation too.
        if template.cached and template.generation == encoder.generation:
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
