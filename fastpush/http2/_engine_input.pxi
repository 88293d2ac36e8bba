# Reading frames. Each function takes one whole frame; errors by the section of its type.

cdef inline bint is_idle(CompiledEngine engine, int64_t stream_id) noexcept:
    """True for a stream that we have not opened: of a number we have not reached, or of the peer's."""
    return stream_id >= engine.next_id or not stream_id & 1


cdef int protocol_error(CompiledEngine engine, str reason) except -1:
    return end_connection(engine, PROTOCOL_ERROR, reason)


cdef int frame_size_error(CompiledEngine engine, str name, Py_ssize_t size) except -1:
    return end_connection(engine, FRAME_SIZE_ERROR, f"{name} of {size} octets")


cdef int take_headers(
    CompiledEngine engine, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef Py_ssize_t skip = 0, padding = 0
    if is_idle(engine, stream_id):
        return protocol_error(engine, f"HEADERS on stream {stream_id}, which is not open")
    if flags & (FLAG_PADDED | FLAG_PRIORITY):
        skip = (1 if flags & FLAG_PADDED else 0) + (5 if flags & FLAG_PRIORITY else 0)
        if size < skip:
            return frame_size_error(engine, "HEADERS", size)
        if flags & FLAG_PADDED:
            padding = payload[0]
            if padding > size - skip:
                return protocol_error(engine, "HEADERS with more padding than payload")
    payload += skip
    size -= skip + padding
    if flags & FLAG_END_HEADERS:
        return take_block(engine, stream_id, flags, payload, size)
    engine.block.length = 0
    buffer_write(&engine.block, payload, size)
    engine.block_stream = stream_id
    engine.block_flags = flags
    engine.continuations = 0
    return 0


cdef int take_continuation(
    CompiledEngine engine, uint8_t flags, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef int64_t stream_id = engine.block_stream
    engine.continuations += 1
    if engine.continuations > engine.max_continuations:
        return end_connection(
            engine, ENHANCE_YOUR_CALM,
            f"over {engine.max_continuations} CONTINUATION frames to one header block",
        )
    if size == 0 and not flags & FLAG_END_HEADERS:
        count_empty(engine)
        if engine.is_closed:
            return 0
    buffer_write(&engine.block, payload, size)
    if not flags & FLAG_END_HEADERS:
        return 0
    engine.block_stream = 0
    return take_block(engine, stream_id, engine.block_flags, engine.block.octets, engine.block.length)


cdef int count_empty(CompiledEngine engine) except -1:
    engine.empty_frames += 1
    if engine.empty_frames > engine.max_empty_frames:
        end_connection(engine, ENHANCE_YOUR_CALM, f"over {engine.max_empty_frames} empty frames in a row")
    return 0


cdef int credit_connection(CompiledEngine engine, Py_ssize_t size) except -1:
    """Take DATA off our window for the connection, and give it back when half of it is used."""
    engine.uncredited += size
    if engine.uncredited > engine.receive_window:
        return end_connection(engine, FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
    if engine.uncredited >= engine.receive_window // 2:
        write_number(engine, FRAME_WINDOW_UPDATE, 0, <uint32_t>engine.uncredited)
        engine.uncredited = 0
    return 0


cdef int take_data(
    CompiledEngine engine, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef Py_ssize_t length = size
    cdef int32_t index
    cdef Stream *stream
    if is_idle(engine, stream_id):
        return protocol_error(engine, f"DATA on stream {stream_id}, which is not open")
    if flags & FLAG_PADDED:
        if size == 0:
            return frame_size_error(engine, "padded DATA", size)
        length = size - 1 - payload[0]
        if length < 0:
            return protocol_error(engine, "DATA with more padding than payload")
        payload += 1
    if size:
        credit_connection(engine, size)
        if engine.is_closed:
            return 0
    if length or flags & FLAG_END_STREAM:
        engine.empty_frames = 0
    else:
        count_empty(engine)
        if engine.is_closed:
            return 0
    index = find_stream(engine, stream_id)
    if index < 0:
        return take_closed(engine, stream_id, 0)
    stream = &engine.streams[index]
    if stream.status == 0:
        return reset_with_error(engine, index, PROTOCOL_ERROR, "malformed response: DATA before HEADERS")
    stream.uncredited += <int32_t>size
    if stream.uncredited > DEFAULT_WINDOW:
        return reset_with_error(engine, index, FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
    stream.received += length
    if flags & FLAG_END_STREAM and stream.kept.length == 0 and length <= engine.body_octets:
        return complete_response(engine, index, payload, length)
    if stream.kept.length < engine.body_octets:
        buffer_write(&stream.kept, payload, min(length, engine.body_octets - stream.kept.length))
    if flags & FLAG_END_STREAM:
        return complete_response(engine, index)
    if misses_content_length(stream, False):
        return miss_content_length(engine, index)
    if stream.uncredited >= DEFAULT_WINDOW // 2:
        write_number(engine, FRAME_WINDOW_UPDATE, stream_id, <uint32_t>stream.uncredited)
        stream.uncredited = 0
    return 0


cdef int take_rst_stream(
    CompiledEngine engine, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef uint32_t error_code
    cdef int32_t index
    cdef Reset *reset
    if stream_id == 0 or is_idle(engine, stream_id):
        return protocol_error(engine, f"RST_STREAM on stream {stream_id}, which is not open")
    if size != 4:
        return frame_size_error(engine, "RST_STREAM", size)
    error_code = read_uint32(payload)
    index = find_stream(engine, stream_id)
    if index < 0:
        # A server that refuses HEADERS may then refuse their DATA too (row 11).
        reset = find_reset(engine, stream_id)
        if reset is not NULL and reset.kind == RESET_REFUSED and error_code == STREAM_CLOSED:
            reset.kind = RESET_BY_PEER
            return 0
    engine.resets_seen += 1
    if engine.resets_seen > (
        engine.second_open + (engine.next_id - engine.second_next_id) // 2 + engine.resets_above_in_flight
    ):
        return end_connection(engine, ENHANCE_YOUR_CALM, "too many RST_STREAM frames in a second")
    if index < 0:
        return 0
    remember_reset(engine, stream_id, RESET_REFUSED if error_code == REFUSED_STREAM else RESET_BY_PEER)
    return finish(
        engine, index, error_code, f"the peer reset the stream: {error_name(error_code)}",
        error_code == REFUSED_STREAM,
    )


cdef int take_settings(
    CompiledEngine engine, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef const uint8_t *end = payload + size
    if stream_id:
        return protocol_error(engine, f"SETTINGS on stream {stream_id}")
    if flags & FLAG_ACK:
        if size:
            return frame_size_error(engine, "SETTINGS acknowledgement", size)
        if engine.settings_deadline != INFINITY:
            engine.settings_deadline = INFINITY
            if engine.decoder_table_octets < DEFAULT_HEADER_TABLE_OCTETS:
                engine.decoder.set_limit(<uint32_t>engine.decoder_table_octets)
                engine.memo.length = 0      # the next block must begin with a size update, RFC 7541 §4.2
        return 0
    if size % SETTING_OCTETS:
        return frame_size_error(engine, "SETTINGS", size)
    engine.settings_seen += 1
    if engine.settings_seen > engine.settings_per_second:
        return end_connection(
            engine, ENHANCE_YOUR_CALM, f"over {engine.settings_per_second} SETTINGS frames in a second"
        )
    if size // SETTING_OCTETS > engine.settings_entries:
        return end_connection(
            engine, ENHANCE_YOUR_CALM, f"over {engine.settings_entries} entries in one SETTINGS frame"
        )
    while payload < end:
        take_setting(engine, read_uint16(payload), read_uint32(payload + 2))
        if engine.is_closed:
            return 0
        payload += SETTING_OCTETS
    engine.has_settings = True
    write_frame(engine, FRAME_SETTINGS, FLAG_ACK, 0, payload, 0)
    count_control(engine)
    if engine.is_closed:
        return 0
    return send_queue(engine)


cdef int take_setting(CompiledEngine engine, uint32_t identifier, uint32_t value) except -1:
    """Apply one setting (RFC 9113 §6.5.2). What is not known here is ignored."""
    cdef int32_t index
    if identifier == SETTINGS_HEADER_TABLE_SIZE:
        engine.encoder.set_limit(<uint32_t>min(<int64_t>value, engine.encoder_table_octets))
    elif identifier == SETTINGS_ENABLE_PUSH:
        if value != 0:
            return protocol_error(engine, f"SETTINGS_ENABLE_PUSH is {value}")
    elif identifier == SETTINGS_MAX_CONCURRENT_STREAMS:
        engine.max_streams = value
    elif identifier == SETTINGS_INITIAL_WINDOW_SIZE:
        if value > MAX_WINDOW:
            return end_connection(engine, FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE is {value}")
        for index in range(engine.capacity if value > engine.initial_window else 0):
            if engine.streams[index].stream_id and engine.streams[index].granted + value > MAX_WINDOW:
                return end_connection(
                    engine, FLOW_CONTROL_ERROR,
                    f"SETTINGS_INITIAL_WINDOW_SIZE of {value} overflows the window of stream "
                    f"{engine.streams[index].stream_id}",
                )
        engine.initial_window = value
    elif identifier == SETTINGS_MAX_FRAME_SIZE:
        if not MIN_MAX_FRAME_SIZE <= value <= MAX_MAX_FRAME_SIZE:
            return protocol_error(engine, f"SETTINGS_MAX_FRAME_SIZE is {value}")
        engine.max_frame_size = value
    elif identifier == SETTINGS_MAX_HEADER_LIST_SIZE:
        engine.max_header_list = value
    return 0


cdef int take_ping(
    CompiledEngine engine, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef bytes opaque
    if stream_id:
        return protocol_error(engine, f"PING on stream {stream_id}")
    if size != 8:
        return frame_size_error(engine, "PING", size)
    if flags & FLAG_ACK:
        if engine.pings:
            opaque = PyBytes_FromStringAndSize(<const char *>payload, 8)
            if opaque in engine.pings:
                engine.events.append(PingAcknowledged(opaque))
                engine.pings.remove(opaque)
        return 0
    engine.pings_seen += 1
    if engine.pings_seen > engine.pings_per_second:
        return end_connection(
            engine, ENHANCE_YOUR_CALM, f"over {engine.pings_per_second} PING frames in a second"
        )
    write_frame(engine, FRAME_PING, FLAG_ACK, 0, payload, 8)
    return count_control(engine)


cdef int take_goaway(
    CompiledEngine engine, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef int64_t last_stream_id
    cdef uint32_t error_code
    cdef bytes debug_data
    if stream_id:
        return protocol_error(engine, f"GOAWAY on stream {stream_id}")
    if size < GOAWAY_OCTETS:
        return frame_size_error(engine, "GOAWAY", size)
    last_stream_id = read_uint31(payload)
    error_code = read_uint32(payload + 4)
    if 0 <= engine.goaway_last < last_stream_id:
        return protocol_error(
            engine, f"GOAWAY raised its last stream id from {engine.goaway_last} to {last_stream_id}"
        )
    debug_data = PyBytes_FromStringAndSize(
        <const char *>payload + GOAWAY_OCTETS, min(size - GOAWAY_OCTETS, engine.goaway_debug_octets)
    )
    engine.goaway_last = last_stream_id
    finish_above(engine, last_stream_id, error_code, f"the peer went away: {error_name(error_code)}")
    engine.events.append(GoawayReceived(last_stream_id, error_object(error_code), debug_data))
    return 0


cdef int take_window_update(
    CompiledEngine engine, int64_t stream_id, const uint8_t *payload, Py_ssize_t size
) except -1:
    cdef int64_t increment
    cdef bint used_up
    cdef int32_t index
    cdef Stream *stream
    if size != 4:
        return frame_size_error(engine, "WINDOW_UPDATE", size)
    increment = read_uint31(payload)
    if stream_id == 0:
        if increment == 0:
            return protocol_error(engine, "WINDOW_UPDATE of 0 for the connection")
        if engine.window + increment > MAX_WINDOW:
            return end_connection(engine, FLOW_CONTROL_ERROR, "WINDOW_UPDATE overflows its window")
        used_up = engine.window <= 0
        engine.window += increment
        # Where the window was open before, nothing waits for it.
        return send_queue(engine) if used_up else 0
    if is_idle(engine, stream_id):
        return protocol_error(engine, f"WINDOW_UPDATE on stream {stream_id}, which is not open")
    index = find_stream(engine, stream_id)
    if index < 0:
        return 0
    if increment == 0:
        return reset_with_error(engine, index, PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
    stream = &engine.streams[index]
    if engine.initial_window + stream.granted + increment > MAX_WINDOW:
        return reset_with_error(engine, index, FLOW_CONTROL_ERROR, "WINDOW_UPDATE overflows its window")
    stream.granted += increment
    if stream.body is not NULL and engine.window > 0:
        return send_body(engine, index)
    return 0


cdef int take_priority(CompiledEngine engine, int64_t stream_id, Py_ssize_t size) except -1:
    """PRIORITY says nothing to a client, but may be malformed (RFC 9113 §6.3)."""
    cdef int32_t index
    if stream_id == 0:
        return protocol_error(engine, "PRIORITY on stream 0")
    if size == 5:
        return 0
    index = find_stream(engine, stream_id)
    if index >= 0:
        return reset_with_error(engine, index, FRAME_SIZE_ERROR, f"PRIORITY of {size} octets")
    if is_idle(engine, stream_id):
        return frame_size_error(engine, "PRIORITY", size)
    return 0


cdef int take_frame(CompiledEngine engine, const uint8_t *frame, Py_ssize_t size) except -1:
    """Take one whole frame whose payload has `size` octets; `check_frame` has seen its header."""
    cdef uint8_t kind = frame[3], flags = frame[4]
    cdef int64_t stream_id = read_uint31(frame + 5)
    cdef const uint8_t *payload = frame + FRAME_HEADER_OCTETS
    if engine.block_stream:
        if kind != FRAME_CONTINUATION or stream_id != engine.block_stream:
            return protocol_error(engine, f"a frame of type {kind} inside a header block")
        return take_continuation(engine, flags, payload, size)
    if kind == FRAME_HEADERS:
        engine.empty_frames = 0
        return take_headers(engine, flags, stream_id, payload, size)
    if kind == FRAME_DATA:
        return take_data(engine, flags, stream_id, payload, size)
    engine.empty_frames = 0
    if kind == FRAME_WINDOW_UPDATE:
        return take_window_update(engine, stream_id, payload, size)
    if kind == FRAME_RST_STREAM:
        return take_rst_stream(engine, stream_id, payload, size)
    if kind == FRAME_SETTINGS:
        return take_settings(engine, flags, stream_id, payload, size)
    if kind == FRAME_PING:
        return take_ping(engine, flags, stream_id, payload, size)
    if kind == FRAME_GOAWAY:
        return take_goaway(engine, stream_id, payload, size)
    if kind == FRAME_PRIORITY:
        return take_priority(engine, stream_id, size)
    if kind == FRAME_PUSH_PROMISE:
        return protocol_error(engine, "PUSH_PROMISE, although push is off")
    if kind == FRAME_CONTINUATION:
        return protocol_error(engine, "CONTINUATION without HEADERS")
    return 0        # unknown types are ignored (RFC 9113 §5.5)


cdef int check_frame(CompiledEngine engine, const uint8_t *frame, Py_ssize_t size) except -1:
    """Refuse by the nine octets of a frame's header what must not be waited for."""
    if not engine.has_settings and (
        frame[3] != FRAME_SETTINGS or frame[4] & FLAG_ACK or read_uint31(frame + 5) != 0
    ):
        return protocol_error(engine, "peer does not speak HTTP/2")
    if size > engine.frame_octets:
        return end_connection(
            engine, FRAME_SIZE_ERROR, f"a frame of {size} octets; at most {engine.frame_octets} are taken"
        )
    return 0


cdef int take_octets(CompiledEngine engine, const uint8_t *at, Py_ssize_t length) except -1:
    """Cut octets into frames. Whole frames are read where they are; only a rest is copied."""
    cdef const uint8_t *end = at + length
    cdef Buffer *partial = &engine.partial
    cdef Py_ssize_t size, more
    if partial.length:
        if partial.length < FRAME_HEADER_OCTETS:
            more = min(FRAME_HEADER_OCTETS - partial.length, end - at)
            buffer_write(partial, at, more)
            at += more
            if partial.length < FRAME_HEADER_OCTETS:
                return 0
        size = <Py_ssize_t>read_uint24(partial.octets)
        check_frame(engine, partial.octets, size)
        if engine.is_closed:
            return 0
        more = min(FRAME_HEADER_OCTETS + size - partial.length, end - at)
        buffer_write(partial, at, more)
        at += more
        if partial.length < FRAME_HEADER_OCTETS + size:
            return 0
        take_frame(engine, partial.octets, size)
        partial.length = 0
    while not engine.is_closed and end - at >= FRAME_HEADER_OCTETS:
        size = <Py_ssize_t>read_uint24(at)
        if size > engine.frame_octets or not engine.has_settings:
            check_frame(engine, at, size)
            if engine.is_closed:
                return 0
        if end - at < FRAME_HEADER_OCTETS + size:
            break
        take_frame(engine, at, size)
        at += FRAME_HEADER_OCTETS + size
    if not engine.is_closed and at < end:
        buffer_write(partial, at, end - at)
    return 0


cdef void begin_second(CompiledEngine engine, double now) noexcept:
    """Limits by the second count in windows; each begins with the first call after the last one's end."""
    if now - engine.second >= 1.0:
        engine.second = now
        engine.pings_seen = 0
        engine.settings_seen = 0
        engine.resets_seen = 0
        engine.second_open = engine.open_count
        engine.second_next_id = engine.next_id
