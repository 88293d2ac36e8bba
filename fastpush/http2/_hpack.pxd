# cython: language_level=3
"""Header compression (RFC 7541) for the engine and the simulator, on raw octets."""

from libc.stdint cimport uint8_t, uint32_t

from fastpush._buffer cimport Buffer


cdef enum Indexing:             # RFC 7541 §6.2
    INDEX = 0                   # with incremental indexing; fully indexed (§6.1) where the table has it
    PLAIN = 1                   # without indexing, 0000
    NEVER = 2                   # never indexed, 0001


cdef class Encoder:
    # Counts every change of the dynamic table. Octets cached under another generation are void:
    # they may point at entries that have moved.
    cdef readonly uint32_t generation
    cdef int begin(self, Buffer *out) except -1
    # Starts a header block: writes the pending size updates, smallest then final (§4.2).
    cdef bint must_update(self) noexcept
    # True when `begin` would write a size update: the block must be made anew.
    cdef int write(
        self, Buffer *out, const uint8_t *name, Py_ssize_t name_length,
        const uint8_t *value, Py_ssize_t value_length, Indexing indexing,
    ) except -1
    # Adds one field to the block. The name is indexed wherever a table has it.


cdef class Decoder:
    cdef int decode_into(
        self, const uint8_t *block, Py_ssize_t length, Buffer *octets, Buffer *spans,
    ) except -2
    # Decodes one whole block. Appends names and values to `octets`, and four Py_ssize_t to `spans` for
    # each field: name's start, name's length, value's start, value's length (starts count from `octets`).
    # 0: good. -1: the list is over `header_list_octets`; the table is still right and spans hold what fits.
    # Raises HpackError for what must be COMPRESSION_ERROR. -2: an exception is set.
    cdef readonly uint32_t generation
    # Counts every change of the dynamic table: a memo of decoded blocks is good for one generation.
