# cython: language_level=3
"""The two values that exist once per push: what is sent, and what became of it.

A `Notification` is checked when made: whatever APNs would refuse by the look of it (apns-* request
headers and size, Apple, "Sending notification requests to APNs") is an `InvalidNotification` here, before
any octet is written. What its fields hold after that are exact `str` and `int`, and a payload that itself
refers to nothing else; so no reference cycle can pass through it (it is `no_gc`).
"""

cimport cython
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from fastpush._encode cimport Payload, shown_number
from fastpush._vectorcall cimport (
    LastCall, PyTypeObject, call_with_tuple, newfunc, sort_arguments, vectorcallfunc,
)

from datetime import datetime
from uuid import UUID

import orjson

from fastpush._live_activity import LiveActivity, unix_seconds
from fastpush.errors import FastpushError, InvalidNotification

cdef extern from "Python.h":
    unsigned int PyUnicode_IS_ASCII(object text) noexcept
    void *PyUnicode_DATA(object text) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept
    bint PyUnicode_CheckExact(object value) noexcept
    bint PyLong_CheckExact(object value) noexcept
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    str PyUnicode_FromObject(object text)
    Py_ssize_t PyBytes_GET_SIZE(object octets) noexcept
    void PyObject_GC_UnTrack(void *value) noexcept

# Sizes: Apple, "Sending notification requests to APNs" and "Generating a remote notification".
MAX_PAYLOAD_BYTES = 4096
MAX_VOIP_PAYLOAD_BYTES = 5120
MAX_COLLAPSE_ID_BYTES = 64

# An expiration below this (September 2001) is a number of seconds to live, mistaken for an instant.
EARLIEST_EXPIRATION = 10**9
# Every JSON reader and every double holds it exactly; some 285 million years ahead.
LATEST_EXPIRATION = 2**53

# What the client appends to the bundle id to make the topic. Apple, "Sending notification requests to
# APNs", table of apns-push-type. The topic of `mdm` is the UID of the MDM certificate.
TOPIC_SUFFIXES = {
    "alert": "",
    "background": "",
    "voip": ".voip",
    "complication": ".complication",
    "fileprovider": ".pushkit.fileprovider",
    "mdm": "",
    "location": ".location-query",
    "liveactivity": ".push-type.liveactivity",
    "pushtotalk": ".voip-ptt",
    "widgets": ".push-type.widgets",
    "controls": ".push-type.controls",
}

# A bundle id may end in `.voip`, but hardly in one of these.
cdef tuple TELLING_SUFFIXES = (
    ".pushkit.fileprovider", ".push-type.liveactivity", ".push-type.widgets", ".push-type.controls",
)

OUTCOMES = ("accepted", "rejected", "expired", "not_sent", "unknown")

cdef int64_t EARLIEST = EARLIEST_EXPIRATION
cdef int64_t LATEST = LATEST_EXPIRATION
cdef Py_ssize_t COLLAPSE_ID_LIMIT = MAX_COLLAPSE_ID_BYTES
cdef Py_ssize_t PAYLOAD_LIMIT = MAX_PAYLOAD_BYTES

