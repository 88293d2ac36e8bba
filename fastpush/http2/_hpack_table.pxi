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
