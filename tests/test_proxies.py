"""HTTP CONNECT and SOCKS5: through, refused, rude, slow, and gone while we work.

A tunnel that fails is a failure to connect like any other: told with its cause, tried again with back-off,
and over as soon as the proxy is well. The user name and password of the proxy are told to nobody.
"""

import contextlib
import logging
import os
import random
import traceback
import uuid

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import fastpush
from fastpush import Connected
from fastpush.simulator import open_simulator
from fastpush.transport import PROXY_WITHIN, Proxy, TransportError, open_transport
from tests.clocks import story_clock
from tests.proxies import ConnectProxy, SocksProxy
from tests.steps import open_descriptors
from tests.tls_peer import Resolver, serve, server_context, trusting_context

SECRET = "p@ss:wörd/?#%"
ESCAPED = "p%40ss%3Aw%C3%B6rd%2F%3F%23%25"
BOTH = pytest.mark.parametrize("kind", [ConnectProxy, SocksProxy])


@pytest.fixture
def clock():
    return story_clock()


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return server_context(tmp_path_factory.mktemp("server"), hosts=("api.example.com", "127.0.0.1", "::1"))


@pytest.fixture(scope="module")
def trusting():
    return trusting_context()


async def greet(peer):
    if await peer.handshake():
        await peer.send(b"hello")
        await peer.receive_all()


async def greeted(transport):
    """Octets come through the tunnel; tickets before them are no octets."""
    while not (octets := await transport.receive()):
        pass
    transport.close()
    return octets == b"hello"


@contextlib.asynccontextmanager
async def running(kind, context, **options):
    """A TLS server, and a proxy before it."""
    with trio.fail_after(30):
        async with serve(greet, context) as listener, trio.open_nursery() as nursery:
            proxy = kind(nursery, listener.port, **options)
            before = open_descriptors()
            await proxy.start()
            yield proxy, listener
            proxy.stop()
            await wait_all_tasks_blocked(0.005)
            assert open_descriptors() == before
            nursery.cancel_scope.cancel()


async def failure(proxy, trusting, userinfo="", host="api.example.com"):
    """How `open_transport` fails; nothing of it may give the password away."""
    with pytest.raises(TransportError) as caught:
        await open_transport(host, 443, trusting, proxy=Proxy.parse(proxy.url(userinfo)))
    error = caught.value
    told = "".join(traceback.format_exception(error)) + repr(error) + error.reason
    assert SECRET not in told
    assert ESCAPED not in told
    assert f"proxy {proxy.host}" in error.reason
    return error


class TestThrough:
    @BOTH
    @pytest.mark.parametrize("with_password", [False, True])
    async def test_to_a_name_that_only_the_proxy_can_resolve(self, kind, with_password, context, trusting):
        """The certificate is verified for the server's name, and no name is asked for here."""
        resolver = Resolver()
        trio.socket.set_custom_hostname_resolver(resolver)
        credentials = ("user", SECRET) if with_password else None
        async with running(kind, context, credentials=credentials) as (proxy, _):
            url = proxy.url(f"user:{ESCAPED}@" if with_password else "")
            transport = await open_transport("api.example.com", 443, trusting, proxy=Proxy.parse(url))
            assert await greeted(transport)
            assert proxy.asked == [
                "api.example.com:443" if kind is ConnectProxy else (3, b"api.example.com", 443)
            ]
            assert proxy.credentials == [credentials]
            assert all(host == b"127.0.0.1" for host in resolver.asked), "only our listener's own address"

    @BOTH
    async def test_a_proxy_with_an_ipv6_address(self, kind, context, trusting):
        async with running(kind, context, host="::1") as (proxy, _):
            transport = await open_transport("api.example.com", 443, trusting, proxy=Proxy.parse(proxy.url()))
            assert transport.peer == f"::1 port {proxy.port}"
            assert await greeted(transport)

    @pytest.mark.parametrize(
        ("host", "connect", "socks"),
        [
            ("::1", "[::1]:443", (4, bytes(15) + b"\1", 443)),
            ("127.0.0.1", "127.0.0.1:443", (1, b"\x7f\0\0\1", 443)),
        ],
    )
    @BOTH
    async def test_to_an_address(self, kind, host, connect, socks, context, trusting):
        async with running(kind, context) as (proxy, _):
            transport = await open_transport(host, 443, trusting, proxy=Proxy.parse(proxy.url()))
            assert await greeted(transport)
            assert proxy.asked == [connect if kind is ConnectProxy else socks]

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 199 x\r\nPadding: " + b"x" * 16_000 + b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ],
    )
    async def test_answers_that_mean_yes(self, answer, context, trusting):
        """Interim answers are passed over, as everywhere in HTTP (RFC 9110 §15.2)."""
        async with running(ConnectProxy, context, answer=answer) as (proxy, _):
            transport = await open_transport("api.example.com", 443, trusting, proxy=Proxy.parse(proxy.url()))
            assert await greeted(transport)


