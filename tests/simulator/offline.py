"""A server connection without TLS or clock, whose host does as it is told."""

import hpack
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

from fastpush.http2._hpack import Decoder, Encoder
from fastpush.simulator import Ledger
from fastpush.simulator._server import (
    ACCEPTED,
    REFUSED,
    REJECTED,
    SWALLOWED,
    UNANSWERED,
    ServerConnection,
    Shared,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WALL = 1_800_000_000.0


class Host:
    """Gives every request the next fate."""

    def __init__(self):
        self.fate = ACCEPTED
        self.handled = []
        self.good = None

    def consult(self, connection, number, device_token):
        return 0.0, None

    def handle(self, connection, stream_id, fields, body, faults):
        self.handled.append((stream_id, fields, body))
        if self.fate == ACCEPTED:
            connection.answer(stream_id, 200, (), b"", ACCEPTED)
            return self.good
        if self.fate == REJECTED:
            connection.answer(stream_id, 400, (), b'{"reason":"BadDeviceToken"}', REJECTED)
        elif self.fate in (UNANSWERED, SWALLOWED):
            connection.swallow(stream_id, self.fate)
        elif self.fate == REFUSED:
            connection.reset(stream_id, 7, REFUSED)
        return None


class Offline:
    def __init__(self, *, limit=2**31 - 1, host=None):
        self.ledger = Ledger()
        self.shared = Shared(self.ledger.log, 0)
        self.shared.wall = WALL
        self.host = host or Host()
        self.connection = ServerConnection(
            self.shared, self.host, 1, decoder=Decoder(4_096, 8_000), encoder=Encoder(4_096)
        )
        self.connection.initiate({1: 4_096, 3: limit, 4: 65_535, 5: 16_384, 6: 8_000})
        self.encoder = hpack.Encoder()
        self.next_stream_id = 1
        self.connection.receive_data(PREFACE + SettingsFrame(0).serialize(), 0.0)
        self.connection.data_to_send()

    def request(self, fields=(), *, body=b'{"aps":{}}', device_token="ab" * 32, flags=("END_HEADERS",)):
        """The octets of one request, and its stream id."""
        pairs = [(":method", "POST"), (":scheme", "https"), (":path", f"/3/device/{device_token}"), *fields]
        stream_id, self.next_stream_id = self.next_stream_id, self.next_stream_id + 2
        octets = HeadersFrame(stream_id, self.encoder.encode(pairs), flags=list(flags)).serialize()
        return stream_id, octets + DataFrame(stream_id, body, flags=["END_STREAM"]).serialize()

    def push(self, apns_id, fate=ACCEPTED, expiration=None):
        fields = [("apns-id", apns_id)]
        if expiration is not None:
            fields.append(("apns-expiration", str(expiration)))
        self.host.fate = fate
        _, octets = self.request(fields)
        self.connection.receive_data(octets, 0.0)
        return self.connection.data_to_send()
