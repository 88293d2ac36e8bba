# What an engine tells: error codes by name, the end of a stream, and the events of one call.

cdef tuple ERROR_CODES = tuple(ErrorCode)       # by number: they have no gap


cdef object error_object(int64_t code):
    """The ErrorCode, or None for -1. An unknown code counts as INTERNAL_ERROR (RFC 9113 §7)."""
    if code < 0:
        return None
    return ERROR_CODES[code if code < len(ERROR_CODES) else INTERNAL_ERROR]


cdef str error_name(uint32_t code):
    if code < <uint32_t>len(ERROR_CODES):
        return ERROR_CODES[code].name
    return f"unknown error 0x{code:x}"


@cython.final
@cython.no_gc               # octets, numbers, and a tag that is the caller's: it does not lead back to here
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


cdef list take_events(CompiledEngine engine):
    cdef list fresh = [], events = engine.events
    engine.events = fresh
    return events
