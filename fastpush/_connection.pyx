# cython: language_level=3
"""The compiled half of a connection: from notifications to requests, from ended streams to responses.

It is the only compiled module that knows both APNs and HTTP/2. What happens to every push is here;
whatever is rare (rejections, lost streams, waits) is handed to `connection.py` and `pool.py`.

A `Push` is a notification on its way. It is queued, or on a stream of one `Exchange`, or waiting for its
next attempt, and it ends exactly once: by `Push.end`, which wakes the task that waits for it or adds the
response to its `Collector`, or by `Push.abandon`, when the caller no longer wants to know.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastpush._notification cimport Notification, Response, make_accepted
from fastpush.http2._engine cimport CompiledEngine, Octets, StreamEnded, Template

import os
import struct
from time import monotonic

import trio

from fastpush.http2 import LocalProtocolError

cdef object reschedule = trio.lowlevel.reschedule
cdef object ABORT_SUCCEEDED = trio.lowlevel.Abort.SUCCEEDED

# The fields that differ from push to push, in this order (Apple, "Sending notification requests to APNs").
VARIABLE_FIELDS = (b"apns-id", b"apns-expiration", b"apns-collapse-id")
PATH_PREFIX = b"/3/device/"

cdef enum:
    APNS_ID_OCTETS = 36
    MAX_DIGITS = 20             # of an int64


# An apns-id is a UUID of version 4 (RFC 9562 §5.4) in its canonical form. It must be unique and need not be
# secret, so it is drawn with xoshiro256** (Blackman and Vigna, "Scrambled linear pseudorandom number
# generators"), seeded by the kernel: 130 instructions, where `random.randbytes` and a loop took 1,010.

cdef uint64_t[4] drawn_from
cdef const char *VARIANTS = b"89ab"


cdef inline uint64_t rotated(uint64_t word, int places) noexcept nogil:
    return word << places | word >> (64 - places)


cdef inline uint64_t draw() noexcept nogil:
    cdef uint64_t drawn = rotated(drawn_from[1] * 5, 7) * 9
    cdef uint64_t shifted = drawn_from[1] << 17
    drawn_from[2] ^= drawn_from[0]
    drawn_from[3] ^= drawn_from[1]
    drawn_from[1] ^= drawn_from[2]
    drawn_from[0] ^= drawn_from[3]
    drawn_from[2] ^= shifted
    drawn_from[3] = rotated(drawn_from[3], 45)
    return drawn


cdef inline uint64_t hex_digits(uint32_t bits) noexcept nogil:
    """Eight lower-case hex digits, one in each octet, the lowest four bits in the lowest."""
    cdef uint64_t ones = 0x0101010101010101, pairs = 0x0000FFFF0000FFFF, octets = 0x00FF00FF00FF00FF
    cdef uint64_t spread = bits
    spread = (spread | spread << 16) & pairs
    spread = (spread | spread << 8) & octets
    spread = (spread | spread << 4) & ones * 15
    return spread + ones * c"0" + (spread + ones * 6 >> 4 & ones) * (c"a" - c"0" - 10)


cdef bytes draw_apns_id():
    cdef bytes drawn = PyBytes_FromStringAndSize(NULL, APNS_ID_OCTETS)
    cdef char *text = PyBytes_AS_STRING(drawn)
    cdef uint64_t first = draw(), last = draw()
    cdef uint64_t[4] digits
    digits[0] = hex_digits(<uint32_t>first)
    digits[1] = hex_digits(<uint32_t>(first >> 32))
    digits[2] = hex_digits(<uint32_t>last)
    digits[3] = hex_digits(<uint32_t>(last >> 32))
    memcpy(text, digits, 8)
    memcpy(text + 9, <char *>digits + 8, 4)
    memcpy(text + 14, <char *>digits + 12, 4)
    memcpy(text + 19, <char *>digits + 16, 4)
    memcpy(text + 24, <char *>digits + 20, 12)
    text[8] = text[13] = text[18] = text[23] = c"-"
    text[14] = c"4"                             # the version
    text[19] = VARIANTS[last & 3]
    return drawn


def forget_randomness():
    """Begin apns-ids anew; a forked child must not draw its parent's."""
    # Not all four words may be 0, which the kernel will not draw.
    seed = struct.unpack("4Q", os.urandom(32))
    for place in range(4):
        drawn_from[place] = seed[place]


forget_randomness()
os.register_at_fork(after_in_child=forget_randomness)


