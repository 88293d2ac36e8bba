# The static table, RFC 7541 Appendix A. Equal names stand together; `static_name` relies on it.

cdef tuple STATIC_TABLE = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)

cdef struct StaticEntry:
    const uint8_t *name
    Py_ssize_t name_length
    const uint8_t *value
    Py_ssize_t value_length

cdef StaticEntry STATIC[STATIC_COUNT + 1]       # by index; 0 is not one
cdef uint8_t STATIC_NAMES[128]                  # by `name_hash`: the first index of the name that has it


cdef inline uint32_t name_hash(const uint8_t *name, Py_ssize_t length) noexcept nogil:
    """Tell the 52 names of the static table apart (the factors were found by trial). `length` is not 0."""
    return (
        <uint32_t>length * 53 + <uint32_t>name[0] * 48 + <uint32_t>name[length - 1] * 40
        + <uint32_t>name[length >> 1] * 22
    ) & 127


cdef int fill_static_table() except -1:
    cdef int index
    cdef uint32_t hashed
    cdef bytes name, value
    assert len(STATIC_TABLE) == STATIC_COUNT
    for index in range(STATIC_COUNT, 0, -1):
        name, value = STATIC_TABLE[index - 1]
        STATIC[index].name = <const uint8_t *>PyBytes_AS_STRING(name)
        STATIC[index].name_length = PyBytes_GET_SIZE(name)
        STATIC[index].value = <const uint8_t *>PyBytes_AS_STRING(value)
        STATIC[index].value_length = PyBytes_GET_SIZE(value)
        hashed = name_hash(STATIC[index].name, STATIC[index].name_length)
        if STATIC_NAMES[hashed] and STATIC_TABLE[STATIC_NAMES[hashed] - 1][0] != name:
            raise AssertionError("two static names have one hash")
        STATIC_NAMES[hashed] = <uint8_t>index
    return 0


fill_static_table()
