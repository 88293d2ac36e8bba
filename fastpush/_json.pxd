# cython: language_level=3
"""A writer of JSON (RFC 8259) into a `Buffer`: UTF-8, no blanks, the octets of `orjson.dumps`.

Inline functions, compiled into the module that cimports them. Nothing here runs Python code or lets go of
the GIL, so one buffer may serve a whole module. Each member or element is written with a comma behind it;
`close` takes the last one back. Text must hold no lone surrogate (`has_surrogate` tells).
"""

cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from fastpush._buffer cimport Buffer, buffer_reserve

cdef extern from "Python.h":
    enum: PyUnicode_1BYTE_KIND
    enum: PyUnicode_2BYTE_KIND
    unsigned int PyUnicode_IS_ASCII(object text) noexcept
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *text) noexcept
    int PyUnicode_KIND(object text) noexcept
    void *PyUnicode_DATA(object text) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept
    int PyUnicode_READY(object text) except -1
    bint PyUnicode_CheckExact(PyObject *value) noexcept
    bint PyLong_CheckExact(PyObject *value) noexcept
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    bint PyDict_CheckExact(PyObject *value) noexcept
    bint PyDict_Next(PyObject *members, Py_ssize_t *place, PyObject **key, PyObject **value) noexcept
    bint PyList_CheckExact(PyObject *value) noexcept
    Py_ssize_t PyList_GET_SIZE(PyObject *elements) noexcept
    PyObject *PyList_GET_ITEM(PyObject *elements, Py_ssize_t place) noexcept
    char *PyBytes_AS_STRING(object octets) noexcept
    Py_ssize_t PyBytes_GET_SIZE(object octets) noexcept


