"""What a server may do to TCP and TLS, and what of it we notice (rows 58 to 62 of docs/nasty-servers.md).

The first half is about one `Transport` and a peer that is held octet by octet; the second half tells the
same stories to a whole client. All of it over sockets and TLS of loopback.
"""

import contextlib
import datetime
import os
import random
import resource
import shutil
import socket
import ssl
import subprocess
import warnings
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import fastpush
from fastpush import Connected, Lost
from fastpush.simulator import SendOctets, Swallow, Trickle, open_simulator
from fastpush.transport import (
    CONNECT_WITHIN,
    RECEIVE_OCTETS,
    TLS_WITHIN,
    BrokenTransport,
    Transport,
    TransportError,
    open_transport,
)
from tests.clocks import story_clock
from tests.steps import at_each_step, living, open_descriptors
from tests.tls_peer import (
    AUTHORITY,
    Authority,
    Peer,
    Resolver,
    black_hole,
    serve,
    server_context,
    trusting_context,
)

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture
def clock():
    """Time stands still while anybody has something to do, and jumps to the next deadline otherwise."""
    return story_clock()


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return server_context(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def trusting():
    return trusting_context()


@pytest.fixture
def resolve():
    """Give names addresses, for this test."""

    def resolve(**names):
        resolver = Resolver(**names)
        trio.socket.set_custom_hostname_resolver(resolver)
        return resolver

    return resolve


class Pair:
    """A transport after its handshake, and its peer."""

    def __init__(self, transport, peer, release):
        self.transport = transport
        self.peer = peer
        self.release = release

    async def receive_all(self):
        """All plaintext to the end, and the words of the error that ended it, if one did."""
        octets = b""
        try:
            while (more := await self.transport.receive()) is not None:
                octets += more
        except BrokenTransport as error:
            return octets, error.reason
        return octets, None


@contextlib.asynccontextmanager
async def connected(context, trusting):
    shaken, release = trio.Event(), trio.Event()

    async def handler(peer):
        assert await peer.handshake()
        shaken.set()
        await release.wait()

    with trio.fail_after(20):
        async with serve(handler, context) as listener:
            transport = await open_transport("127.0.0.1", listener.port, trusting)
            try:
                await shaken.wait()
                yield Pair(transport, listener.peers[0], release)
            finally:
                transport.abort()
                release.set()


class TestTheEnd:
    """Whatever came before the end stands; only then the end is told, and as often as it is asked for."""

    async def test_row_58_a_fin_after_answers(self, context, trusting):
        async with connected(context, trusting) as pair:
            await pair.peer.send(b"answers")
            pair.release.set()
            assert await pair.receive_all() == (b"answers", None)  # no close_notify either: row 59
            assert await pair.transport.receive() is None

    async def test_row_58_a_half_close_leaves_our_direction_open(self, context, trusting):
        async with connected(context, trusting) as pair:
            pair.peer.tls.write(b"answers")
            with contextlib.suppress(ssl.SSLWantReadError):
                pair.peer.tls.unwrap()
            await pair.peer.send_encrypted()
            pair.peer.socket.shutdown(trio.socket.SHUT_WR)
            assert await pair.receive_all() == (b"answers", None)
            assert pair.transport.write(b"goodbye")
            assert await pair.peer.receive(7) == b"goodbye"

    async def test_row_58_a_reset_after_answers(self, context, trusting):
        async with connected(context, trusting) as pair:
            await pair.peer.send(b"ans", b"wers")
            pair.peer.reset()
            assert await pair.receive_all() == (b"answers", "connection reset by peer")
            with pytest.raises(BrokenTransport, match="reset by peer"):
                await pair.transport.receive()

    async def test_row_58_a_write_that_meets_the_reset_first_loses_no_answer(self, context, trusting):
        """`write` does not tell of the loss: what was received before is still to be read."""
        async with connected(context, trusting) as pair:
            await pair.peer.send(b"answers")
            pair.peer.reset()
            assert pair.transport.write(b"request")
            assert pair.transport.write(b"request")
            assert pair.transport.unsent == 0
            octets, reason = await pair.receive_all()
            assert octets == b"answers"
            assert reason in ("connection reset by peer", "broken pipe")

    async def test_row_59_close_notify_with_the_socket_left_open(self, context, trusting):
        """The end is told at once, without waiting for a FIN."""
        async with connected(context, trusting) as pair:
            with contextlib.suppress(ssl.SSLWantReadError):
                pair.peer.tls.write(b"answers")
                pair.peer.tls.unwrap()
            await pair.peer.send_encrypted()
            assert await pair.receive_all() == (b"answers", None)

    async def test_row_59_an_alert_in_the_segment_of_the_answers(self, context, trusting):
        """OpenSSL tells of an alert once and calls it an orderly end from then on; we do not."""
        async with connected(context, trusting) as pair:
            await pair.peer.send(b"ans", b"wers", alert=True)
            assert await pair.transport.receive() == b"answers"
            assert pair.transport.write(b"TLS takes no more")  # and the reader alone is told
            for _ in range(2):
                with pytest.raises(BrokenTransport, match="alert bad record mac"):
                    await pair.transport.receive()
            pair.transport.close()
            assert await pair.peer.receive_all() == b""

    async def test_row_59_a_record_that_is_no_tls(self, context, trusting):
        """We end with an alert of our own."""
        async with connected(context, trusting) as pair:
            await pair.peer.send(b"answers", behind=b"\x17\x03\x03\x00\x20" + bytes(32))
            assert await pair.transport.receive() == b"answers"
            with pytest.raises(BrokenTransport, match="TLS: "):
                await pair.transport.receive()
            await pair.peer.fill()
            with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
                pair.peer.tls.read(1)

    async def test_row_59_a_record_cut_off_by_the_end(self, context, trusting):
        async with connected(context, trusting) as pair:
            pair.peer.tls.write(b"answers")
            pair.peer.tls.write(b"half of this")
            await pair.peer.send_encrypted(pair.peer.outgoing.read()[:-10])
            pair.release.set()
            assert await pair.receive_all() == (b"answers", None)

    async def test_closing_wakes_the_task_that_waits_for_octets(self, context, trusting):
        async with connected(context, trusting) as pair:
            ended = []

            async def read():
                ended.append(await pair.receive_all())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await wait_all_tasks_blocked()
                pair.transport.close()
            assert ended == [(b"", "the connection was closed on this side")]
            assert await pair.peer.receive_all() == b""
            with pytest.raises(ssl.SSLZeroReturnError):  # it was told by close_notify
                pair.peer.tls.unwrap() or pair.peer.tls.read(1) or pair.peer.tls.write(b"x")
            assert pair.transport.peer == "a closed socket"

    async def test_closing_wakes_the_task_that_waits_for_room(self, context, trusting):
        async with connected(context, trusting) as pair:
            while pair.transport.write(bytes(1 << 20)):
                pass
            reasons = []

            async def wait():
                with pytest.raises(BrokenTransport) as caught:
                    await pair.transport.writable()
                reasons.append(caught.value.reason)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await wait_all_tasks_blocked()
                pair.transport.close()
            await wait()
            assert reasons == ["the connection was closed on this side"] * 2
            pair.transport.close()
            pair.transport.abort()


class TestReading:
    async def test_many_small_records_are_one_wake_up(self, context, trusting):
        """A server writes small records; one `receive` hands over all that one `recv` brought."""
        async with connected(context, trusting) as pair:

            class Steps(trio.abc.Instrument):
                taken = 0

                def before_task_step(self, task):
                    self.taken += task is reader

            received = []
            reader = None

            async def read():
                nonlocal reader
                reader = trio.lowlevel.current_task()
                await pair.transport.receive()  # session tickets
                task_status.set()
                received.append(bytes(await pair.transport.receive()))

            task_status = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await task_status.wait()
                await wait_all_tasks_blocked()
                steps = Steps()
                trio.lowlevel.add_instrument(steps)
                await pair.peer.send(*[b"%04d" % number for number in range(1_000)])
            trio.lowlevel.remove_instrument(steps)
            assert received == [b"".join(b"%04d" % number for number in range(1_000))]
            assert steps.taken == 1

    async def test_more_than_one_receive_holds(self, context, trusting):
        """Nothing is lost or turned round at the edges of 256 KiB."""
        async with connected(context, trusting) as pair:
            sent = random.Random(1).randbytes(5 * RECEIVE_OCTETS // 2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.peer.send, sent)
                got, longest = b"", 0
                while len(got) < len(sent):
                    octets = await pair.transport.receive()
                    longest = max(longest, len(octets))
                    got += octets
            assert got == sent
            assert 16_384 < longest <= RECEIVE_OCTETS

    async def test_octet_by_octet_from_the_handshake_on(self, context, trusting):
        async def handler(peer):
            send = peer.send_encrypted

            async def dribble(octets=None):
                octets = peer.outgoing.read() if octets is None else octets
                for at in range(len(octets)):
                    await send(octets[at : at + 1])

            peer.send_encrypted = dribble
            assert await peer.handshake()
            await peer.send(b"hello")

        async with serve(handler, context) as listener:
            transport = await open_transport("127.0.0.1", listener.port, trusting)
            got = b""
            while (octets := await transport.receive()) is not None:
                got += octets
            assert got == b"hello"
            transport.close()

    async def test_row_59_a_flood_of_session_tickets(self, tmp_path, trusting):
        context = server_context(tmp_path)
        context.num_tickets = 250
        async with connected(context, trusting) as pair:
            assert await pair.transport.receive() == b"", "tickets are no octets of the connection"
            await pair.peer.send(b"answers")
            assert await pair.transport.receive() == b"answers"
            assert pair.transport.write(b"request")
            assert await pair.peer.receive(7) == b"request"
            assert len(pair.peer.sent) > 250 * 200

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl s_server is not installed")
    async def test_row_59_key_updates(self, tmp_path, trusting):
        """RFC 8446 §4.6.3: the server changes its key and asks for ours to change, twice, under way."""
        async with s_server(tmp_path, "-tls1_3", "-num_tickets", "0") as (server, port, shows):
            transport = await open_transport("127.0.0.1", port, trusting)
            for number in range(2):
                await server.stdin.send_all(b"K\n")
                assert await transport.receive() == b"", "a KeyUpdate is no octet of the connection"
                await server.stdin.send_all(b"answer %d\n" % number)
                assert await transport.receive() == b"answer %d\n" % number
                assert transport.write(b"request %d\n" % number)
                await shows(b"request %d" % number)
            transport.close()

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl s_server is not installed")
    async def test_row_59_renegotiation_is_refused(self, tmp_path, trusting):
        """RFC 9113 §9.2.1 forbids it; a server of TLS 1.2 that asks gets an alert and no second hello."""
        async with s_server(tmp_path, "-tls1_2") as (server, port, shows):
            transport = await open_transport("127.0.0.1", port, trusting)
            await server.stdin.send_all(b"r\n")
            assert await transport.receive() == b""
            await shows(b"no renegotiation")
            with pytest.raises(BrokenTransport, match="alert"):
                await transport.receive()
            transport.close()


@contextlib.asynccontextmanager
async def s_server(directory, *options):
    """OpenSSL's own server: its process, its port, and a function that waits until it shows something."""
    server_context(directory)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    identity = directory / "server.pem"
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-naccept", "1", "-alpn", "h2"]
    command += ["-cert", identity, "-key", identity, *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    shown = b""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(trio.run_process, command, check=False, **pipes))

            async def shows(words):
                nonlocal shown
                while words not in shown:
                    octets = await server.stdout.receive_some()
                    assert octets, shown
                    shown += octets

            await shows(b"ACCEPT\n")
            yield server, port, shows
            nursery.cancel_scope.cancel()


class TestWriting:
    @pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not on this system")
    async def test_row_60_the_kernel_gives_up_on_unacknowledged_octets_as_well(self, context, trusting):
        async with connected(context, trusting) as pair:
            with socket.socket(fileno=os.dup(pair.transport._socket.fileno())) as same:
                assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
                assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    async def test_a_batch_larger_than_any_buffer(self, context, trusting):
        """It leaves in parts, as the socket takes it, in order and whole; until then `write` says False."""
        async with connected(context, trusting) as pair:
            sent = random.Random(2).randbytes(6 << 20)
            assert not pair.transport.write(sent)
            assert pair.transport.unsent > 0
            with trio.move_on_after(0.05) as scope:
                await pair.transport.writable()
            assert scope.cancelled_caught, "the peer reads nothing, and there is room"

            async def drain():
                while not pair.transport.flush():
                    await pair.transport.writable()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain)
                assert await pair.peer.receive(len(sent)) == sent
            assert pair.transport.unsent == 0
            calls = pair.transport.write_calls
            assert pair.transport.write(b"and on")
            assert pair.transport.write_calls == calls + 1

    async def test_what_is_written_behind_unsent_octets_waits_its_turn(self, context, trusting):
        async with connected(context, trusting) as pair:
            assert not pair.transport.write(bytes(6 << 20))
            assert not pair.transport.write(b"behind")

            async def drain():
                while not pair.transport.flush():
                    await pair.transport.writable()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain)
                received = await pair.peer.receive((6 << 20) + 6)
            assert received.endswith(b"\0behind")


