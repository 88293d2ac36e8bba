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
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from fastpush._buffer cimport Buffer, buffer_free, buffer_init, buffer_reserve
from fastpush._vectorcall cimport PyTypeObject, call_with_tuple, newfunc, sort_arguments, vectorcallfunc

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
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    double PyFloat_AS_DOUBLE(object value) noexcept
    str PyUnicode_FromObject(object text)
    bytes PyBytes_FromStringAndSize(const char *octets, Py_ssize_t length)
    char *PyBytes_AS_STRING(object octets) noexcept
    Py_ssize_t PyBytes_GET_SIZE(object octets) noexcept


cdef extern from "string.h":
    void *memmem(const void *octets, size_t length, const void *wanted, size_t wanted_length) noexcept nogil


cdef object dumps = orjson.dumps
cdef object loads = orjson.loads

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


cdef struct Key:
    uint8_t[32] octets          # `"key":`, written as 32 octets at once; what is behind is overwritten
    Py_ssize_t length


cdef enum:    # places in KEYS
    NO_KEY = 0, ALERT, TITLE, SUBTITLE, BODY, LAUNCH_IMAGE, TITLE_LOC_KEY, TITLE_LOC_ARGS,
    SUBTITLE_LOC_KEY, SUBTITLE_LOC_ARGS, LOC_KEY, LOC_ARGS, ACTION_LOC_KEY, SUMMARY_ARG, SUMMARY_ARG_COUNT,
    BADGE, SOUND, NAME, VOLUME, THREAD_ID, CATEGORY, TARGET_CONTENT_ID, INTERRUPTION_LEVEL,
    RELEVANCE_SCORE, FILTER_CRITERIA, URL_ARGS,
    KEY_COUNT

