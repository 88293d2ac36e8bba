# cython: language_level=3
"""What other compiled modules may use of the engine: a request without one Python object made for it."""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t

from fastpush._buffer cimport Buffer
from fastpush.http2._hpack cimport Decoder, Encoder


cdef enum:
    MAX_VARIABLE_FIELDS = 16    # in one template; so that a request's values fit on the C stack
    RECENT_RESETS = 4096        # how many of the streams that were reset are remembered; a power of two


cdef struct Octets:
    const uint8_t *octets       # NULL: this field is left out of the request
    Py_ssize_t length


@cython.final
cdef class Template:
    # The fields as they were given, packed (see `_engine_fields.pxi`).
    cdef object engine
    cdef bytes before
    cdef bytes path_prefix
    cdef bytes after
    cdef tuple variable
    cdef int variable_count
    cdef Py_ssize_t list_octets         # of constant fields and of `:path` without its end, §6.5.2
    cdef Py_ssize_t name_lengths[MAX_VARIABLE_FIELDS]
    # Their octets in a header block, good where `cached`, while the encoder's generation is `generation`.
    cdef bint cached
    cdef uint32_t generation
    cdef Buffer head                    # the fields of `before`, and the name of `:path`
    cdef Buffer tail                    # the fields of `after`
    cdef Buffer names                   # of the variable fields, one after the other
    cdef Py_ssize_t names_end[MAX_VARIABLE_FIELDS]


@cython.final
cdef class StreamEnded:
    """The one end of a stream. `status` not None: that is the verdict, whatever came after it."""
    cdef readonly int64_t stream_id
    cdef readonly object tag
    cdef int status_code                # 0: no (valid) :status arrived
    cdef readonly object processed      # True with a status; else False (surely not) or None (unknown)
    cdef readonly object error_code     # of RST_STREAM, GOAWAY or our own error; None after END_STREAM
    cdef readonly bytes body            # at most Limits.body_octets of it
    cdef readonly str reason            # "" with a complete response, else one short line
    cdef bytes packed                   # the regular fields, see `_engine_fields.pxi`
    cdef tuple pairs                    # the same as `fields` gives them, once it was asked
    # `fields` (tuple of pairs, made when first asked for) and `field(name)` are Python-visible too.
    cdef bytes find(self, const char *name, Py_ssize_t length)      # the value, or None


cdef struct Stream:
    int32_t stream_id           # 0: this record is free
    int32_t next                # in its bucket or among the free ones; -1 ends the chain
    int32_t queue_next          # among the streams with DATA waiting; -1 ends the queue
    int32_t queue_previous
    int64_t granted             # WINDOW_UPDATE less DATA; the peer's INITIAL_WINDOW_SIZE is added to it
    PyObject *body              # owned; NULL when all of it has left
    Py_ssize_t body_sent
    PyObject *packed            # owned; the response's regular fields, NULL before there is a final status
    Buffer kept                 # of the response's body
    int64_t content_length      # -1: not given
    int64_t received            # octets of the response's body so far
    int32_t uncredited          # octets of DATA, padding included, not yet given back to the stream's window
    int16_t status              # 0: no final status yet
    int16_t interim             # 1xx responses so far


cdef struct Reset:
    int32_t stream_id           # 0: nothing is remembered here
    uint8_t kind


@cython.final
cdef class CompiledEngine:
    # Limits, from the constructor.
    cdef Py_ssize_t frame_octets
    cdef Py_ssize_t header_list_octets
    cdef int max_continuations
    cdef int64_t decoder_table_octets
    cdef int64_t encoder_table_octets
    cdef Py_ssize_t body_octets
    cdef int64_t max_queued_control
    cdef int64_t pings_per_second
    cdef int64_t settings_per_second
    cdef Py_ssize_t settings_entries
    cdef int64_t max_empty_frames
    cdef int64_t resets_above_in_flight
    cdef int max_interim
    cdef Py_ssize_t goaway_debug_octets
    cdef double settings_acknowledged_within
    cdef int64_t receive_window
    cdef int64_t last_own_id

    # The peer's SETTINGS in force.
    cdef int64_t max_streams
    cdef int64_t initial_window
    cdef Py_ssize_t max_frame_size
    cdef int64_t max_header_list
    cdef bint has_settings

    # The connection.
    cdef Encoder encoder
    cdef Decoder decoder
    cdef Buffer out                     # whole frames that wait for `data_to_send`
    cdef bint preface_waits             # `out` begins with the connection preface
    cdef bint is_initiated
    cdef bint is_receiving
    cdef bint is_torn                   # an exception left something half done: the connection must end
    cdef bint is_ending
    cdef bint is_closed
    cdef int64_t first_id
    cdef int64_t next_id
    cdef int64_t written_below          # streams from this id on have never left `out`
    cdef int64_t goaway_last            # -1: no GOAWAY came
    cdef int64_t window                 # for DATA of all streams
    cdef int64_t queued_octets          # of bodies that wait for a window
    cdef int32_t queue_head
    cdef int32_t queue_tail
    cdef int64_t uncredited             # octets of DATA not yet given back to the connection's window
    cdef double settings_deadline
    cdef list pings                     # opaque octets of our PINGs without an answer
    cdef list events                    # told at the end of the current call
    cdef int64_t late

    # What the peer did in the second that began at `second`.
    cdef double second
    cdef int64_t pings_seen
    cdef int64_t settings_seen
    cdef int64_t resets_seen
    cdef int64_t second_open            # streams open when it began
    cdef int64_t second_next_id
    cdef int64_t queued_control
    cdef int64_t empty_frames

    # The open streams: records, a hash table of chains over them, and tags where the collector sees them.
    cdef Stream *streams
    cdef int32_t capacity
    cdef int32_t free
    cdef int32_t *buckets
    cdef int32_t bucket_mask
    cdef list tags
    cdef int64_t open_count
    cdef Reset resets[RECENT_RESETS]    # direct-mapped by id: a newer one pushes the older out

    # Input that is not whole yet.
    cdef Buffer partial                 # a frame
    cdef Buffer block                   # a header block
    cdef int64_t block_stream           # 0: none is open
    cdef uint8_t block_flags
    cdef int continuations

    # The last header block: its fields and what they say.
    cdef Buffer field_octets
    cdef Buffer field_spans
    cdef int block_fault
    cdef int block_status               # 0: none or not a valid one
    cdef bint block_pseudo              # it has a pseudo-header field
    cdef int64_t block_content_length   # -1: not given
    cdef bytes block_packed
    cdef Buffer memo                    # its octets while they stand for the same fields; empty otherwise

    cdef Py_ssize_t count_room(self) noexcept
    cdef int64_t open_stream(
        self, Template template, const uint8_t *path, Py_ssize_t path_length,
        Octets *values, bytes body, object tag,
    ) except -1