class TestRefused:
    """Lasting is what somebody has to change: a password, a rule of the proxy's, its address."""

    @BOTH
    async def test_a_wrong_password(self, kind, context, trusting):
        async with running(kind, context, credentials=("user", "another")) as (proxy, _):
            error = await failure(proxy, trusting, f"user:{ESCAPED}@")
            assert error.lasting
            assert ("407" in error.reason) or ("refuses user name and password" in error.reason)
            assert proxy.credentials == [("user", SECRET)]

    @BOTH
    async def test_none_where_one_is_wanted(self, kind, context, trusting):
        async with running(kind, context, credentials=("user", "another")) as (proxy, _):
            error = await failure(proxy, trusting)
            assert error.lasting
            assert ("407" in error.reason) or ("another kind of authentication" in error.reason)

    @pytest.mark.parametrize(
        ("answer", "words", "lasting"),
        [
            (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "status 403", True),
            (b"HTTP/1.0 401 x\r\n\r\n", "status 401", True),
            (b"HTTP/1.1 502 Bad Gateway\n\n", "status 502", False),
            (b"HTTP/1.1 503\r\n\r\n", "status 503", False),
            (b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere/\r\n\r\n", "status 301", False),
            (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "status 100", False),
            (b"HTTP/2 200\r\n\r\n", "its answer is no HTTP", True),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "its answer is no HTTP", True),
            (b"HTTP/1.1 OK\r\n\r\n", "its answer is no HTTP", True),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "its answer is no HTTP", True),
            (b"\x05\xff", "its answer is no HTTP", True),
            (b"HTTP/1.1 200 O", "closed it amid its answer", False),
            (b"", "closed the connection", False),
            (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, "more than 16384 octets", False),
            (b"HTTP/1.1 200 OK\r\n\r\nsurprise", "ahead of the server", False),
        ],
    )
    async def test_by_http(self, answer, words, lasting, context, trusting):
        async with running(ConnectProxy, context, answer=answer) as (proxy, listener):
            error = await failure(proxy, trusting, f"user:{ESCAPED}@")
            assert words in error.reason
            assert error.lasting == lasting
            assert not error.credential
            assert listener.peers == []

    @pytest.mark.parametrize(
        ("answer", "words", "lasting"),
        [
            ((b"\x05\xff", None), "another kind of authentication", True),
            ((b"\x05\x01", None), "another kind of authentication", True),  # GSSAPI
            ((b"\x04\x00", None), "speaks no SOCKS5", True),
            ((b"HT", None), "speaks no SOCKS5", True),
            ((b"\x05", None), "closed the connection", False),
            ((b"", None), "closed the connection", False),
            ((None, b"\x05\x01\x00\x01" + bytes(6)), "general failure", False),
            ((None, b"\x05\x02\x00\x01" + bytes(6)), "not allowed by its rules", True),
            ((None, b"\x05\x03\x00\x01" + bytes(6)), "network unreachable", False),
            ((None, b"\x05\x04\x00\x01" + bytes(6)), "host unreachable", False),
            ((None, b"\x05\x05\x00\x01" + bytes(6)), "connection refused", False),
            ((None, b"\x05\x06\x00\x01" + bytes(6)), "TTL expired", False),
            ((None, b"\x05\x07\x00\x01" + bytes(6)), "command not supported", False),
            ((None, b"\x05\x08\x00\x01" + bytes(6)), "address type not supported", False),
            ((None, b"\x05\x63\x00\x01" + bytes(6)), "reply 99", False),
            ((None, b"\x00\x5a\x00\x01" + bytes(6)), "speaks no SOCKS5", True),
            ((None, b"\x05\x00\x00\x03\x10short"), "closed the connection", False),
            ((None, b"\x05\x00\x00\x04" + bytes(7)), "closed the connection", False),
        ],
    )
    async def test_by_socks(self, answer, words, lasting, context, trusting):
        async with running(SocksProxy, context, answer=answer) as (proxy, listener):
            error = await failure(proxy, trusting)
            assert error.reason == f"proxy 127.0.0.1 port {proxy.port}: {error.reason.split(': ')[1]}"
            assert words in error.reason
            assert error.lasting == lasting
            assert listener.peers == []

    @BOTH
    async def test_a_slow_proxy(self, kind, context, trusting, clock):
        async with running(kind, context, delay=10.0) as (proxy, _):
            began = trio.current_time()
            error = await failure(proxy, trusting)
            assert error.reason == "no answer from the proxy 127.0.0.1 within 5 s"
            assert not error.lasting
            assert trio.current_time() - began == pytest.approx(PROXY_WITHIN, abs=0.1)

    @BOTH
    async def test_no_proxy_there(self, kind, context, trusting):
        async with running(kind, context) as (proxy, _):
            proxy.stop()
            await wait_all_tasks_blocked()
            error = await failure(proxy, trusting, f"user:{ESCAPED}@")
            assert error.reason == (
                f"cannot connect to the proxy 127.0.0.1 port {proxy.port}: connection refused"
            )
            assert not error.lasting

    @BOTH
    @pytest.mark.parametrize("host", ["a b", "x\r\nEvil: 1", "", "é" * 70 + ".example", "a" * 256])
    async def test_a_host_that_would_break_the_request(self, kind, host, context, trusting):
        async with running(kind, context) as (proxy, _):
            error = await failure(proxy, trusting, host=host)
            assert "it is no host name" in error.reason
            assert error.lasting
            assert proxy.asked == []


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("http://proxy", ("http", "proxy", 8080, None, None)),
            ("HTTP://Proxy:3128/", ("http", "proxy", 3128, None, None)),
            ("socks5://[::1]", ("socks5", "::1", 1080, None, None)),
            ("socks5h://proxy:9050", ("socks5", "proxy", 9050, None, None)),
            (f"http://user:{ESCAPED}@proxy", ("http", "proxy", 8080, "user", SECRET)),
            ("socks5://us%3Aer:@proxy", ("socks5", "proxy", 1080, "us:er", "")),
            ("http://user@proxy", ("http", "proxy", 8080, "user", None)),
        ],
    )
    def test_read(self, url, expected):
        proxy = Proxy.parse(url)
        assert (proxy.scheme, proxy.host, proxy.port, proxy.username, proxy.password) == expected

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("proxy:3128", "no scheme"),
            ("user:SECRET@proxy:3128", "no scheme"),
            ("SECRET", "no scheme"),
            ("https://user:SECRET@proxy", "'http' and 'socks5' are supported"),
            ("socks4://user:SECRET@proxy", "'http' and 'socks5' are supported"),
            ("http://", "no host"),
            ("http://user:SECRET@", "no host"),
            ("http://user:SECRET@proxy:port", "from 1 to 65535"),
            ("http://user:SECRET@proxy:0", "the port is 0"),
            ("http://user:SECRET@proxy:65536", "from 1 to 65535"),
            ("http://user:SEC/RET@proxy", "from 1 to 65535"),
            ("http://user:12/SECRET@proxy", "%2F"),
            ("http://user:12?SECRET@proxy", "%3F"),
            ("http://user:12#SECRET@proxy", "%23"),
            ("http://user:[SECRET@proxy", "%40"),
            ("http://user:SECRET%FF@proxy", "not UTF-8"),
            ("http://us%3Aer:SECRET@proxy", "colon in the user name"),
            (f"socks5://user:{'SECRET' * 50}@proxy", "255 octets"),
            ("http://proxy/path", "more than a host and a port"),
        ],
    )
    def test_refused_without_telling_it(self, url, words):
        with pytest.raises(ValueError, match=r"^proxy: ") as caught:
            Proxy.parse(url)
        assert words in str(caught.value)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value, chain=True))

    def test_a_repr_has_neither_user_name_nor_password(self):
        proxy = Proxy.parse(f"http://somebody:{ESCAPED}@proxy")
        assert repr(proxy) == "Proxy(scheme='http', host='proxy', port=8080)"


