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


# The Huffman code, RFC 7541 Appendix B. It is canonical: codes of one length follow each other in the order
# of their symbols, and those of the next length follow them. So the lengths, in bits, of the 256 octets
# and of EOS are the whole code.

cdef tuple CODE_LENGTHS = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
     6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
)

cdef struct Pair:                               # what the first WINDOW_BITS bits hold
    uint8_t symbols[2]
    uint8_t count                               # whole codes among them: 0, 1 or 2
    uint8_t bits                                # that these codes take

cdef uint32_t CODES[257]
cdef uint8_t LENGTHS[257]
cdef Pair PAIRS[1 << WINDOW_BITS]
cdef uint16_t SYMBOLS[257]                      # in the order of their codes
cdef uint64_t CODES_END[LONGEST_CODE + 1]       # by length: 32 bits that are past every code of that length
cdef uint32_t FIRST_CODE[LONGEST_CODE + 1]      # by length
cdef uint32_t FIRST_SYMBOL[LONGEST_CODE + 1]    # by length: the first code's place in SYMBOLS


cdef int fill_huffman_tables() except -1:
    cdef uint32_t code = 0, place = 0, window, taken
    cdef int length, symbol
    cdef Pair pair
    for length in range(SHORTEST_CODE, LONGEST_CODE + 1):
        code <<= 1
        FIRST_CODE[length] = code
        FIRST_SYMBOL[length] = place
        for symbol in range(257):
            if CODE_LENGTHS[symbol] == length:
                CODES[symbol] = code
                LENGTHS[symbol] = <uint8_t>length
                SYMBOLS[place] = <uint16_t>symbol
                code += 1
                place += 1
        CODES_END[length] = <uint64_t>code << (32 - length)
    if place != 257 or code != 1 << LONGEST_CODE:
        raise AssertionError("the code's lengths do not make a whole code")
    for window in range(1 << WINDOW_BITS):
        pair.symbols[0] = pair.symbols[1] = pair.count = pair.bits = 0
        while pair.count < 2:
            # Bits after the window count as ones: a code that needs them is longer than what is left.
            taken = (window << (32 - WINDOW_BITS) | ~<uint32_t>0 >> WINDOW_BITS)
            taken = taken << pair.bits | (<uint32_t>1 << pair.bits) - 1
            length = code_length(taken)
            if pair.bits + length > WINDOW_BITS:
                break
            pair.symbols[pair.count] = <uint8_t>code_symbol(taken, length)
            pair.count += 1
            pair.bits = <uint8_t>(pair.bits + length)
        PAIRS[window] = pair
    return 0


cdef inline int code_length(uint32_t window) noexcept nogil:
    """Length of the code that the 32 bits begin with. Every 30 bits begin with one: the code is complete."""
    cdef int length = SHORTEST_CODE
    while window >= CODES_END[length]:
        length += 1
        if length == LONGEST_CODE:
            break
    return length


cdef inline int code_symbol(uint32_t window, int length) noexcept nogil:
    return SYMBOLS[FIRST_SYMBOL[length] + ((window >> (32 - length)) - FIRST_CODE[length])]


fill_static_table()
fill_huffman_tables()


cdef inline Py_ssize_t huffman_octets(const uint8_t *octets, Py_ssize_t length) noexcept nogil:
    """How many octets the Huffman code of these takes."""
    cdef Py_ssize_t place, bits = 0
    for place in range(length):
        bits += LENGTHS[octets[place]]
    return (bits + 7) >> 3


cdef inline uint8_t *put_huffman(uint8_t *at, const uint8_t *octets, Py_ssize_t length) noexcept nogil:
    """Write the Huffman code where `huffman_octets` are free, padded with ones, and return what follows."""
    cdef uint64_t window = 0        # the lowest `bits` of it are not written yet; they are below 32
    cdef int bits = 0
    cdef Py_ssize_t place
    cdef uint8_t symbol
    for place in range(length):
        symbol = octets[place]
        window = window << LENGTHS[symbol] | CODES[symbol]
        bits += LENGTHS[symbol]
        if bits >= 32:
            bits -= 32
            at[0] = <uint8_t>(window >> (bits + 24))
            at[1] = <uint8_t>(window >> (bits + 16) & 0xFF)
            at[2] = <uint8_t>(window >> (bits + 8) & 0xFF)
            at[3] = <uint8_t>(window >> bits & 0xFF)
            at += 4
    while bits >= 8:
        bits -= 8
        at[0] = <uint8_t>(window >> bits & 0xFF)
        at += 1
    if bits:
        at[0] = <uint8_t>((window << (8 - bits) | (0xFF >> bits)) & 0xFF)
        at += 1
    return at


