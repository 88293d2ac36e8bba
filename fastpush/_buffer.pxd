# cython: language_level=3
"""A growing run of octets, shared by everything that writes frames, header blocks or JSON.

A plain C struct with inline functions: no Python object is touched and nothing is called across
modules. The owner sets it up with `buffer_init` in `__cinit__` and frees it in `__dealloc__`.
After a failed `buffer_reserve` the octets written so far are still there and still owned.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint8_t
from libc.string cimport memcpy


cdef struct Buffer:
    uint8_t *octets
    Py_ssize_t length       # octets written
    Py_ssize_t capacity     # octets allocated


cdef inline void buffer_init(Buffer *buffer) noexcept nogil:
    buffer.octets = NULL
    buffer.length = 0
    buffer.capacity = 0


cdef inline void buffer_free(Buffer *buffer) noexcept:
    PyMem_Free(buffer.octets)
    buffer_init(buffer)


cdef inline int buffer_grow(Buffer *buffer, Py_ssize_t room) except -1:
    """Make room for `room` more octets, at least doubling. Raises MemoryError and changes nothing."""
    cdef Py_ssize_t capacity = max(buffer.length + room, 2 * buffer.capacity, <Py_ssize_t>1024)
    cdef void *octets = PyMem_Realloc(buffer.octets, <size_t>capacity)
    if octets is NULL:
        raise MemoryError()
    buffer.octets = <uint8_t *>octets
    buffer.capacity = capacity
    return 0


cdef inline int buffer_reserve(Buffer *buffer, Py_ssize_t room) except -1:
    """After this `room` octets may be written at `octets + length` without a further check."""
    if buffer.capacity - buffer.length < room:
        return buffer_grow(buffer, room)
    return 0


cdef inline int buffer_write(Buffer *buffer, const void *octets, Py_ssize_t length) except -1:
    if length == 0:
        return 0        # memcpy takes no NULL, not even for nothing
    buffer_reserve(buffer, length)
    memcpy(buffer.octets + buffer.length, octets, <size_t>length)
    buffer.length += length
    return 0
