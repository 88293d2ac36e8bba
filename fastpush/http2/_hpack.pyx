# cython: language_level=3
"""Header compression for HTTP/2: header lists to header blocks and back (RFC 7541, the whole of it).

An `Encoder` and a `Decoder` each own one dynamic table and no I/O. Header blocks must be encoded and
decoded in the order in which they cross the wire, each exactly once, also those that nobody wants any
more: both tables move with every block (§2.2).

Names and values are octets. Nothing is checked but what RFC 7541 demands; what HTTP allows in a field
is the engine's business. `_hpack.pxd` has the C side, which the engine and the simulator use.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from fastpush._buffer cimport Buffer, buffer_free, buffer_init, buffer_reserve, buffer_write


class HpackError(Exception):
    """The peer's header block is broken: a connection error of type COMPRESSION_ERROR (RFC 9113 §4.3)."""


class HeaderListOverflow(Exception):
    """The decoded header list is over its limit (RFC 9113 §10.5.1); the dynamic table is right all the same.

    Attributes:
      fields: those before the first that did not fit.
    """

    def __init__(self, message, fields=()):
        super().__init__(message)
        self.fields = fields


# Sizes, in octets unless said otherwise.

cdef enum:
    ENTRY_OVERHEAD = 32             # each field's, on top of name and value: RFC 7541 §4.1, RFC 9113 §6.5.2
    INITIAL_TABLE_OCTETS = 4096     # SETTINGS_HEADER_TABLE_SIZE before any SETTINGS, RFC 9113 §6.5.2
    INTEGER_CONTINUATIONS = 5       # octets after the prefix: enough for 32 bits (hpack has the same limit)
    STATIC_COUNT = 61
    EOS = 256                       # the Huffman code's end of string, as a symbol
    SHORTEST_CODE = 5               # bits
    LONGEST_CODE = 30
    WINDOW_BITS = 12                # two codes of most printable octets; the table takes 16 KiB

cdef Py_ssize_t MAX_TABLE_OCTETS = 2**30    # keeps `Entry.start` within 32 bits, whatever is asked for


include "_hpack_static.pxi"         # the static table
include "_hpack_huffman.pxi"        # the Huffman code, both ways
include "_hpack_table.pxi"          # the dynamic table, and the index of a field in both tables


# Encoding.

cdef inline uint8_t *put_string(uint8_t *at, const uint8_t *octets, Py_ssize_t length) noexcept nogil:
    """Write a string (§5.2), as `hpack_write_string`, where `length` + HPACK_INTEGER_OCTETS are free."""
    cdef Py_ssize_t coded = huffman_octets(octets, length)
    if coded < length:
        at = hpack_put_integer(at, 0x80, 7, <uint64_t>coded)
        return put_huffman(at, octets, length)
    return hpack_put_raw(at, octets, length)


cdef int hpack_write_string(Buffer *out, const uint8_t *octets, Py_ssize_t length) except -1:
    buffer_reserve(out, length + HPACK_INTEGER_OCTETS)
    out.length = put_string(out.octets + out.length, octets, length) - out.octets
    return 0


cdef inline uint8_t *put_name(
    uint8_t *at, Indexing indexing, Py_ssize_t index, const uint8_t *name, Py_ssize_t length
) noexcept nogil:
    """Write what comes before a literal's value (§6.2.1 to §6.2.3): the form, and the name or its index."""
    if indexing == INDEX:
        at = hpack_put_integer(at, 0x40, 6, <uint64_t>index)
    else:
        at = hpack_put_integer(at, 0x10 if indexing == NEVER else 0x00, 4, <uint64_t>index)
    return at if index else put_string(at, name, length)


cdef Py_ssize_t checked_size(object octets, str name) except -1:
    """A size as an argument: any number of octets that a SETTINGS value can be."""
    if not 0 <= octets <= 0xFFFFFFFF:
        raise ValueError(f"{name} is {octets}; it may be 0 to {0xFFFFFFFF} octets")
    return <Py_ssize_t>octets


