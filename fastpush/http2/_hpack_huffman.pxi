# The Huffman code, RFC 7541 Appendix B. It is canonical: codes of one length follow each other in the order
# of their symbols, and those of the next length follow them. So the lengths, in bits, of the 256 octets
# and of EOS are the whole code.

cdef tuple CODE_LENGTHS = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
     6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
)

cdef struct Pair:                               # what the first WINDOW_BITS bits hold
    uint8_t symbols[2]
    uint8_t count                               # whole codes among them: 0, 1 or 2
    uint8_t bits                                # that these codes take

cdef uint32_t CODES[257]
cdef uint8_t LENGTHS[257]
cdef Pair PAIRS[1 << WINDOW_BITS]
cdef uint16_t SYMBOLS[257]                      # in the order of their codes
cdef uint64_t CODES_END[LONGEST_CODE + 1]       # by length: 32 bits that are past every code of that length
cdef uint32_t FIRST_CODE[LONGEST_CODE + 1]      # by length
cdef uint32_t FIRST_SYMBOL[LONGEST_CODE + 1]    # by length: the first code's place in SYMBOLS


cdef int fill_huffman_tables() except -1:
    cdef uint32_t code = 0, place = 0, window, taken
    cdef int length, symbol
    cdef Pair pair
    for length in range(SHORTEST_CODE, LONGEST_CODE + 1):
        code <<= 1
        FIRST_CODE[length] = code
        FIRST_SYMBOL[length] = place
        for symbol in range(257):
            if CODE_LENGTHS[symbol] == length:
                CODES[symbol] = code
                LENGTHS[symbol] = <uint8_t>length
                SYMBOLS[place] = <uint16_t>symbol
                code += 1
                place += 1
        CODES_END[length] = <uint64_t>code << (32 - length)
    if place != 257 or code != 1 << LONGEST_CODE:
        raise AssertionError("the code's lengths do not make a whole code")
    for window in range(1 << WINDOW_BITS):
        pair.symbols[0] = pair.symbols[1] = pair.count = pair.bits = 0
        while pair.count < 2:
            # Bits after the window count as ones: a code that needs them is longer than what is left.
            taken = (window << (32 - WINDOW_BITS) | ~<uint32_t>0 >> WINDOW_BITS)
            taken = taken << pair.bits | (<uint32_t>1 << pair.bits) - 1
            length = code_length(taken)
            if pair.bits + length > WINDOW_BITS:
                break
            pair.symbols[pair.count] = <uint8_t>code_symbol(taken, length)
            pair.count += 1
            pair.bits = <uint8_t>(pair.bits + length)
        PAIRS[window] = pair
    return 0


cdef inline int code_length(uint32_t window) noexcept nogil:
    """Length of the code that the 32 bits begin with. Every 30 bits begin with one: the code is complete."""
    cdef int length = SHORTEST_CODE
    while window >= CODES_END[length]:
        length += 1
        if length == LONGEST_CODE:
            break
    return length


cdef inline int code_symbol(uint32_t window, int length) noexcept nogil:
    return SYMBOLS[FIRST_SYMBOL[length] + ((window >> (32 - length)) - FIRST_CODE[length])]


fill_huffman_tables()


cdef inline Py_ssize_t huffman_octets(const uint8_t *octets, Py_ssize_t length) noexcept nogil:
    """How many octets the Huffman code of these takes."""
    cdef Py_ssize_t place, bits = 0
    for place in range(length):
        bits += LENGTHS[octets[place]]
    return (bits + 7) >> 3


cdef inline uint8_t *put_huffman(uint8_t *at, const uint8_t *octets, Py_ssize_t length) noexcept nogil:
    """Write the Huffman code where `huffman_octets` are free, padded with ones, and return what follows."""
    cdef uint64_t window = 0        # the lowest `bits` of it are not written yet; they are below 32
    cdef int bits = 0
    cdef Py_ssize_t place
    cdef uint8_t symbol
    for place in range(length):
        symbol = octets[place]
        window = window << LENGTHS[symbol] | CODES[symbol]
        bits += LENGTHS[symbol]
        if bits >= 32:
            bits -= 32
            at[0] = <uint8_t>(window >> (bits + 24))
            at[1] = <uint8_t>(window >> (bits + 16) & 0xFF)
            at[2] = <uint8_t>(window >> (bits + 8) & 0xFF)
            at[3] = <uint8_t>(window >> bits & 0xFF)
            at += 4
    while bits >= 8:
        bits -= 8
        at[0] = <uint8_t>(window >> bits & 0xFF)
        at += 1
    if bits:
        at[0] = <uint8_t>((window << (8 - bits) | (0xFF >> bits)) & 0xFF)
        at += 1
    return at


cdef inline Py_ssize_t huffman_room(Py_ssize_t length) noexcept nogil:
    """Octets that `get_huffman` may write for so many octets of code: 8/5, and one that is overwritten."""
    return length + (length >> 1) + (length >> 3) + 2


cdef inline uint64_t load_64(const uint8_t *at) noexcept nogil:
    """The 8 octets at `at` as a number, the first one highest."""
    return (
        <uint64_t>at[0] << 56 | <uint64_t>at[1] << 48 | <uint64_t>at[2] << 40 | <uint64_t>at[3] << 32
        | <uint64_t>at[4] << 24 | <uint64_t>at[5] << 16 | <uint64_t>at[6] << 8 | <uint64_t>at[7]
    )


cdef Py_ssize_t get_huffman(const uint8_t *at, Py_ssize_t length, uint8_t *out) noexcept nogil:
    """Decode into `huffman_room` octets; the number of octets written, or -1 for a broken code (§5.2)."""
    cdef const uint8_t *end = at + length
    cdef uint8_t *start = out
    cdef uint64_t window = 0        # the highest `bits` of it are read and not yet decoded
    cdef int bits = 0, taken, symbol
    cdef const Pair *pair
    while True:
        if end - at >= 8:
            window |= load_64(at) >> bits       # whole octets of it count; the bits after them are right too
            at += (63 - bits) >> 3
            bits |= 56
        else:
            while bits <= 56 and at < end:
                window |= <uint64_t>at[0] << (56 - bits)
                bits += 8
                at += 1
        if bits < LONGEST_CODE:
            break
        while bits >= LONGEST_CODE:
            pair = &PAIRS[window >> (64 - WINDOW_BITS)]
            if pair.count:
                out[0] = pair.symbols[0]
                out[1] = pair.symbols[1]
                out += pair.count
                taken = pair.bits
            else:
                taken = code_length(<uint32_t>(window >> 32))
                symbol = code_symbol(<uint32_t>(window >> 32), taken)
                if symbol == EOS:
                    return -1
                out[0] = <uint8_t>symbol
                out += 1
            window <<= taken
            bits -= taken
    # Fewer bits than the longest code are left, and then ones: they begin with a whole code, or are padding.
    window |= ~<uint64_t>0 >> bits
    while True:
        taken = code_length(<uint32_t>(window >> 32))
        if taken > bits:
            break
        out[0] = <uint8_t>code_symbol(<uint32_t>(window >> 32), taken)
        out += 1
        window = window << taken | ((<uint64_t>1 << taken) - 1)
        bits -= taken
    if bits > 7 or window != ~<uint64_t>0:
        return -1
    return out - start