# RFC 9110 §5.6.2: what a token may hold beside letters and digits.
cdef frozenset TOKEN_CHARACTERS = frozenset(
    "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)


# Leaf helpers on the characters of an ASCII text.

cdef inline bint is_lower_hex(const uint8_t *text, Py_ssize_t length) noexcept nogil:
    """Whether all are 0-9 or a-f, eight at a time. All must be below 0x80, so no sum carries over."""
    cdef uint64_t ones = 0x0101010101010101, word, digit, letter
    cdef uint64_t good = ones * 0x80
    cdef Py_ssize_t place = 0
    while place + 8 <= length:
        memcpy(&word, text + place, 8)
        digit = (word + ones * (0x80 - 0x30)) & ~(word + ones * (0x7F - 0x39))
        letter = (word + ones * (0x80 - 0x61)) & ~(word + ones * (0x7F - 0x66))
        good &= digit | letter
        place += 8
    while place < length:
        if not (c'0' <= text[place] <= c'9' or c'a' <= text[place] <= c'f'):
            return False
        place += 1
    return good == ones * 0x80


cdef inline bint is_visible(const uint8_t *text, Py_ssize_t length, uint8_t lowest) noexcept nogil:
    """Whether all are from `lowest` to 0x7E."""
    cdef Py_ssize_t place
    cdef bint good = True
    for place in range(length):
        good &= lowest <= text[place] <= 0x7E
    return good


cdef inline const uint8_t *ascii_characters(object value) noexcept:
    """The characters of an exact, ASCII `str`; NULL for anything else."""
    if PyUnicode_CheckExact(value) and PyUnicode_IS_ASCII(value) != 0:
        return <const uint8_t *>PyUnicode_DATA(value)
    return NULL


# The fields, each with its quick way for the usual form and its slow one for every other.

cdef object invalid(str field, str problem):
    return InvalidNotification(f"{field} {problem}", field=field)


cdef str exact_text(str field, object value):
    if not isinstance(value, str):
        raise invalid(field, f"must be a str; this is {type(value).__name__}")
    return PyUnicode_FromObject(value)


cdef inline str checked_device_token(object value):
    cdef const uint8_t *characters = ascii_characters(value)
    cdef Py_ssize_t length
    if characters is not NULL:
        length = PyUnicode_GET_LENGTH(value)
        if length > 0 and length % 2 == 0 and is_lower_hex(characters, length):
            return <str>value
    return normal_device_token(value)


cdef str normal_device_token(object value):
    cdef str token
    if isinstance(value, bytes):
        if not value.isascii():
            raise invalid(
                "device_token",
                f"is {len(value)} bytes that are not hex digits; give the hex form of a binary device token",
            )
        token = value.decode("ascii")
    elif isinstance(value, str):
        token = PyUnicode_FromObject(value)
    else:
        raise invalid("device_token", f"must be a str or bytes of hex digits; this is {type(value).__name__}")
    # The form in which old systems print a device token: <00fc13ad ff785122 …>
    token = token.replace(" ", "").replace("<", "").replace(">", "")
    if not token:
        raise invalid("device_token", "is empty")
    for place, character in enumerate(token):
        if character not in "0123456789abcdefABCDEF":
            raise invalid(
                "device_token", f"of {len(token)} characters holds one that is no hex digit, at position {place}"
            )
    if len(token) % 2:
        raise invalid("device_token", f"has {len(token)} hex digits; it must be an even number")
    return token.lower()


cdef str checked_topic(object value):
    cdef str topic = exact_text("topic", value)
    cdef const uint8_t *characters = ascii_characters(topic)
    if not topic:
        raise invalid("topic", "is empty")
    if characters is NULL or not is_visible(characters, PyUnicode_GET_LENGTH(topic), 0x21):
        raise invalid("topic", f"of {len(topic)} characters may hold visible ASCII characters only")
    return topic


cdef str checked_push_type(object value):
    cdef str push_type = exact_text("push_type", value)
    if not push_type:
        raise invalid("push_type", "is empty")
    if not TOKEN_CHARACTERS.issuperset(push_type):
        raise invalid("push_type", f"of {len(push_type)} characters is not a token of RFC 9110 §5.6.2")
    return push_type


cdef int checked_priority(object value) except -1:
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid("priority", f"must be 10, 5, 1 or None; this is {type(value).__name__}")
    if value == 10:
        return 10
    if value == 5:
        return 5
    if value == 1:
        return 1
    raise invalid("priority", f"must be 10, 5, 1 or None; this is {shown_number(value)}")


cdef inline int64_t checked_expiration(object value) except -1:
    cdef int overflow = 0
    cdef long long seconds
    if not PyLong_CheckExact(value):
        value = unix_seconds("expiration", value)
    seconds = PyLong_AsLongLongAndOverflow(value, &overflow)
    if EARLIEST <= seconds <= LATEST or seconds == 0:
        return seconds
    if not overflow and 0 < seconds < EARLIEST:
        raise invalid(
            "expiration",
            f"is {seconds}, which looks like a duration; an instant in UNIX seconds is needed",
        )
    raise invalid(
        "expiration",
        "must be from 0 to 2**53 UNIX seconds; this is " + ("below" if value < 0 else "above"),
    )


cdef inline str checked_collapse_id(object value):
    cdef const uint8_t *characters = ascii_characters(value)
    cdef Py_ssize_t length
    if characters is not NULL:
        length = PyUnicode_GET_LENGTH(value)
        if (
            0 < length <= COLLAPSE_ID_LIMIT and is_visible(characters, length, 0x20)
            and characters[0] != c' ' and characters[length - 1] != c' '
        ):
            return <str>value
    return unusual_collapse_id(value)


cdef str unusual_collapse_id(object value):
    cdef str collapse_id = exact_text("collapse_id", value)
    if not collapse_id:
        raise invalid("collapse_id", "is empty; leave it out to replace nothing")
    try:
        size = len(collapse_id.encode())
    except UnicodeEncodeError:
        raise invalid("collapse_id", "holds a lone surrogate, which UTF-8 cannot express (RFC 3629 §3)") from None
    if size > MAX_COLLAPSE_ID_BYTES:
        raise invalid("collapse_id", f"is {size} bytes of UTF-8; the limit is {MAX_COLLAPSE_ID_BYTES}")
    # It becomes the value of a header field: RFC 9113 §8.2.1.
    if any([character < " " or "\x7f" <= character < "\xa0" for character in collapse_id]):
        raise invalid("collapse_id", "holds a control character")
    if collapse_id[0] == " " or collapse_id[-1] == " ":
        raise invalid("collapse_id", "begins or ends with a space (RFC 9113 §8.2.1)")
    return collapse_id


cdef str checked_apns_id(object value):
    cdef const uint8_t *characters
    cdef str apns_id
    cdef bint good
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str):
        raise invalid("apns_id", f"must be a str or a UUID; this is {type(value).__name__}")
    apns_id = PyUnicode_FromObject(value)
    characters = ascii_characters(apns_id)
    if characters is not NULL and PyUnicode_GET_LENGTH(apns_id) == 36:
        good = c'-' == characters[8] == characters[13] == characters[18] == characters[23]
        if good and is_uuid_hex(characters, lower=True):
            return apns_id
        if good and is_uuid_hex(characters, lower=False):
            return apns_id.lower()
    raise invalid(
        "apns_id", f"of {len(apns_id)} characters is no UUID in its canonical form: 36 characters, 8-4-4-4-12 hex digits"
    )