TOPIC = "com.example.app"
PAYLOAD = fastpush.Payload(alert="Core switch down")


class TestTheClient:
    @pytest.mark.parametrize(
        ("kind", "answer"),
        [(ConnectProxy, None), (SocksProxy, None), (ConnectProxy, b"HTTP/1.1 503 Restarting\r\n\r\n")],
    )
    async def test_a_proxy_that_restarts_under_load(self, kind, answer, caplog, clock):
        """Each push ends once, and the client recovers by itself; nobody has to touch it.

        While it restarts it is not there, or it answers 503 as in matrix-org/sygnal issue 304.
        """
        caplog.set_level(logging.DEBUG)
        seed = int(os.environ.get("FASTPUSH_SEED", 4))
        print("FASTPUSH_SEED", seed)
        random.seed(seed)
        events = []
        async with open_simulator(topics=[TOPIC]) as simulator, trio.open_nursery() as nursery:
            proxy = kind(nursery, simulator.port, credentials=("user", SECRET))
            await proxy.start()
            outcomes, errors = {}, []
            async with fastpush.open_client(
                simulator.signing_key(),
                topic=TOPIC,
                host=simulator.host,
                port=simulator.port,
                ca_file=simulator.ca_file,
                proxy=proxy.url(f"user:{ESCAPED}@"),
                listener=lambda event: events.append((trio.current_time(), event)),
            ) as client:

                async def send(number):
                    apns_id = str(uuid.UUID(int=number))
                    notification = fastpush.Notification(
                        f"{number:064x}", PAYLOAD, collapse_id=f"{number}", apns_id=apns_id
                    )
                    try:
                        response = await client.send(notification)
                    except (fastpush.NotSent, fastpush.OutcomeUnknown) as error:
                        errors.append(error)
                        outcomes[apns_id] = "not_sent" if error.processed is False else "unknown"
                    else:
                        outcomes[response.apns_id] = response.outcome

                async with trio.open_nursery() as senders:
                    for number in range(600):
                        senders.start_soon(send, number)
                        if number % 25 == 0:
                            await trio.sleep(0.5)
                        if number == 212:  # amid answers
                            proxy.stop()
                            if answer is not None:
                                proxy.answer = answer
                                await proxy.start()
                        if number == 400:
                            proxy.stop()
                            proxy.answer = None
                            await wait_all_tasks_blocked()
                            await proxy.start()
                            back_at = trio.current_time()
                assert len(outcomes) == 600
                assert list(outcomes.values()).count("accepted") >= 590
                report = simulator.ledger.check(list(outcomes), outcomes)
                assert not report.lost
                assert not report.forgotten
                assert not any(SECRET in str(error) for error in errors)
                again = min(at for at, event in events if isinstance(event, Connected) and at >= back_at)
                assert again - back_at <= 8.0
                assert (await client.send(fastpush.Notification("ab" * 32, PAYLOAD))).accepted
                assert SECRET not in repr(client)
            nursery.cancel_scope.cancel()
        assert any("proxy 127.0.0.1" in record.getMessage() for record in caplog.records)
        assert SECRET not in caplog.text
        assert ESCAPED not in caplog.text
        assert not any(SECRET in repr(event) for _, event in events)

    @BOTH
    async def test_after_a_failure_there_is_one_try_at_a_time(self, kind, clock):
        """A proxy that has no time is not asked by two, and each failure lengthens the wait once."""
        events = []
        async with open_simulator(topics=[TOPIC]) as simulator, trio.open_nursery() as nursery:
            proxy = kind(
                nursery, simulator.port, delay=4.0, answer=b"" if kind is ConnectProxy else (b"", None)
            )
            await proxy.start()
            async with fastpush.open_client(
                simulator.signing_key(),
                topic=TOPIC,
                host=simulator.host,
                port=simulator.port,
                ca_file=simulator.ca_file,
                proxy=proxy.url(),
                listener=lambda event: events.append((trio.current_time(), event)),
            ):
                await trio.sleep(4.5)
                assert len(events) == proxy.most_clients == 2, "both warm connections have failed once"
                proxy.most_clients = 0
                await trio.sleep(200)
                assert proxy.most_clients == 1
                assert 4 <= len(events) <= 30
            nursery.cancel_scope.cancel()

    @BOTH
    async def test_a_refused_password_is_told_at_once_and_tried_once_a_minute(self, kind, clock):
        async with open_simulator(topics=[TOPIC]) as simulator, trio.open_nursery() as nursery:
            proxy = kind(nursery, simulator.port, credentials=("user", "another"))
            await proxy.start()
            async with fastpush.open_client(
                simulator.signing_key(),
                topic=TOPIC,
                host=simulator.host,
                port=simulator.port,
                ca_file=simulator.ca_file,
                proxy=proxy.url(f"user:{ESCAPED}@"),
            ) as client:
                for _ in range(3):
                    with pytest.raises(
                        fastpush.NotSent, match=f"proxy 127.0.0.1 port {proxy.port}"
                    ) as caught:
                        await client.send(fastpush.Notification("ab" * 32, PAYLOAD))
                    assert SECRET not in str(caught.value)
                asked = len(proxy.credentials)
                proxy.expected = ("user", SECRET)  # somebody puts it right
                await trio.sleep(50)
                assert len(proxy.credentials) == asked
                await trio.sleep(20)
                await client.wait_ready()
                assert (await client.send(fastpush.Notification("ab" * 32, PAYLOAD))).accepted
            nursery.cancel_scope.cancel()