# Opening.


async def hang(peer):
    await trio.sleep_forever()


async def failure(listener, trusting, host="127.0.0.1"):
    with pytest.raises(TransportError) as caught:
        await open_transport(host, listener.port, trusting)
    return caught.value


async def shake(peer):
    await peer.handshake()
    await peer.receive_all()


class TestHandshake:
    async def test_closed_after_the_client_hello(self, context, trusting):
        async with serve(Peer.fill, context) as listener:
            error = await failure(listener, trusting)
            assert error.reason == "the server closed the connection in the TLS handshake"
            assert not error.lasting
            assert not error.credential

    async def test_closed_amid_the_server_hello(self, context, trusting):
        async def handler(peer):
            await peer.fill()
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            await peer.send_encrypted(peer.outgoing.read()[:50])

        async with serve(handler, context) as listener:
            error = await failure(listener, trusting)
            assert error.reason == "the server closed the connection in the TLS handshake"

    async def test_reset_in_the_handshake(self, context, trusting):
        async def handler(peer):
            await peer.fill()
            peer.reset()

        async with serve(handler, context) as listener:
            error = await failure(listener, trusting)
            assert error.reason == "in the TLS handshake: connection reset by peer"
            assert not error.lasting

    async def test_a_server_that_says_nothing(self, context, trusting, clock):
        async with serve(hang, context) as listener:
            began = trio.current_time()
            error = await failure(listener, trusting)
            assert error.reason == "no end of the TLS handshake within 5 s"
            assert trio.current_time() - began == pytest.approx(TLS_WITHIN, abs=0.1)

    async def test_a_server_that_speaks_no_tls(self, context, trusting):
        async def handler(peer):
            await peer.fill()
            await peer.send_encrypted(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with serve(handler, context) as listener:
            assert (await failure(listener, trusting)).reason.startswith("TLS: ")

    async def test_a_name_that_cannot_be_verified(self, context, trusting):
        """A host of OpenSSL's dislike is told as any other failure, and the socket is closed."""
        trio.socket.set_custom_hostname_resolver(Resolver(**{".example": ["127.0.0.1"]}))
        async with serve(shake, context) as listener:
            error = await failure(listener, trusting, ".example")
            assert error.lasting
            assert await listener.peers[0].receive_all() == b"" if listener.peers else True


class TestNeverAnOctetOfHttp:
    """Row 62: the error names the cause, trying again soon is of no use, and the server saw no HTTP."""

    async def refused(self, context, trusting, *, host="127.0.0.1"):
        done = trio.Event()

        async def handler(peer):
            await peer.handshake()
            await peer.receive_all()
            done.set()

        async with serve(handler, context) as listener:
            error = await failure(listener, trusting, host)
            await done.wait()
            (peer,) = listener.peers
            assert peer.plain == b""
            assert peer.encrypted.startswith(b"\x16\x03")  # there was a ClientHello
            assert error.lasting
            assert not error.credential
            return error.reason

    async def test_row_62_alpn_without_h2(self, tmp_path, trusting):
        """A server with other protocols only may choose none in silence (RFC 7301 §3.2 forbids it)."""
        context = server_context(tmp_path)
        context.set_alpn_protocols(["http/1.1"])
        reason = await self.refused(context, trusting)
        assert reason == "no HTTP/2: by ALPN the server chose no protocol and not 'h2'"

    async def test_row_62_no_alpn_at_all(self, tmp_path, trusting):
        """Over TLS, HTTP/2 is negotiated and never presumed (RFC 9113 §3.2 and §3.3)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context(tmp_path)
        context.load_cert_chain(tmp_path / "server.pem")
        assert "the server chose no protocol" in await self.refused(context, trusting)

    async def test_row_62_alpn_that_was_not_offered(self, tmp_path):
        """A client that offers more is still told when the choice is not h2."""
        context = server_context(tmp_path)
        context.set_alpn_protocols(["http/1.1"])
        offering = trusting_context()
        offering.set_alpn_protocols(["h2", "http/1.1"])
        assert "chose 'http/1.1' and not 'h2'" in await self.refused(context, offering)

    async def test_row_62_tls_1_1_only(self, tmp_path, trusting):
        context = server_context(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        assert "protocol version" in await self.refused(context, trusting)

    async def test_row_62_a_certificate_of_another_name(self, tmp_path, trusting):
        context = server_context(tmp_path, hosts=("api.example.com",))
        reason = await self.refused(context, trusting)
        assert reason.startswith("the server's certificate does not verify: ")
        assert "mismatch" in reason
        assert "127.0.0.1" in reason

    async def test_row_62_a_certificate_of_another_host_name(self, tmp_path, trusting, resolve):
        resolve(localhost=["127.0.0.1"])
        context = server_context(tmp_path, hosts=("api.example.com",))
        assert "'localhost'" in await self.refused(context, trusting, host="localhost")

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_row_62_an_expired_certificate(self, tmp_path, trusting, version):
        context = server_context(tmp_path, not_after=NOW - DAY)
        context.maximum_version = version
        assert "certificate has expired" in await self.refused(context, trusting)

    async def test_row_62_a_certificate_of_the_future(self, tmp_path, trusting):
        context = server_context(tmp_path, not_before=NOW + DAY, not_after=NOW + 2 * DAY)
        assert "not yet valid" in await self.refused(context, trusting)

    async def test_row_62_an_authority_that_is_not_trusted(self, context):
        reason = await self.refused(context, trusting_context(Authority("somebody else")))
        assert "unable to get local issuer certificate" in reason

    async def test_row_62_a_self_signed_chain(self, tmp_path):
        context = server_context(tmp_path)
        chain = tmp_path / "chain.pem"
        pem = (tmp_path / "server.pem").read_bytes()
        chain.write_bytes(pem.replace(b"-----BEGIN PRIVATE", AUTHORITY.ca_pem + b"-----BEGIN PRIVATE"))
        context.load_cert_chain(chain)
        reason = await self.refused(context, trusting_context(Authority("somebody else")))
        assert "self-signed certificate in certificate chain" in reason


TLS_VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class TestOurCertificateIsRefused:
    """The alerts 42 to 46, 48, 49 and 116 of RFC 8446 §6.2 are about our certificate.

    Under TLS 1.2 they end the handshake; under TLS 1.3 ours is over by then, and they come with the first
    read.
    """

    def client_context(self, directory, authority=AUTHORITY, **dates):
        issued = authority.issue_provider_certificate("com.example.app", **dates)
        path = directory / "client.pem"
        path.write_bytes(issued.certificate_pem + issued.key_pem)
        context = trusting_context()
        context.load_cert_chain(path)
        return context, issued

    def strict(self, directory, version, authority=AUTHORITY):
        context = server_context(directory)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority.ca_pem.decode())
        context.minimum_version = context.maximum_version = version
        return context

    async def refusal(self, server, client, *, reset=False):
        """What the client is told; by TLS 1.3 only after it has written into the closed connection."""
        closed = trio.Event()

        async def handler(peer):
            assert not await peer.handshake()
            if reset:
                peer.reset()
            else:
                await trio.aclose_forcefully(trio.SocketStream(peer.socket))
            closed.set()

        async with serve(handler, server) as listener:
            try:
                transport = await open_transport("127.0.0.1", listener.port, client)
            except TransportError as error:
                return error
            await closed.wait()
            for _ in range(3):  # runs into the closed socket
                assert transport.write(PREFACE)
            with pytest.raises(BrokenTransport) as caught:
                await transport.receive()
            transport.close()
            return caught.value

    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize("version", TLS_VERSIONS)
    async def test_row_59_expired(self, tmp_path, version, reset):
        client, _ = self.client_context(tmp_path, not_after=NOW - DAY)
        error = await self.refusal(self.strict(tmp_path, version), client, reset=reset)
        assert "alert certificate expired" in error.reason
        assert error.credential

    @pytest.mark.parametrize("version", TLS_VERSIONS)
    async def test_row_59_revoked(self, tmp_path, version):
        client, issued = self.client_context(tmp_path)
        server = self.strict(tmp_path, version)
        (tmp_path / "revoked.pem").write_bytes(AUTHORITY.issue_revocation_list(issued))
        server.load_verify_locations(tmp_path / "revoked.pem")
        server.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        error = await self.refusal(server, client)
        assert "alert certificate revoked" in error.reason
        assert error.credential

    @pytest.mark.parametrize("version", TLS_VERSIONS)
    async def test_row_59_of_an_unknown_authority(self, tmp_path, version):
        client, _ = self.client_context(tmp_path, Authority("not Apple"))
        error = await self.refusal(self.strict(tmp_path, version), client)
        assert "alert unknown ca" in error.reason
        assert error.credential

    async def test_row_59_none_where_one_is_required(self, tmp_path, trusting):
        error = await self.refusal(self.strict(tmp_path, ssl.TLSVersion.TLSv1_3), trusting)
        assert "alert certificate required" in error.reason
        assert error.credential

    async def test_row_59_another_alert_is_not_about_it(self, context, trusting):
        async with connected(context, trusting) as pair:
            await pair.peer.send(alert=True)
            with pytest.raises(BrokenTransport) as caught:
                await pair.transport.receive()
            assert not caught.value.credential


class TestAddresses:
    async def test_an_address_that_refuses_does_not_hold_up_the_next(self, context, trusting, resolve, clock):
        resolve(localhost=["::1", "127.0.0.1"])
        async with serve(shake, context) as listener:
            began = trio.current_time()
            transport = await open_transport("localhost", listener.port, trusting)
            assert transport.peer == f"127.0.0.1 port {listener.port}"
            assert trio.current_time() == began
            transport.close()

    async def test_a_black_hole_costs_a_quarter_of_a_second(self, context, trusting, resolve, clock):
        """RFC 8305 §5: the next address is tried while the first is silent."""
        before = open_descriptors()
        with black_hole("::1") as port, socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            resolve(localhost=["::1", "127.0.0.1"])
            done = trio.Event()

            async def server():
                raw = trio.socket.from_stdlib_socket(taken.dup())
                sock, _ = await raw.accept()
                peer = Peer(trio.SocketStream(sock), context)
                assert await peer.handshake()
                done.set()
                await peer.receive_all()
                sock.close()
                raw.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(server)
                began = trio.current_time()
                transport = await open_transport("localhost", port, trusting)
                assert transport.peer == f"127.0.0.1 port {port}"
                assert trio.current_time() - began == pytest.approx(0.25, abs=0.01)
                await done.wait()
                transport.close()
        assert open_descriptors() == before, "the attempt that lost the race is still open"

    async def test_all_addresses_dead(self, trusting, resolve, clock):
        with black_hole("127.0.0.1") as port:
            resolve(localhost=["::1", "127.0.0.1"])
            began = trio.current_time()
            with pytest.raises(TransportError) as caught:
                await open_transport("localhost", port, trusting)
            assert caught.value.reason == (
                f"cannot connect to localhost port {port}: connection refused, no answer within 5 s"
            )
            assert trio.current_time() - began == pytest.approx(CONNECT_WITHIN, abs=0.01)
            assert not caught.value.lasting

    async def test_all_addresses_refuse(self, trusting, resolve):
        resolve(localhost=["::1", "127.0.0.1"])
        with pytest.raises(TransportError) as caught:
            await open_transport("localhost", 1, trusting)
        assert caught.value.reason == "cannot connect to localhost port 1: connection refused"

    async def test_a_name_that_does_not_resolve(self, trusting, resolve):
        resolve()
        with pytest.raises(TransportError) as caught:
            await open_transport("api.example.invalid", 443, trusting)
        assert caught.value.reason == "no address for api.example.invalid: name or service not known"
        assert not caught.value.lasting

    async def test_a_name_service_that_does_not_answer(self, trusting, clock):
        class Silent(Resolver):
            async def getaddrinfo(self, *_):
                await trio.sleep_forever()

        trio.socket.set_custom_hostname_resolver(Silent())
        with pytest.raises(TransportError) as caught:
            await open_transport("api.example.com", 443, trusting)
        assert caught.value.reason == "cannot connect to api.example.com port 443: no answer within 5 s"

    @pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example"])
    async def test_a_host_that_is_no_name(self, trusting, host):
        with pytest.raises(TransportError, match="it is no host name") as caught:
            await open_transport(host, 443, trusting)
        assert caught.value.lasting

    async def test_an_ipv6_address(self, context, trusting):
        async with serve(shake, context, host="::1") as listener:
            transport = await open_transport("::1", listener.port, trusting)
            assert transport.peer == f"::1 port {listener.port}"
            transport.close()

    async def test_addresses_are_shuffled(self, trusting, context, resolve):
        """Apple: many addresses, and connections spread over them."""
        seed = int(os.environ.get("FASTPUSH_SEED", random.randrange(2**32)))
        print("FASTPUSH_SEED", seed)
        random.seed(seed)
        resolve(localhost=[f"127.0.0.{number}" for number in range(1, 9)])
        seen = set()
        async with serve(shake, context, host="0.0.0.0") as listener:
            for _ in range(40):
                transport = await open_transport("localhost", listener.port, trusting)
                seen.add(transport.peer)
                transport.close()
        assert len(seen) >= 6  # less than 6 of 8 in 40 draws: one run in 10,000

    async def test_both_families_take_turns(self, trusting, context, resolve, clock):
        """RFC 8305 §4: ten dead addresses of one family do not stand before the first of the other."""
        resolve(localhost=["::1"] + ["::2"] * 9 + ["127.0.0.1"])
        async with serve(shake, context) as listener:
            began = trio.current_time()
            transport = await open_transport("localhost", listener.port, trusting)
            assert trio.current_time() - began <= 0.5
            transport.close()

    async def test_no_descriptor_left_is_an_error_like_any_other(self, trusting):
        before = open_descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) - 1, hard))
        try:
            held = []
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            with pytest.raises(TransportError) as caught:
                await open_transport("127.0.0.1", 1, trusting)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in held:
                os.close(descriptor)
        assert caught.value.reason == "cannot connect to 127.0.0.1 port 1: too many open files"
        assert open_descriptors() == before

    async def test_cancelled_with_a_connection_in_hand(self, context, trusting, resolve):
        """Whenever the caller goes away, no socket stays behind."""
        resolve(localhost=["127.0.0.1", "::1"])
        async with serve(shake, context) as listener:
            before = await living()

            async def story(steps):
                with steps.cancelling():
                    transport = await open_transport("localhost", listener.port, trusting)
                    transport.close()
                assert await living() == before

            await at_each_step(story, least=8)


# The same to a whole client.

TOPIC = "com.example.app"
PAYLOAD = fastpush.Payload(alert="Core switch down")


def notification(number=0, payload=PAYLOAD, **fields):
    return fastpush.Notification(f"{number:064x}", payload, **fields)


class Sent:
    """What became of sends that ran side by side."""

    def __init__(self):
        self.accepted = 0
        self.errors = []

    @property
    def ended(self):
        return self.accepted + len(self.errors)

    async def send(self, client, *parts, **fields):
        try:
            response = await client.send(notification(*parts, **fields))
        except fastpush.FastpushError as error:
            self.errors.append(error)
        else:
            assert response.accepted
            self.accepted += 1


class Events(list):
    """What a client told of, with the times."""

    def __init__(self):
        super().__init__()
        self._more = trio.lowlevel.ParkingLot()

    def listen(self, event):
        self.append((trio.current_time(), event))
        self._more.unpark_all()

    async def wait_for(self, kind):
        while not any(isinstance(event, kind) for _, event in self):
            await self._more.park()


@contextlib.asynccontextmanager
async def client_of(simulator, **options):
    """A client, and the events that it told of with their times."""
    events = Events()

    async with fastpush.open_client(
        options.pop("credential", None) or simulator.signing_key(),
        topic=TOPIC,
        host=options.pop("host", simulator.host),
        port=simulator.port,
        ca_file=simulator.ca_file,
        listener=events.listen,
        **options,
    ) as client:
        yield client, events


@contextlib.asynccontextmanager
async def one_connection(**options):
    """A simulator with these options, and a client with one connection to it."""
    async with (
        open_simulator(**options) as simulator,
        client_of(simulator, max_connections=1) as (client, events),
    ):
        yield simulator, client, events


def times(events, kind):
    return [at for at, event in events if isinstance(event, kind)]


class TestTheClient:
    @pytest.mark.parametrize("how", ["fin", "close notify", "reset", "alert"])
    async def test_rows_58_and_59_an_end_with_streams_open(self, clock, how):
        """Answers that came stand, the rest is unknown, and within a second there is a connection again."""
        silent = [Swallow(device_token=f"{number:064x}") for number in range(5)]
        async with one_connection(faults=silent) as (simulator, client, events):
            await client.send(notification(99))
            sent = Sent()
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(sent.send, client, number)
                await wait_all_tasks_blocked(0.02)
                cut_at = trio.current_time()
                assert simulator.close_connections(how) == 1
            assert sent.accepted == 5
            assert len(sent.errors) == 5
            assert {type(error) for error in sent.errors} == {fastpush.OutcomeUnknown}
            assert {error.processed for error in sent.errors} == {None}
            assert trio.current_time() - cut_at < 1.0
            simulator.faults.clear()
            assert (await client.send(notification(7))).accepted
            assert times(events, Connected)[1] - cut_at <= 1.0

    async def test_row_58_pushes_with_a_collapse_id_are_sent_again(self, clock):
        async with one_connection(faults=[Swallow(connection=1)]) as (simulator, client, _):
            await client.wait_ready()
            sent = Sent()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: sent.send(client, 1, collapse_id="one"))
                await wait_all_tasks_blocked(0.01)
                simulator.close_connections("reset")
            assert sent.accepted == 1

    async def test_row_60_a_black_hole_under_load(self, clock):
        """A stopped server whose kernel acknowledges: found in 10 s, and another connection takes over."""
        async with one_connection(stream_limit=50) as (simulator, client, events):
            await client.send(notification(99))
            simulator.freeze()
            frozen_at = trio.current_time()
            sent = Sent()
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(sent.send, client, number)
            assert trio.current_time() - frozen_at <= 10.0
            assert times(events, Lost)[0] - frozen_at <= 10.0
            assert sent.accepted == 10, "what waited for a stream goes out on the next connection"
            assert {type(error) for error in sent.errors} == {fastpush.OutcomeUnknown}
            simulator.thaw()

    async def test_row_60_a_black_hole_while_idle(self, clock):
        async with one_connection() as (simulator, client, events):
            await client.send(notification(99))
            simulator.freeze()
            frozen_at = trio.current_time()
            await events.wait_for(Lost)
            assert 60.0 <= times(events, Lost)[0] - frozen_at <= 65.0
            assert (await client.send(notification(1))).accepted
            simulator.thaw()

    async def test_row_60_a_server_that_reads_no_more(self, clock):
        """The window is open and the socket full: 5 s without an octet taken end the connection."""
        window = b"\0\0\x04\x08\0" + bytes(4) + (2**31 - 1 - 2**24).to_bytes(4, "big")
        faults = [SendOctets(connection=1, octets=window)]
        async with one_connection(stream_limit=4_000, faults=faults) as (simulator, client, events):
            await client.send(notification(99))
            simulator.freeze()
            began = trio.current_time()
            large = fastpush.Payload(alert="Core switch down", data={"more": "x" * 4_000})
            sent = Sent()
            async with trio.open_nursery() as nursery:
                for number in range(4_000):
                    nursery.start_soon(sent.send, client, number, large)
                await wait_all_tasks_blocked(0.01)
                (connection,) = client.statistics().connections
                assert connection.in_flight == 4_000, "the window let all of them out"
                nursery.cancel_scope.cancel()
            await events.wait_for(Lost)
            assert next(event for _, event in events if isinstance(event, Lost)).reason == (
                "the server took no octet for 5 s"
            )
            assert times(events, Lost)[0] - began == pytest.approx(5.0, abs=0.2)
            assert (await client.send(notification(1))).accepted
            simulator.thaw()

    async def test_row_61_slow_loris(self, clock):
        """An octet of an answer each second: each request ends after its 10 s, after three the connection."""
        async with one_connection(faults=[Trickle(connection=1, request=2, interval=1.0)]) as (
            simulator,
            client,
            _,
        ):
            await client.send(notification(99))
            began = trio.current_time()
            sent = Sent()
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(sent.send, client, number)
            assert trio.current_time() - began == pytest.approx(10.0, abs=0.1)
            assert sent.accepted == 0
            assert {type(error) for error in sent.errors} == {fastpush.OutcomeUnknown}
            assert {error.reason for error in sent.errors} == {"no answer within 10 s"}
            assert (await client.send(notification(5))).accepted
            assert client.statistics().connections[-1].requests == 1, "on a new connection"
            assert simulator.statistics().connections_opened == 2

    @pytest.mark.parametrize("revoked", [False, True])
    async def test_row_59_a_certificate_that_apns_refuses(self, revoked):
        """TLS 1.3: our handshake is over when the alert comes; the client stops and says why at once."""
        async with open_simulator(topics=[TOPIC]) as simulator:
            dates = {} if revoked else {"not_after": NOW - DAY}
            issued = simulator.authority.issue_provider_certificate(TOPIC, **dates)
            if revoked:
                simulator.revoke_certificate(issued)
            pem = issued.certificate_pem + issued.key_pem
            credential = fastpush.ProviderCertificate.from_bytes(pem, allow_expired=True)
            async with client_of(simulator, credential=credential) as (client, _):
                word = "revoked" if revoked else "expired"
                with trio.fail_after(10), pytest.raises(fastpush.CredentialRefused, match=word):
                    await client.send(notification(1))
                with pytest.raises(fastpush.CredentialRefused, match=word):
                    await client.send(notification(2))
                with pytest.raises(fastpush.CredentialRefused, match=word):
                    await client.wait_ready()
                assert client.statistics().stopped is not None

    async def test_row_62_a_server_of_another_name(self, clock):
        async with open_simulator(authority=AUTHORITY, host="127.0.0.2") as simulator:
            # Its certificate names localhost, 127.0.0.1, ::1 and 127.0.0.2.
            trio.socket.set_custom_hostname_resolver(Resolver(**{"api.example.com": ["127.0.0.2"]}))
            async with client_of(simulator, host="api.example.com") as (client, _):
                with pytest.raises(fastpush.NotSent, match="certificate does not verify"):
                    await client.send(notification(1))
                with pytest.raises(fastpush.NotSent, match="certificate does not verify"):
                    await client.wait_ready()
                assert simulator.statistics().requests == 0
                # The cause is lasting: one try a minute, and not more.
                failed = simulator.statistics().handshakes_failed
                await trio.sleep(50)
                assert simulator.statistics().handshakes_failed == failed
                await trio.sleep(70)
                assert simulator.statistics().handshakes_failed > failed


def test_a_transport_cannot_be_made_twice_on_one_socket_by_mistake():
    """The socket is its own: closing it twice does not close a stranger's descriptor."""
    left, right = socket.socketpair()
    with left, right:
        transport = Transport(left, trusting_context(), "localhost")
        number = left.fileno()
        left.setblocking(False)

        async def main():
            transport.abort()
            stranger = os.dup(right.fileno())
            assert stranger == number
            transport.abort()
            transport.close()
            os.close(stranger)

        trio.run(main)
