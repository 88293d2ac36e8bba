# How the header block of a request comes about, in the order of its octets.

@cython.final
cdef class Template:
    """The part of a request that many share; made by `CompiledEngine.template`."""

    def __dealloc__(self):
        buffer_free(&self.head)
        buffer_free(&self.tail)
        buffer_free(&self.names)


cdef int write_fields(Encoder encoder, Buffer *out, bytes packed, Py_ssize_t *budget) except -1:
    """Write constant fields, indexed as long as one template's fields fit into the table together.

    Those that do not would push each other out with every request. What is larger than the whole table
    the encoder leaves out of it by itself.
    """
    cdef Py_ssize_t size, place = 0
    cdef int32_t lengths[2]
    cdef const uint8_t *name
    cdef Indexing indexing
    while next_field(packed, &place, lengths, &name):
        size = FIELD_OVERHEAD + lengths[0] + lengths[1]
        indexing = PLAIN if budget[0] < size <= encoder.table.limit else INDEX
        if size <= budget[0]:
            budget[0] -= size
        encoder.write(out, name, lengths[0], name + lengths[0], lengths[1], indexing)
    return 0


cdef int write_names(Encoder encoder, Template template) except -1:
    """Make the constant part of each variable field anew."""
    cdef bytes name
    cdef int place
    template.names.length = 0
    for place in range(template.variable_count):
        name = template.variable[place]
        encoder.write_name(
            &template.names, <const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), False
        )
        template.names_end[place] = template.names.length
    return 0


cdef inline uint8_t *put_path(
    uint8_t *at, Template template, const uint8_t *path, Py_ssize_t path_length
) noexcept:
    cdef Py_ssize_t prefix_length = PyBytes_GET_SIZE(template.path_prefix)
    at = hpack_put_integer(at, 0, 7, <uint64_t>(prefix_length + path_length))
    memcpy(at, PyBytes_AS_STRING(template.path_prefix), <size_t>prefix_length)
    memcpy(at + prefix_length, path, <size_t>path_length)
    return at + prefix_length + path_length


cdef inline uint8_t *put_values(uint8_t *at, Template template, const Octets *values) noexcept:
    cdef const uint8_t *name = template.names.octets
    cdef Py_ssize_t start = 0, length
    cdef int place
    for place in range(template.variable_count):
        if values[place].octets is not NULL:
            length = template.names_end[place] - start
            memcpy(at, name + start, <size_t>length)
            at = hpack_put_raw(at + length, values[place].octets, values[place].length)
        start = template.names_end[place]
    return at


cdef int write_block(
    CompiledEngine engine, Template template, const uint8_t *path, Py_ssize_t path_length,
    const Octets *values, Py_ssize_t list_octets,
) except -1:
    """Write a header block through the encoder, and keep its constant octets if the table stayed as it was.

    The block that puts fields into the table is sent once; the next one finds them all there.
    """
    cdef Buffer *out = &engine.out
    cdef Encoder encoder = engine.encoder
    cdef Py_ssize_t head, head_end, tail
    cdef Py_ssize_t budget = encoder.table.limit
    cdef uint32_t generation
    template.cached = False
    encoder.begin(out)
    generation = encoder.generation
    head = out.length
    write_fields(encoder, out, template.before, &budget)
    encoder.write_name(out, <const uint8_t *>b":path", 5, True)
    head_end = out.length
    buffer_reserve(out, list_octets)
    out.length = put_path(out.octets + out.length, template, path, path_length) - out.octets
    tail = out.length
    write_fields(encoder, out, template.after, &budget)
    write_names(encoder, template)
    if encoder.generation == generation:
        template.head.length = template.tail.length = 0
        buffer_write(&template.head, out.octets + head, head_end - head)
        buffer_write(&template.tail, out.octets + tail, out.length - tail)
        template.generation = generation
        template.cached = True
    buffer_reserve(out, list_octets)
    out.length = put_values(out.octets + out.length, template, values) - out.octets
    return 0


cdef int split_block(CompiledEngine engine, Py_ssize_t start, uint8_t flags, uint32_t stream_id) except -1:
    """Make HEADERS and CONTINUATION of a block that is over the peer's frame size (RFC 9113 §6.10)."""
    cdef Py_ssize_t most = engine.max_frame_size
    cdef Py_ssize_t length = engine.out.length - start - FRAME_HEADER_OCTETS
    cdef Py_ssize_t frame, size, count = (length - 1) // most       # of CONTINUATION frames
    cdef uint8_t *at
    buffer_reserve(&engine.out, count * FRAME_HEADER_OCTETS)
    at = engine.out.octets + start + FRAME_HEADER_OCTETS            # the block
    for frame in range(count, 0, -1):
        size = min(most, length - frame * most)
        memmove(at + frame * (most + FRAME_HEADER_OCTETS), at + frame * most, <size_t>size)
        put_frame_header(
            at + frame * (most + FRAME_HEADER_OCTETS) - FRAME_HEADER_OCTETS, size, FRAME_CONTINUATION,
            FLAG_END_HEADERS if frame == count else 0, stream_id,
        )
    put_frame_header(at - FRAME_HEADER_OCTETS, most, FRAME_HEADERS, flags, stream_id)
    engine.out.length += count * FRAME_HEADER_OCTETS
    return 0


cdef str why_no_room(CompiledEngine engine):
    if engine.is_closed or engine.is_ending or engine.is_torn:
        return "the connection is closed"
    if engine.goaway_last >= 0:
        return "the peer sent GOAWAY"
    if engine.next_id > engine.last_own_id:
        return "the stream ids are used up"
    if not engine.has_settings:
        return "the peer's SETTINGS have not come"
    if engine.window <= 0:
        return "the connection's window is used up"
    return f"{engine.open_count} streams are open, the peer allows {engine.max_streams}"
