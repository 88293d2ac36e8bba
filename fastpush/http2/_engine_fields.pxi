# Header fields: which octets may be in one (RFC 9113 §8.2), and fields as they are kept, packed.

# Octets of a regular field's name, RFC 9113 §8.2.1.
cdef uint8_t NAME_OCTET[256]
cdef int _octet
for _octet in range(256):
    NAME_OCTET[_octet] = <uint8_t>(0x20 < _octet < 0x7F and not 0x41 <= _octet <= 0x5A and _octet != 0x3A)


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


# Packed fields: for each two int32_t, the lengths of name and value, then both.

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
