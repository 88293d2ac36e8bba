# Reading frames. What a client sends never raises; see `fail`.

cdef Py_ssize_t read_frames(
    ServerConnection connection, const uint8_t *octets, Py_ssize_t length, double now
) except -1:
    """Act on whole frames and tell how many octets they took."""
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t size
    cdef const char *preface
    if 0 <= connection.preface < 24:
        preface = PyBytes_AS_STRING(PREFACE)
        size = min(24 - connection.preface, length)
        if memcmp(octets, preface + connection.preface, <size_t>size) != 0:
            fail(connection, PROTOCOL_ERROR, "the client does not speak HTTP/2")
            return length
        connection.preface += <int>size
        at = size
        if connection.preface < 24:
            return at
    while length - at >= FRAME_HEADER_OCTETS:
        size = <Py_ssize_t>(read_32(octets + at) >> 8)
        if size > FRAME_OCTETS:
            fail(connection, FRAME_SIZE_ERROR, "a frame is over SETTINGS_MAX_FRAME_SIZE")
            return length
        if length - at < FRAME_HEADER_OCTETS + size:
            break
        read_frame(
            connection, octets[at + 3], octets[at + 4], <int64_t>(read_32(octets + at + 5) & 0x7FFFFFFF),
            octets + at + FRAME_HEADER_OCTETS, size, now,
        )
        if connection.closing:
            return length
        at += FRAME_HEADER_OCTETS + size
    return at