cdef extern from *:
    """
    /* The name of a member, quoted, with its colon. Written as 32 octets at once: what is behind the end is
       overwritten by the value. */
    typedef struct {
        uint8_t octets[32];
        Py_ssize_t length;
    } Key;

    static const Key NO_KEY = {{0}, 0};

    /* What PyUnicode_DATA is for compact ASCII, without its question which kind of text it is. */
    #define ASCII_DATA(text) ((const uint8_t *)((PyASCIIObject *)(text) + 1))

    /* RFC 8259 section 7: what follows the backslash; 'u' stands for a code in hex, 0 for no escape. */
    static const uint8_t ESCAPES[128] = {
        'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'b', 't', 'n', 'u', 'f', 'r', 'u', 'u',
        'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
        ['"'] = '"', [0x5C] = 0x5C,     /* the backslash itself */
    };

    /* Sixteen octets at once, by the vectors of GCC and clang; on x86-64 that is SSE2, which all have. */
    enum { SIXTEEN = 16 };
    typedef uint8_t Sixteen __attribute__((vector_size(16)));

    /* Octets behind 16 - n are the first n. */
    static const uint8_t FIRST[32] = {
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    };

    /* 255 for each control character, quote and backslash. */
    static inline Sixteen escaped(Sixteen octets)
    {
        return (Sixteen)(octets < 0x20) | (Sixteen)(octets == '"') | (Sixteen)(octets == 0x5C);
    }

    static inline int any_of(Sixteen found)
    {
        uint64_t halves[2];
        memcpy(halves, &found, 16);
        return (halves[0] | halves[1]) != 0;
    }

    /* Copy sixteen octets, unless one of them needs an escape: returns whether. */
    static inline int put_sixteen(uint8_t *out, const uint8_t *text)
    {
        Sixteen octets;
        memcpy(&octets, text, 16);
        if (any_of(escaped(octets)))
            return 0;
        memcpy(out, &octets, 16);
        return 1;
    }

    /* The same for sixty-four: one question for all. */
    static inline int put_sixty_four(uint8_t *out, const uint8_t *text)
    {
        Sixteen octets[4];
        memcpy(octets, text, sizeof(octets));
        if (any_of(escaped(octets[0]) | escaped(octets[1]) | escaped(octets[2]) | escaped(octets[3])))
            return 0;
        memcpy(out, octets, sizeof(octets));
        return 1;
    }

    /* The same for fewer than sixteen. It reads sixteen, of which those behind the text decide nothing, and
       never goes over the end of a page: so it stays in memory that is there. What it writes behind is
       overwritten. */
    __attribute__((no_sanitize("address")))
    static inline int put_fewer(uint8_t *out, const uint8_t *text, Py_ssize_t length)
    {
        Sixteen octets, first;
        if (((uintptr_t)text & 4095) > 4096 - 16)
            return 0;
        memcpy(&octets, text, 16);
        memcpy(&first, FIRST + 16 - length, 16);
        if (any_of(escaped(octets) & first))
            return 0;
        memcpy(out, &octets, 16);
        return 1;
    }

    /* Write a short text of plain ASCII, quoted, and a mark: the usual key or value. At most SHORT octets;
       returns how many, 0 where the text is another. */
    enum { SHORT = 32 + 3 };

    /* What is reserved at once for a run of members with short values: more of them than a payload has fields. */
    enum { ROOM = 32 * (32 + SHORT) };

    __attribute__((always_inline))      /* a call each was 2 to 3 % of a payload */
    static inline Py_ssize_t put_short(uint8_t *out, PyObject *text, uint8_t mark)
    {
        Py_ssize_t length;
        if (!PyUnicode_CheckExact(text) || !PyUnicode_IS_COMPACT_ASCII(text))
            return 0;
        length = PyUnicode_GET_LENGTH(text);
        if (length < 16) {
            if (!put_fewer(out + 1, ASCII_DATA(text), length))
                return 0;
        } else if (
            length > 32 || !put_sixteen(out + 1, ASCII_DATA(text))
            || !put_sixteen(out + 1 + length - 16, ASCII_DATA(text) + length - 16)
        )
            return 0;
        out[0] = '"';
        out[length + 1] = '"';
        out[length + 2] = mark;
        return length + 3;
    }

    /* Custom keys as they were last written, found by the address of the name. Names in a program's text are
       interned, the same object at each call; no others are kept. */
    enum { KNOWN_KEYS = 64 };
    static struct {
        PyObject *name;
        Key key;
    } KNOWN[KNOWN_KEYS];

    #define PLACE_OF(name) (((uintptr_t)(name) >> 4) % KNOWN_KEYS)

    /* Write `"name":` if it is known, SHORT octets at most; returns how many. */
    static inline Py_ssize_t put_known(uint8_t *out, PyObject *name)
    {
        if (KNOWN[PLACE_OF(name)].name != name)
            return 0;
        memcpy(out, KNOWN[PLACE_OF(name)].key.octets, 32);
        return KNOWN[PLACE_OF(name)].key.length;
    }

    static inline void remember(PyObject *name, const uint8_t *written, Py_ssize_t length)
    {
        PyObject *before = KNOWN[PLACE_OF(name)].name;
        if (length > 32 || !PyUnicode_CHECK_INTERNED(name))
            return;
        Py_INCREF(name);
        KNOWN[PLACE_OF(name)].name = name;
        memcpy(KNOWN[PLACE_OF(name)].key.octets, written, (size_t)length);
        KNOWN[PLACE_OF(name)].key.length = length;
        Py_XDECREF(before);
    }

    /* The one key that custom keys may not have. */
    static inline int is_aps(PyObject *key)
    {
        return PyUnicode_CheckExact(key) && PyUnicode_IS_COMPACT_ASCII(key)
            && PyUnicode_GET_LENGTH(key) == 3 && memcmp(ASCII_DATA(key), "aps", 3) == 0;
    }

    /* An exact int of one digit, below 2**30, without a call: the usual badge, level or version. */
    static inline int is_small_int(PyObject *value, int64_t *number)
    {
        if (!PyLong_CheckExact(value))
            return 0;
    #if PY_VERSION_HEX >= 0x030C0000
        if (!PyUnstable_Long_IsCompact((PyLongObject *)value))
            return 0;
        *number = PyUnstable_Long_CompactValue((PyLongObject *)value);
    #else
        if (Py_SIZE(value) > 1 || Py_SIZE(value) < -1)
            return 0;
        *number = Py_SIZE(value) * (int64_t)((PyLongObject *)value)->ob_digit[0];
    #endif
        return 1;
    }

    static const char HEX_DIGITS[] = "0123456789abcdef";

    /* The numbers below 100, two digits each. */
    static const char PAIRS[] =
        "0001020304050607080910111213141516171819"
        "2021222324252627282930313233343536373839"
        "4041424344454647484950515253545556575859"
        "6061626364656667686970717273747576777879"
        "8081828384858687888990919293949596979899";
    """
    ctypedef struct Key:
        uint8_t[32] octets
        Py_ssize_t length
    const Key NO_KEY
    const uint8_t *ASCII_DATA(PyObject *text) noexcept nogil
    const uint8_t *ESCAPES
    enum: SIXTEEN
    bint put_sixteen(uint8_t *out, const uint8_t *text) noexcept nogil
    bint put_sixty_four(uint8_t *out, const uint8_t *text) noexcept nogil
    bint put_fewer(uint8_t *out, const uint8_t *text, Py_ssize_t length) noexcept nogil
    enum: SHORT
    enum: ROOM
    Py_ssize_t put_short(uint8_t *out, PyObject *text, uint8_t mark) noexcept nogil
    Py_ssize_t put_known(uint8_t *out, PyObject *name) noexcept nogil
    void remember(PyObject *name, const uint8_t *written, Py_ssize_t length) noexcept
    bint is_aps(PyObject *key) noexcept nogil
    bint is_small_int(PyObject *value, int64_t *number) noexcept
    const char *HEX_DIGITS
    const char *PAIRS