cdef tuple KEY_NAMES = (
    "", "alert", "title", "subtitle", "body", "launch-image", "title-loc-key", "title-loc-args",
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
    for place in range(1, KEY_COUNT):
        member = b'"' + KEY_NAMES[place].encode() + b'":'
        memcpy(KEYS[place].octets, <const char *>member, <size_t>min(len(member), 32))
        KEYS[place].length = len(member)
    return 0


fill_keys()


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
    if place < length and length >= 8:
        # The last eight once more, in part: what was written of them is the same where none is escaped.
        memcpy(&word, text + length - 8, 8)
        if not needs_escape(word):
            out += length - place
            memcpy(out - 8, &word, 8)
            return out
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


cdef inline int64_t whole_number(str field, object value) except? -1:
    """An int from 0 to 2**63 - 1; -1 for None."""
    cdef int overflow = 0
    cdef long long number
    if value is None:
        return -1
    if not PyLong_CheckExact(value) and (isinstance(value, bool) or not isinstance(value, int)):
        raise invalid(field, f"must be an int; this is {type(value).__name__}")
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or number < 0:
        raise invalid(field, f"must be from 0 to 2**63 - 1; this is {shown_number(value)}")
    return number


cdef inline double fraction(str field, object value) except? -1.0:
    """A number from 0 to 1; -1 for None."""
    if value is None:
        return -1.0
    if PyFloat_CheckExact(value) and 0.0 <= PyFloat_AS_DOUBLE(value) <= 1.0:
        return PyFloat_AS_DOUBLE(value)
    return unusual_fraction(field, value)


cdef double unusual_fraction(str field, object value) except? -1.0:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(field, f"must be a float from 0 to 1; this is {type(value).__name__}")
    if not 0 <= value <= 1:
        raise invalid(field, f"must be from 0 to 1; this is {shown_number(value)}")
    return value


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
            "must be passive, active, time-sensitive or critical; "
            f"this has {len(value)} characters",
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


cdef bytes float_json(double value):
    """The shortest decimal that reads back the same, as orjson finds it; None for -1."""
    if value == -1.0:
        return None
    if value == 1.0:
        return b"1.0"       # the usual one, without asking
    return dumps(value)


# The steps of writing, in the order of the octets. Each member ends with a comma; `close` takes the
# last one back.

cdef Buffer scratch         # one for all: nothing below runs Python code or lets go of the GIL
buffer_init(&scratch)


cdef inline int write_key(Buffer *out, int key, Py_ssize_t room) except -1:
    """Write `"key":` and leave `room` octets for its value and a comma."""
    buffer_reserve(out, room + 33)
    memcpy(out.octets + out.length, KEYS[key].octets, 32)
    out.length += KEYS[key].length
    return 0


cdef int write_characters(Buffer *out, str value) except -1:
    """Write the characters of a text, CHUNK by CHUNK."""
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


cdef int write_string(Buffer *out, int key, str value) except -1:
    """Write `"key":"value",` or, with NO_KEY, `"value",`; nothing for None."""
    cdef Py_ssize_t length
    cdef uint8_t *octets
    if value is None:
        return 0
    length = PyUnicode_GET_LENGTH(value)
    if PyUnicode_IS_ASCII(value) and length <= CHUNK:
        write_key(out, key, 6 * length + 3)
        octets = out.octets + out.length
        octets[0] = c'"'
        octets = put_ascii_run(octets + 1, <const uint8_t *>PyUnicode_DATA(value), length)
        octets[0] = c'"'
        octets[1] = c','
        out.length = octets + 2 - out.octets
        return 0
    write_key(out, key, 1)
    put(out, b'"')
    write_characters(out, value)
    return write_literal(out, b'",')


cdef inline int write_octets(Buffer *out, const char *octets, Py_ssize_t length) except -1:
    """Write octets that are JSON already, and a comma."""
    buffer_reserve(out, length + 1)
    memcpy(out.octets + out.length, octets, <size_t>length)
    out.length += length
    put(out, b',')
    return 0


cdef inline int write_number(Buffer *out, int key, bytes number) except -1:
    """Write `"key":number,`; nothing for None."""
    if number is None:
        return 0
    write_key(out, key, 0)
    return write_octets(out, PyBytes_AS_STRING(number), PyBytes_GET_SIZE(number))


cdef int write_strings(Buffer *out, int key, tuple value) except -1:
    if value is None:
        return 0
    write_key(out, key, 1)
    put(out, b'[')
    for item in value:
        write_string(out, NO_KEY, <str>item)
    return close(out, c']')


@cython.cdivision(True)
cdef inline uint8_t *put_integer(uint8_t *out, int64_t number) noexcept nogil:
    """Write a decimal number; at most 20 octets."""
    cdef uint8_t[20] digits
    cdef int place = 20
    cdef uint64_t rest = <uint64_t>number
    if number < 0:
        out[0] = c'-'
        out += 1
        rest = 0 - rest
    while True:
        place -= 1
        digits[place] = <uint8_t>(c'0' + rest % 10)
        rest //= 10
        if rest == 0:
            break
    memcpy(out, digits + place, <size_t>(20 - place))
    return out + (20 - place)


cdef inline int write_integer(Buffer *out, int key, int64_t number) except -1:
    """Write `"key":number,`; nothing for -1."""
    if number == -1:
        return 0
    write_key(out, key, 21)
    out.length = put_integer(out.octets + out.length, number) - out.octets
    put(out, b',')
    return 0


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


cdef int write_alert(Buffer *out, Alert alert) except -1:
    write_literal(out, b'"alert":{')
    write_string(out, TITLE, alert.title)
    write_string(out, SUBTITLE, alert.subtitle)
    write_string(out, BODY, alert.body)
    if alert.rare is not None:
        write_string(out, LAUNCH_IMAGE, alert.rare.get("launch_image"))
        write_string(out, TITLE_LOC_KEY, alert.rare.get("title_loc_key"))
        write_strings(out, TITLE_LOC_ARGS, alert.rare.get("title_loc_args"))
        write_string(out, SUBTITLE_LOC_KEY, alert.rare.get("subtitle_loc_key"))
        write_strings(out, SUBTITLE_LOC_ARGS, alert.rare.get("subtitle_loc_args"))
        write_string(out, LOC_KEY, alert.rare.get("loc_key"))
        write_strings(out, LOC_ARGS, alert.rare.get("loc_args"))
        write_string(out, ACTION_LOC_KEY, alert.rare.get("action_loc_key"))
        write_string(out, SUMMARY_ARG, alert.rare.get("summary_arg"))
        write_integer(out, SUMMARY_ARG_COUNT, alert.rare.get("summary_arg_count", -1))
    return close(out, c'}')


cdef int write_sound(Buffer *out, Sound sound, bytes volume) except -1:
    write_literal(out, b'"sound":{')
    if sound.critical:
        write_literal(out, b'"critical":1,')
    write_string(out, NAME, sound.name)
    write_number(out, VOLUME, volume)
    return close(out, c'}')


cdef int write_payload(Buffer *out, Payload payload, bytes relevance, bytes volume) except -1:
    write_literal(out, b'{"aps":{')
    if type(payload.alert) is Alert:
        write_alert(out, <Alert>payload.alert)
    else:
        write_string(out, ALERT, <str>payload.alert)
    write_integer(out, BADGE, payload.badge_number)
    if type(payload.sound) is Sound:
        write_sound(out, <Sound>payload.sound, volume)
    else:
        write_string(out, SOUND, <str>payload.sound)
    write_string(out, THREAD_ID, payload.thread_id)
    write_string(out, CATEGORY, payload.category)
    if payload.content_available:
        write_literal(out, b'"content-available":1,')
    if payload.mutable_content:
        write_literal(out, b'"mutable-content":1,')
    write_string(out, TARGET_CONTENT_ID, payload.target_content_id)
    write_string(out, INTERRUPTION_LEVEL, payload.interruption_level)
    write_number(out, RELEVANCE_SCORE, relevance)
    if payload.rare is not None:
        write_string(out, FILTER_CRITERIA, payload.rare.get("filter_criteria"))
    if payload.content_changed:
        write_literal(out, b'"content-changed":true,')
    if payload.rare is not None:
        write_strings(out, URL_ARGS, payload.rare.get("url_args"))
    close(out, c'}')
    if payload.data_json is not None and PyBytes_GET_SIZE(payload.data_json) > 2:
        # Without its own braces: the opening one is written, the closing one comes from `close`.
        write_octets(out, PyBytes_AS_STRING(payload.data_json) + 1, PyBytes_GET_SIZE(payload.data_json) - 2)
    close(out, c'}')
    out.length -= 1             # no comma after the last
    return 0


cdef Py_ssize_t text_octets(str value) except -1:
    """How many octets a text takes in JSON, without its quotes."""
    scratch.length = 0
    write_characters(&scratch, value)
    return scratch.length


# The values. Each is made by the function at the end of this file that is its class's `tp_vectorcall`.

cdef inline Payload blank_payload():
    cdef Payload payload = Payload.__new__(Payload)
    payload.badge_number = -1
    payload.relevance = -1.0
    return payload


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

    @property
    def launch_image(self):
        return None if self.rare is None else self.rare.get("launch_image")

    @property
    def title_loc_key(self):
        return None if self.rare is None else self.rare.get("title_loc_key")

    @property
    def title_loc_args(self):
        return None if self.rare is None else self.rare.get("title_loc_args")

    @property
    def subtitle_loc_key(self):
        return None if self.rare is None else self.rare.get("subtitle_loc_key")

    @property
    def subtitle_loc_args(self):
        return None if self.rare is None else self.rare.get("subtitle_loc_args")

    @property
    def loc_key(self):
        return None if self.rare is None else self.rare.get("loc_key")

    @property
    def loc_args(self):
        return None if self.rare is None else self.rare.get("loc_args")

    @property
    def action_loc_key(self):
        return None if self.rare is None else self.rare.get("action_loc_key")

    @property
    def summary_arg(self):
        return None if self.rare is None else self.rare.get("summary_arg")

    @property
    def summary_arg_count(self):
        return None if self.rare is None else self.rare.get("summary_arg_count")

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
        self.volume = None if volume is None else fraction("volume", volume)

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
        payload = blank_payload()
        payload.is_raw = True
        payload.encoded = octets
        return payload

    @property
    def badge(self):
        return None if self.badge_number == -1 else self.badge_number

    @property
    def relevance_score(self):
        return None if self.relevance == -1.0 else self.relevance

    @property
    def filter_criteria(self):
        return None if self.rare is None else self.rare.get("filter_criteria")

    @property
    def url_args(self):
        return None if self.rare is None else self.rare.get("url_args")

    @property
    def data(self):
        """The custom keys, as a new dict each time; None where there are none, and for raw JSON."""
        return None if self.data_json is None else loads(self.data_json)

    cdef bytes to_json(self):
        cdef bytes relevance, volume = None
        cdef bytes encoded = self.encoded
        if encoded is None:
            # orjson is called before the shared buffer is in use.
            relevance = float_json(self.relevance)
            if type(self.sound) is Sound and (<Sound>self.sound).volume is not None:
                volume = float_json((<Sound>self.sound).volume)
            scratch.length = 0
            write_payload(&scratch, self, relevance, volume)
            encoded = taken()
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


# Making them. The arguments stand in the order of the tuples above.

cdef PyObject *make_alert(PyObject *kind, PyObject **args, size_t nargsf, PyObject *kwnames) except NULL:
    cdef PyObject *values[13]
    cdef Alert alert
    cdef int place
    cdef str name
    memset(values, 0, sizeof(values))
    sort_arguments(values, ALERT_FIELDS, 0, 0, "Alert", args, nargsf, kwnames)
    alert = Alert.__new__(Alert)
    if values[0] is not NULL:
        alert.title = text("title", <object>values[0])
    if values[1] is not NULL:
        alert.subtitle = text("subtitle", <object>values[1])
    if values[2] is not NULL:
        alert.body = text("body", <object>values[2])
    for place in range(3, 13):
        if values[place] is not NULL and <object>values[place] is not None:
            name = ALERT_FIELDS[place]
            if alert.rare is None:
                alert.rare = {}
            if name == "summary_arg_count":
                alert.rare[name] = whole_number(name, <object>values[place])
            elif name.endswith("_args"):
                alert.rare[name] = texts(name, <object>values[place])
            else:
                alert.rare[name] = text(name, <object>values[place])
    Py_INCREF(alert)
    return <PyObject *>alert


cdef PyObject *make_payload(PyObject *kind, PyObject **args, size_t nargsf, PyObject *kwnames) except NULL:
    cdef PyObject *values[14]
    cdef Payload payload
    memset(values, 0, sizeof(values))
    sort_arguments(values, PAYLOAD_FIELDS, 0, 0, "Payload", args, nargsf, kwnames)
    payload = blank_payload()
    if values[0] is not NULL:
        alert = <object>values[0]
        if type(alert) is Alert:
            payload.alert = alert
        elif alert is None or isinstance(alert, str):
            payload.alert = text("alert", alert)
        else:
            raise invalid("alert", f"must be a str or an Alert; this is {type(alert).__name__}")
    if values[1] is not NULL:
        payload.badge_number = whole_number("badge", <object>values[1])
    if values[2] is not NULL:
        sound = <object>values[2]
        if type(sound) is Sound:
            payload.sound = sound
        elif sound is None or isinstance(sound, str):
            payload.sound = text("sound", sound)
        else:
            raise invalid("sound", f"must be a str or a Sound; this is {type(sound).__name__}")
    if values[3] is not NULL:
        payload.thread_id = text("thread_id", <object>values[3])
    if values[4] is not NULL:
        payload.category = text("category", <object>values[4])
    if values[5] is not NULL:
        payload.content_available = flag("content_available", <object>values[5])
    if values[6] is not NULL:
        payload.mutable_content = flag("mutable_content", <object>values[6])
    if values[7] is not NULL:
        payload.target_content_id = text("target_content_id", <object>values[7])
    if values[8] is not NULL:
        payload.interruption_level = interruption(<object>values[8])
    if values[9] is not NULL:
        payload.relevance = fraction("relevance_score", <object>values[9])
    if values[11] is not NULL:
        payload.content_changed = flag("content_changed", <object>values[11])
    if values[10] is not NULL or values[12] is not NULL:
        payload.rare = {
            "filter_criteria": None if values[10] is NULL else text("filter_criteria", <object>values[10]),
            "url_args": None if values[12] is NULL else texts("url_args", <object>values[12]),
        }
    if values[13] is not NULL and <object>values[13] is not None:
        payload.data_json = encode_data(<object>values[13])
        if "aps" in <object>values[13]:
            raise invalid("data", "must not hold the key 'aps', which the other arguments make")
    Py_INCREF(payload)
    return <PyObject *>payload


cdef PyObject *new_alert(PyTypeObject *kind, PyObject *args, PyObject *kwargs) except NULL:
    return call_with_tuple(<vectorcallfunc>make_alert, <PyObject *>kind, args, kwargs)


cdef PyObject *new_payload(PyTypeObject *kind, PyObject *args, PyObject *kwargs) except NULL:
    return call_with_tuple(<vectorcallfunc>make_payload, <PyObject *>kind, args, kwargs)


(<PyTypeObject *>Alert).tp_vectorcall = <vectorcallfunc>make_alert
(<PyTypeObject *>Alert).tp_new = <newfunc>new_alert
(<PyTypeObject *>Payload).tp_vectorcall = <vectorcallfunc>make_payload
(<PyTypeObject *>Payload).tp_new = <newfunc>new_payload
