# What goes out but requests: frames, DATA that waited for a window, and the end of the connection.

cdef inline uint8_t *put_setting(uint8_t *at, uint32_t identifier, int64_t value) noexcept nogil:
    at[0] = 0
    at[1] = <uint8_t>identifier
    return put_uint32(at + 2, <uint32_t>value)


cdef int write_frame(
    CompiledEngine engine, uint8_t kind, uint8_t flags, int64_t stream_id,
    const void *payload, Py_ssize_t length,
) except -1:
    cdef uint8_t *at
    buffer_reserve(&engine.out, FRAME_HEADER_OCTETS + length)
    at = put_frame_header(engine.out.octets + engine.out.length, length, kind, flags, <uint32_t>stream_id)
    memcpy(at, payload, <size_t>length)
    engine.out.length += FRAME_HEADER_OCTETS + length
    return 0


cdef int write_number(CompiledEngine engine, uint8_t kind, int64_t stream_id, uint32_t number) except -1:
    """RST_STREAM with an error code, WINDOW_UPDATE with an increment."""
    cdef uint8_t payload[4]
    put_uint32(payload, number)
    return write_frame(engine, kind, 0, stream_id, payload, 4)


cdef int send_body(CompiledEngine engine, int32_t index) except -1:
    """Write as much DATA of a queued stream as the windows let out."""
    cdef Stream *stream = &engine.streams[index]
    cdef Py_ssize_t left = PyBytes_GET_SIZE(<bytes>stream.body) - stream.body_sent
    cdef Py_ssize_t size
    cdef uint8_t *at
    while True:
        size = <Py_ssize_t>min(engine.window, engine.initial_window + stream.granted)
        if size <= 0:
            return 0
        size = min(size, left, engine.max_frame_size)
        buffer_reserve(&engine.out, FRAME_HEADER_OCTETS + size)
        at = put_frame_header(
            engine.out.octets + engine.out.length, size, FRAME_DATA, FLAG_END_STREAM if size == left else 0,
            <uint32_t>stream.stream_id,
        )
        memcpy(at, PyBytes_AS_STRING(<bytes>stream.body) + stream.body_sent, <size_t>size)
        engine.out.length += FRAME_HEADER_OCTETS + size
        engine.window -= size
        engine.queued_octets -= size
        stream.granted -= size
        stream.body_sent += size
        left -= size
        if left == 0:
            dequeue(engine, index)
            return 0


cdef int send_queue(CompiledEngine engine) except -1:
    """Write the DATA that waits, in the order of streams, until the connection's window is used up."""
    cdef int32_t following, index = engine.queue_head
    while index >= 0 and engine.window > 0:
        following = engine.streams[index].queue_next
        send_body(engine, index)
        index = following
    return 0


cdef int drop_unwritten(CompiledEngine engine) except -1:
    """Take back the frames of streams that never left `out`: those streams end as not processed."""
    cdef Py_ssize_t size, place = PREFACE_OCTETS if engine.preface_waits else 0
    cdef Py_ssize_t kept = place
    cdef uint8_t *octets = engine.out.octets
    if engine.written_below >= engine.next_id:
        return 0
    while place < engine.out.length:
        size = FRAME_HEADER_OCTETS + <Py_ssize_t>read_uint24(octets + place)
        if read_uint31(octets + place + 5) < engine.written_below:
            memmove(octets + kept, octets + place, <size_t>size)
            kept += size
        place += size
    engine.out.length = kept
    return 0


cdef int end_connection(CompiledEngine engine, uint32_t error_code, str reason, bint lost=False) except -1:
    """Queue GOAWAY unless the transport is lost, end every stream, tell ConnectionEnded.

    After an exception it may be called again, and goes on where it was.
    """
    cdef uint8_t payload[GOAWAY_OCTETS]
    if lost:
        engine.out.length = 0
    elif engine.is_initiated and not engine.is_ending:
        drop_unwritten(engine)
        put_uint32(put_uint32(payload, 0), error_code)      # 0: no stream of the peer's was processed
        write_frame(engine, FRAME_GOAWAY, 0, 0, payload, GOAWAY_OCTETS)
    engine.is_ending = True
    finish_above(engine, 0, -1 if lost else <int64_t>error_code, reason)
    engine.events.append(ConnectionEnded(error_object(error_code), reason))
    engine.is_closed = True
    engine.settings_deadline = INFINITY
    return 0


cdef int reset_with_error(CompiledEngine engine, int32_t index, uint32_t error_code, str reason) except -1:
    """A stream error (RFC 9113 §5.4.2): the stream ends, the others go on."""
    cdef int64_t stream_id = engine.streams[index].stream_id
    write_number(engine, FRAME_RST_STREAM, stream_id, error_code)
    remember_reset(engine, stream_id, RESET_SILENT)
    return finish(engine, index, error_code, reason, False)


cdef int count_control(CompiledEngine engine) except -1:
    """Count a frame that the peer made us queue; too many of them end the connection (RFC 9113 §10.5)."""
    engine.queued_control += 1
    if engine.queued_control > engine.max_queued_control:
        end_connection(
            engine, ENHANCE_YOUR_CALM, f"over {engine.max_queued_control} control frames wait to be sent"
        )
    return 0


cdef int end_torn(CompiledEngine engine) except -1:
    """End the connection after a call that raised half way."""
    return end_connection(engine, INTERNAL_ERROR, "an earlier call failed half way")
