# cython: language_level=3
"""Header compression (RFC 7541) for the engine and the simulator, on raw octets.

Two ways to write a header block. `Encoder.write` does it all. Where the name of a field stays and its
value changes with every block, make the name's part once with `Encoder.write_name`, keep it for as long
as `Encoder.generation` stays, and add the value with `hpack_write_literal`; or reserve once for several
fields and use `hpack_put_integer`, which checks nothing.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastpush._buffer cimport Buffer, buffer_reserve


cdef enum:
    HPACK_INTEGER_OCTETS = 11   # the longest `hpack_put_integer` writes: a prefix and 64 bits by sevens


cpdef enum Indexing:            # RFC 7541 §6.2
    INDEX = 0                   # with incremental indexing; fully indexed (§6.1) where the table has it
    PLAIN = 1                   # without indexing, 0000
    NEVER = 2                   # never indexed, 0001


cdef struct Entry:              # of a dynamic table
    uint32_t start              # of the name within the table's octets; the value follows it
    uint32_t name_length
    uint32_t value_length


cdef struct Table:              # a dynamic table, RFC 7541 §2.3.2
    uint8_t *octets             # names and values, oldest first, without a gap between `head` and `tail`
    Py_ssize_t capacity         # octets allocated
    Py_ssize_t head
    Py_ssize_t tail
    Entry *entries              # a ring
    Py_ssize_t slots            # entries allocated: 0 or a power of two
    Py_ssize_t newest           # the newest entry's slot
    Py_ssize_t count
    Py_ssize_t size             # as RFC 7541 §4.1 counts
    Py_ssize_t limit            # the size it may have now, §4.2


cdef class Encoder:
    cdef Table table
    cdef readonly Py_ssize_t max_octets
    cdef Py_ssize_t smallest    # least limit since the last block, where `pending`
    cdef bint pending           # `begin` must write a size update
    # Counts every change of the dynamic table. Octets cached under another generation are void:
    # they may point at entries that have moved.
    cdef readonly uint32_t generation
    cdef void set_limit(self, uint32_t limit) noexcept
    # What `resize` does: takes each SETTINGS_HEADER_TABLE_SIZE in the order of arrival.
    cdef int begin(self, Buffer *out) except -1
    # Starts a header block: writes the pending size updates, smallest then final (§4.2).
    cdef bint must_update(self) noexcept
    # True when `begin` would write a size update: the block must be made anew.
    cdef int write(
        self, Buffer *out, const uint8_t *name, Py_ssize_t name_length,
        const uint8_t *value, Py_ssize_t value_length, Indexing indexing,
    ) except -1
    # Adds one field to the block. The name is indexed wherever a table has it. INDEX of a field that is
    # larger than the table is written as PLAIN, and the table keeps what it has. PLAIN and NEVER always
    # write the value. On MemoryError nothing was written and the table is as before.
    cdef int write_name(
        self, Buffer *out, const uint8_t *name, Py_ssize_t name_length, bint never_indexed,
    ) except -1
    # Adds the part of a PLAIN or never-indexed field that comes before its value. Good for one generation.


cdef class Decoder:
    cdef Table table
    cdef readonly Py_ssize_t header_list_octets
    cdef Py_ssize_t max_octets      # our SETTINGS_HEADER_TABLE_SIZE
    cdef Py_ssize_t smallest        # the next block must begin with an update to this, where `pending`
    cdef bint pending
    cdef void set_limit(self, uint32_t limit) noexcept
    # What `resize_limit` does: our SETTINGS_HEADER_TABLE_SIZE, when the peer has acknowledged it.
    cdef int decode_into(
        self, const uint8_t *block, Py_ssize_t length, Buffer *octets, Buffer *spans,
    ) except -2
    # Decodes one whole block. Appends names and values to `octets`, and four Py_ssize_t to `spans` for
    # each field: name's start, name's length, value's start, value's length (starts count from `octets`).
    # 0: good. -1: the list is over `header_list_octets`; the table is still right and spans hold the
    # fields before the first that did not fit.
    # Raises HpackError for what must be COMPRESSION_ERROR. -2: an exception is set; nothing was appended,
    # and the dynamic table is void: the connection must end.
    cdef readonly uint32_t generation
    # Counts every change of the dynamic table: a memo of decoded blocks is good for one generation.


# Integers, RFC 7541 §5.1.

cdef inline uint8_t *hpack_put_integer(
    uint8_t *at, uint8_t pattern, int prefix_bits, uint64_t value
) noexcept nogil:
    """Write an integer where HPACK_INTEGER_OCTETS are free, and return the octet after it.

    `pattern` holds the bits before the prefix of 1 to 8 bits.
    """
    cdef uint64_t most = (<uint64_t>1 << prefix_bits) - 1
    if value < most:
        at[0] = <uint8_t>(pattern | value)
        return at + 1
    at[0] = <uint8_t>(pattern | most)
    at += 1
    value -= most
    while value >= 128:
        at[0] = <uint8_t>(value & 127 | 128)
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1


cdef inline int hpack_write_integer(Buffer *out, uint8_t pattern, int prefix_bits, uint64_t value) except -1:
    buffer_reserve(out, HPACK_INTEGER_OCTETS)
    out.length = hpack_put_integer(out.octets + out.length, pattern, prefix_bits, value) - out.octets
    return 0


# Strings, RFC 7541 §5.2, in two forms. The 74 octets of "/3/device/" and a device token take 3 ns raw, as
# a memcpy, and 105 ns in Huffman code, which has 54 octets (best of 15 runs of 200,000 calls from C, gcc 12).

cdef inline uint8_t *hpack_put_raw(uint8_t *at, const uint8_t *octets, Py_ssize_t length) noexcept nogil:
    """Write a string without Huffman code where `length` + HPACK_INTEGER_OCTETS are free."""
    at = hpack_put_integer(at, 0, 7, <uint64_t>length)
    memcpy(at, octets, <size_t>length)
    return at + length


cdef inline int hpack_write_raw(Buffer *out, const uint8_t *octets, Py_ssize_t length) except -1:
    """Write a string without Huffman code."""
    buffer_reserve(out, length + HPACK_INTEGER_OCTETS)
    out.length = hpack_put_raw(out.octets + out.length, octets, length) - out.octets
    return 0


cdef int hpack_write_string(Buffer *out, const uint8_t *octets, Py_ssize_t length) except -1
# In Huffman code where that is shorter, otherwise raw.


cdef inline int hpack_write_literal(
    Buffer *out, const uint8_t *name_part, Py_ssize_t name_part_length,
    const uint8_t *value, Py_ssize_t value_length, bint huffman,
) except -1:
    """Write one literal field: what `Encoder.write_name` made, then the value."""
    cdef uint8_t *at
    buffer_reserve(out, name_part_length + value_length + HPACK_INTEGER_OCTETS)
    memcpy(out.octets + out.length, name_part, <size_t>name_part_length)
    if huffman:
        out.length += name_part_length
        return hpack_write_string(out, value, value_length)
    at = hpack_put_raw(out.octets + out.length + name_part_length, value, value_length)
    out.length = at - out.octets
    return 0