# Characters of a text written under one reservation; bounds the buffer at 6 octets for each.
cdef enum:
    CHUNK = 2048
    PLAIN_DEPTH = 16            # of objects and arrays inside each other; orjson, which is asked then, has 254


# Leaf helpers: raw pointers, no Python object, no check. The caller has reserved the room.

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
    """Write ASCII octets, sixteen at a time while none of them needs an escape; SIXTEEN more must be reserved."""
    cdef Py_ssize_t place = 0, end
    if length < SIXTEEN:
        if put_fewer(out, text, length):
            return out + length
    else:
        while place + 64 <= length and put_sixty_four(out, text + place):
            out += 64
            place += 64
        while place + SIXTEEN <= length:
            if put_sixteen(out, text + place):
                out += SIXTEEN
                place += SIXTEEN
            else:
                end = place + SIXTEEN
                while place < end:
                    out = put_ascii(out, text[place])
                    place += 1
        # The last sixteen once more, in part: what was written of them is the same where none is escaped.
        if place < length and put_sixteen(out + (length - place - SIXTEEN), text + length - SIXTEEN):
            return out + (length - place)
    while place < length:
        out = put_ascii(out, text[place])
        place += 1
    return out


cdef inline void put(Buffer *out, const char *literal) noexcept nogil:
    # The length of a literal is a constant once this is inlined.
    cdef size_t length = strlen(literal)
    memcpy(out.octets + out.length, literal, length)
    out.length += <Py_ssize_t>length


cdef inline int hundredths(double value) noexcept nogil:
    """100 times a number from 0.01 to 1 that has at most two decimals; -1 for any other.

    Two such decimals are never the same double, so a double that is one of them has it as its shortest.
    """
    cdef int hundred
    if value == 1.0:
        return 100          # the usual one
    if not 0.0 < value < 1.0:
        return -1
    hundred = <int>(value * 100.0 + 0.5)
    return hundred if hundred > 0 and hundred / 100.0 == value else -1


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


