# cython: language_level=3
"""What the compiled half of `Notification` needs of a payload."""

from libc.stdint cimport int64_t


cdef class Alert:
    cdef readonly str title
    cdef readonly str subtitle
    cdef readonly str body
    cdef dict rare                              # every other field that is set, by name; None if none is


cdef class Sound:
    cdef readonly str name
    cdef readonly bint critical
    cdef readonly object volume                 # float or None


cdef class Payload:
    cdef readonly object alert                  # exact str, Alert or None
    cdef int64_t badge_number                   # -1: none
    cdef readonly object sound                  # exact str, Sound or None
    cdef readonly str thread_id
    cdef readonly str category
    cdef readonly bint content_available
    cdef readonly bint mutable_content
    cdef readonly str target_content_id
    cdef readonly str interruption_level
    cdef double relevance                       # -1.0: none
    cdef readonly bint content_changed
    cdef dict rare                              # filter_criteria and url_args, by name; None if neither is
    cdef readonly bint is_raw
    cdef bytes encoded                          # the JSON body, never None
    cdef Py_ssize_t data_at                     # where the custom keys begin in it; -1: there is no `data`


cdef str shown_number(object value)             # for messages
