# cython: language_level=3
"""What the compiled half of `Notification` needs of a payload."""

cdef class Alert:
    cdef readonly str title
    cdef readonly str subtitle
    cdef readonly str body
    cdef readonly str launch_image
    cdef readonly str title_loc_key
    cdef readonly tuple title_loc_args
    cdef readonly str subtitle_loc_key
    cdef readonly tuple subtitle_loc_args
    cdef readonly str loc_key
    cdef readonly tuple loc_args
    cdef readonly str action_loc_key
    cdef readonly str summary_arg
    cdef readonly object summary_arg_count      # int or None
    cdef bint has_rare                          # anything but title, subtitle and body


cdef class Sound:
    cdef readonly str name
    cdef readonly bint critical
    cdef readonly object volume                 # float or None


cdef class Payload:
    cdef readonly object alert                  # exact str, Alert or None
    cdef readonly object badge                  # exact int or None
    cdef readonly object sound                  # exact str, Sound or None
    cdef readonly str thread_id
    cdef readonly str category
    cdef readonly bint content_available
    cdef readonly bint mutable_content
    cdef readonly str target_content_id
    cdef readonly str interruption_level
    cdef readonly object relevance_score        # float or None
    cdef readonly str filter_criteria
    cdef readonly bint content_changed
    cdef readonly tuple url_args
    cdef readonly bint is_raw
    cdef bytes data_json                        # the custom keys as one JSON object, or None
    cdef bytes encoded                          # None until `to_json` is called
    cdef bytes to_json(self)                    # the JSON body, made once
