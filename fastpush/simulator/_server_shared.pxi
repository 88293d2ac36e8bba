# What all connections of one simulator have in common: the log, and when the host is asked.

cdef struct Record:
    double at                   # UNIX seconds
    int64_t expires_at          # -1: no apns-expiration, or none that can be read
    Py_ssize_t text             # where in `texts` the apns-id starts; the device token follows it
    int32_t stream_id
    int32_t connection
    uint16_t device_token_length
    uint16_t status             # 0: no answer
    uint8_t apns_id_length
    uint8_t fate


@cython.final
cdef class Log:
    """What the server saw, one record to each request, kept in plain memory: about 150 octets each."""

    cdef Buffer records
    cdef Buffer texts
    cdef uint64_t counts[FATE_COUNT]
    cdef readonly bint keeps
    """Off: requests are counted only."""

    def __cinit__(self, bint keeps=True):
        cdef int i
        buffer_init(&self.records)
        buffer_init(&self.texts)
        self.keeps = keeps
        for i in range(FATE_COUNT):
            self.counts[i] = 0

    def __dealloc__(self):
        buffer_free(&self.records)
        buffer_free(&self.texts)

    cdef int add(
        self, double at, int32_t connection, int64_t stream_id, Slice apns_id, Slice device_token,
        int64_t expires_at, int status, int fate,
    ) except -1:
        cdef Record *record
        self.counts[fate] += 1
        if not self.keeps:
            return 0
        buffer_reserve(&self.records, sizeof(Record))
        # Longer ones are no apns-id and no device token; what is cut off was never good for anything.
        apns_id.length = min(apns_id.length, <Py_ssize_t>255)
        device_token.length = min(device_token.length, <Py_ssize_t>1024)
        record = <Record *>(self.records.octets + self.records.length)
        record.at = at
        record.expires_at = expires_at
        record.text = self.texts.length
        record.stream_id = <int32_t>stream_id
        record.connection = connection
        record.device_token_length = <uint16_t>device_token.length
        record.status = <uint16_t>status
        record.apns_id_length = <uint8_t>apns_id.length
        record.fate = <uint8_t>fate
        buffer_write(&self.texts, apns_id.octets, apns_id.length)
        buffer_write(&self.texts, device_token.octets, device_token.length)
        self.records.length += <Py_ssize_t>sizeof(Record)
        return 0

    def __len__(self):
        return self.records.length // <Py_ssize_t>sizeof(Record)

    def count(self, int fate):
        """Tell how many requests had this fate, from the beginning, kept or not."""
        if not 0 <= fate < FATE_COUNT:
            raise ValueError(f"fate is {fate}; it may be 0 to {FATE_COUNT - 1}")
        return self.counts[fate]

    def read(self, Py_ssize_t start):
        """Give the kept records from number `start` on.

        Returns:
          Tuples of apns-id, device token, stream id, connection, UNIX seconds, fate, status (0: not
          answered) and expiration (-1: none).
        """
        cdef Py_ssize_t count = self.records.length // <Py_ssize_t>sizeof(Record)
        cdef Record *record
        cdef const char *text
        cdef Py_ssize_t middle      # between the apns-id and the device token
        cdef list found = []
        if start < 0:
            raise ValueError("start is below 0")
        while start < count:
            record = <Record *>self.records.octets + start
            text = <const char *>self.texts.octets + record.text
            middle = record.apns_id_length
            found.append((
                text[:middle].decode("latin-1"),
                text[middle:middle + record.device_token_length].decode("latin-1"),
                record.stream_id, record.connection, record.at, record.fate, record.status, record.expires_at,
            ))
            start += 1
        return found

    def forget(self):
        """Drop the kept records; the counts stay."""
        self.records.length = 0
        self.texts.length = 0


@cython.final
cdef class Shared:
    """What all connections of one simulator have in common."""

    cdef readonly Log log
    cdef public int64_t requests
    """Whole requests over all connections."""
    cdef public int64_t ask_from
    """The host is asked about every request from this number on, counted over all connections."""
    cdef public dict scripted
    """Device tokens (octets, lower case) about which the host is always asked."""
    cdef public int32_t generation
    """Raised when what is good has changed: every connection forgets its memos."""
    cdef public double wall
    """UNIX seconds, as of the last wake-up."""
    cdef public bint development
    """Accepted requests are answered with apns-unique-id too."""
    cdef uint64_t randomness

    def __cinit__(self, Log log not None, uint64_t seed):
        self.log = log
        self.requests = 0
        self.ask_from = 2 ** 62
        self.scripted = {}
        self.generation = 0
        self.wall = 0.0
        self.development = False
        self.randomness = seed

    cdef uint64_t draw(self) noexcept:
        """The next number of splitmix64: no secret, only ids that differ and repeat with the seed."""
        cdef uint64_t mixed
        self.randomness += 0x9E3779B97F4A7C15u
        mixed = self.randomness
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu
        return mixed ^ (mixed >> 31)

    cdef void draw_uuid(self, uint8_t *out) noexcept:
        """Write 36 octets: a random UUID (RFC 9562 §5.4)."""
        cdef const char *digits = b"0123456789abcdef"
        cdef uint64_t numbers[2]
        cdef int i, at = 0
        numbers[0] = (self.draw() & 0xFFFFFFFFFFFF0FFFu) | 0x4000u
        numbers[1] = (self.draw() & 0x3FFFFFFFFFFFFFFFu) | 0x8000000000000000u
        for i in range(32):
            if i == 8 or i == 12 or i == 16 or i == 20:
                out[at] = c'-'
                at += 1
            out[at] = <uint8_t>digits[numbers[i >> 4] >> (60 - 4 * (i & 15)) & 15]
            at += 1
