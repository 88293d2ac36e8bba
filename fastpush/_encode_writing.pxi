# A payload's JSON, from its fields into the one buffer.

cdef enum:    # places in KEYS
    ALERT = 0, TITLE, SUBTITLE, BODY, LAUNCH_IMAGE, TITLE_LOC_KEY, TITLE_LOC_ARGS,
    SUBTITLE_LOC_KEY, SUBTITLE_LOC_ARGS, LOC_KEY, LOC_ARGS, ACTION_LOC_KEY, SUMMARY_ARG, SUMMARY_ARG_COUNT,
    BADGE, SOUND, NAME, VOLUME, THREAD_ID, CATEGORY, TARGET_CONTENT_ID, INTERRUPTION_LEVEL,
    RELEVANCE_SCORE, FILTER_CRITERIA, URL_ARGS,
    KEY_COUNT

cdef tuple KEY_NAMES = (
    "alert", "title", "subtitle", "body", "launch-image", "title-loc-key", "title-loc-args",
    "subtitle-loc-key", "subtitle-loc-args", "loc-key", "loc-args", "action-loc-key", "summary-arg",
    "summary-arg-count", "badge", "sound", "name", "volume", "thread-id", "category", "target-content-id",
    "interruption-level", "relevance-score", "filter-criteria", "url-args",
)

cdef Key[KEY_COUNT] KEYS


cdef int fill_keys() except -1:
    cdef int place
    cdef bytes member
    if len(KEY_NAMES) != KEY_COUNT:
        raise AssertionError("a key has no place in KEYS")
    for place in range(KEY_COUNT):
        member = b'"' + KEY_NAMES[place].encode() + b'":'
        memcpy(KEYS[place].octets, <const char *>member, <size_t>min(len(member), 32))
        KEYS[place].length = len(member)
    return 0


fill_keys()


cdef bytes unusual_number(double value):
    """The shortest decimal that reads back the same, as orjson finds it; None for -1 and where `hundredths` has it."""
    return None if value == -1.0 or hundredths(value) != -1 else dumps(value)


cdef Buffer scratch         # one for all: nothing that writes into it runs Python code or lets go of the GIL
buffer_init(&scratch)


cpdef bytes encode_data(object value, str field="data"):
    """A dict of the caller's as one JSON object, as orjson writes it.

    Raises:
      InvalidNotification: naming the field: not a dict, a key that is no str, a value that JSON cannot
        express (NaN and the infinities among them), an int of over 64 bits.
    """
    cdef bytes octets
    if not isinstance(value, dict):
        raise invalid(field, f"must be a dict; this is {type(value).__name__}")
    try:
        octets = dumps(value)
    except TypeError as error:
        raise invalid(field, f"cannot be written as JSON: {error}") from error
    # orjson writes null for NaN and the infinities: without one there is nothing to look for.
    if memmem(PyBytes_AS_STRING(octets), <size_t>PyBytes_GET_SIZE(octets), b"null", 4) is not NULL:
        refuse_nan(field, value)
    return octets


cdef inline bytes taken():
    """What is in the buffer."""
    cdef bytes octets = PyBytes_FromStringAndSize(<const char *>scratch.octets, scratch.length)
    if scratch.capacity > KEPT_OCTETS:
        buffer_free(&scratch)
    return octets


cdef inline uint8_t *put_alert(Buffer *out, uint8_t *at, Alert alert) except NULL:
    at = put_literal(at, b'"alert":{')
    at = put_string(out, at, &KEYS[TITLE], alert.title)
    at = put_string(out, at, &KEYS[SUBTITLE], alert.subtitle)
    at = put_string(out, at, &KEYS[BODY], alert.body)
    if alert.rare is not None:
        at = put_rare(out, at, alert.rare)
    return put_close(at, c'}')


cdef uint8_t *put_rare(Buffer *out, uint8_t *at, dict rare) except NULL:
    at = put_string(out, at, &KEYS[LAUNCH_IMAGE], rare.get("launch_image"))
    at = put_string(out, at, &KEYS[TITLE_LOC_KEY], rare.get("title_loc_key"))
    at = put_strings(out, at, &KEYS[TITLE_LOC_ARGS], rare.get("title_loc_args"))
    at = put_string(out, at, &KEYS[SUBTITLE_LOC_KEY], rare.get("subtitle_loc_key"))
    at = put_strings(out, at, &KEYS[SUBTITLE_LOC_ARGS], rare.get("subtitle_loc_args"))
    at = put_string(out, at, &KEYS[LOC_KEY], rare.get("loc_key"))
    at = put_strings(out, at, &KEYS[LOC_ARGS], rare.get("loc_args"))
    at = put_string(out, at, &KEYS[ACTION_LOC_KEY], rare.get("action_loc_key"))
    at = put_string(out, at, &KEYS[SUMMARY_ARG], rare.get("summary_arg"))
    return put_number(at, &KEYS[SUMMARY_ARG_COUNT], rare.get("summary_arg_count", -1))


