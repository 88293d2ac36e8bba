# cython: language_level=3
"""What other compiled modules may use of the engine: a request without one Python object made for it."""

from libc.stdint cimport int64_t, uint8_t

cdef struct Octets:
    const uint8_t *octets       # NULL: this field is left out of the request
    Py_ssize_t length


cdef class Template:
    pass                        # the engine's author adds the attributes


cdef class StreamEnded:
    """The one end of a stream. `status` not None: that is the verdict, whatever came after it."""
    cdef readonly int64_t stream_id
    cdef readonly object tag
    cdef int status_code                # 0: no (valid) :status arrived
    cdef readonly object processed      # True with a status; else False (surely not) or None (unknown)
    cdef readonly object error_code     # of RST_STREAM, GOAWAY or our own error; None after END_STREAM
    cdef readonly bytes body            # at most Limits.body_octets of it
    cdef readonly str reason            # "" with a complete response, else one short line
    # `fields` (tuple of pairs, made when first asked for) and `field(name)` are Python-visible too.
    cdef bytes find(self, const char *name, Py_ssize_t length)      # the value, or None


cdef class CompiledEngine:
    cdef Py_ssize_t count_room(self) noexcept
    cdef int64_t open_stream(
        self, Template template, const uint8_t *path, Py_ssize_t path_length,
        Octets *values, bytes body, object tag,
    ) except -1
