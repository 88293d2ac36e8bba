# A request on its way, and what is remembered of those that were good.

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
        if not (
            is_clean(self.authority.octets, self.authority.length)
            and is_clean(self.host.octets, self.host.length)
        ):
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
