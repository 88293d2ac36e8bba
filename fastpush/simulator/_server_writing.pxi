# Writing frames, and the end of the connection.

cdef int finish_drain(ServerConnection connection) except -1:
    cdef Stream stream
    if connection.drains and not connection.closing:
        for stream in connection.streams.values():
            # Those that are swallowed stay for ever.
            if stream.unsent is None or len(stream.unsent):
                return 0
        connection.closing = "flush"
    return 0


cdef int fail(ServerConnection connection, uint32_t error_code, str reason) except -1:
    cdef bytes debug = reason.encode()
    cdef int64_t last = min(connection.judged_stream_id, connection.goaway_stream_id)
    if not connection.closing:
        connection.error = reason
        connection.send_goaway(last, error_code, debug)
        connection.closing = "flush"
    return 0


cdef int write_frame(
    ServerConnection connection, uint8_t kind, uint8_t flags, int64_t stream_id, const uint8_t *payload,
    Py_ssize_t length
) except -1:
    buffer_reserve(&connection.out, FRAME_HEADER_OCTETS + length)
    write_frame_header(connection.out.octets + connection.out.length, length, kind, flags, stream_id)
    connection.out.length += FRAME_HEADER_OCTETS
    if length:
        memcpy(connection.out.octets + connection.out.length, payload, <size_t>length)
        connection.out.length += length
    return 0


cdef int write_rst_stream(ServerConnection connection, int64_t stream_id, uint32_t error_code) except -1:
    cdef uint8_t payload[4]
    write_32(payload, error_code)
    return write_frame(connection, RST_STREAM, 0, stream_id, payload, 4)


cdef int write_field(
    ServerConnection connection, const char *name, Py_ssize_t name_length,
    const uint8_t *value, Py_ssize_t length, int indexing,
) except -1:
    if indexing == INDEX:
        return connection.encoder.write(
            &connection.out, <const uint8_t *>name, name_length, value, length, INDEX
        )
    return connection.encoder.write(&connection.out, <const uint8_t *>name, name_length, value, length, PLAIN)


cdef int write_headers(
    ServerConnection connection, int64_t stream_id, int status, Slice apns_id, object fields,
    bint end_stream, bint unique_id
) except -1:
    """One HEADERS frame. Constant fields are indexed; the first apns-id is, so that its name has an index."""
    cdef Py_ssize_t start = connection.out.length
    cdef uint8_t digits[3]
    cdef uint8_t made[36]
    cdef bytes name, value
    if not 100 <= status <= 999:
        raise ValueError(f"status is {status}; it may be 100 to 999")
    buffer_reserve(&connection.out, FRAME_HEADER_OCTETS)
    connection.out.length += FRAME_HEADER_OCTETS
    connection.encoder.begin(&connection.out)
    digits[0] = <uint8_t>(c'0' + status // 100)
    digits[1] = <uint8_t>(c'0' + status // 10 % 10)
    digits[2] = <uint8_t>(c'0' + status % 10)
    write_field(connection, b":status", 7, digits, 3, INDEX)
    if apns_id.octets is not NULL:
        write_field(
            connection, b"apns-id", 7, apns_id.octets, apns_id.length,
            PLAIN if connection.apns_id_indexed else INDEX,
        )
    if unique_id:
        connection.shared.draw_uuid(made)
        write_field(
            connection, b"apns-unique-id", 14, made, 36, PLAIN if connection.apns_id_indexed else INDEX
        )
    if apns_id.octets is not NULL:
        connection.apns_id_indexed = True
    for name, value in fields:
        write_field(
            connection, PyBytes_AS_STRING(name), len(name),
            <const uint8_t *>PyBytes_AS_STRING(value), len(value), INDEX,
        )
    write_frame_header(
        connection.out.octets + start, connection.out.length - start - FRAME_HEADER_OCTETS, HEADERS,
        <uint8_t>(END_HEADERS | (END_STREAM if end_stream else 0)), stream_id,
    )
    return 0


cdef int send_body(ServerConnection connection, Stream stream) except -1:
    """Write as much of an answer's body as the windows let out."""
    cdef bytes body = stream.unsent
    cdef Py_ssize_t length = len(body)
    cdef Py_ssize_t room = <Py_ssize_t>min(
        connection.send_window, stream.window, connection.peer_frame_octets
    )
    if room < length:
        if room > 0:
            write_frame(connection, DATA, 0, stream.id, <const uint8_t *>PyBytes_AS_STRING(body), room)
            connection.send_window -= room
            stream.window -= room
            stream.unsent = body[room:]
        connection.queues_blocked = True
        return 0
    write_frame(connection, DATA, END_STREAM, stream.id, <const uint8_t *>PyBytes_AS_STRING(body), length)
    connection.send_window -= length
    release(connection, stream)
    return 0


cdef int send_blocked(ServerConnection connection) except -1:
    cdef Stream stream
    connection.queues_blocked = False
    for stream in list(connection.streams.values()):
        if stream.unsent:
            send_body(connection, stream)
    return 0


cdef int give_window_back(ServerConnection connection) except -1:
    cdef uint8_t payload[4]
    if connection.returns_window and connection.unreturned >= WINDOW_RETURNED_AT and not connection.closing:
        write_32(payload, <uint32_t>connection.unreturned)
        write_frame(connection, WINDOW_UPDATE, 0, 0, payload, 4)
        connection.outstanding += connection.unreturned
        connection.unreturned = 0
    return 0