cdef inline Py_ssize_t huffman_room(Py_ssize_t length) noexcept nogil:
    """Octets that `get_huffman` may write for so many octets of code: 8/5, and one that is overwritten."""
    return length + (length >> 1) + (length >> 3) + 2


cdef inline uint64_t load_64(const uint8_t *at) noexcept nogil:
    """The 8 octets at `at` as a number, the first one highest."""
    return (
        <uint64_t>at[0] << 56 | <uint64_t>at[1] << 48 | <uint64_t>at[2] << 40 | <uint64_t>at[3] << 32
        | <uint64_t>at[4] << 24 | <uint64_t>at[5] << 16 | <uint64_t>at[6] << 8 | <uint64_t>at[7]
    )


cdef Py_ssize_t get_huffman(const uint8_t *at, Py_ssize_t length, uint8_t *out) noexcept nogil:
    """Decode into `huffman_room` octets; the number of octets written, or -1 for a broken code (§5.2)."""
    cdef const uint8_t *end = at + length
    cdef uint8_t *start = out
    cdef uint64_t window = 0        # the highest `bits` of it are read and not yet decoded
    cdef int bits = 0, taken, symbol
    cdef const Pair *pair
    while True:
        if end - at >= 8:
            window |= load_64(at) >> bits       # whole octets of it count; the bits after them are right too
            at += (63 - bits) >> 3
            bits |= 56
        else:
            while bits <= 56 and at < end:
                window |= <uint64_t>at[0] << (56 - bits)
                bits += 8
                at += 1
        if bits < LONGEST_CODE:
            break
        while bits >= LONGEST_CODE:
            pair = &PAIRS[window >> (64 - WINDOW_BITS)]
            if pair.count:
                out[0] = pair.symbols[0]
                out[1] = pair.symbols[1]
                out += pair.count
                taken = pair.bits
            else:
                taken = code_length(<uint32_t>(window >> 32))
                symbol = code_symbol(<uint32_t>(window >> 32), taken)
                if symbol == EOS:
                    return -1
                out[0] = <uint8_t>symbol
                out += 1
            window <<= taken
            bits -= taken
    # Fewer bits than the longest code are left, and then ones: they begin with a whole code, or are padding.
    window |= ~<uint64_t>0 >> bits
    while True:
        taken = code_length(<uint32_t>(window >> 32))
        if taken > bits:
            break
        out[0] = <uint8_t>code_symbol(<uint32_t>(window >> 32), taken)
        out += 1
        window = window << taken | ((<uint64_t>1 << taken) - 1)
        bits -= taken
    if bits > 7 or window != ~<uint64_t>0:
        return -1
    return out - start


# The dynamic table, RFC 7541 §2.3.2 and §4. Index 0 is the newest entry.

cdef void table_init(Table *table, Py_ssize_t limit) noexcept:
    table.octets = NULL
    table.entries = NULL
    table.capacity = table.head = table.tail = 0
    table.slots = table.newest = table.count = table.size = 0
    table.limit = limit


cdef void table_free(Table *table) noexcept:
    PyMem_Free(table.octets)
    PyMem_Free(table.entries)
    table_init(table, 0)


cdef inline const Entry *table_entry(const Table *table, Py_ssize_t index) noexcept nogil:
    """The entry of an index, NULL where there is none."""
    if index < 0 or index >= table.count:
        return NULL
    return &table.entries[(table.newest - index) & (table.slots - 1)]


cdef inline bint table_evict(Table *table, Py_ssize_t size) noexcept nogil:
    """Drop the oldest entries until `size` is not exceeded (§4.3); True if there was one to drop."""
    cdef const Entry *entry
    cdef Py_ssize_t length, count = table.count
    while table.size > size:
        entry = table_entry(table, table.count - 1)
        length = <Py_ssize_t>entry.name_length + <Py_ssize_t>entry.value_length
        table.size -= length + ENTRY_OVERHEAD
        table.head += length
        table.count -= 1
    return table.count != count


cdef int table_grow_slots(Table *table) except -1:
    cdef Py_ssize_t slots = 2 * table.slots if table.slots else 16
    cdef Py_ssize_t index
    cdef Entry *entries = <Entry *>PyMem_Malloc(<size_t>slots * sizeof(Entry))
    if entries is NULL:
        raise MemoryError()
    for index in range(table.count):
        entries[table.count - 1 - index] = table_entry(table, index)[0]
    PyMem_Free(table.entries)
    table.entries = entries
    table.slots = slots
    table.newest = (table.count - 1) & (slots - 1)
    return 0


