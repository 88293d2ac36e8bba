"""h2 on trio, with nothing around it: what one would write oneself, for one connection."""

from __future__ import annotations

import uuid
from importlib.metadata import version

import h2.config
import h2.connection
import h2.events
import trio

from benchmarks import data
from benchmarks.contenders.stopwatch import Contest

RECEIVE_OCTETS = 65_536


class Sender:
    """Keeps all streams in use; one task reads, and writes what the answers made room for."""

    def __init__(self, contest: Contest, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._job = contest.job
        self._stream = stream
        self._http = h2.connection.H2Connection(h2.config.H2Configuration())
        self._http.initiate_connection()
        self._limit = 0

    async def send(self, device_tokens: list[str]) -> int:
        """Send to all of these; the number of those answered with 200."""
        waiting = enumerate(device_tokens)
        next_push = next(waiting, None)
        http, accepted, ended = self._http, 0, 0
        while ended < len(device_tokens):
            while (
                next_push is not None
                and http.open_outbound_streams < self._limit
                and http.outbound_flow_control_window >= data.BODY_OCTETS
            ):
                self._request(*next_push)
                next_push = next(waiting, None)
            if octets := http.data_to_send():
                await self._stream.send_all(octets)
            received = await self._stream.receive_some(RECEIVE_OCTETS)
            if not received:
                raise ConnectionError("the sink closed the connection")
            for event in http.receive_data(received):
                if isinstance(event, h2.events.RemoteSettingsChanged):
                    self._limit = min(self._job.streams, http.remote_settings.max_concurrent_streams)
                elif isinstance(event, h2.events.ResponseReceived):
                    accepted += dict(event.headers or ())[b":status"] == b"200"
                elif isinstance(event, h2.events.DataReceived):
                    http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    ended += 1
        return accepted

    def _request(self, index: int, device_token: str) -> None:
        stream_id = self._http.get_next_available_stream_id()
        self._http.send_headers(
            stream_id,
            [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", f"{self._job.host}:{self._job.port}"),
                (":path", f"/3/device/{device_token}"),
                ("authorization", "bearer " + self._job.provider_token),
                ("apns-id", str(uuid.uuid4())),
                ("apns-topic", data.TOPIC),
                ("apns-push-type", data.PUSH_TYPE),
                ("apns-priority", str(data.PRIORITY)),
                ("apns-expiration", str(data.EXPIRATION)),
            ],
        )
        self._http.send_data(stream_id, data.body(index), end_stream=True)


async def main() -> None:
    contest = Contest()
    stream = await trio.open_ssl_over_tcp_stream(
        contest.job.host, contest.job.port, ssl_context=contest.tls_context()
    )
    sender = Sender(contest, stream)
    accepted = await sender.send(contest.warm_up_tokens)
    with contest.measured():
        accepted += await sender.send(contest.device_tokens)
    contest.report(accepted, f"h2 {version('h2')}, trio {version('trio')}")


trio.run(main)
