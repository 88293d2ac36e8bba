# Reading header blocks: decoded, checked (RFC 9113 §8.2, §8.3), and what they mean for their stream.

cdef enum:                      # what is wrong with a header block
    FAULT_NONE
    FAULT_LENGTH                # of its content-length field: the status stands
    FAULT_LIST                  # larger than we take: the status stands
    FAULT_NAME                  # from here on it is malformed, RFC 9113 §8.1.1
    FAULT_VALUE
    FAULT_CONNECTION
    FAULT_PSEUDO
    FAULT_STATUS


cdef tuple FAULTS = (
    "",
    "a content-length that is no number or was given twice",
    "header list too large",
    "a field name that is empty or has a forbidden octet",
    "a field value with a forbidden octet or space around it",
    "a connection-specific field",
    "a pseudo-header field that is unknown, repeated, or late",
    "no valid :status",
)


cdef int read_block(CompiledEngine engine, const uint8_t *block, Py_ssize_t length) except -1:
    """Decode a header block into `block_packed` and what it says. Raises HpackError."""
    cdef int fits
    cdef uint32_t generation = engine.decoder.generation
    # Many responses have equal blocks, and then nothing is decoded: `memo` is the last block if that left the
    # table alone, and nothing but a block changes the table. A response whose block is one octet, as haproxy
    # sends it, takes 42 ns with this and 58 without (a thousand to one `receive_data`).
    if length and engine.memo.length == length and memcmp(engine.memo.octets, block, <size_t>length) == 0:
        return 0
    engine.memo.length = 0
    engine.field_octets.length = 0
    engine.field_spans.length = 0
    fits = engine.decoder.decode_into(block, length, &engine.field_octets, &engine.field_spans)
    read_fields(engine)
    if fits < 0:
        engine.block_fault = max(engine.block_fault, <int>FAULT_LIST)
    elif engine.decoder.generation == generation:
        buffer_write(&engine.memo, block, length)
    return 0


cdef int read_fields(CompiledEngine engine) except -1:
    """Check the decoded fields (RFC 9113 §8.2, §8.3) and pack the regular ones."""
    cdef const uint8_t *octets = engine.field_octets.octets
    cdef const Py_ssize_t *span = <const Py_ssize_t *>engine.field_spans.octets
    cdef const Py_ssize_t *end = span + engine.field_spans.length // <Py_ssize_t>sizeof(Py_ssize_t)
    cdef const Py_ssize_t *regular = NULL       # the first regular field
    cdef const uint8_t *name
    cdef const uint8_t *value
    cdef uint8_t *at
    cdef Py_ssize_t place, name_length, value_length, size = 0
    cdef int64_t content_length
    cdef int fault = FAULT_NONE
    cdef uint8_t good
    engine.block_status = 0
    engine.block_pseudo = False
    engine.block_content_length = -1
    while span < end:
        name = octets + span[0]
        name_length = span[1]
        value = octets + span[2]
        value_length = span[3]
        if name_length and name[0] == 0x3A:
            if regular is not NULL or engine.block_pseudo or not same(name, name_length, b":status", 7):
                fault = max(fault, <int>FAULT_PSEUDO)
            else:
                engine.block_status = read_status(value, value_length)
            engine.block_pseudo = True
        else:
            if regular is NULL:
                regular = span
            good = name_length > 0
            for place in range(name_length):
                good &= NAME_OCTET[name[place]]
            if not good:
                fault = max(fault, <int>FAULT_NAME)
            if value_length and (
                is_space(value[0]) or is_space(value[value_length - 1])
                or has_forbidden_octet(value, value_length)
            ):
                fault = max(fault, <int>FAULT_VALUE)
            if is_connection_specific(name, name_length, value, value_length):
                fault = max(fault, <int>FAULT_CONNECTION)
            if same(name, name_length, b"content-length", 14):
                content_length = read_decimal(value, value_length)
                if content_length < 0 or engine.block_content_length not in (-1, content_length):
                    fault = max(fault, <int>FAULT_LENGTH)
                else:
                    engine.block_content_length = content_length
            size += 8 + name_length + value_length
        span += 4
    if fault >= FAULT_NAME:
        engine.block_status = 0
    engine.block_fault = fault
    if size == 0:
        engine.block_packed = b""
        return 0
    engine.block_packed = PyBytes_FromStringAndSize(NULL, size)
    at = <uint8_t *>PyBytes_AS_STRING(engine.block_packed)
    while regular < end:
        if octets[regular[0]] != 0x3A or regular[1] == 0:
            at = put_field(at, octets + regular[0], regular[1], octets + regular[2], regular[3])
        regular += 4
    return 0