cdef bint is_uuid_hex(const uint8_t *characters, bint lower) noexcept nogil:
    cdef int place
    cdef uint8_t character
    for place in range(36):
        if place == 8 or place == 13 or place == 18 or place == 23:
            continue
        character = characters[place]
        if c'0' <= character <= c'9' or c'a' <= character <= c'f':
            continue
        if lower or not c'A' <= character <= c'F':
            return False
    return True


cdef Py_ssize_t payload_limit(str push_type) except -1:
    return MAX_VOIP_PAYLOAD_BYTES if push_type == "voip" else MAX_PAYLOAD_BYTES


cdef int check_push_type_rules(Notification notification) except -1:
    """What each known push type asks of the payload, the priority and the topic (see TOPIC_SUFFIXES)."""
    cdef str push_type = notification.push_type
    cdef Payload payload = notification.payload if type(notification.payload) is Payload else None
    if push_type not in TOPIC_SUFFIXES:
        return 0
    if payload is None:
        if push_type != "liveactivity":
            raise invalid(
                "push_type", f"{push_type!r} cannot carry a LiveActivity; it needs push_type='liveactivity'"
            )
    elif not payload.is_raw:
        if push_type == "liveactivity":
            raise invalid("payload", "must be a LiveActivity or Payload.raw for the push type 'liveactivity'")
        if push_type == "mdm":
            raise invalid("payload", "has no aps for the push type 'mdm'; use Payload.raw(b'{\"mdm\":\"…\"}')")
        if push_type in ("widgets", "controls") and not payload.content_changed:
            raise invalid("content_changed", f"must be True for the push type {push_type!r}")
        if push_type == "background":
            for name in ("alert", "badge", "sound"):
                if getattr(payload, name) is not None:
                    raise invalid(name, "must be left out for the push type 'background'")
            if not payload.content_available:
                raise invalid("content_available", "must be True for the push type 'background'")
    elif push_type == "mdm" and "mdm" not in orjson.loads(notification.body):
        raise invalid("payload", "must hold the key 'mdm' for the push type 'mdm'")
    if push_type == "background" and notification.priority_code != 5:
        raise invalid(
            "priority", f"must be 5 or None for the push type 'background'; this is {notification.priority_code}"
        )
    if notification.topic is not None:
        for suffix in TELLING_SUFFIXES:
            if notification.topic.endswith(suffix) and suffix != TOPIC_SUFFIXES[push_type]:
                raise invalid("topic", f"ends in {suffix!r}, which is not for the push type {push_type!r}")
    return 0


