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
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

from fastpush._buffer cimport Buffer, buffer_free, buffer_init
from fastpush._json cimport (
    Key, PyBytes_AS_STRING, PyBytes_GET_SIZE, PyUnicode_DATA, PyUnicode_GET_LENGTH, PyUnicode_IS_ASCII,
    PyUnicode_KIND, close, has_surrogate, hundredths, is_small_int, more_room, put_close, put_hundredths,
    put_literal, put_number, put_octets, put_string, put_strings, write_characters, write_members, write_octets,
)
from fastpush._vectorcall cimport (
    LastCall, PyTypeObject, call_with_tuple, newfunc, sort_arguments, vectorcallfunc,
)

import dataclasses
import enum
import math

import orjson

from fastpush.errors import InvalidNotification

cdef extern from "Python.h":
    int PyUnicode_READY(object text) except -1
    bint PyUnicode_CheckExact(object value) noexcept
    bint PyLong_CheckExact(object value) noexcept
    bint PyFloat_CheckExact(object value) noexcept
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    double PyFloat_AS_DOUBLE(object value) noexcept
    str PyUnicode_FromObject(object text)
    bytes PyBytes_FromStringAndSize(const char *octets, Py_ssize_t length)


cdef extern from "string.h":
    void *memmem(const void *octets, size_t length, const void *wanted, size_t wanted_length) noexcept nogil


cdef object dumps = orjson.dumps
cdef object loads = orjson.loads

cdef enum:
    KEPT_OCTETS = 65536         # a larger buffer is given back after use

include "_encode_checks.pxi"        # the checks of a field
include "_encode_writing.pxi"       # a payload's JSON, from its fields


# The values. Each is made by the function at the end of this file that is its class's `tp_vectorcall`.

cdef inline Payload blank_payload():
    cdef Payload payload = Payload.__new__(Payload)
    payload.badge_number = -1
    payload.relevance = -1.0
    payload.data_at = -1
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
    when it is made. Two payloads are equal when their JSON is.

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
        return None if self.data_at == -1 else loads(b"{" + self.encoded[self.data_at:])

    @cython.binding(False)      # a plain method is called without a detour
    def encode(self):
        """The JSON body as bytes, written when the payload was made; the same object at every call."""
        return self.encoded

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
        cdef Py_ssize_t size = len(self.encoded), room, kept = 0, cluster
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
        return self is other or self.encoded == (<Payload>other).encoded

    def __hash__(self):
        return hash(self.encoded)

    def __repr__(self):
        names = "raw" if self.is_raw else ", ".join(payload_fields(self)) or "empty"
        return f"<Payload {names}: {len(self.encoded)} bytes>"

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

cdef LastCall last_alert, last_payload
last_alert.kwnames = NULL
last_payload.kwnames = NULL


cdef PyObject *make_alert(PyObject *kind, PyObject **args, size_t nargsf, PyObject *kwnames) except NULL:
    cdef PyObject *values[13]
    cdef Alert alert
    cdef int place
    cdef str name
    memset(values, 0, sizeof(values))
    sort_arguments(&last_alert, values, ALERT_FIELDS, 0, 0, "Alert", args, nargsf, kwnames)
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
            if place == 12:                                     # summary_arg_count
                alert.rare[name] = whole_number(name, <object>values[place])
            elif place == 5 or place == 7 or place == 9:        # the lists of texts
                alert.rare[name] = texts(name, <object>values[place])
            else:
                alert.rare[name] = text(name, <object>values[place])
    Py_INCREF(alert)
    return <PyObject *>alert


cdef PyObject *make_payload(PyObject *kind, PyObject **args, size_t nargsf, PyObject *kwnames) except NULL:
    cdef PyObject *values[14]
    cdef Payload payload
    memset(values, 0, sizeof(values))
    sort_arguments(&last_payload, values, PAYLOAD_FIELDS, 0, 0, "Payload", args, nargsf, kwnames)
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
    encode_payload(payload, None if values[13] is NULL else <object>values[13])
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
