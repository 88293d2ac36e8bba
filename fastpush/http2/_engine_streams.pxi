# The open streams: their table, those whose DATA waits, the one end of each, and those that were reset.

cdef enum:                      # how a stream that was reset ended
    RESET_GIVEN_UP = 1          # by reset_stream: a response may still come, and is counted
    RESET_SILENT = 2            # whatever comes is ignored
    RESET_BY_PEER = 3           # nothing should come: the first frame is answered
    RESET_REFUSED = 4           # the same, by REFUSED_STREAM: one STREAM_CLOSED may follow


cdef int compare_ids(const void *one, const void *other) noexcept nogil:
    cdef int32_t a = (<const int32_t *>one)[0], b = (<const int32_t *>other)[0]
    return (a > b) - (a < b)


cdef inline int32_t find_stream(CompiledEngine engine, int64_t stream_id) noexcept:
    """The record's index, -1 when the stream is not open."""
    cdef int32_t index = engine.buckets[(stream_id >> 1) & engine.bucket_mask]
    while index >= 0 and engine.streams[index].stream_id != stream_id:
        index = engine.streams[index].next
    return index


cdef int grow_streams(CompiledEngine engine) except -1:
    """Double the records. Raises MemoryError and changes nothing that matters."""
    cdef int32_t capacity = <int32_t>(2 * engine.capacity if engine.capacity else FIRST_CAPACITY)
    cdef int32_t index, bucket, mask = 2 * capacity - 1
    cdef int32_t *buckets
    cdef Stream *streams
    engine.tags.extend([None] * (capacity - len(engine.tags)))
    streams = <Stream *>PyMem_Realloc(engine.streams, <size_t>capacity * sizeof(Stream))
    if streams is NULL:
        raise MemoryError()
    engine.streams = streams
    buckets = <int32_t *>PyMem_Malloc(<size_t>(mask + 1) * sizeof(int32_t))
    if buckets is NULL:
        raise MemoryError()
    # The new records are free ones; those in use are chained anew.
    memset(&streams[engine.capacity], 0, <size_t>(capacity - engine.capacity) * sizeof(Stream))
    for index in range(capacity - 1, engine.capacity - 1, -1):
        streams[index].next = engine.free
        engine.free = index
    memset(buckets, 0xFF, <size_t>(mask + 1) * sizeof(int32_t))
    for index in range(engine.capacity):
        if streams[index].stream_id:
            bucket = (streams[index].stream_id >> 1) & mask
            streams[index].next = buckets[bucket]
            buckets[bucket] = index
    PyMem_Free(engine.buckets)
    engine.buckets = buckets
    engine.bucket_mask = mask
    engine.capacity = capacity
    return 0


cdef inline void enqueue(CompiledEngine engine, int32_t index) noexcept:
    """Put a stream whose DATA waits at the end; its id is the highest there is."""
    engine.streams[index].queue_next = -1
    engine.streams[index].queue_previous = engine.queue_tail
    if engine.queue_tail >= 0:
        engine.streams[engine.queue_tail].queue_next = index
    else:
        engine.queue_head = index
    engine.queue_tail = index


cdef void dequeue(CompiledEngine engine, int32_t index) noexcept:
    """Forget the DATA that a stream has waiting."""
    cdef Stream *stream = &engine.streams[index]
    if stream.queue_previous >= 0:
        engine.streams[stream.queue_previous].queue_next = stream.queue_next
    else:
        engine.queue_head = stream.queue_next
    if stream.queue_next >= 0:
        engine.streams[stream.queue_next].queue_previous = stream.queue_previous
    else:
        engine.queue_tail = stream.queue_previous
    engine.queued_octets -= PyBytes_GET_SIZE(<bytes>stream.body) - stream.body_sent
    Py_XDECREF(stream.body)
    stream.body = NULL


cdef int release_stream(CompiledEngine engine, int32_t index) except -1:
    """Close a stream: give back its record and all it holds."""
    cdef Stream *stream = &engine.streams[index]
    cdef int32_t *link = &engine.buckets[(stream.stream_id >> 1) & engine.bucket_mask]
    # Dropped last, when the function ends: its finalizer may call back into the engine.
    tag = engine.tags[index]
    engine.tags[index] = None
    while link[0] != index:
        link = &engine.streams[link[0]].next
    link[0] = stream.next
    if stream.body is not NULL:
        dequeue(engine, index)
    Py_XDECREF(stream.packed)
    stream.packed = NULL
    if stream.kept.octets is not NULL:
        buffer_free(&stream.kept)
    stream.stream_id = 0
    stream.next = engine.free
    engine.free = index
    engine.open_count -= 1
    return 0


cdef int finish(
    CompiledEngine engine, int32_t index, int64_t error_code, str reason, bint unprocessed,
    const uint8_t *body=NULL, Py_ssize_t body_length=0,
) except -1:
    """End a stream and tell it. A status that came is the verdict, whatever ended the stream.

    `body` is the whole of the response's body where it came in one piece, else it is what was kept.
    """
    cdef Stream *stream = &engine.streams[index]
    cdef StreamEnded event = StreamEnded.__new__(StreamEnded)   # not the collector's: no finalizer runs here
    event.stream_id = stream.stream_id
    event.status_code = stream.status
    event.processed = True if stream.status else False if unprocessed else None
    event.error_code = None if error_code < 0 else error_object(error_code)
    event.reason = reason
    event.packed = b"" if stream.packed is NULL else <bytes>stream.packed
    if body is NULL:
        body = stream.kept.octets
        body_length = stream.kept.length
    event.body = b"" if body_length == 0 else PyBytes_FromStringAndSize(<const char *>body, body_length)
    event.tag = engine.tags[index]
    engine.events.append(event)
    return release_stream(engine, index)


cdef int finish_above(
    CompiledEngine engine, int64_t last_stream_id, int64_t error_code, str reason
) except -1:
    """End all streams above an id, in their order.

    Those above the peer's GOAWAY, and those that were never taken from `out`, are surely not processed.
    """
    cdef int32_t *ids
    cdef int32_t place
    cdef int32_t count = 0, index
    if engine.open_count == 0:
        return 0
    ids = <int32_t *>PyMem_Malloc(<size_t>engine.capacity * sizeof(int32_t))
    if ids is NULL:
        raise MemoryError()
    try:
        for index in range(engine.capacity):
            if engine.streams[index].stream_id > last_stream_id:
                ids[count] = engine.streams[index].stream_id
                count += 1
        qsort(ids, <size_t>count, sizeof(int32_t), compare_ids)
        for place in range(count):
            index = find_stream(engine, ids[place])
            if index >= 0:
                finish(
                    engine, index, error_code, reason,
                    ids[place] >= engine.written_below or 0 <= engine.goaway_last < ids[place],
                )
    finally:
        PyMem_Free(ids)
    return 0


cdef inline void remember_reset(CompiledEngine engine, int64_t stream_id, int kind) noexcept:
    cdef Reset *reset = &engine.resets[(stream_id >> 1) & (RECENT_RESETS - 1)]
    reset.stream_id = <int32_t>stream_id
    reset.kind = <uint8_t>kind


cdef inline Reset *find_reset(CompiledEngine engine, int64_t stream_id) noexcept:
    cdef Reset *reset = &engine.resets[(stream_id >> 1) & (RECENT_RESETS - 1)]
    return reset if reset.stream_id == stream_id else NULL