cdef int read_frame(
    ServerConnection connection, uint8_t kind, uint8_t flags, int64_t stream_id, const uint8_t *payload,
    Py_ssize_t length, double now
) except -1:
    if connection.block_stream and (kind != CONTINUATION or stream_id != connection.block_stream):
        return fail(connection, PROTOCOL_ERROR, "a header block is interrupted")
    if connection.preface >= 0:
        if kind != SETTINGS or flags & ACK:
            return fail(connection, PROTOCOL_ERROR, "the first frame is not SETTINGS")
        connection.preface = -1
    if kind == DATA:
        return read_data(connection, flags, stream_id, payload, length, now)
    if kind == HEADERS:
        return read_headers(connection, flags, stream_id, payload, length, now)
    if kind == CONTINUATION:
        return read_continuation(connection, flags, payload, length, now)
    if kind == WINDOW_UPDATE:
        return read_window_update(connection, stream_id, payload, length)
    if kind == PING:
        return read_ping(connection, flags, stream_id, payload, length)
    if kind == SETTINGS:
        return read_settings(connection, flags, stream_id, payload, length)
    if kind == RST_STREAM:
        return read_rst_stream(connection, stream_id, length)
    if kind == GOAWAY:
        if stream_id:
            return fail(connection, PROTOCOL_ERROR, "GOAWAY on a stream")
        if length < 8:
            return fail(connection, FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 octets")
        connection.client_goaway = read_32(payload + 4)
        return 0
    if kind == PRIORITY:
        if not stream_id:
            return fail(connection, PROTOCOL_ERROR, "PRIORITY on stream 0")
        if length != 5:
            return fail(connection, FRAME_SIZE_ERROR, "PRIORITY is not of 5 octets")
        return 0
    if kind == PUSH_PROMISE:
        return fail(connection, PROTOCOL_ERROR, "a client must not push")
    return 0        # unknown types are ignored (§4.1)


cdef int read_headers(
    ServerConnection connection, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length,
    double now
) except -1:
    cdef Py_ssize_t padding = 0
    if not stream_id & 1:
        return fail(connection, PROTOCOL_ERROR, "HEADERS on a stream that is not the client's")
    if flags & PADDED:
        if length < 1:
            return fail(connection, FRAME_SIZE_ERROR, "HEADERS without its pad length")
        padding = payload[0]
        payload += 1
        length -= 1
    if flags & HAS_PRIORITY:
        if length < 5:
            return fail(connection, FRAME_SIZE_ERROR, "HEADERS without its priority")
        payload += 5
        length -= 5
    if padding > length:
        return fail(connection, PROTOCOL_ERROR, "padding is longer than the frame")
    length -= padding
    if flags & END_HEADERS:
        return read_block(connection, flags, stream_id, payload, length, now)
    connection.block.length = 0
    buffer_write(&connection.block, payload, length)
    connection.block_stream = stream_id
    connection.block_flags = flags
    connection.block_frames = 0
    return 0


cdef int read_continuation(
    ServerConnection connection, uint8_t flags, const uint8_t *payload, Py_ssize_t length, double now
) except -1:
    cdef int64_t stream_id = connection.block_stream
    if not stream_id:
        return fail(connection, PROTOCOL_ERROR, "CONTINUATION without HEADERS")
    connection.block_frames += 1
    if connection.block_frames > CONTINUATIONS or connection.block.length + length > BLOCK_OCTETS:
        return fail(connection, ENHANCE_YOUR_CALM, "a header block does not end")
    buffer_write(&connection.block, payload, length)
    if flags & END_HEADERS:
        connection.block_stream = 0
        return read_block(
            connection, connection.block_flags, stream_id, connection.block.octets, connection.block.length,
            now,
        )
    return 0


cdef int read_block(
    ServerConnection connection, uint8_t flags, int64_t stream_id, const uint8_t *block, Py_ssize_t length,
    double now
) except -1:
    """A whole header block is here: it must be decoded whatever becomes of its stream (§4.3)."""
    cdef Stream stream
    cdef int decoded
    if connection.spare:
        stream = <Stream>connection.spare.pop()
    else:
        stream = Stream()
    stream.begin(stream_id, connection.peer_initial_window)
    try:
        decoded = connection.decoder.decode_into(block, length, &stream.octets, &stream.spans)
    except HpackError:
        return fail(connection, COMPRESSION_ERROR, "a header block cannot be decoded")
    stream.oversized = decoded == -1
    if stream_id <= connection.last_stream_id:
        return read_trailers(connection, flags, stream_id, stream, now)
    connection.last_stream_id = stream_id
    stream.find_fields()
    if stream_id > connection.goaway_stream_id:
        # The GOAWAY said it: surely not processed (§6.8).
        remember(connection, stream, 0, REFUSED)
        remember_reset(connection, stream_id, False)
        connection.spare.append(stream)
        return 0
    if <int64_t>len(connection.streams) + connection.unseen >= connection.enforced_limit:
        remember(connection, stream, 0, REFUSED)
        write_rst_stream(connection, stream_id, REFUSED_STREAM)
        if not flags & END_STREAM:
            remember_reset(connection, stream_id, connection.strict)
        connection.spare.append(stream)
        return 0
    connection.streams[stream_id] = stream
    if flags & END_STREAM:
        return end_request(connection, stream, NULL, 0, now)
    return 0


cdef int read_trailers(
    ServerConnection connection, uint8_t flags, int64_t stream_id, Stream trailers, double now
) except -1:
    cdef Stream stream = connection.streams.get(stream_id)
    connection.spare.append(trailers)
    if stream is None:
        if stream_id in connection.resets:
            if flags & END_STREAM:
                del connection.resets[stream_id]
            return 0
        return fail(connection, STREAM_CLOSED, "HEADERS on a closed stream")
    if stream.ended or not flags & END_STREAM:
        return reset_malformed(connection, stream)
    return end_request(connection, stream, NULL, 0, now)


cdef int read_data(
    ServerConnection connection, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length,
    double now
) except -1:
    cdef Stream stream
    cdef Py_ssize_t whole = length
    cdef Py_ssize_t padding = 0
    if not stream_id or stream_id > connection.last_stream_id:
        return fail(connection, PROTOCOL_ERROR, "DATA on an idle stream")
    if whole > connection.outstanding:
        return fail(connection, FLOW_CONTROL_ERROR, "DATA is over the connection's window")
    connection.outstanding -= whole
    connection.unreturned += whole
    if flags & PADDED:
        if length < 1:
            return fail(connection, FRAME_SIZE_ERROR, "DATA without its pad length")
        padding = payload[0]
        payload += 1
        length -= 1
        if padding > length:
            return fail(connection, PROTOCOL_ERROR, "padding is longer than the frame")
        length -= padding
    stream = connection.streams.get(stream_id)
    if stream is None or stream.ended:
        return read_stray_data(connection, flags, stream_id, stream)
    stream.received += whole
    if stream.received > WINDOW_OCTETS:
        write_rst_stream(connection, stream_id, FLOW_CONTROL_ERROR)
        drop(connection, stream, MALFORMED)
        return 0
    if flags & END_STREAM:
        if stream.body.length == 0:
            return end_request(connection, stream, payload, length, now)
        buffer_write(&stream.body, payload, length)
        return end_request(connection, stream, NULL, 0, now)
    if stream.body.length + length > BODY_OCTETS:
        # Nothing gives this stream's window back, so it is answered now (§8.1).
        buffer_write(&stream.body, payload, length)
        remember_reset(connection, stream_id, False)
        end_request(connection, stream, NULL, 0, now)
        if stream_id not in connection.streams:
            write_rst_stream(connection, stream_id, NO_ERROR)
        return 0
    buffer_write(&stream.body, payload, length)
    return 0


cdef int read_stray_data(
    ServerConnection connection, uint8_t flags, int64_t stream_id, Stream stream
) except -1:
    """DATA for a stream that is answered, reset, or has ended already."""
    cdef object tell = connection.resets.get(stream_id)
    if stream is not None and stream_id not in connection.resets:
        write_rst_stream(connection, stream_id, STREAM_CLOSED)
        drop(connection, stream, MALFORMED)
        return 0
    if tell:
        # APNs resets such a stream twice: REFUSED_STREAM, then STREAM_CLOSED (pushy issue 476).
        write_rst_stream(connection, stream_id, STREAM_CLOSED)
        connection.resets[stream_id] = False
    if flags & END_STREAM:
        connection.resets.pop(stream_id, None)
    return 0


cdef int read_window_update(
    ServerConnection connection, int64_t stream_id, const uint8_t *payload, Py_ssize_t length
) except -1:
    cdef int64_t increment
    cdef Stream stream
    if length != 4:
        return fail(connection, FRAME_SIZE_ERROR, "WINDOW_UPDATE is not of 4 octets")
    increment = <int64_t>(read_32(payload) & 0x7FFFFFFF)
    if stream_id == 0:
        if increment == 0:
            return fail(connection, PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if connection.send_window + increment > LARGEST_WINDOW:
            return fail(connection, FLOW_CONTROL_ERROR, "the connection's window is over 2**31 - 1")
        connection.send_window += increment
    else:
        if stream_id > connection.last_stream_id:
            return fail(connection, PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        stream = connection.streams.get(stream_id)
        if stream is None:
            return 0
        if increment == 0 or stream.window + increment > LARGEST_WINDOW:
            write_rst_stream(
                connection, stream_id,
                <uint32_t>PROTOCOL_ERROR if increment == 0 else <uint32_t>FLOW_CONTROL_ERROR,
            )
            drop(connection, stream, MALFORMED)
            return 0
        stream.window += increment
    if connection.queues_blocked:
        send_blocked(connection)
    return 0


cdef int read_ping(
    ServerConnection connection, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length
) except -1:
    if stream_id:
        return fail(connection, PROTOCOL_ERROR, "PING on a stream")
    if length != 8:
        return fail(connection, FRAME_SIZE_ERROR, "PING is not of 8 octets")
    if flags & ACK:
        return 0
    connection.pings += 1
    if connection.answers_pings and count_control_frame(connection):
        write_frame(connection, PING, ACK, 0, payload, 8)
    return 0


cdef int read_settings(
    ServerConnection connection, uint8_t flags, int64_t stream_id, const uint8_t *payload, Py_ssize_t length
) except -1:
    cdef Py_ssize_t at
    cdef int64_t value, difference
    cdef Stream stream
    cdef int kind
    if stream_id:
        return fail(connection, PROTOCOL_ERROR, "SETTINGS on a stream")
    if length % 6 or (flags & ACK and length):
        return fail(connection, FRAME_SIZE_ERROR, "SETTINGS has a wrong length")
    if flags & ACK:
        if connection.limits:
            # The client may still act on any SETTINGS that it has not acknowledged (§6.5.3).
            limit = connection.limits.popleft()
            connection.enforced_limit = (
                connection.stream_limit if connection.strict else max(limit, *connection.limits, 0)
            )
        return 0
    for at in range(0, length, 6):
        kind = payload[at] << 8 | payload[at + 1]
        value = <int64_t>read_32(payload + at + 2)
        if kind == HEADER_TABLE_SIZE:
            connection.encoder.resize(min(value, <int64_t>4096))
            connection.apns_id_indexed = False
        elif kind == ENABLE_PUSH:
            if value > 1:
                return fail(connection, PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        elif kind == INITIAL_WINDOW_SIZE:
            if value > LARGEST_WINDOW:
                return fail(connection, FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is over 2**31 - 1")
            difference = value - connection.peer_initial_window
            connection.peer_initial_window = value
            for stream in connection.streams.values():
                if stream.window + difference > LARGEST_WINDOW:
                    return fail(connection, FLOW_CONTROL_ERROR, "a stream's window is over 2**31 - 1")
                stream.window += difference
        elif kind == MAX_FRAME_SIZE:
            if not 16_384 <= value <= 16_777_215:
                return fail(connection, PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
            connection.peer_frame_octets = value
    if connection.queues_blocked:
        send_blocked(connection)
    if connection.acknowledges_settings and count_control_frame(connection):
        write_frame(connection, SETTINGS, ACK, 0, NULL, 0)
    return 0


cdef int read_rst_stream(ServerConnection connection, int64_t stream_id, Py_ssize_t length) except -1:
    cdef Stream stream
    if length != 4:
        return fail(connection, FRAME_SIZE_ERROR, "RST_STREAM is not of 4 octets")
    if not stream_id or stream_id > connection.last_stream_id:
        return fail(connection, PROTOCOL_ERROR, "RST_STREAM on an idle stream")
    connection.resets_received += 1
    connection.resets.pop(stream_id, None)
    stream = connection.streams.get(stream_id)
    if stream is not None:
        drop(connection, stream, CANCELLED)
    return 0


cdef bint count_control_frame(ServerConnection connection) except -1:
    connection.control_frames += 1
    if connection.control_frames > QUEUED_CONTROL_FRAMES:
        fail(connection, ENHANCE_YOUR_CALM, "too many PING or SETTINGS frames")
        return False
    return True