cdef int table_make_room(Table *table, Py_ssize_t length) except -1:
    """Let `length` octets follow `tail`: what is live moves to the front.

    At least half of the allocation is free then, so no octet is moved more often than another is written.
    """
    cdef Py_ssize_t live = table.tail - table.head
    cdef Py_ssize_t index, capacity = max(<Py_ssize_t>512, 2 * (live + length))
    cdef uint8_t *octets = table.octets
    cdef uint32_t head = <uint32_t>table.head
    if table.capacity < capacity:
        octets = <uint8_t *>PyMem_Malloc(<size_t>capacity)
        if octets is NULL:
            raise MemoryError()
    if live:
        memmove(octets, table.octets + table.head, <size_t>live)
    if octets != table.octets:
        PyMem_Free(table.octets)
        table.octets = octets
        table.capacity = capacity
    table.head = 0
    table.tail = live
    for index in range(table.count):
        table.entries[(table.newest - index) & (table.slots - 1)].start -= head
    return 0


cdef int table_insert(
    Table *table, const uint8_t *name, Py_ssize_t name_length, const uint8_t *value, Py_ssize_t value_length,
) except -1:
    """Add an entry (§4.4): 1, or 0 where nothing changed: it is larger than the table, which was empty.

    The octets must not be the table's own. On MemoryError the table is as before.
    """
    cdef Py_ssize_t length = name_length + value_length
    cdef Entry *entry
    if length + ENTRY_OVERHEAD > table.limit:
        return table_evict(table, 0)
    if table.count == table.slots:
        table_grow_slots(table)
    if table.capacity - table.tail < length or table.octets is NULL:
        table_make_room(table, length)
    table_evict(table, table.limit - length - ENTRY_OVERHEAD)
    table.newest = (table.newest + 1) & (table.slots - 1)
    table.count += 1
    table.size += length + ENTRY_OVERHEAD
    entry = &table.entries[table.newest]
    entry.start = <uint32_t>table.tail
    entry.name_length = <uint32_t>name_length
    entry.value_length = <uint32_t>value_length
    memcpy(table.octets + table.tail, name, <size_t>name_length)
    memcpy(table.octets + table.tail + name_length, value, <size_t>value_length)
    table.tail += length
    return 1


cdef list table_fields(const Table *table):
    """Every entry as a pair, newest first, as RFC 7541 Appendix C prints them."""
    cdef Py_ssize_t index
    cdef const Entry *entry
    cdef list fields = []
    for index in range(table.count):
        entry = table_entry(table, index)
        fields.append((
            PyBytes_FromStringAndSize(<const char *>table.octets + entry.start, entry.name_length),
            PyBytes_FromStringAndSize(
                <const char *>table.octets + entry.start + entry.name_length, entry.value_length
            ),
        ))
    return fields


cdef inline bint same(
    const uint8_t *octets, Py_ssize_t length, const uint8_t *other, Py_ssize_t other_length
) noexcept nogil:
    return length == other_length and memcmp(octets, other, <size_t>length) == 0


cdef inline Py_ssize_t static_name(const uint8_t *name, Py_ssize_t length) noexcept nogil:
    """The first index of a name in the static table, or 0."""
    cdef Py_ssize_t index
    if length == 0:
        return 0
    index = STATIC_NAMES[name_hash(name, length)]
    if index and same(STATIC[index].name, STATIC[index].name_length, name, length):
        return index
    return 0


cdef Py_ssize_t find_name(const Table *table, const uint8_t *name, Py_ssize_t length) noexcept nogil:
    """An index of the name, the static one if there is one (it does not move), or 0."""
    cdef Py_ssize_t place, index = static_name(name, length)
    cdef const Entry *entry
    if index:
        return index
    for place in range(table.count):
        entry = table_entry(table, place)
        if same(table.octets + entry.start, entry.name_length, name, length):
            return STATIC_COUNT + 1 + place
    return 0


cdef Py_ssize_t find_field(
    const Table *table, const uint8_t *name, Py_ssize_t name_length,
    const uint8_t *value, Py_ssize_t value_length,
) noexcept nogil:
    """The index of name and value; where only the name is found, its index negated; or 0."""
    cdef Py_ssize_t first = static_name(name, name_length)
    cdef Py_ssize_t place, index = first
    cdef const Entry *entry
    if first:
        while index <= STATIC_COUNT and same(
            STATIC[index].name, STATIC[index].name_length, name, name_length
        ):
            if same(STATIC[index].value, STATIC[index].value_length, value, value_length):
                return index
            index += 1
    for place in range(table.count):
        entry = table_entry(table, place)
        if same(table.octets + entry.start, entry.name_length, name, name_length):
            if same(
                table.octets + entry.start + entry.name_length, entry.value_length, value, value_length
            ):
                return STATIC_COUNT + 1 + place
            if first == 0:
                first = STATIC_COUNT + 1 + place
    return -first


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