@cython.final
@cython.no_gc                   # its cycles (with its exchange, its task) are undone where it ends
@cython.freelist(1024)          # as many as one connection has in flight
cdef class Push:
    """One notification on its way, and the outcome with which the task that waits for it is woken.

    Raises TypeError for what is no Notification.

    Attributes:
      apns_id: 36 ASCII octets, the same in every attempt.
      attempts: HEADERS frames written for it, less those that were surely not processed.
      renewed: it was sent again for a stale provider token once.
      doubtful: the outcome of an earlier attempt is unknown.
      ended: nobody waits for it any more.
    """

    cdef readonly Notification notification
    cdef readonly bytes apns_id
    cdef readonly int64_t stream_id
    cdef public int attempts
    cdef public bint renewed
    cdef public bint doubtful
    cdef readonly bint ended
    cdef readonly double began_at           # handed over by the caller
    cdef readonly double first_written_at   # -1: never
    cdef double written_at
    cdef Exchange exchange                  # where it is in flight
    cdef Push older, newer                  # its neighbours there, in order of writing
    cdef object task
    cdef object pool
    cdef Collector collector
    cdef Response response
    cdef object error                       # in place of the response, for the waiting task

    def __init__(self, Notification notification not None, double now, Collector collector=None):
        begin_push(self, notification, now, collector)

    @property
    def in_flight(self):
        return self.exchange is not None

    def wait_in(self, task, pool):
        """Name the trio task to wake at the end; it sleeps in `wait_task_rescheduled(push.abort)`."""
        self.task = task
        self.pool = pool

    def abort(self, _):
        """The waiting task was cancelled."""
        pool = self.pool
        self.pool = None
        pool.abandon(self)
        return ABORT_SUCCEEDED

    cpdef end(self, Response response, error=None):
        """Tell the end: the response, or to a waiting task the error in its place."""
        if self.ended:
            return
        self.ended = True
        cdef object task = self.task
        if self.collector is not None:
            self.collector.add(response)
            return
        self.response = response
        self.error = error
        if task is not None:
            self.task = None
            self.pool = None
            # trio asks an outcome for nothing but `unwrap`; making an outcome.Value costs 0.4 us.
            reschedule(task, self)

    @property
    def once(self):
        """It must not be sent again when it may have been processed."""
        return self.collector is not None and self.collector.once

    def belongs_to(self, Collector collector not None):
        """It was taken from the input of this `send_many`."""
        return self.collector is collector

    def unwrap(self):
        """The response, or the exception in its place, raised. Once, after the end."""
        error = self.error
        if error is not None:
            self.error = None
            raise error
        return self.response

    def abandon(self):
        """The caller went away: take the stream back if there is one. No response follows.

        Returns the `Exchange` that now has a RST_STREAM frame to send, or None.
        """
        if self.ended:
            return None
        self.ended = True
        self.task = None
        cdef Exchange exchange = self.exchange
        if exchange is not None:
            exchange.give_up(self)
        return exchange


cdef int begin_push(Push push, Notification notification, double now, Collector collector) except -1:
    # What is not set here is 0 or None in a new object.
    push.notification = notification
    push.apns_id = draw_apns_id() if notification.apns_id is None else (<str>notification.apns_id).encode("ascii")
    push.began_at = now
    push.first_written_at = -1.0
    push.written_at = -1.0
    push.collector = collector
    if collector is not None:
        collector.outstanding += 1
    return 0


@cython.final
cdef class Collector:
    """Gathers the responses of one `send_many` for its reader."""

    cdef list ready                 # not yet handed over
    cdef readonly bint once         # its pushes are not sent again when they may have been processed
    cdef readonly Py_ssize_t outstanding    # pushes taken from the input and not ended
    cdef object reader              # the task that waits for a response
    cdef object feeder              # the task that waits for room

    def __cinit__(self, bint once=False):
        self.ready = []
        self.once = once
        self.outstanding = 0

    @property
    def unread(self):
        return len(self.ready)

    cdef int add(self, Response response) except -1:
        self.outstanding -= 1
        self.ready.append(response)
        if self.reader is not None:
            task = self.reader
            self.reader = None
            reschedule(task)
        return 0

    def take(self):
        """All responses that are ready, in order of completion."""
        ready = self.ready
        self.ready = []
        return ready

    async def wait(self):
        """Sleep until there is a response, or `wake` is called. One task at a time."""
        def abort(_):
            self.reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        if self.ready:
            await trio.lowlevel.checkpoint()
            return
        self.reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self):
        """Wake the reader without a response: the input has ended or failed."""
        if self.reader is not None:
            task = self.reader
            self.reader = None
            reschedule(task)