@cython.final
@cython.freelist(1024)      # as many as one connection has in flight: a batch answered is a batch made next
@cython.no_gc
cdef class Notification:
    """One push, addressed to one device. Frozen, and checked as a whole when made.

    Args:
      device_token: hex digits as `str` or `bytes`, of any even number; blanks and angle brackets are removed.
      payload: a `Payload`, shared as you like, or a `LiveActivity`. Its JSON is at most 4096 bytes, or 5120
        for the push type `voip`.
      topic: the app's bundle id; None is the client's. The client appends the push type's suffix unless it
        is there (`topic_for`).
      push_type: any of `TOPIC_SUFFIXES`; one that is not known here is sent as it is.
      priority: 10 (at once), 5 (saves power) or 1 (never wakes the device); None is 5 for `background`,
        which takes no other, and 10 for all else.
      expiration: until when APNs keeps trying: `int` of UNIX seconds or an aware `datetime`. 0 is one
        attempt; None leaves it to APNs.
      collapse_id: at most 64 bytes of UTF-8; replaces the earlier notification with the same one.
      apns_id: `str` of the form 8-4-4-4-12 or a `UUID`; None draws one when it is first sent.

    Raises:
      InvalidNotification: naming the field, what was found, and the limit.

    Source: Apple, "Sending notification requests to APNs".
    """

    def __eq__(self, other):
        if type(other) is not Notification:
            return NotImplemented
        return notification_fields(self) == notification_fields(<Notification>other)

    def __hash__(self):
        return hash((self.device_token, self.body, self.push_type, self.collapse_id, self.apns_id))

    def __repr__(self):
        return f"<Notification to {shown_device_token(self)}, {self.push_type}, {len(self.body)} bytes>"

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return restore_notification, (notification_fields(self),)


cdef dict notification_fields(Notification notification):
    return {
        "device_token": notification.device_token,
        "payload": notification.payload,
        "topic": notification.topic,
        "push_type": notification.push_type,
        "priority": notification.priority,
        "expiration": notification.expiration,
        "collapse_id": notification.collapse_id,
        "apns_id": notification.apns_id,
    }


# Making one. The arguments stand in this order; `device_token` and `payload` may come without their names.

cdef tuple NOTIFICATION_FIELDS = (
    "device_token", "payload", "topic", "push_type", "priority", "expiration", "collapse_id", "apns_id",
)
cdef LastCall last_notification
last_notification.kwnames = NULL