cdef inline uint8_t *put_share(Buffer *out, uint8_t *at, const Key *key, double share, bytes unusual) except NULL:
    """Write a number from 0 to 1, of which `unusual` is the JSON unless it has two decimals; nothing for -1."""
    if unusual is not None:
        return put_octets(out, at, key, unusual)
    if share != -1.0:
        return put_hundredths(at, key, hundredths(share))
    return at


cdef uint8_t *put_sound(Buffer *out, uint8_t *at, Sound sound, bytes volume) except NULL:
    at = put_literal(at, b'"sound":{')
    if sound.critical:
        at = put_literal(at, b'"critical":1,')
    at = put_string(out, at, &KEYS[NAME], sound.name)
    at = put_share(out, at, &KEYS[VOLUME], -1.0 if sound.volume is None else sound.volume, volume)
    return put_close(at, c'}')


cdef int write_aps(Buffer *out, Payload payload, bytes relevance, bytes volume) except -1:
    """Write the beginning of the JSON, up to and with the comma behind the `aps` dictionary."""
    cdef uint8_t *at = more_room(out)
    at = put_literal(at, b'{"aps":{')
    if type(payload.alert) is Alert:
        at = put_alert(out, at, <Alert>payload.alert)
    else:
        at = put_string(out, at, &KEYS[ALERT], <str>payload.alert)
    at = put_number(at, &KEYS[BADGE], payload.badge_number)
    if type(payload.sound) is Sound:
        at = put_sound(out, at, <Sound>payload.sound, volume)
    else:
        at = put_string(out, at, &KEYS[SOUND], <str>payload.sound)
    at = put_string(out, at, &KEYS[THREAD_ID], payload.thread_id)
    at = put_string(out, at, &KEYS[CATEGORY], payload.category)
    if payload.content_available:
        at = put_literal(at, b'"content-available":1,')
    if payload.mutable_content:
        at = put_literal(at, b'"mutable-content":1,')
    at = put_string(out, at, &KEYS[TARGET_CONTENT_ID], payload.target_content_id)
    at = put_string(out, at, &KEYS[INTERRUPTION_LEVEL], payload.interruption_level)
    at = put_share(out, at, &KEYS[RELEVANCE_SCORE], payload.relevance, relevance)
    if payload.rare is not None:
        at = put_string(out, at, &KEYS[FILTER_CRITERIA], payload.rare.get("filter_criteria"))
    if payload.content_changed:
        at = put_literal(at, b'"content-changed":true,')
    if payload.rare is not None:
        at = put_strings(out, at, &KEYS[URL_ARGS], payload.rare.get("url_args"))
    at = put_close(at, c'}')
    out.length = at - out.octets
    return 0


cdef int encode_payload(Payload payload, object data) except -1:
    """Write the JSON of a payload that is made but for that, with its custom keys.

    Plain custom keys (see _json.pxd) go straight into the buffer; for any others orjson is asked, before the
    buffer is in use. That is worth its code: an OpManager alarm with eight custom keys, its objects made, took
    0.81 of the instructions of orjson with the building of the dict, now 0.62 (`python -m benchmarks instructions`).
    """
    cdef bytes relevance = unusual_number(payload.relevance), volume = None, members = None
    cdef Py_ssize_t start
    if type(payload.sound) is Sound and (<Sound>payload.sound).volume is not None:
        volume = unusual_number((<Sound>payload.sound).volume)
    scratch.length = 0
    write_aps(&scratch, payload, relevance, volume)
    start = scratch.length
    if data is not None:
        if type(data) is not dict or not write_members(&scratch, <PyObject *>data, 1):
            members = encode_data(data)     # may run the caller's code, which may make payloads: begin again
            if "aps" in data:
                raise invalid("data", "must not hold the key 'aps', which the other arguments make")
            scratch.length = 0
            write_aps(&scratch, payload, relevance, volume)
            if PyBytes_GET_SIZE(members) > 2:
                # Without its own braces: the opening one is written, the closing one comes from `close`.
                write_octets(&scratch, PyBytes_AS_STRING(members) + 1, PyBytes_GET_SIZE(members) - 2)
    close(&scratch, c'}')
    scratch.length -= 1             # no comma after the last
    if data is not None:
        payload.data_at = min(start, scratch.length - 1)
    payload.encoded = taken()
    return 0


cdef Py_ssize_t text_octets(str value) except -1:
    """How many octets a text takes in JSON, without its quotes."""
    scratch.length = 0
    write_characters(&scratch, value)
    return scratch.length