@cython.final
cdef class Encoder:
    """One direction's encoder (RFC 7541 §2.2): header lists in, header blocks out.

    Attributes:
      generation: counts every change of the dynamic table; octets made under another generation are void.
      max_octets: the dynamic table never gets larger, whatever the peer offers.
    """

    def __cinit__(self, max_octets: int = 4096) -> None:
        self.max_octets = min(checked_size(max_octets, "max_octets"), MAX_TABLE_OCTETS)
        # Until it says otherwise the peer assumes 4,096 octets: less must be told with the first block.
        table_init(&self.table, min(self.max_octets, INITIAL_TABLE_OCTETS))
        self.smallest = self.table.limit
        self.pending = self.table.limit < INITIAL_TABLE_OCTETS

    def __dealloc__(self):
        table_free(&self.table)

    cdef void set_limit(self, uint32_t limit) noexcept:
        cdef Py_ssize_t octets = min(<Py_ssize_t>limit, self.max_octets)
        if octets == self.table.limit:
            return
        self.smallest = min(self.smallest, octets) if self.pending else octets
        self.pending = True
        self.table.limit = octets
        table_evict(&self.table, octets)
        self.generation += 1

    cdef bint must_update(self) noexcept:
        return self.pending

    cdef int begin(self, Buffer *out) except -1:
        cdef uint8_t *at
        if not self.pending:
            return 0
        buffer_reserve(out, 2 * HPACK_INTEGER_OCTETS)
        at = out.octets + out.length
        if self.smallest < self.table.limit:
            at = hpack_put_integer(at, 0x20, 5, <uint64_t>self.smallest)
        at = hpack_put_integer(at, 0x20, 5, <uint64_t>self.table.limit)
        out.length = at - out.octets
        self.pending = False
        return 0

    cdef int write(
        self, Buffer *out, const uint8_t *name, Py_ssize_t name_length,
        const uint8_t *value, Py_ssize_t value_length, Indexing indexing,
    ) except -1:
        cdef Py_ssize_t index
        cdef uint8_t *at
        if indexing == INDEX:
            index = find_field(&self.table, name, name_length, value, value_length)
            if index > 0:
                return hpack_write_integer(out, 0x80, 7, <uint64_t>index)
            index = -index
        else:
            index = find_name(&self.table, name, name_length)
        buffer_reserve(out, name_length + value_length + 3 * HPACK_INTEGER_OCTETS)
        if indexing == INDEX:
            if name_length + value_length + ENTRY_OVERHEAD > self.table.limit:
                # It would not get in but empty the table (§4.4).
                indexing = PLAIN
            else:
                table_insert(&self.table, name, name_length, value, value_length)
                self.generation += 1
        at = put_name(out.octets + out.length, indexing, index, name, name_length)
        out.length = put_string(at, value, value_length) - out.octets
        return 0

    cdef int write_name(
        self, Buffer *out, const uint8_t *name, Py_ssize_t name_length, bint never_indexed,
    ) except -1:
        cdef Py_ssize_t index = find_name(&self.table, name, name_length)
        buffer_reserve(out, name_length + 2 * HPACK_INTEGER_OCTETS)
        out.length = put_name(
            out.octets + out.length, NEVER if never_indexed else PLAIN, index, name, name_length
        ) - out.octets
        return 0

    def encode(self, fields) -> bytes:
        """Make one header block: pending size updates, then the fields in their order.

        Args:
          fields: (name, value) or (name, value, indexing): octets, and an `Indexing`, INDEX by default.

        Raises:
          TypeError, ValueError: a field is something else; nothing was encoded, the table is as before.
          MemoryError: the dynamic table is void, as its peer will not see this block.
        """
        cdef Buffer out
        cdef bytes name, value
        cdef list checked = []
        for field in fields:
            if len(field) == 2:
                name, value = field
                indexing = INDEX
            else:
                name, value, indexing = field
            if name is None or value is None:
                raise TypeError("a field's name and value must be bytes, not None")
            if indexing not in (INDEX, PLAIN, NEVER):
                raise ValueError(f"indexing is {indexing!r}; it may be INDEX, PLAIN or NEVER")
            checked.append((name, value, indexing))
        buffer_init(&out)
        try:
            self.begin(&out)
            for name, value, indexing in checked:
                self.write(
                    &out, <const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name),
                    <const uint8_t *>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value),
                    <Indexing><int>indexing,
                )
            return PyBytes_FromStringAndSize(<const char *>out.octets, out.length)
        finally:
            buffer_free(&out)

    def resize(self, limit: int) -> None:
        """Take one SETTINGS_HEADER_TABLE_SIZE of the peer; call it for each, in the order of arrival.

        The next block tells the smallest and the last of them (RFC 7541 §4.2), as far as they change
        anything: sizes above `max_octets` count as `max_octets`.
        """
        self.set_limit(<uint32_t>checked_size(limit, "limit"))

    @property
    def table_octets(self) -> int:
        """The dynamic table's size now, as RFC 7541 §4.1 counts it."""
        return self.table.size

    @property
    def table_limit(self) -> int:
        """The size that it may have now."""
        return self.table.limit

    @property
    def dynamic_table(self) -> list:
        """Its (name, value) pairs, newest first."""
        return table_fields(&self.table)