cdef inline bint is_given(PyObject *value) noexcept:
    return value is not NULL and value != <PyObject *>None


cdef PyObject *make_notification(PyObject *kind, PyObject **args, size_t nargsf, PyObject *kwnames) except NULL:
    cdef PyObject *values[8]
    cdef Notification made
    cdef bint usual
    cdef Py_ssize_t limit
    memset(values, 0, sizeof(values))
    sort_arguments(&last_notification, values, NOTIFICATION_FIELDS, 2, 2, "Notification", args, nargsf, kwnames)
    made = Notification.__new__(Notification)
    made.device_token = checked_device_token(<object>values[0])
    push_type = "alert" if values[3] is NULL else <object>values[3]
    usual = type(push_type) is str and push_type == "alert"
    made.push_type = push_type if usual else checked_push_type(push_type)
    payload = <object>values[1]
    if type(payload) is Payload:
        made.body = (<Payload>payload).encoded
    elif type(payload) is LiveActivity:
        made.body = payload.encode()
        usual = False
    else:
        raise invalid(
            "payload",
            f"must be a Payload or a LiveActivity; this is {type(payload).__name__}"
            + (" (ready JSON goes through Payload.raw)" if isinstance(payload, (bytes, str)) else ""),
        )
    made.payload = payload
    made.expires_at = -1
    if is_given(values[4]):
        made.priority_code = checked_priority(<object>values[4])
        made.priority = made.priority_code
    else:
        made.priority_code = 10 if usual or made.push_type != "background" else 5
    if is_given(values[2]):
        made.topic = checked_topic(<object>values[2])
        usual = False
    if is_given(values[5]):
        made.expires_at = checked_expiration(<object>values[5])
        made.expiration = <object>values[5] if PyLong_CheckExact(<object>values[5]) else made.expires_at
    if is_given(values[6]):
        made.collapse_id = checked_collapse_id(<object>values[6])
    if is_given(values[7]):
        made.apns_id = checked_apns_id(<object>values[7])
    if not usual:
        check_push_type_rules(made)
    if PyBytes_GET_SIZE(made.body) > PAYLOAD_LIMIT:
        limit = payload_limit(made.push_type)
        if PyBytes_GET_SIZE(made.body) > limit:
            raise invalid(
                "payload",
                f"is {len(made.body)} bytes of JSON; the limit for the push type {made.push_type!r} is {limit}",
            )
    Py_INCREF(made)
    return <PyObject *>made


cdef PyObject *new_notification(PyTypeObject *kind, PyObject *args, PyObject *kwargs) except NULL:
    return call_with_tuple(<vectorcallfunc>make_notification, <PyObject *>kind, args, kwargs)


(<PyTypeObject *>Notification).tp_vectorcall = <vectorcallfunc>make_notification
(<PyTypeObject *>Notification).tp_new = <newfunc>new_notification


def restore_notification(fields):
    """Make a notification from its fields: what unpickling calls."""
    return Notification(**fields)


cdef str shown_device_token(Notification notification):
    cdef str device_token = notification.device_token
    if len(device_token) < 16:
        return f"a device token of {len(device_token)} digits"
    return f"{device_token[:4]}…{device_token[-4:]}"