@cython.cdivision(True)
cdef inline uint8_t *put_integer(uint8_t *out, int64_t number) noexcept nogil:
    """Write a decimal number; at most 20 octets, and 21 must be reserved."""
    cdef uint8_t[40] digits     # twice as long, so that a copy of 20 begins anywhere
    cdef int place = 20
    cdef uint64_t rest = <uint64_t>number
    cdef uint32_t four
    if rest < 10:
        out[0] = <uint8_t>(c'0' + rest)
        return out + 1
    if number < 0:
        out[0] = c'-'
        out += 1
        rest = 0 - rest
    while rest >= 10000:
        # Four digits a step, as two pairs that do not wait for each other.
        four = <uint32_t>(rest % 10000)
        rest //= 10000
        place -= 4
        memcpy(digits + place, PAIRS + 2 * (four // 100), 2)
        memcpy(digits + place + 2, PAIRS + 2 * (four % 100), 2)
    if rest >= 100:
        place -= 2
        memcpy(digits + place, PAIRS + 2 * (rest % 100), 2)
        rest //= 100
    if rest >= 10:
        place -= 2
        memcpy(digits + place, PAIRS + 2 * rest, 2)
    else:
        place -= 1
        digits[place] = <uint8_t>(c'0' + rest)
    memcpy(out, digits + place, 20)
    return out + (20 - place)


# The steps of writing.

cdef inline int write_key(Buffer *out, const Key *key, Py_ssize_t room) except -1:
    """Write `"key":` and leave `room` octets for its value and a comma."""
    buffer_reserve(out, room + 33)
    memcpy(out.octets + out.length, key.octets, 32)
    out.length += key.length
    return 0


cdef inline int write_literal(Buffer *out, const char *member) except -1:
    buffer_reserve(out, <Py_ssize_t>strlen(member))
    put(out, member)
    return 0


cdef inline int write_octets(Buffer *out, const char *octets, Py_ssize_t length) except -1:
    """Write octets that are JSON already, and a comma."""
    buffer_reserve(out, length + 1)
    memcpy(out.octets + out.length, octets, <size_t>length)
    out.length += length
    put(out, b',')
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


cdef inline int write_characters(Buffer *out, str value) except -1:
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
        buffer_reserve(out, 6 * (end - place) + SIXTEEN)
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


cdef inline int write_string(Buffer *out, const Key *key, str value) except -1:
    """Write `"key":"value",` or, with `&NO_KEY`, `"value",`; nothing for None."""
    if value is None:
        return 0
    if not PyUnicode_IS_COMPACT_ASCII(<PyObject *>value) or PyUnicode_GET_LENGTH(value) > CHUNK:
        return write_unusual_string(out, key, value)
    write_key(out, key, 6 * PyUnicode_GET_LENGTH(value) + SHORT)
    put_quoted(out, <PyObject *>value, c',')
    return 0


cdef inline uint8_t *put_string(Buffer *out, uint8_t *at, const Key *key, str value) except NULL:
    """What `write_string` does, in a run of members: writes at `at` and returns the new end, see ROOM.

    The end is in a register as long as the values are short: through memory each step waits for the one before.
    """
    cdef Py_ssize_t length
    if value is None:
        return at
    memcpy(at, key.octets, 32)
    length = put_short(at + key.length, <PyObject *>value, c',')
    if length != 0:
        return at + key.length + length
    if PyUnicode_IS_COMPACT_ASCII(<PyObject *>value) and PyUnicode_GET_LENGTH(value) <= CHUNK:
        out.length = at + key.length - out.octets
        buffer_reserve(out, 6 * PyUnicode_GET_LENGTH(value) + SHORT + ROOM)
        put_quoted(out, <PyObject *>value, c',')
        return out.octets + out.length
    out.length = at - out.octets
    write_unusual_string(out, key, value)
    return more_room(out)


cdef inline uint8_t *more_room(Buffer *out) except NULL:
    """Where a run of members begins or goes on."""
    buffer_reserve(out, ROOM)
    return out.octets + out.length


cdef inline uint8_t *put_literal(uint8_t *at, const char *literal) noexcept nogil:
    cdef size_t length = strlen(literal)        # a constant once this is inlined
    memcpy(at, literal, length)
    return at + length


cdef inline uint8_t *put_close(uint8_t *at, uint8_t bracket) noexcept nogil:
    """End an object or array, and leave the comma that follows it."""
    if at[-1] == c',':
        at -= 1
    at[0] = bracket
    at[1] = c','
    return at + 2


cdef inline uint8_t *put_number(uint8_t *at, const Key *key, int64_t number) noexcept nogil:
    """Write `"key":number,`; nothing for -1."""
    if number == -1:
        return at
    memcpy(at, key.octets, 32)
    at = put_integer(at + key.length, number)
    at[0] = c','
    return at + 1


cdef inline uint8_t *put_strings(Buffer *out, uint8_t *at, const Key *key, tuple value) except NULL:
    """Write `"key":["value",…],`; nothing for None."""
    if value is None:
        return at
    out.length = at - out.octets
    write_key(out, key, 1)
    put(out, b'[')
    for item in value:
        write_string(out, &NO_KEY, <str>item)
    close(out, c']')
    return more_room(out)


cdef inline uint8_t *put_octets(Buffer *out, uint8_t *at, const Key *key, bytes value) except NULL:
    """Write `"key":value,`, of octets that are JSON already."""
    out.length = at - out.octets
    write_key(out, key, 0)
    write_octets(out, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    return more_room(out)


@cython.cdivision(True)
cdef inline uint8_t *put_hundredths(uint8_t *at, const Key *key, int hundred) noexcept nogil:
    """Write `"key":0.7,`, for what `hundredths` returned."""
    memcpy(at, key.octets, 32)
    at += key.length
    if hundred == 100:
        return put_literal(at, b'1.0,')
    at = put_literal(at, b'0.')
    at[0] = <uint8_t>(c'0' + hundred // 10)
    at += 1
    if hundred % 10 != 0:
        at[0] = <uint8_t>(c'0' + hundred % 10)
        at += 1
    at[0] = c','
    return at + 1


cdef inline void put_quoted(Buffer *out, PyObject *value, uint8_t mark) noexcept:
    """Write `"value"` and a mark, for compact ASCII; 6 octets to each character and SHORT must be reserved."""
    cdef uint8_t *octets = out.octets + out.length
    octets[0] = c'"'
    octets = put_ascii_run(octets + 1, ASCII_DATA(value), PyUnicode_GET_LENGTH(<object>value))
    octets[0] = c'"'
    octets[1] = mark
    out.length = octets + 2 - out.octets


cdef inline int write_unusual_string(Buffer *out, const Key *key, str value) except -1:
    write_key(out, key, 1)
    put(out, b'"')
    write_characters(out, value)
    return write_literal(out, b'",')


# What a caller made of exact dict, list, str, int, bool and None is written without orjson. The first thing
# that is not, or that orjson would refuse, ends it: the functions return False, and what they had written is
# to be dropped. So there is one place where anything is refused, and one that knows about floats.

cdef inline bint write_plain_text(Buffer *out, PyObject *value, uint8_t mark) except -1:
    """Write a text and a mark if it is an exact `str` that UTF-8 can express; returns whether it is."""
    if not PyUnicode_CheckExact(value):
        return False
    if PyUnicode_IS_COMPACT_ASCII(value) and PyUnicode_GET_LENGTH(<object>value) <= CHUNK:
        buffer_reserve(out, 6 * PyUnicode_GET_LENGTH(<object>value) + SHORT)
        put_quoted(out, value, mark)
        return True
    return write_unusual_text(out, <str>value, mark)


cdef inline bint write_unusual_text(Buffer *out, str value, uint8_t mark) except -1:
    PyUnicode_READY(value)
    if has_surrogate(PyUnicode_KIND(value), PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value)):
        return False
    write_unusual_string(out, &NO_KEY, value)
    out.octets[out.length - 1] = mark       # in place of the comma
    return True


cdef inline bint write_plain(Buffer *out, PyObject *value, int depth) except -1:
    """Write `value,` if it is plain; returns whether it is."""
    cdef Py_ssize_t place
    cdef long long number
    cdef int overflow = 0
    if write_plain_text(out, value, c','):
        return True
    if PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(<object>value, &overflow)
        if overflow != 0:
            return False
        buffer_reserve(out, 21)
        out.length = put_integer(out.octets + out.length, number) - out.octets
        put(out, b',')
    elif PyDict_CheckExact(value):
        write_literal(out, b'{')
        if depth == PLAIN_DEPTH or not write_members(out, value, depth + 1):
            return False
        close(out, c'}')
    elif PyList_CheckExact(value):
        write_literal(out, b'[')
        if depth == PLAIN_DEPTH:
            return False
        for place in range(PyList_GET_SIZE(value)):
            if not write_plain(out, PyList_GET_ITEM(value, place), depth + 1):
                return False
        close(out, c']')
    elif value == <PyObject *>True:
        write_literal(out, b'true,')
    elif value == <PyObject *>False:
        write_literal(out, b'false,')
    elif value == <PyObject *>None:
        write_literal(out, b'null,')
    else:
        return False
    return True


cdef inline bint write_members(Buffer *out, PyObject *members, int depth) except -1:
    """Write `"key":value,` for each member of an exact dict; returns whether all of them are plain.

    At depth 1, that of a notification's custom keys, `aps` is not.
    """
    cdef PyObject *key
    cdef PyObject *value
    cdef Py_ssize_t place = 0, length
    cdef int64_t number
    cdef int overflow = 0
    # Where the next octet goes, in a register: through memory each step would wait for the one before.
    cdef uint8_t *at
    buffer_reserve(out, 2 * SHORT)
    at = out.octets + out.length
    while PyDict_Next(members, &place, &key, &value):
        length = put_known(at, key)
        if length == 0:
            length = put_short(at, key, c':')
            if is_aps(key):
                if depth == 1:
                    return False
            elif length != 0:
                remember(key, at, length)       # so what is known is not `aps`
        at += length
        if length == 0:
            out.length = at - out.octets
            if not write_plain_text(out, key, c':'):
                return False
            buffer_reserve(out, SHORT)
            at = out.octets + out.length
        length = put_short(at, value, c',')
        at += length
        if length == 0:
            if is_small_int(value, &number):
                at = put_integer(at, number)
                at[0] = c','
                at += 1
            elif PyLong_CheckExact(value):
                number = PyLong_AsLongLongAndOverflow(<object>value, &overflow)
                if overflow != 0:
                    return False
                at = put_integer(at, number)
                at[0] = c','
                at += 1
            else:
                out.length = at - out.octets
                if not write_plain(out, value, depth):
                    return False
                at = out.octets + out.length
        if out.octets + out.capacity - at < 2 * SHORT:
            out.length = at - out.octets
            buffer_reserve(out, 2 * SHORT)
            at = out.octets + out.length
    out.length = at - out.octets
    return True