# Decoding.

cdef enum Fault:
    GOOD = 0
    TRUNCATED
    INTEGER_TOO_LARGE
    BAD_HUFFMAN
    INDEX_ZERO
    INDEX_BEYOND
    UPDATE_TOO_LARGE
    UPDATE_NOT_FIRST
    UPDATE_MISSING

cdef tuple FAULTS = (
    "",
    "the header block ends within a field",
    "an integer is over 32 bits (RFC 7541 §5.1)",
    "a string is not in Huffman code, holds EOS, or is padded wrongly (RFC 7541 §5.2)",
    "an indexed field has index 0 (RFC 7541 §6.1)",
    "an index is beyond the dynamic table (RFC 7541 §2.3.3)",
    "a table size update is over our SETTINGS_HEADER_TABLE_SIZE (RFC 7541 §6.3)",
    "a table size update comes after a field (RFC 7541 §4.2)",
    "our SETTINGS_HEADER_TABLE_SIZE was lowered, and the block does not begin with a table size update that"
    " fits (RFC 9113 §4.3.1)",
)


cdef struct Cursor:
    const uint8_t *at
    const uint8_t *end


cdef inline Fault get_integer(Cursor *cursor, int prefix_bits, uint32_t *value) noexcept nogil:
    """Read an integer (§5.1) of at most 32 bits."""
    cdef uint32_t most = (<uint32_t>1 << prefix_bits) - 1
    cdef uint64_t total
    cdef int shift
    cdef uint8_t octet
    if cursor.at == cursor.end:
        return TRUNCATED
    value[0] = cursor.at[0] & most
    cursor.at += 1
    if value[0] != most:
        return GOOD
    total = most
    for shift in range(0, 7 * INTEGER_CONTINUATIONS, 7):
        if cursor.at == cursor.end:
            return TRUNCATED
        octet = cursor.at[0]
        cursor.at += 1
        total += <uint64_t>(octet & 127) << shift
        if octet < 128:
            if total >> 32:
                return INTEGER_TOO_LARGE
            value[0] = <uint32_t>total
            return GOOD
    return INTEGER_TOO_LARGE


cdef inline int get_string(Cursor *cursor, Buffer *octets) except -1:
    """Read a string (§5.2) and append it to `octets`. Returns a Fault."""
    cdef uint32_t length
    cdef Py_ssize_t decoded
    cdef bint huffman
    cdef Fault fault
    if cursor.at == cursor.end:
        return TRUNCATED
    huffman = cursor.at[0] & 0x80
    fault = get_integer(cursor, 7, &length)
    if fault != GOOD:
        return fault
    if <Py_ssize_t>length > cursor.end - cursor.at:
        return TRUNCATED
    if huffman:
        buffer_reserve(octets, huffman_room(length))
        decoded = get_huffman(cursor.at, length, octets.octets + octets.length)
        if decoded < 0:
            return BAD_HUFFMAN
        octets.length += decoded
    else:
        buffer_write(octets, cursor.at, length)
    cursor.at += length
    return GOOD