@cython.final
@cython.freelist(1024)      # as many as one connection answers at once: more would wake the garbage collector
cdef class Response:
    """What became of one notification: exactly one for each.

    `outcome` is "accepted" (APNs took it), "rejected" (APNs refused it, see `reason`), "expired" (its
    expiration passed first), "not_sent" (surely not processed) or "unknown" (lost after it was written).

    Args:
      notification: the `Notification` that this answers.
      outcome: one of the five.
      status: the HTTP status; None without a verdict.
      reason: Apple's word for a rejection, such as "BadDeviceToken", or None.
      apns_id: the id under which it was sent, canonical and lower-case, or None.
      apns_unique_id: the development environment's key into the delivery log, or None.
      unregistered_at: for 410, aware UTC `datetime` since which the device token has been dead, or None.
      retryable: whether sending it again later can help.
      retry_after: seconds that the server asked to wait, or None.
      error: the exception that `send` raises in its place, or None.
      attempts: how many times it was written to a connection.
      elapsed: seconds from the call to the end.

    Raises:
      TypeError, ValueError: this is for tests; the client makes its own.
    """

    def __init__(
        self, object notification, str outcome not None, *, object status=None, str reason=None,
        str apns_id=None, str apns_unique_id=None, object unregistered_at=None, bint retryable=False,
        object retry_after=None, object error=None, int attempts=1, double elapsed=0.0,
    ):
        if type(notification) is not Notification:
            raise TypeError(f"notification must be a Notification; this is {type(notification).__name__}")
        if self.notification is not None:
            raise TypeError("a Response never changes")
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}")
        if status is not None and not 100 <= status <= 999:
            raise ValueError("status must be an HTTP status or None")
        if unregistered_at is not None and (
            not isinstance(unregistered_at, datetime) or unregistered_at.utcoffset() is None
        ):
            raise ValueError("unregistered_at must be an aware datetime or None")
        if error is not None and not isinstance(error, FastpushError):
            raise TypeError(f"error must be a FastpushError or None; this is {type(error).__name__}")
        self.notification = notification
        self.outcome = outcome
        self.status_code = 0 if status is None else status
        self.reason = reason
        self.apns_id_octets = None if apns_id is None else apns_id.encode("ascii")
        self.apns_unique_id = apns_unique_id
        self.unregistered_at = unregistered_at
        self.retryable = retryable
        self.retry_after = None if retry_after is None else float(retry_after)
        self.error = error
        self.attempts = attempts
        self.elapsed = elapsed

    @property
    def accepted(self):
        """Whether APNs took it: not that the device got it."""
        return self.outcome == "accepted"

    @property
    def status(self):
        """The HTTP status; None without a verdict."""
        return None if self.status_code == 0 else self.status_code

    @property
    def apns_id(self):
        """The id under which it was sent, canonical and lower-case; None if none was drawn."""
        return None if self.apns_id_octets is None else self.apns_id_octets.decode("ascii").lower()

    def __eq__(self, other):
        if type(other) is not Response:
            return NotImplemented
        return response_fields(self) == response_fields(<Response>other)

    def __hash__(self):
        return hash((self.notification, self.outcome, self.status_code, self.reason, self.apns_id))

    def __repr__(self):
        what = [self.outcome]
        if self.status_code:
            what.append(str(self.status_code))
        if self.reason is not None:
            what.append(self.reason)
        return f"<Response {' '.join(what)}, to {shown_device_token(self.notification)}>"

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return restore_response, (response_fields(self),)


cdef dict response_fields(Response response):
    return {
        "notification": response.notification,
        "outcome": response.outcome,
        "status": response.status,
        "reason": response.reason,
        "apns_id": response.apns_id,
        "apns_unique_id": response.apns_unique_id,
        "unregistered_at": response.unregistered_at,
        "retryable": response.retryable,
        "retry_after": response.retry_after,
        "error": response.error,
        "attempts": response.attempts,
        "elapsed": response.elapsed,
    }


def restore_response(fields):
    """Make a response from its fields: what unpickling calls."""
    return Response(**fields)


cdef Response make_accepted(Notification notification, bytes apns_id, int attempts, double elapsed):
    cdef Response response = Response.__new__(Response)
    response.notification = notification
    response.outcome = "accepted"
    response.status_code = 200
    response.apns_id_octets = apns_id
    response.attempts = attempts
    response.elapsed = elapsed
    # Without an error it refers to nothing that could refer back: the collector need not visit it.
    PyObject_GC_UnTrack(<PyObject *>response)
    return response
