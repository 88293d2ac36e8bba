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
    kept = tuple(value)
    for item in kept:
        if not PyUnicode_CheckExact(item) or PyUnicode_IS_ASCII(item) == 0:
            return tuple([text_of(f"{field}[{place}]", item) for place, item in enumerate(kept)])
    return kept


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
    cdef int64_t number
    if is_small_int(<PyObject *>value, &number) and number >= 0:
        return number
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


cdef inline bint is_interruption_level(str value) noexcept:
    """Whether it is one of the four, each of another length."""
    cdef Py_ssize_t length = PyUnicode_GET_LENGTH(value)
    cdef const void *characters = PyUnicode_DATA(value)
    if PyUnicode_IS_ASCII(value) == 0:
        return False
    # With a constant length the comparison is a few instructions, and no call.
    if length == 14:
        return memcmp(characters, b"time-sensitive", 14) == 0
    if length == 6:
        return memcmp(characters, b"active", 6) == 0
    if length == 7:
        return memcmp(characters, b"passive", 7) == 0
    return length == 8 and memcmp(characters, b"critical", 8) == 0


cdef str interruption(object value):
    value = text("interruption_level", value)
    if value is not None and not is_interruption_level(<str>value):
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