cdef inline int get_name(const Table *table, uint32_t index, Buffer *octets) except -1:
    """Append the name of a table's entry. Returns a Fault."""
    cdef const Entry *entry
    if index <= STATIC_COUNT:
        buffer_write(octets, STATIC[index].name, STATIC[index].name_length)
        return GOOD
    entry = table_entry(table, <Py_ssize_t>index - STATIC_COUNT - 1)
    if entry is NULL:
        return INDEX_BEYOND
    buffer_write(octets, table.octets + entry.start, entry.name_length)
    return GOOD


cdef inline int get_updates(Decoder decoder, Cursor *cursor) except -1:
    """Read the size updates that a block begins with (§4.2, §6.3). Returns a Fault."""
    cdef uint32_t size
    cdef Fault fault
    while cursor.at < cursor.end and cursor.at[0] & 0xE0 == 0x20:
        fault = get_integer(cursor, 5, &size)
        if fault != GOOD:
            return fault
        if <Py_ssize_t>size > decoder.max_octets:
            return UPDATE_TOO_LARGE
        if decoder.pending and <Py_ssize_t>size <= decoder.smallest:
            decoder.pending = False
        decoder.table.limit = size
        table_evict(&decoder.table, size)
        decoder.generation += 1
    return UPDATE_MISSING if decoder.pending else GOOD


cdef int decode_fields(
    Decoder decoder, const uint8_t *block, Py_ssize_t length, Buffer *octets, Buffer *spans, bint *over,
) except -1:
    """Do what `Decoder.decode_into` says, but leave what was appended before a fault. Returns a Fault."""
    cdef Cursor cursor
    cdef Table *table = &decoder.table
    cdef const Entry *entry
    cdef const StaticEntry *static_entry
    cdef const uint8_t *name
    cdef Py_ssize_t span[4]         # name's start and length, value's start and length
    cdef Py_ssize_t room = decoder.header_list_octets
    cdef uint32_t index
    cdef uint8_t first
    cdef int fault
    cursor.at = block
    cursor.end = block + length
    buffer_reserve(octets, length + 1)      # so that `octets.octets` is not NULL, even where all is empty
    fault = get_updates(decoder, &cursor)
    if fault != GOOD:
        return fault
    while cursor.at < cursor.end:
        first = cursor.at[0]
        span[0] = octets.length
        if first & 0x80:                                        # §6.1
            fault = get_integer(&cursor, 7, &index)
            if fault != GOOD:
                return fault
            if index == 0:
                return INDEX_ZERO
            if index <= STATIC_COUNT:
                static_entry = &STATIC[index]
                name = static_entry.name
                span[1] = static_entry.name_length
                span[3] = static_entry.value_length
            else:
                entry = table_entry(table, <Py_ssize_t>index - STATIC_COUNT - 1)
                if entry is NULL:
                    return INDEX_BEYOND
                static_entry = NULL
                name = table.octets + entry.start
                span[1] = entry.name_length
                span[3] = entry.value_length
            room -= span[1] + span[3] + ENTRY_OVERHEAD
            if room < 0:
                over[0] = True
                continue
            buffer_reserve(octets, span[1] + span[3])
            memcpy(octets.octets + span[0], name, <size_t>span[1])
            memcpy(
                octets.octets + span[0] + span[1],
                name + span[1] if static_entry is NULL else static_entry.value,
                <size_t>span[3],
            )
            octets.length += span[1] + span[3]
        else:
            if first & 0x40:                                    # §6.2.1
                fault = get_integer(&cursor, 6, &index)
            elif first & 0x20:
                return UPDATE_NOT_FIRST
            else:                                               # §6.2.2, §6.2.3
                fault = get_integer(&cursor, 4, &index)
            if fault == GOOD:
                fault = get_name(table, index, octets) if index else get_string(&cursor, octets)
            if fault != GOOD:
                return fault
            span[1] = octets.length - span[0]
            fault = get_string(&cursor, octets)
            if fault != GOOD:
                return fault
            span[3] = octets.length - span[0] - span[1]
            if first & 0x40:
                decoder.generation += <uint32_t>table_insert(
                    table, octets.octets + span[0], span[1], octets.octets + span[0] + span[1], span[3]
                )
            room -= span[1] + span[3] + ENTRY_OVERHEAD
            if room < 0:
                # Decoded only for the table and for its faults.
                over[0] = True
                octets.length = span[0]
                continue
        span[2] = span[0] + span[1]
        buffer_write(spans, span, sizeof(span))
    return GOOD