def pull(iterator, queue, Collector collector not None, Py_ssize_t limit, double now, double until):
    """Take up to `limit` notifications from a plain iterator into the queue.

    Returns True when the iterator is exhausted. Stops at `until` (seconds of `time.monotonic`), looked at
    after 1, 2, 4, 8 and then every 16 items, so that a slow input does not hold up the other tasks.

    Raises:
      TypeError: an item is no Notification.
      whatever the iterator raises. What was taken before stays taken.
    """
    cdef Py_ssize_t taken = 0
    cdef Push push
    append = queue.append
    while taken < limit:
        try:
            item = next(iterator)
        except StopIteration:
            return True
        push = Push.__new__(Push)
        begin_push(push, <Notification?>item, now, collector)
        append(push)
        taken += 1
        if (taken & 15 == 0 or taken & (taken - 1) == 0) and monotonic() > until:
            break
    return False


@cython.final
cdef class Exchange:
    """What one connection has in flight, and how a notification becomes a request on it.

    Args:
      engine: this connection's own, any kind.
      authority: the server's name, for `:authority`.
      full_topic: (topic or None, push type) to the value of apns-topic, or an exception to end the push with.
    """

    cdef readonly object engine
    cdef CompiledEngine compiled            # the same engine, or None for another kind
    cdef readonly Py_ssize_t in_flight
    cdef readonly Py_ssize_t awaited        # of these, with a task that waits for it alone
    cdef readonly Py_ssize_t begun          # pushes whose first attempt was here
    cdef readonly Py_ssize_t accepted       # answered with 200
    cdef readonly Py_ssize_t odd_apns_ids   # answers with another apns-id, or none
    cdef bytes authority
    cdef object full_topic
    cdef object authorization
    cdef dict templates
    cdef object topic, push_type            # of the template used last
    cdef int priority
    cdef object template
    cdef int64_t expires_at                 # of the push before, and its digits: pushes often have the same
    cdef char[MAX_DIGITS] digits
    cdef char *expiration
    cdef Push oldest, newest

    def __cinit__(self, engine, bytes authority not None, full_topic):
        self.engine = engine
        self.compiled = engine if isinstance(engine, CompiledEngine) else None
        self.authority = authority
        self.full_topic = full_topic
        self.templates = {}
        self.push_type = None
        self.expires_at = -1

    def authorize(self, authorization):
        """Use this `authorization` value (None with a certificate) from the next request on."""
        if authorization != self.authorization:
            self.authorization = authorization
            self.templates = {}
            self.push_type = None

    def submit(
        self, queue, Py_ssize_t limit, double now, double wall_now, dict apart not None,
        list set_aside not None, list failed not None,
    ):
        """Open streams for up to `limit` pushes from the head of the queue, while there is room.

        Args:
          now: seconds of trio's clock, the time of writing.
          wall_now: UNIX seconds, for expirations.
          apart: device tokens that must not go out on this connection now; such pushes are put in `set_aside`.
          failed: gets (push, None) for an expired push and (push, exception) for one that cannot be sent.

        Returns: how many streams were opened.
        """
        cdef Py_ssize_t opened = 0
        cdef Push push
        cdef Notification notification
        cdef bint look_apart = len(apart) > 0
        popleft = queue.popleft
        while opened < limit and queue:
            if (self.compiled.count_room() if self.compiled is not None else self.engine.room()) <= 0:
                break
            push = popleft()
            if push.ended:
                continue
            notification = push.notification
            if 0 < notification.expires_at < wall_now:
                failed.append((push, None))
                continue
            if look_apart and notification.device_token in apart:
                set_aside.append(push)
                continue
            try:
                self.open(push, notification, now)
            except (ValueError, LocalProtocolError) as error:
                failed.append((push, error))
                continue
            opened += 1
        return opened

    cdef int open(self, Push push, Notification notification, double now) except -1:
        cdef Octets values[3]
        cdef Py_ssize_t length
        cdef const char *path
        template = self.template
        if (
            notification.push_type is not self.push_type
            or notification.topic is not self.topic
            or notification.priority_code != self.priority
        ):
            template = self.find_template(notification)
        if self.compiled is None:
            push.stream_id = self.open_by_python(template, push, notification, now)
        else:
            path = PyUnicode_AsUTF8AndSize(notification.device_token, &length)
            values[0].octets = <const uint8_t *>PyBytes_AS_STRING(push.apns_id)
            values[0].length = PyBytes_GET_SIZE(push.apns_id)
            if notification.expires_at < 0:
                values[1].octets = NULL
                values[1].length = 0
            else:
                if notification.expires_at != self.expires_at:
                    self.expires_at = notification.expires_at
                    self.expiration = write_decimal(self.expires_at, self.digits)
                values[1].octets = <const uint8_t *>self.expiration
                values[1].length = self.digits + MAX_DIGITS - self.expiration
            if notification.collapse_id is None:
                values[2].octets = NULL
                values[2].length = 0
            else:
                values[2].octets = <const uint8_t *>PyUnicode_AsUTF8AndSize(
                    notification.collapse_id, &values[2].length
                )
            push.stream_id = self.compiled.open_stream(
                <Template>template, <const uint8_t *>path, length, values, notification.body, push
            )
        push.attempts += 1
        push.written_at = now
        if push.first_written_at < 0:
            push.first_written_at = now
            self.begun += 1
        push.exchange = self
        push.newer = None
        push.older = self.newest
        if self.newest is None:
            self.oldest = push
        else:
            self.newest.newer = push
        self.newest = push
        self.in_flight += 1
        if push.collector is None:
            self.awaited += 1
        return 0

    cdef object find_template(self, Notification notification):
        key = (notification.topic, notification.push_type, notification.priority_code)
        template = self.templates.get(key)
        if template is None:
            topic = self.full_topic(notification.topic, notification.push_type)
            after = [
                (b"apns-topic", topic.encode()),
                (b"apns-push-type", notification.push_type.encode()),
                (b"apns-priority", b"%d" % notification.priority_code),
            ]
            if self.authorization is not None:
                after.append((b"authorization", self.authorization))
            template = self.templates[key] = self.engine.template(
                [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", self.authority)],
                PATH_PREFIX,
                after,
                VARIABLE_FIELDS,
            )
        self.topic = notification.topic
        self.push_type = notification.push_type
        self.priority = notification.priority_code
        self.template = template
        return template

    cdef int64_t open_by_python(
        self, template, Push push, Notification notification, double now
    ) except -1:
        expiration = None if notification.expires_at < 0 else b"%d" % notification.expires_at
        collapse_id = None if notification.collapse_id is None else notification.collapse_id.encode()
        return self.engine.send_request(
            template, notification.device_token.encode(), (push.apns_id, expiration, collapse_id),
            notification.body, push, now,
        )

    def settle(self, list events not None, double now):
        """End the pushes that were answered with 200 and return the other events, in order."""
        cdef list rest = []
        cdef StreamEnded ended
        cdef Push push
        cdef Response response
        cdef bytes apns_id, unique_id
        for event in events:
            if type(event) is not StreamEnded:
                rest.append(event)
                continue
            ended = <StreamEnded>event
            push = <Push?>ended.tag
            self.unlink(push)
            if ended.status_code != 200:
                rest.append(event)
                continue
            apns_id = ended.find(b"apns-id", 7)
            if apns_id is None or apns_id != push.apns_id and apns_id.lower() != push.apns_id:
                self.odd_apns_ids += 1
            self.accepted += 1
            response = make_accepted(push.notification, push.apns_id, push.attempts, now - push.began_at)
            unique_id = ended.find(b"apns-unique-id", 14)
            if unique_id is not None:
                response.apns_unique_id = unique_id.decode("latin-1")
            push.end(response)
        return rest

    cdef int unlink(self, Push push) except -1:
        cdef Push older = push.older, newer = push.newer
        if older is None:
            self.oldest = newer
        else:
            older.newer = newer
        if newer is None:
            self.newest = older
        else:
            newer.older = older
        push.older = None
        push.newer = None
        push.exchange = None
        self.in_flight -= 1
        if push.collector is None:
            self.awaited -= 1
        return 0

    cdef int give_up(self, Push push) except -1:
        self.unlink(push)
        self.engine.reset_stream(push.stream_id)
        return 0

    def oldest_written_at(self):
        """When the oldest request in flight was written; None with nothing in flight."""
        return None if self.oldest is None else self.oldest.written_at

    def give_up_overdue(self, double now, double within):
        """Reset the streams of all requests written `within` seconds ago or earlier and return their pushes."""
        cdef list overdue = []
        cdef Push push
        # The same sum as the caller's alarm clock makes: another one may differ in the last bit, and spin.
        while self.oldest is not None and self.oldest.written_at + within <= now:
            push = self.oldest
            self.give_up(push)
            overdue.append(push)
        return overdue


cdef char *write_decimal(int64_t number, char *digits) noexcept:
    """Write a number >= 0 to the end of `digits` (MAX_DIGITS octets) and return its first digit."""
    cdef char *first = digits + MAX_DIGITS
    while True:
        first -= 1
        first[0] = <char>(c"0" + number % 10)
        number //= 10
        if number == 0:
            return first
