# cython: language_level=3
"""The content of a notification, and its JSON.

`Alert`, `Sound` and `Payload` are checked when made and never change. A payload is written once, as
UTF-8 JSON without blanks (RFC 8259), straight from its fields: the octets are those of `orjson.dumps`
for the equal dict. The keys and their order are those of Apple, "Generating a remote notification".

What a field holds after its check is an exact `str`, `int` or `float`, a tuple of such `str`, or one of
these classes. So no reference cycle can pass through them (they are `no_gc`), and no Python code runs
while JSON is written into the one shared buffer. Text never holds a lone surrogate.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from fastpush._buffer cimport Buffer, buffer_free, buffer_init, buffer_reserve

import dataclasses
import enum
import math

import orjson

from fastpush.errors import InvalidNotification

cdef extern from "Python.h":
    enum: PyUnicode_1BYTE_KIND
    enum: PyUnicode_2BYTE_KIND
    int PyUnicode_READY(object text) except -1
    unsigned int PyUnicode_IS_ASCII(object text) noexcept
    int PyUnicode_KIND(object text) noexcept
    void *PyUnicode_DATA(object text) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept
    bint PyUnicode_CheckExact(object value) noexcept
    bint PyLong_CheckExact(object value) noexcept
    bint PyFloat_CheckExact(object value) noexcept
    str PyUnicode_FromObject(object text)
    bytes PyBytes_FromStringAndSize(const char *octets, Py_ssize_t length)
    char *PyBytes_AS_STRING(object octets) noexcept
    Py_ssize_t PyBytes_GET_SIZE(object octets) noexcept


cdef object dumps = orjson.dumps
cdef object loads = orjson.loads

# A badge is an NSInteger on the device.
cdef object MAX_BADGE = 2**63 - 1

# Characters of a text written under one reservation; bounds the buffer at 6 octets for each.
cdef enum:
    CHUNK = 2048
    KEPT_OCTETS = 65536         # a larger buffer is given back after use

cdef frozenset INTERRUPTION_LEVELS = frozenset({"passive", "active", "time-sensitive", "critical"})

cdef const char *HEX_DIGITS = "0123456789abcdef"

# RFC 8259 §7. What follows the backslash; 'u' stands for \u00XX, 0 for no escape.
cdef uint8_t[128] ESCAPES


cdef int fill_escapes() except -1:
    cdef int code
    for code in range(128):
        ESCAPES[code] = c'u' if code < 0x20 else 0
    ESCAPES[c'\b'] = c'b'
    ESCAPES[c'\t'] = c't'
    ESCAPES[c'\n'] = c'n'
    ESCAPES[c'\f'] = c'f'
    ESCAPES[c'\r'] = c'r'
    ESCAPES[c'"'] = c'"'
    ESCAPES[c'\\'] = c'\\'
    return 0


fill_escapes()


# Leaf helpers: raw pointers, no Python object, no check. The caller has reserved the room.

cdef inline bint needs_escape(uint64_t word) noexcept nogil:
    """Whether one of eight ASCII octets is a control character, a quote or a backslash (never misses one)."""
    cdef uint64_t ones = 0x0101010101010101
    cdef uint64_t quotes = word ^ (ones * 0x22)
    cdef uint64_t backslashes = word ^ (ones * 0x5C)
    return (((word - ones * 0x20) | (quotes - ones) | (backslashes - ones)) & (ones * 0x80)) != 0


cdef inline uint8_t *put_ascii(uint8_t *out, uint32_t code) noexcept nogil:
    cdef uint8_t escape = ESCAPES[code]
    if escape == 0:
        out[0] = <uint8_t>code
        return out + 1
    out[0] = c'\\'
    out[1] = escape
    if escape != c'u':
        return out + 2
    out[2] = c'0'
    out[3] = c'0'
    out[4] = <uint8_t>HEX_DIGITS[code >> 4]
    out[5] = <uint8_t>HEX_DIGITS[code & 15]
    return out + 6


cdef inline uint8_t *put_code_point(uint8_t *out, uint32_t code) noexcept nogil:
    """Write one character: escaped ASCII, or UTF-8 (RFC 3629 §3). At most 6 octets."""
    if code < 0x80:
        return put_ascii(out, code)
    if code < 0x800:
        out[0] = <uint8_t>(0xC0 | (code >> 6))
        out[1] = <uint8_t>(0x80 | (code & 0x3F))
        return out + 2
    if code < 0x10000:
        out[0] = <uint8_t>(0xE0 | (code >> 12))
        out[1] = <uint8_t>(0x80 | ((code >> 6) & 0x3F))
        out[2] = <uint8_t>(0x80 | (code & 0x3F))
        return out + 3
    out[0] = <uint8_t>(0xF0 | (code >> 18))
    out[1] = <uint8_t>(0x80 | ((code >> 12) & 0x3F))
    out[2] = <uint8_t>(0x80 | ((code >> 6) & 0x3F))
    out[3] = <uint8_t>(0x80 | (code & 0x3F))
    return out + 4


cdef inline uint8_t *put_ascii_run(uint8_t *out, const uint8_t *text, Py_ssize_t length) noexcept nogil:
    """Write ASCII octets, eight at a time while none of them needs an escape."""
    cdef uint64_t word
    cdef Py_ssize_t place = 0, end
    while place + 8 <= length:
        memcpy(&word, text + place, 8)
        if needs_escape(word):
            end = place + 8
            while place < end:
                out = put_ascii(out, text[place])
                place += 1
        else:
            memcpy(out, &word, 8)
            out += 8
            place += 8
    while place < length:
        out = put_ascii(out, text[place])
        place += 1
    return out


cdef inline void put(Buffer *out, const char *literal) noexcept nogil:
    # The length of a literal is a constant once this is inlined.
    cdef size_t length = strlen(literal)
    memcpy(out.octets + out.length, literal, length)
    out.length += <Py_ssize_t>length


cdef inline bint has_surrogate(int kind, const void *characters, Py_ssize_t length) noexcept nogil:
    cdef const uint16_t *two = <const uint16_t *>characters
    cdef const uint32_t *four = <const uint32_t *>characters
    cdef Py_ssize_t place
    cdef uint32_t found = 0
    if kind == PyUnicode_1BYTE_KIND:
        return False
    if kind == PyUnicode_2BYTE_KIND:
        for place in range(length):
            found |= <uint32_t>((two[place] >> 11) == 0x1B)
    else:
        for place in range(length):
            found |= <uint32_t>((four[place] >> 11) == 0x1B)
    return found != 0


# The checks of a field. Each returns the value as it is kept. A message names the field and what was found
# by type, number or size; never a text.

cdef object invalid(str field, str problem):
    return InvalidNotification(f"{field} {problem}", field=field)


cdef str checked_text(str field, object value):
    if not isinstance(value, str):
        raise invalid(field, f"must be a str; this is {type(value).__name__}")
    value = PyUnicode_FromObject(value)
    PyUnicode_READY(value)
    if has_surrogate(PyUnicode_KIND(value), PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value)):
        raise invalid(field, "holds a lone surrogate, which UTF-8 cannot express (RFC 3629 §3)")
    return <str>value


cdef inline str text(str field, object value):
    if value is None or PyUnicode_CheckExact(value) and PyUnicode_IS_ASCII(value) != 0:
        return <str>value
    return checked_text(field, value)


cdef tuple texts(str field, object value):
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        raise invalid(field, f"must be a list or tuple of str; this is {type(value).__name__}")
    return tuple([text_of(f"{field}[{place}]", item) for place, item in enumerate(value)])


cdef str text_of(str field, object value):
    if value is None:
        raise invalid(field, "must be a str; this is NoneType")
    return text(field, value)


cdef str shown_number(object value):
    # An int of thousands of digits is neither readable nor always printable.
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an int of {value.bit_length()} bits"
    return repr(value)


cdef object whole_number(str field, object value, object limit):
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(field, f"must be an int; this is {type(value).__name__}")
    if not 0 <= value <= limit:
        raise invalid(field, f"must be from 0 to {limit}; this is {shown_number(value)}")
    return value if PyLong_CheckExact(value) else int(value)


cdef object fraction(str field, object value):
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(field, f"must be a float from 0 to 1; this is {type(value).__name__}")
    if not 0 <= value <= 1:
        raise invalid(field, f"must be from 0 to 1; this is {shown_number(value)}")
    return value if PyFloat_CheckExact(value) else float(value)


cdef inline bint flag(str field, object value) except -1:
    if value is False:
        return False
    if value is True:
        return True
    raise invalid(field, f"must be True or False; this is {type(value).__name__}")


cdef str interruption(object value):
    value = text("interruption_level", value)
    if value is not None and value not in INTERRUPTION_LEVELS:
        raise invalid(
            "interruption_level",
            f"must be 'passive', 'active', 'time-sensitive' or 'critical'; this is a str of {len(value)} characters",
        )
    return <str>value


cdef int refuse_nan(str field, object value) except -1:
    """Raise for a NaN or an infinity anywhere inside: orjson writes them as null."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise invalid(field, f"holds {value!r}, which JSON cannot express")
    elif isinstance(value, dict):
        for item in value.values():
            refuse_nan(field, item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            refuse_nan(field, item)
    elif isinstance(value, enum.Enum):
        refuse_nan(field, value.value)
    elif dataclasses.is_dataclass(value):
        for entry in dataclasses.fields(value):
            refuse_nan(field, getattr(value, entry.name))
    return 0


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
    if b"null" in octets:
        refuse_nan(field, value)
    return octets


cdef bytes float_json(object value):
    # The shortest decimal that reads back the same, as orjson finds it; the usual value without asking.
    if value is None:
        return None
    if <double>value == 1.0:
        return b"1.0"
    return dumps(value)


# The steps of writing, in the order of the octets. Each member ends with a comma; `close_object` takes the
# last one back.

cdef Buffer scratch         # one for all: nothing below runs Python code or lets go of the GIL
buffer_init(&scratch)


cdef inline int write_characters(Buffer *out, str value) except -1:
    cdef Py_ssize_t length = PyUnicode_GET_LENGTH(value), place = 0, end
    cdef const uint8_t *one = <const uint8_t *>PyUnicode_DATA(value)
    cdef const uint16_t *two = <const uint16_t *>one
    cdef const uint32_t *four = <const uint32_t *>one
    cdef int kind = PyUnicode_KIND(value)
    cdef bint ascii = PyUnicode_IS_ASCII(value) != 0
    cdef uint8_t *octets
    while place < length:
        end = min(length, place + CHUNK)
        buffer_reserve(out, 6 * (end - place))
        octets = out.octets + out.length
        if ascii:
            octets = put_ascii_run(octets, one + place, end - place)
            place = end
        elif kind == PyUnicode_1BYTE_KIND:
            while place < end:
                octets = put_code_point(octets, one[place])
                place += 1
        elif kind == PyUnicode_2BYTE_KIND:
            while place < end:
                octets = put_code_point(octets, two[place])
                place += 1
        else:
            while place < end:
                octets = put_code_point(octets, four[place])
                place += 1
        out.length = octets - out.octets
    return 0


cdef inline int write_string(Buffer *out, const char *key, str value) except -1:
    """Write `"key":"value",`; nothing for None. `key` comes with its quotes and colon."""
    if value is None:
        return 0
    buffer_reserve(out, <Py_ssize_t>strlen(key) + 1)
    put(out, key)
    put(out, b'"')
    write_characters(out, value)
    buffer_reserve(out, 2)
    put(out, b'",')
    return 0


cdef inline int write_octets(Buffer *out, const char *key, const char *octets, Py_ssize_t length) except -1:
    """Write `"key":octets,` with octets that are JSON already."""
    buffer_reserve(out, <Py_ssize_t>strlen(key) + length + 1)
    put(out, key)
    memcpy(out.octets + out.length, octets, <size_t>length)
    out.length += length
    put(out, b',')
    return 0


cdef int write_strings(Buffer *out, const char *key, tuple value) except -1:
    if value is None:
        return 0
    buffer_reserve(out, <Py_ssize_t>strlen(key) + 1)
    put(out, key)
    put(out, b'[')
    for item in value:
        write_string(out, b'', <str>item)
    close(out, c']')
    return 0


cdef int write_integer(Buffer *out, const char *key, object value) except -1:
    cdef char[20] digits            # 2**63 - 1 has 19
    cdef int place = 20
    cdef int64_t rest
    if value is None:
        return 0
    rest = value
    while True:
        place -= 1
        digits[place] = <char>(c'0' + rest % 10)
        rest //= 10
        if rest == 0:
            break
    return write_octets(out, key, digits + place, 20 - place)


cdef inline int write_literal(Buffer *out, const char *member) except -1:
    buffer_reserve(out, <Py_ssize_t>strlen(member))
    put(out, member)
    return 0


cdef inline int close(Buffer *out, uint8_t bracket) except -1:
    """End an object or array, and leave the comma that follows it."""
    buffer_reserve(out, 2)
    if out.octets[out.length - 1] == c',':
        out.length -= 1
    out.octets[out.length] = bracket
    out.octets[out.length + 1] = c','
    out.length += 2
    return 0


cdef int write_alert(Buffer *out, Alert alert) except -1:
    write_literal(out, b'"alert":{')
    write_string(out, b'"title":', alert.title)
    write_string(out, b'"subtitle":', alert.subtitle)
    write_string(out, b'"body":', alert.body)
    if alert.has_rare:
        write_string(out, b'"launch-image":', alert.launch_image)
        write_string(out, b'"title-loc-key":', alert.title_loc_key)
        write_strings(out, b'"title-loc-args":', alert.title_loc_args)
        write_string(out, b'"subtitle-loc-key":', alert.subtitle_loc_key)
        write_strings(out, b'"subtitle-loc-args":', alert.subtitle_loc_args)
        write_string(out, b'"loc-key":', alert.loc_key)
        write_strings(out, b'"loc-args":', alert.loc_args)
        write_string(out, b'"action-loc-key":', alert.action_loc_key)
        write_string(out, b'"summary-arg":', alert.summary_arg)
        write_integer(out, b'"summary-arg-count":', alert.summary_arg_count)
    return close(out, c'}')


cdef int write_sound(Buffer *out, Sound sound, bytes volume) except -1:
    write_literal(out, b'"sound":{')
    if sound.critical:
        write_literal(out, b'"critical":1,')
    write_string(out, b'"name":', sound.name)
    if volume is not None:
        write_octets(out, b'"volume":', PyBytes_AS_STRING(volume), PyBytes_GET_SIZE(volume))
    return close(out, c'}')


cdef int write_payload(Buffer *out, Payload payload, bytes relevance, bytes volume) except -1:
    write_literal(out, b'{"aps":{')
    if type(payload.alert) is Alert:
        write_alert(out, <Alert>payload.alert)
    else:
        write_string(out, b'"alert":', <str>payload.alert)
    write_integer(out, b'"badge":', payload.badge)
    if type(payload.sound) is Sound:
        write_sound(out, <Sound>payload.sound, volume)
    else:
        write_string(out, b'"sound":', <str>payload.sound)
    write_string(out, b'"thread-id":', payload.thread_id)
    write_string(out, b'"category":', payload.category)
    if payload.content_available:
        write_literal(out, b'"content-available":1,')
    if payload.mutable_content:
        write_literal(out, b'"mutable-content":1,')
    write_string(out, b'"target-content-id":', payload.target_content_id)
    write_string(out, b'"interruption-level":', payload.interruption_level)
    if relevance is not None:
        write_octets(out, b'"relevance-score":', PyBytes_AS_STRING(relevance), PyBytes_GET_SIZE(relevance))
    write_string(out, b'"filter-criteria":', payload.filter_criteria)
    if payload.content_changed:
        write_literal(out, b'"content-changed":true,')
    write_strings(out, b'"url-args":', payload.url_args)
    close(out, c'}')
    if payload.data_json is not None and PyBytes_GET_SIZE(payload.data_json) > 2:
        # Without its own braces: the opening one is written, the closing one comes from `close`.
        write_octets(out, b'', PyBytes_AS_STRING(payload.data_json) + 1, PyBytes_GET_SIZE(payload.data_json) - 2)
    close(out, c'}')
    out.length -= 1             # no comma after the last
    return 0


cdef Py_ssize_t text_octets(str value) except -1:
    """How many octets a text takes in JSON, without its quotes."""
    scratch.length = 0
    write_characters(&scratch, value)
    return scratch.length


# The values.

@cython.final
@cython.freelist(64)            # made once per push where each has its own text; a burst refills 64 slots
@cython.no_gc
cdef class Alert:
    """What the user reads: the `alert` dictionary of a notification.

    Every field is None where it is left out. The `*_loc_key` fields name a text in the app's
    Localizable.strings, the `*_loc_args` fill its `%@` in order.

    Args:
      title, subtitle, body: text to show.
      launch_image: image or storyboard to show when the user opens the app from the notification.
      title_loc_key, subtitle_loc_key, loc_key: keys of localised texts; `loc_key` is the body's.
      title_loc_args, subtitle_loc_args, loc_args: lists or tuples of str; kept as tuples.
      action_loc_key, summary_arg, summary_arg_count: of older systems, still read by them.

    Raises:
      InvalidNotification: a field of another type, or with a lone surrogate.

    Source: Apple, "Generating a remote notification", keys of the alert dictionary.
    """

    def __cinit__(
        self, *, object title=None, object subtitle=None, object body=None, object launch_image=None,
        object title_loc_key=None, object title_loc_args=None, object subtitle_loc_key=None,
        object subtitle_loc_args=None, object loc_key=None, object loc_args=None,
        object action_loc_key=None, object summary_arg=None, object summary_arg_count=None,
    ):
        self.title = text("title", title)
        self.subtitle = text("subtitle", subtitle)
        self.body = text("body", body)
        self.has_rare = (
            launch_image is not None or title_loc_key is not None or title_loc_args is not None
            or subtitle_loc_key is not None or subtitle_loc_args is not None
            or loc_key is not None or loc_args is not None or action_loc_key is not None
            or summary_arg is not None or summary_arg_count is not None
        )
        if self.has_rare:
            self.launch_image = text("launch_image", launch_image)
            self.title_loc_key = text("title_loc_key", title_loc_key)
            self.title_loc_args = texts("title_loc_args", title_loc_args)
            self.subtitle_loc_key = text("subtitle_loc_key", subtitle_loc_key)
            self.subtitle_loc_args = texts("subtitle_loc_args", subtitle_loc_args)
            self.loc_key = text("loc_key", loc_key)
            self.loc_args = texts("loc_args", loc_args)
            self.action_loc_key = text("action_loc_key", action_loc_key)
            self.summary_arg = text("summary_arg", summary_arg)
            self.summary_arg_count = whole_number("summary_arg_count", summary_arg_count, MAX_BADGE)

    def __eq__(self, other):
        if type(other) is not Alert:
            return NotImplemented
        return alert_fields(self) == alert_fields(<Alert>other)

    def __hash__(self):
        return hash(("Alert", *alert_fields(self).items()))

    def __repr__(self):
        return f"<Alert {described(alert_fields(self))}>"

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return restore, (Alert, alert_fields(self))


@cython.final
@cython.no_gc
cdef class Sound:
    """The sound dictionary, which a critical alert needs; for any other sound its name as a `str` is enough.

    Args:
      name: a file in the app's bundle or in Library/Sounds, or "default".
      critical: sound even when the device is muted; needs Apple's entitlement for critical alerts.
      volume: of a critical alert, from 0.0 (silent) to 1.0; None leaves it to the system.

    Raises:
      InvalidNotification: a field of another type, or a volume out of range.

    Source: Apple, "Generating a remote notification", keys of the sound dictionary.
    """

    def __cinit__(self, object name="default", *, object critical=False, object volume=None):
        self.name = text_of("name", name)
        self.critical = flag("critical", critical)
        self.volume = fraction("volume", volume)

    def __eq__(self, other):
        if type(other) is not Sound:
            return NotImplemented
        return sound_fields(self) == sound_fields(<Sound>other)

    def __hash__(self):
        return hash(("Sound", *sound_fields(self).items()))

    def __repr__(self):
        return f"<Sound {described(sound_fields(self))}>"

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return restore, (Sound, sound_fields(self))


@cython.final
@cython.freelist(64)            # as for Alert
@cython.no_gc
cdef class Payload:
    """The content of a notification: the `aps` dictionary and custom keys beside it.

    Frozen and shared: one payload may go out in any number of notifications, and is written as JSON once,
    when first needed. Two payloads are equal when their JSON is.

    Args:
      alert: what the user reads; a `str` is the body alone.
      badge: number on the app's icon, from 0 (removes it) to 2**63 - 1; None leaves it.
      sound: name of a sound, "default", or a `Sound` for a critical alert.
      thread_id: groups notifications.
      category: a category that the app registered; brings its buttons.
      content_available: wake the app in the background; for the push type `background`, without alert, sound and badge.
      mutable_content: run the app's notification service extension first.
      target_content_id: the window to bring forward.
      interruption_level: "passive", "active", "time-sensitive" or "critical"; the last two need entitlements.
      relevance_score: from 0.0 to 1.0; the highest leads the summary.
      filter_criteria: matched by the device's Focus filter.
      content_changed: reload the widget or control.
      url_args: list or tuple of str, for Safari website pushes.
      data: custom keys, a dict with str keys and whatever orjson writes. It is written as JSON here and
        now: changing the dict later changes nothing.

    Raises:
      InvalidNotification: a field of another type or out of its range, a lone surrogate, `data` with the
        key `aps` or with a value that JSON cannot express.

    Source: Apple, "Generating a remote notification", keys of the aps dictionary.
    """

    def __cinit__(
        self, *, object alert=None, object badge=None, object sound=None, object thread_id=None,
        object category=None, object content_available=False, object mutable_content=False,
        object target_content_id=None, object interruption_level=None, object relevance_score=None,
        object filter_criteria=None, object content_changed=False, object url_args=None, object data=None,
    ):
        if type(alert) is Alert:
            self.alert = alert
        elif alert is None or isinstance(alert, str):
            self.alert = text("alert", alert)
        else:
            raise invalid("alert", f"must be a str or an Alert; this is {type(alert).__name__}")
        if type(sound) is Sound:
            self.sound = sound
        elif sound is None or isinstance(sound, str):
            self.sound = text("sound", sound)
        else:
            raise invalid("sound", f"must be a str or a Sound; this is {type(sound).__name__}")
        if badge is not None:
            self.badge = whole_number("badge", badge, MAX_BADGE)
        self.thread_id = text("thread_id", thread_id)
        self.category = text("category", category)
        self.content_available = flag("content_available", content_available)
        self.mutable_content = flag("mutable_content", mutable_content)
        self.target_content_id = text("target_content_id", target_content_id)
        if interruption_level is not None:
            self.interruption_level = interruption(interruption_level)
        if relevance_score is not None:
            self.relevance_score = fraction("relevance_score", relevance_score)
        self.filter_criteria = text("filter_criteria", filter_criteria)
        self.content_changed = flag("content_changed", content_changed)
        if url_args is not None:
            self.url_args = texts("url_args", url_args)
        if data is not None:
            self.data_json = encode_data(data)
            if "aps" in data:
                raise invalid("data", "must not hold the key 'aps', which the other arguments make")

    @staticmethod
    def raw(json):
        """A payload from ready JSON: one object, sent byte for byte.

        Args:
          json: bytes, bytearray or memoryview with UTF-8 JSON. Its fields are not looked into, except that
            the push type `mdm` asks for a key `mdm`.

        Raises:
          InvalidNotification: no bytes, not valid JSON, or no object at the top.
        """
        cdef Payload payload
        cdef bytes octets
        if not isinstance(json, (bytes, bytearray, memoryview)):
            raise invalid("json", f"must be bytes of UTF-8; this is {type(json).__name__}")
        octets = bytes(json)
        try:
            value = loads(octets)
        except ValueError as error:
            raise invalid("json", f"of {len(octets)} bytes is not valid JSON in UTF-8") from None
        if type(value) is not dict:
            raise invalid("json", f"must be one object; this is {type(value).__name__}")
        payload = Payload.__new__(Payload)
        payload.is_raw = True
        payload.encoded = octets
        return payload

    @property
    def data(self):
        """The custom keys, as a new dict each time; None where there are none, and for raw JSON."""
        return None if self.data_json is None else loads(self.data_json)

    cdef bytes to_json(self):
        cdef bytes relevance, volume
        cdef bytes encoded = self.encoded
        if encoded is None:
            # orjson is called before the shared buffer is in use.
            relevance = float_json(self.relevance_score)
            volume = float_json((<Sound>self.sound).volume) if type(self.sound) is Sound else None
            scratch.length = 0
            write_payload(&scratch, self, relevance, volume)
            encoded = PyBytes_FromStringAndSize(<const char *>scratch.octets, scratch.length)
            if scratch.capacity > KEPT_OCTETS:
                buffer_free(&scratch)
            self.encoded = encoded
        return encoded

    def encode(self):
        """The JSON body as bytes; made at the first call, the same object at every other."""
        return self.to_json()

    def shortened(self, limit_bytes=4096):
        """This payload if its JSON fits, otherwise one whose body ends early, with an ellipsis.

        The alert's body (or the alert that is a `str`) is cut between two grapheme clusters (Unicode
        Standard Annex 29) so that the JSON, escapes counted, is as long as the limit lets it be. Nothing
        else is shortened. Where there is no room for the ellipsis the body is empty.

        Args:
          limit_bytes: 4096, or 5120 for the push type `voip` and for broadcasts.

        Raises:
          InvalidNotification: it does not fit even with an empty body, or it has no body, or it is raw JSON.
        """
        cdef Py_ssize_t size = len(self.to_json()), room, kept = 0, cluster
        cdef str body
        cdef object fields = payload_fields(self)
        if size <= limit_bytes:
            return self
        body = self.alert.body if type(self.alert) is Alert else self.alert
        if body is None:
            raise invalid(
                "payload", f"is {size} bytes and has no body to shorten; the limit is {limit_bytes}"
            )
        room = limit_bytes - (size - text_octets(body))
        if room < 0:
            raise invalid("payload", f"is {limit_bytes - room} bytes without its body; the limit is {limit_bytes}")
        if room < 3:
            body = ""
        else:
            import regex

            for match in regex.finditer(r"\X", body):
                cluster = text_octets(match[0])
                if cluster > room - 3:      # the ellipsis is 3 octets of UTF-8
                    break
                room -= cluster
                kept = match.end()
            body = body[:kept] + "…"
        if type(self.alert) is Alert:
            fields["alert"] = Alert(**{**alert_fields(<Alert>self.alert), "body": body})
        else:
            fields["alert"] = body
        return Payload(**fields)

    def __eq__(self, other):
        if type(other) is not Payload:
            return NotImplemented
        return self is other or self.to_json() == (<Payload>other).to_json()

    def __hash__(self):
        return hash(self.to_json())

    def __repr__(self):
        names = "raw" if self.is_raw else ", ".join(payload_fields(self)) or "empty"
        return f"<Payload {names}: {len(self.to_json())} bytes>"

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        if self.is_raw:
            return Payload.raw, (self.encoded,)
        return restore, (Payload, payload_fields(self))


cdef dict present(tuple names, object value):
    """The fields that are set, by name."""
    fields = {name: getattr(value, name) for name in names}
    return {name: field for name, field in fields.items() if field is not None and field is not False}


cdef dict alert_fields(Alert alert):
    return present(ALERT_FIELDS, alert)


cdef dict sound_fields(Sound sound):
    return present(SOUND_FIELDS, sound)


cdef dict payload_fields(Payload payload):
    return present(PAYLOAD_FIELDS, payload)


cdef str described(dict fields):
    """Which fields are set and how long their texts are, never the texts."""
    return ", ".join(
        [f"{name} ({len(value)} characters)" if type(value) is str else name for name, value in fields.items()]
    ) or "empty"


def restore(kind, fields):
    """Make one of the classes above from its fields: what unpickling calls."""
    return kind(**fields)


cdef tuple ALERT_FIELDS = (
    "title", "subtitle", "body", "launch_image", "title_loc_key", "title_loc_args", "subtitle_loc_key",
    "subtitle_loc_args", "loc_key", "loc_args", "action_loc_key", "summary_arg", "summary_arg_count",
)
cdef tuple SOUND_FIELDS = ("name", "critical", "volume")
cdef tuple PAYLOAD_FIELDS = (
    "alert", "badge", "sound", "thread_id", "category", "content_available", "mutable_content",
    "target_content_id", "interruption_level", "relevance_score", "filter_criteria", "content_changed",
    "url_args", "data",
)
