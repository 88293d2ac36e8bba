# Octets on raw pointers: numbers, frame headers, and what a field's value may be.

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


cdef inline bint equal(
    const uint8_t *octets, Py_ssize_t length, const char *text, Py_ssize_t size
) noexcept nogil:
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
