# What becomes of a request, here in the fast lane or by the host.

cdef int end_request(
    ServerConnection connection, Stream stream, const uint8_t *body, Py_ssize_t length, double now
) except -1:
    """END_STREAM came, with the last octets of the body. Decide whether it waits or is finished now."""
    cdef double delay = connection.latency
    cdef object faults
    stream.ended = True
    connection.requests += 1
    connection.shared.requests += 1
    stream.number = connection.requests
    if (
        connection.requests >= connection.ask_from
        or connection.shared.requests >= connection.shared.ask_from
        or (
            connection.shared.scripted
            and stream.device_token.octets is not NULL
            and take(stream.device_token).lower() in connection.shared.scripted
        )
    ):
        delay, faults = connection.host.consult(connection, stream.number, take(stream.device_token))
        stream.faults = faults
    if delay > 0.0:
        if body is not NULL:
            buffer_write(&stream.body, body, length)
        connection.order += 1
        heapq.heappush(connection.delayed, (now + delay, connection.order, stream.id))
        return 0
    if body is NULL:
        return finish(connection, stream, stream.body.octets, stream.body.length)
    return finish(connection, stream, body, length)


cdef int finish(ServerConnection connection, Stream stream, const uint8_t *body, Py_ssize_t length) except -1:
    cdef object good
    cdef Memo memo
    if stream.id > connection.judged_stream_id:
        connection.judged_stream_id = stream.id
    if stream.faults is None and stream.plain and is_good(connection, stream, body, length):
        accept(connection, stream)
        return 0
    if stream.oversized:
        connection.answer(stream.id, 431, (), b"", REJECTED)
        return 0
    good = connection.host.handle(
        connection, stream.id, stream.list_fields(),
        PyBytes_FromStringAndSize(<const char *>body, length) if length else b"", stream.faults,
    )
    if good is not None and stream.plain:
        memo = Memo()
        memo.good_until, memo.payload_limit = good
        memo.authorization = take(stream.authorization)
        memo.topic = take(stream.topic)
        memo.push_type = take(stream.push_type)
        memo.priority = take(stream.priority)
        if len(connection.memos) >= MEMOS:
            connection.memos.pop()
        connection.memos.insert(0, memo)
    return 0


cdef bint is_good(
    ServerConnection connection, Stream stream, const uint8_t *body, Py_ssize_t length
) noexcept:
    """Whether the host would surely accept it: all it may vary in is plainly good."""
    cdef Py_ssize_t i
    cdef Memo memo
    cdef Memo found = None
    if connection.generation != connection.shared.generation:
        connection.generation = connection.shared.generation
        connection.memos = []
    for i in range(len(connection.memos)):
        memo = <Memo>(<list>connection.memos)[i]
        if (
            same(memo.authorization, stream.authorization) and same(memo.topic, stream.topic)
            and same(memo.push_type, stream.push_type) and same(memo.priority, stream.priority)
        ):
            found = memo
            break
    if found is None or connection.shared.wall > found.good_until:
        return False
    if not 2 <= length <= found.payload_limit or body[0] != c'{' or body[length - 1] != c'}':
        return False
    if not equal(stream.method.octets, stream.method.length, b"POST", 4):
        return False
    if not equal(stream.scheme.octets, stream.scheme.length, b"https", 5):
        return False
    if stream.device_token.length < 2 or stream.device_token.length & 1:
        return False
    for i in range(stream.device_token.length):
        if not is_hex(stream.device_token.octets[i]):
            return False
    if stream.apns_id.octets is not NULL and not is_uuid(stream.apns_id.octets, stream.apns_id.length):
        return False
    if stream.expiration.octets is not NULL and read_digits(
        stream.expiration.octets, stream.expiration.length
    ) < 0:
        return False
    if stream.collapse_id.octets is not NULL and (
        not 0 < stream.collapse_id.length <= 64
        or not is_clean(stream.collapse_id.octets, stream.collapse_id.length)
    ):
        return False
    return stream.content_length.octets is NULL or read_digits(
        stream.content_length.octets, stream.content_length.length
    ) == length


cdef int accept(ServerConnection connection, Stream stream) except -1:
    """Answer 200 in the fast lane."""
    cdef uint8_t made[36]
    if stream.apns_id.octets is NULL:
        connection.shared.draw_uuid(made)
        stream.apns_id.octets = made
        stream.apns_id.length = 36
    remember(connection, stream, 200, ACCEPTED)
    write_headers(connection, stream.id, 200, stream.apns_id, (), True, connection.shared.development)
    release(connection, stream)
    return 0


cdef int remember(ServerConnection connection, Stream stream, int status, int fate) except -1:
    """Write the log."""
    cdef int64_t expires_at = -1
    if stream.expiration.octets is not NULL:
        expires_at = read_digits(stream.expiration.octets, stream.expiration.length)
    return connection.shared.log.add(
        connection.shared.wall, connection.number, stream.id, stream.apns_id, stream.device_token,
        expires_at, status, fate,
    )


cdef void release(ServerConnection connection, Stream stream) except *:
    """The stream is over for us; the client counts it until it has our octets."""
    connection.unseen += 1
    del connection.streams[stream.id]
    stream.faults = stream.unsent = None
    connection.spare.append(stream)


cdef int drop(ServerConnection connection, Stream stream, int fate) except -1:
    """End a stream without an answer."""
    if stream.unsent is None:
        remember(connection, stream, 0, fate)
    if not stream.ended:
        remember_reset(connection, stream.id, False)
    del connection.streams[stream.id]
    stream.faults = stream.unsent = None
    connection.spare.append(stream)
    return 0


cdef int reset_malformed(ServerConnection connection, Stream stream) except -1:
    write_rst_stream(connection, stream.id, PROTOCOL_ERROR)
    return drop(connection, stream, MALFORMED)


cdef int remember_reset(ServerConnection connection, int64_t stream_id, bint tell) except -1:
    connection.resets[stream_id] = tell
    if len(connection.resets) > RESETS_REMEMBERED:
        del connection.resets[next(iter(connection.resets))]
    return 0