cdef inline bint misses_content_length(Stream *stream, bint ended) noexcept:
    """True when the body cannot be what content-length promised (RFC 9113 §8.1.1). 304 has no body."""
    if stream.content_length < 0 or stream.status == 304:
        return False
    return stream.received > stream.content_length or (ended and stream.received != stream.content_length)


cdef int miss_content_length(CompiledEngine engine, int32_t index) except -1:
    return reset_with_error(
        engine, index, PROTOCOL_ERROR,
        f"content-length is {engine.streams[index].content_length}, "
        f"the body has {engine.streams[index].received} octets",
    )


cdef int complete_response(
    CompiledEngine engine, int32_t index, const uint8_t *body=NULL, Py_ssize_t body_length=0
) except -1:
    """END_STREAM came after a final status."""
    cdef Stream *stream = &engine.streams[index]
    if misses_content_length(stream, True):
        return miss_content_length(engine, index)
    if stream.body is not NULL:
        # The response is whole before the request is: nobody wants the rest (RFC 9113 §8.1).
        write_number(engine, FRAME_RST_STREAM, stream.stream_id, NO_ERROR)
    return finish(engine, index, -1, "", False, body, body_length)


cdef int take_block(
    CompiledEngine engine, int64_t stream_id, uint8_t flags, const uint8_t *block, Py_ssize_t length
) except -1:
    """Take a whole header block: response, interim response or trailers (RFC 9113 §8.1)."""
    cdef int32_t index
    cdef Stream *stream
    cdef str fault
    read_block(engine, block, length)
    index = find_stream(engine, stream_id)
    if index < 0:
        return take_closed(engine, stream_id, engine.block_status)
    stream = &engine.streams[index]
    if stream.status:
        if engine.block_fault or engine.block_pseudo:
            fault = FAULTS[engine.block_fault or FAULT_PSEUDO]
            return reset_with_error(engine, index, PROTOCOL_ERROR, f"malformed trailers: {fault}")
        if not flags & FLAG_END_STREAM:
            return reset_with_error(engine, index, PROTOCOL_ERROR, "a second header block without END_STREAM")
        return complete_response(engine, index)
    if engine.block_status == 0:
        if engine.block_fault == FAULT_LIST:
            return reset_with_error(engine, index, ENHANCE_YOUR_CALM, "header list too large")
        fault = FAULTS[engine.block_fault if engine.block_fault >= FAULT_NAME else FAULT_STATUS]
        return reset_with_error(engine, index, PROTOCOL_ERROR, f"malformed response: {fault}")
    if engine.block_status < 200:
        if flags & FLAG_END_STREAM or engine.block_status == 101:
            return reset_with_error(
                engine, index, PROTOCOL_ERROR,
                f"malformed response: {engine.block_status} cannot be the last one",
            )
        stream.interim += 1
        if stream.interim > engine.max_interim:
            return reset_with_error(
                engine, index, ENHANCE_YOUR_CALM, f"over {engine.max_interim} interim responses"
            )
        return 0
    stream.status = <int16_t>engine.block_status
    stream.content_length = engine.block_content_length
    Py_INCREF(engine.block_packed)
    stream.packed = <PyObject *>engine.block_packed
    if engine.block_fault == FAULT_LENGTH:
        return reset_with_error(engine, index, PROTOCOL_ERROR, f"malformed response: {FAULTS[FAULT_LENGTH]}")
    if engine.block_fault == FAULT_LIST:
        return reset_with_error(engine, index, ENHANCE_YOUR_CALM, "header list too large")
    if flags & FLAG_END_STREAM:
        return complete_response(engine, index)
    return 0


cdef int take_closed(CompiledEngine engine, int64_t stream_id, int status) except -1:
    """HEADERS or DATA came for a stream that has ended; `status` is 0 where there is none."""
    cdef Reset *reset = find_reset(engine, stream_id)
    if reset is not NULL and reset.kind <= RESET_SILENT:
        if reset.kind == RESET_GIVEN_UP and status >= 200:
            engine.late += 1
            reset.kind = RESET_SILENT
        return 0
    if 0 <= engine.goaway_last < stream_id:
        return 0            # the peer said that it would not
    remember_reset(engine, stream_id, RESET_SILENT)
    write_number(engine, FRAME_RST_STREAM, stream_id, STREAM_CLOSED)
    return count_control(engine)
