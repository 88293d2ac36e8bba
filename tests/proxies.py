"""Small proxies on loopback: HTTP CONNECT and SOCKS5, well-behaved or as rude as a test asks.

They look nothing up: whatever name is asked for, the tunnel leads to one port of this machine.
"""

import base64
import contextlib

import trio


async def exactly(stream, count):
    octets = b""
    while len(octets) < count:
        more = await stream.receive_some(count - len(octets))
        if not more:
            raise trio.BrokenResourceError
        octets += more
    return octets


async def pump(source, target, scope):
    """Carry octets one way until either side ends."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while octets := await source.receive_some(65_536):
            await target.send_all(octets)
    scope.cancel()


class RunningProxy:
    """Listens on one port; can be stopped with all its tunnels, and started again on the same port.

    Attributes:
      asked: for each connection the target that was asked for, as it stood in the request.
      credentials: for each the user name and password given, or None.
      most_clients: so many there were at the same time.
    """

    scheme = None

    def __init__(self, nursery, target_port, *, credentials=None, answer=None, delay=0.0, host="127.0.0.1"):
        self.nursery = nursery
        self.target_port = target_port
        self.expected = credentials
        self.answer = answer
        self.delay = delay
        self.host = host
        self.port = 0
        self.asked = []
        self.credentials = []
        self.clients = 0
        self.most_clients = 0
        self._scope = None

    async def start(self):
        listeners = await trio.open_tcp_listeners(self.port, host=self.host)
        self.port = listeners[0].socket.getsockname()[1]
        self._scope = trio.CancelScope()
        self.nursery.start_soon(self._run, listeners, self._scope)

    def stop(self):
        """As when its process is killed: the listener and every tunnel are gone."""
        self._scope.cancel()

    async def _run(self, listeners, scope):
        with scope:
            await trio.serve_listeners(self._attend, listeners)

    async def _attend(self, client):
        self.clients += 1
        self.most_clients = max(self.most_clients, self.clients)
        try:
            await self._tunnel(client)
        finally:
            self.clients -= 1
            await trio.aclose_forcefully(client)

    async def _tunnel(self, client):
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if await self.negotiate(client):
                async with (
                    await trio.open_tcp_stream("127.0.0.1", self.target_port) as server,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(pump, client, server, nursery.cancel_scope)
                    await pump(server, client, nursery.cancel_scope)

    def url(self, userinfo=""):
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{userinfo}{host}:{self.port}"


class ConnectProxy(RunningProxy):
    """HTTP CONNECT. `answer` is sent in place of its own."""

    scheme = "http"

    async def negotiate(self, client):
        head = b""
        while b"\r\n\r\n" not in head:
            more = await client.receive_some(1024)
            if not more:
                return False
            head += more
        line, *fields = head.decode().split("\r\n")
        method, target, version = line.split(" ")
        assert (method, version) == ("CONNECT", "HTTP/1.1")
        named = dict(field.split(": ", 1) for field in fields if field)
        assert named["Host"] == target
        self.asked.append(target)
        given = None
        if "Proxy-Authorization" in named:
            kind, value = named["Proxy-Authorization"].split(" ")
            assert kind == "Basic"
            given = tuple(base64.b64decode(value).decode().split(":", 1))
        self.credentials.append(given)
        await trio.sleep(self.delay)
        if self.answer is not None:
            await client.send_all(self.answer)
            return self.answer.endswith(b"HTTP/1.1 200 OK\r\n\r\n")
        if given != self.expected:
            await client.send_all(
                b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                b'Proxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
            )
            return False
        await client.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return True


class SocksProxy(RunningProxy):
    """SOCKS5 (RFC 1928) with user name and password (RFC 1929).

    `answer` is a pair: the octets sent in place of the method selection (or None), and those in place of
    the reply to the request (or None).
    """

    scheme = "socks5"

    async def negotiate(self, client):
        instead_of_method, instead_of_reply = self.answer or (None, None)
        version, count = await exactly(client, 2)
        assert version == 5
        methods = await exactly(client, count)
        await trio.sleep(self.delay)
        if instead_of_method is not None:
            await client.send_all(instead_of_method)
            return False
        wanted = 0 if self.expected is None else 2
        if wanted not in methods:
            await client.send_all(b"\x05\xff")
            return False
        await client.send_all(bytes([5, wanted]))
        given = None
        if wanted == 2:
            version, length = await exactly(client, 2)
            assert version == 1
            username = (await exactly(client, length)).decode()
            (length,) = await exactly(client, 1)
            given = (username, (await exactly(client, length)).decode())
        self.credentials.append(given)
        if given is not None:
            await client.send_all(bytes([1, given != self.expected]))
        if given != self.expected:
            return False
        version, command, reserved, kind = await exactly(client, 4)
        assert (version, command, reserved) == (5, 1, 0)
        if kind == 3:
            (length,) = await exactly(client, 1)
            address = await exactly(client, length)
        else:
            address = await exactly(client, {1: 4, 4: 16}[kind])
        port = int.from_bytes(await exactly(client, 2), "big")
        self.asked.append((kind, address, port))
        if instead_of_reply is not None:
            await client.send_all(instead_of_reply)
            return False
        # A proxy may tell the address it bound as a name; octets one by one test our reading.
        for octet in b"\x05\x00\x00\x03\x05proxy\x12\x34":
            await client.send_all(bytes([octet]))
        return True