@cython.final
cdef class Decoder:
    """One direction's decoder (RFC 7541 §2.2): header blocks in, header lists out.

    Attributes:
      generation: counts every change of the dynamic table.
      header_list_octets: how large a list may be, as RFC 9113 §6.5.2 counts it.
    """

    def __cinit__(self, max_table_octets: int = 4096, header_list_octets: int = 16384) -> None:
        self.header_list_octets = checked_size(header_list_octets, "header_list_octets")
        # The peer's encoder begins with 4,096 octets, whatever we announce (RFC 9113 §6.5.2).
        table_init(&self.table, INITIAL_TABLE_OCTETS)
        self.set_limit(<uint32_t>checked_size(max_table_octets, "max_table_octets"))

    def __dealloc__(self):
        table_free(&self.table)

    cdef void set_limit(self, uint32_t limit) noexcept:
        cdef Py_ssize_t octets = min(<Py_ssize_t>limit, MAX_TABLE_OCTETS)
        self.max_octets = octets
        if self.pending:
            self.smallest = min(self.smallest, octets)
        elif octets < self.table.limit:
            self.smallest = octets
            self.pending = True

    cdef int decode_into(
        self, const uint8_t *block, Py_ssize_t length, Buffer *octets, Buffer *spans,
    ) except -2:
        cdef Py_ssize_t octets_before = octets.length, spans_before = spans.length
        cdef bint over = False
        cdef int fault
        try:
            fault = decode_fields(self, block, length, octets, spans, &over)
            if fault != GOOD:
                raise HpackError(FAULTS[fault])
        except BaseException:
            octets.length = octets_before
            spans.length = spans_before
            raise
        return -1 if over else 0


    def decode(self, block: bytes) -> list:
        """Decode one header block to its (name, value) pairs.

        Raises:
          HpackError: the block is broken; the dynamic table is void and the connection must end.
          HeaderListOverflow: the list is over `header_list_octets`; the dynamic table is right.
        """
        cdef Buffer octets, spans
        cdef const Py_ssize_t *span
        cdef const Py_ssize_t *end
        cdef const char *start
        cdef list fields = []
        cdef int verdict
        buffer_init(&octets)
        buffer_init(&spans)
        try:
            verdict = self.decode_into(
                <const uint8_t *>PyBytes_AS_STRING(block), PyBytes_GET_SIZE(block), &octets, &spans
            )
            start = <const char *>octets.octets
            span = <const Py_ssize_t *>spans.octets
            end = span + spans.length // <Py_ssize_t>sizeof(Py_ssize_t)
            while span < end:
                fields.append((
                    PyBytes_FromStringAndSize(start + span[0], span[1]),
                    PyBytes_FromStringAndSize(start + span[2], span[3]),
                ))
                span += 4
        finally:
            buffer_free(&octets)
            buffer_free(&spans)
        if verdict == -1:
            raise HeaderListOverflow(f"the header list is over {self.header_list_octets} octets", fields)
        return fields

    def resize_limit(self, limit: int) -> None:
        """Take our own SETTINGS_HEADER_TABLE_SIZE, when the peer has acknowledged it.

        Where it lowers the limit, the peer's next block must begin with a size update that fits
        (RFC 9113 §4.3.1).
        """
        self.set_limit(<uint32_t>checked_size(limit, "limit"))

    @property
    def table_octets(self) -> int:
        """The dynamic table's size now, as RFC 7541 §4.1 counts it."""
        return self.table.size

    @property
    def table_limit(self) -> int:
        """The size that it may have now: what the peer's encoder said last."""
        return self.table.limit

    @property
    def dynamic_table(self) -> list:
        """Its (name, value) pairs, newest first."""
        return table_fields(&self.table)
