# cython: language_level=3
"""Frames on raw octets (RFC 9113 §4.1): the numbers of the protocol, and reading and writing them."""

from libc.stdint cimport uint8_t, uint32_t


cdef enum:                      # RFC 9113 §6
    FRAME_DATA = 0x0
    FRAME_HEADERS = 0x1
    FRAME_PRIORITY = 0x2
    FRAME_RST_STREAM = 0x3
    FRAME_SETTINGS = 0x4
    FRAME_PUSH_PROMISE = 0x5
    FRAME_PING = 0x6
    FRAME_GOAWAY = 0x7
    FRAME_WINDOW_UPDATE = 0x8
    FRAME_CONTINUATION = 0x9

cdef enum:
    FLAG_ACK = 0x1              # SETTINGS, PING
    FLAG_END_STREAM = 0x1       # DATA, HEADERS
    FLAG_END_HEADERS = 0x4      # HEADERS, CONTINUATION
    FLAG_PADDED = 0x8           # DATA, HEADERS
    FLAG_PRIORITY = 0x20        # HEADERS

cdef enum:                      # RFC 9113 §6.5.2
    SETTINGS_HEADER_TABLE_SIZE = 0x1
    SETTINGS_ENABLE_PUSH = 0x2
    SETTINGS_MAX_CONCURRENT_STREAMS = 0x3
    SETTINGS_INITIAL_WINDOW_SIZE = 0x4
    SETTINGS_MAX_FRAME_SIZE = 0x5
    SETTINGS_MAX_HEADER_LIST_SIZE = 0x6

cdef enum:                      # RFC 9113 §7
    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB

cdef enum:
    FRAME_HEADER_OCTETS = 9
    SETTING_OCTETS = 6
    DEFAULT_WINDOW = 65_535             # of each stream and of the connection, RFC 9113 §6.9.2
    MAX_WINDOW = 0x7FFFFFFF             # RFC 9113 §6.9.1
    MIN_MAX_FRAME_SIZE = 16_384         # RFC 9113 §6.5.2, and the value before any SETTINGS
    MAX_MAX_FRAME_SIZE = 0xFFFFFF
    DEFAULT_HEADER_TABLE_OCTETS = 4_096


cdef inline uint32_t read_uint16(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 8 | at[1]


cdef inline uint32_t read_uint24(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 16 | <uint32_t>at[1] << 8 | at[2]


cdef inline uint32_t read_uint32(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef inline uint32_t read_uint31(const uint8_t *at) noexcept nogil:
    """A stream id or a window increment; the reserved bit is ignored (RFC 9113 §4.1)."""
    return read_uint32(at) & <uint32_t>0x7FFFFFFF


cdef inline uint8_t *put_uint32(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 24)
    at[1] = <uint8_t>(value >> 16 & 0xFF)
    at[2] = <uint8_t>(value >> 8 & 0xFF)
    at[3] = <uint8_t>(value & 0xFF)
    return at + 4


cdef inline uint8_t *put_frame_header(
    uint8_t *at, Py_ssize_t length, uint8_t kind, uint8_t flags, uint32_t stream_id
) noexcept nogil:
    """Write nine octets and return the octet after them. `length` is below 2**24."""
    at[0] = <uint8_t>(length >> 16 & 0xFF)
    at[1] = <uint8_t>(length >> 8 & 0xFF)
    at[2] = <uint8_t>(length & 0xFF)
    at[3] = kind
    at[4] = flags
    return put_uint32(at + 5, stream_id)
