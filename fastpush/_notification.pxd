# cython: language_level=3
"""The C side of the values that exist once per push, for the compiled half of the connection."""

from libc.stdint cimport int64_t

cdef class Notification:
    cdef readonly str device_token      # lower-case hex, ASCII
    cdef readonly object payload        # Payload or LiveActivity
    cdef readonly object topic          # str or None (the client's)
    cdef readonly str push_type
    cdef readonly object priority       # int or None
    cdef readonly object expiration     # int of UNIX seconds or None
    cdef readonly object collapse_id    # str or None
    cdef readonly object apns_id        # canonical lower-case str or None
    cdef bytes body                     # the encoded payload, never None
    cdef int priority_code              # 10, 5, 1: never 0 (None is settled by the push type)
    cdef int64_t expires_at             # UNIX seconds; -1 where there is no expiration


cdef class Response:
    cdef readonly Notification notification
    cdef readonly str outcome           # "accepted" "rejected" "expired" "not_sent" "unknown"
    cdef int status_code                # 0: no verdict
    cdef readonly object reason         # str or None
    cdef readonly object error          # FastpushError or None
    cdef readonly int attempts
    cdef readonly double elapsed        # seconds from `send` to the end
    cdef object apns_id_octets          # bytes of 36 ASCII characters, or None; `apns_id` is the str of it
    # What is rare: None or False in an accepted response of the production environment.
    cdef readonly object apns_unique_id     # str or None
    cdef readonly object unregistered_at    # aware UTC datetime or None
    cdef readonly object retry_after        # float seconds or None
    cdef readonly bint retryable


# An accepted push, at the least cost; `apns_id` may be None. Nothing is checked.
cdef Response make_accepted(Notification notification, bytes apns_id, int attempts, double elapsed)
