"""How much a client may have: connections, octets, seconds."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from contextlib import AsyncExitStack, suppress

import pytest
import trio
import trustme

from fastpush.gateway.http import BodyRule, Limits, ServerTLS, TrustedProxies, open_listener

from .http_peers import open_h2, read_to_end, serving, soon, status

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
BYE = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
QUICK = Limits(
    head_seconds=0.3, keep_alive=0.6, tls_handshake=0.3, body=BodyRule(octets=1000, seconds=1, patience=0.3)
)


def post(*fields):
    return b"POST /x HTTP/1.1\r\nHost: a\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def issue(authority, directory, name="server"):
    issued = authority.issue_cert("localhost", common_name=name)
    issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
    issued.private_key_pem.write_to_path(directory / f"{name}.key")
    return directory / f"{name}.pem", directory / f"{name}.key"


async def how_long(served, octets, drip=b""):
    """Seconds until the server ends the connection, and what it said."""
    stream = await served.connect()
    async with stream, trio.open_nursery() as nursery:
        began = trio.current_time()
        await stream.send_all(octets)

        async def dripping():
            try:
                while drip:
                    await trio.sleep(0.05)  # the rate of a slow sender
                    await stream.send_all(drip)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        nursery.start_soon(dripping)
        with trio.fail_after(6):
            answer = await read_to_end(stream)
        nursery.cancel_scope.cancel()
        return trio.current_time() - began, answer


@pytest.mark.parametrize(
    ("octets", "drip", "seconds", "wanted"),
    [
        (b"", b"", 0.3, None),
        (b"GET / HT", b"", 0.3, 408),
        (b"GET / HTTP/1.1\r\nX: ", b"x", 0.3, 408),
        (post(b"Content-Length: 900"), b"", 0.3, 408),
        (post(b"Content-Length: 900"), b"x", 0.3, 408),
        (post(b"Content-Length: 900") + bytes(800), b"x", 0.3, 408),
        (GET, b"", 0.6, 200),
    ],
    ids=[
        "nothing",
        "half a head",
        "a dripping head",
        "no body",
        "a dripping body",
        "all but the end",
        "idle",
    ],
)
async def test_slow_clients_are_gone_in_time(octets, drip, seconds, wanted):
    async with serving(limits=QUICK) as served:
        took, answer = await how_long(served, octets, drip)
        assert seconds - 0.05 < took < seconds + 2.6
        assert status(answer) == wanted
        if b"Content-Length: 900" in octets:
            assert served.app.cut == ["/x"]
            assert served.app.seen == []


async def test_a_body_at_its_least_rate_has_its_whole_time_and_no_more():
    """Fast enough every moment, and yet the whole takes too long; as a stream it may."""
    whole = BodyRule(octets=None, seconds=0.8, least_rate=100, patience=0.3)
    async with serving(limits=Limits(body=whole)) as served:
        took, answer = await how_long(served, post(b"Content-Length: 100000"), bytes(50))
        assert 0.7 < took < 3.4
        assert status(answer) == 408
    async with serving(body_rules=lambda scope: BodyRule(None, None, 100, 0.3)) as served:
        stream = await served.connect()
        await stream.send_all(post(b"Content-Length: 1500"))
        for _ in range(30):
            await trio.sleep(0.05)  # the rate of the sender: 1,000 octets a second
            await stream.send_all(bytes(50))
        assert status(await stream.receive_some(65_536)) == 200
        await stream.aclose()


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "sent"])
async def test_a_body_over_the_limit_is_413_and_the_client_can_read_it(declared):
    body = bytes(1001)
    octets = post(b"Content-Length: 1001") + body
    if not declared:
        octets = post(b"Transfer-Encoding: chunked") + b"3e9\r\n" + body + b"\r\n0\r\n\r\n"
    async with serving(limits=QUICK) as served:
        answer = await served.exchange(octets)
        assert status(answer) == 413
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 413
        assert served.app.seen == []
        assert served.app.cut == ([] if declared else ["/x"])
        assert (
            status(await served.exchange(post(b"Content-Length: 1000", b"Connection: close") + bytes(1000)))
            == 200
        )


async def test_413_reaches_a_client_that_writes_first_and_reads_later():
    async with serving() as served:
        answer = await served.exchange(post(b"Content-Length: 5000000") + bytes(800_000))
        assert status(answer) == 413
        assert b"<reset>" not in answer


async def test_a_truncated_upload_is_a_disconnect():
    async with serving() as served:
        for framing in (b"Content-Length: 1000", b"Transfer-Encoding: chunked"):
            stream = await served.connect()
            await stream.send_all(post(framing) + b"5\r\nhello\r\n")
            await stream.aclose()
        await soon(lambda: len(served.app.cut) == 2)
        assert served.app.seen == []


async def test_100_continue_comes_before_the_body_and_not_before_a_413():
    async with serving(limits=QUICK) as served:
        stream = await served.connect()
        async with stream:
            await stream.send_all(post(b"Content-Length: 5", b"Expect: 100-continue"))
            assert status(await stream.receive_some(1000)) == 100
            await stream.send_all(b"hello")
            assert status(await stream.receive_some(1000)) == 200
        assert status(await served.exchange(post(b"Content-Length: 5000", b"Expect: 100-continue"))) == 413


async def test_connections_of_an_address_and_in_all(caplog):
    async with serving(limits=Limits(connections_per_address=3)) as served, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(await served.connect())
        await trio.testing.wait_all_tasks_blocked(0.02)
        answer = await served.exchange(b"")
        assert status(answer) == 503
        assert served.refused["connections"] == 1
        assert status(await served.exchange(b"")) == 503
        [told] = [record.msg for record in caplog.records if "refused" in record.message]
        assert told == {
            "event": "connections are refused",
            "connections": 3,
            "address": "127.0.0.1",
            "of_address": 3,
        }
    proxies = TrustedProxies(["127.0.0.0/8"])
    limits = Limits(connections=4, connections_per_address=3)
    async with serving(limits=limits, trusted_proxies=proxies) as served, AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(await served.connect())
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert status(await served.exchange(b"")) == 503


async def test_the_end_of_a_connection_makes_room():
    async with serving(limits=Limits(connections_per_address=1)) as served:
        for _ in range(5):
            assert status(await served.exchange(BYE)) == 200
            await soon(lambda: not served.server.statistics.open)


async def test_idle_connections_end_with_the_server_and_a_late_request_is_served():
    async with serving() as served:
        idle, late = await served.connect(), await served.connect()
        for stream in (idle, late):
            await stream.send_all(GET)
            await stream.receive_some(65_536)
        began = trio.current_time()
        served.stop.set()
        await trio.testing.wait_all_tasks_blocked()
        await late.send_all(GET)
        answer = await read_to_end(late)
        assert status(answer) == 200
        assert b"connection: close" in answer.lower()
        await late.aclose()
        assert await read_to_end(idle) == b""
        await idle.aclose()
        with trio.fail_after(5):
            await served.ended.wait()
        assert trio.current_time() - began < 3


async def test_a_tls_handshake_has_its_time(tmp_path):
    tls = ServerTLS(*issue(trustme.CA(), tmp_path))
    async with serving(tls=tls, limits=QUICK) as served:
        took, answer = await how_long(served, b"")
        assert 0.25 < took < 2
        assert answer == b""
        assert served.refused["tls handshake"] == 1
        await how_long(served, GET)  # plain HTTP on the port harms nobody
        assert served.refused["tls handshake"] == 2


async def test_a_certificate_is_reloaded_and_a_broken_one_is_not(tmp_path):
    old, new = trustme.CA(), trustme.CA()
    files = issue(old, tmp_path)
    tls = ServerTLS(*files)

    def context(authority):
        made = ssl.create_default_context()
        authority.configure_trust(made)
        return made

    async with serving(tls=tls) as served:
        first = await open_h2(served.port, context(old))
        issue(new, tmp_path)
        tls.reload()
        second = await open_h2(served.port, context(new))
        files[0].write_text("not a certificate")
        with pytest.raises(ssl.SSLError):
            tls.reload()
        third = await open_h2(served.port, context(new))
        for client in (first, second, third):
            stream_id = client.request("/x", "GET", end=True)
            await client.flush()
            assert await client.until(lambda c, stream_id=stream_id: stream_id in c.ended)
            await trio.aclose_forcefully(client.stream)


@pytest.mark.parametrize("required", ["optional", "required"])
async def test_a_client_certificate_reaches_the_application(tmp_path, required):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ServerTLS(*issue(authority, tmp_path), client_ca=tmp_path / "ca.pem", client_certificates=required)
    files = issue(authority, tmp_path, "opmanager")
    async with serving(tls=tls) as served:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        context.load_cert_chain(*files)
        client = await open_h2(served.port, context)
        stream_id = client.request("/x", "GET", end=True)
        await client.flush()
        assert await client.until(lambda c: stream_id in c.ended)
        await trio.aclose_forcefully(client.stream)
        assert served.app.scopes[-1]["state"]["client_certificate"].common_name == "opmanager"
        bare = ssl.create_default_context()
        authority.configure_trust(bare)
        client = await open_h2(served.port, bare)
        stream_id = client.request("/x", "GET", end=True)
        with suppress(trio.BrokenResourceError):
            await client.flush()
        answered = await client.until(lambda c: stream_id in c.ended)
        await trio.aclose_forcefully(client.stream)
        assert answered is (required == "optional")
        if answered:
            assert served.app.scopes[-1]["state"]["client_certificate"] is None


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2 -cipher AES128-SHA"])
async def test_old_tls_and_weak_suites_are_refused(tmp_path, version):
    tls = ServerTLS(*issue(trustme.CA(), tmp_path))
    async with serving(tls=tls) as served:
        tried = await trio.run_process(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{served.port}", *version.split()],
            stdin=b"", capture_stdout=True, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert tried.returncode != 0
        assert b"BEGIN CERTIFICATE" not in tried.stdout


async def test_a_unix_socket_comes_and_goes(tmp_path):
    path = tmp_path / "http.sock"
    async with serving(address=f"unix:{path}", trusted_proxies=TrustedProxies(["unix"])) as served:
        assert path.stat().st_mode & 0o777 == 0o660
        with pytest.raises(OSError, match="another process listens"):
            open_listener(f"unix:{path}")
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(BYE.replace(b"Host: a", b"Host: a\r\nX-Forwarded-For: 192.0.2.7"))
            assert status(await read_to_end(stream)) == 200
        assert served.app.scopes[0]["client"] == ("192.0.2.7", 0)
    assert not path.exists()


async def test_an_inherited_socket_outlives_the_server():
    """Who connects while nobody serves waits in the queue for the next."""
    with socket.create_server(("127.0.0.1", 0)) as outer:
        for _ in range(2):
            async with serving(address=f"fd://{socket.socket.dup(outer).detach()}") as served:
                assert status(await served.exchange(BYE)) == 200
        waiting = await trio.open_tcp_stream("127.0.0.1", outer.getsockname()[1])
        await waiting.send_all(BYE)
        async with serving(address=f"fd://{socket.socket.dup(outer).detach()}"):
            assert status(await read_to_end(waiting)) == 200
        await waiting.aclose()


@pytest.mark.parametrize("address", ["8080", "localhost:x", ":99999", "fd://x", "fd://999"])
def test_addresses_that_cannot_be_read_are_named(address):
    with pytest.raises(ValueError, match=f"listener '{address}'"):
        open_listener(address)


@pytest.mark.parametrize(
    ("header", "value", "client"),
    [
        ("x-forwarded-for", "192.0.2.7", "192.0.2.7"),
        ("x-forwarded-for", "6.6.6.6, 192.0.2.7, 10.1.2.3", "192.0.2.7"),
        ("x-forwarded-for", "6.6.6.6, unknown, 10.1.2.3", "10.1.2.3"),
        ("x-forwarded-for", "[2001:db8::1]:443", "2001:db8::1"),
        ("x-forwarded-for", "::ffff:10.0.0.9", "10.0.0.9"),
        ("x-forwarded-for", "", "10.0.0.1"),
        ("forwarded", "for=6.6.6.6, for=192.0.2.7;proto=https, for=10.1.2.3", "192.0.2.7"),
        ("forwarded", 'proto=https;For="[2001:db8::1]:4711"', "2001:db8::1"),
        ("forwarded", "for=_hidden", "10.0.0.1"),
    ],
)
def test_whose_word_counts(header, value, client):
    proxies = TrustedProxies(["10.0.0.0/8"], header=header)
    headers = [(header.encode(), value.encode())]
    assert proxies.client(("10.0.0.1", 5), headers)[0] == client
    assert proxies.client(("192.0.2.99", 5), headers) == ("192.0.2.99", 5)
    other = "forwarded" if header == "x-forwarded-for" else "x-forwarded-for"
    assert TrustedProxies(["10.0.0.0/8"], header=other).client(("10.0.0.1", 5), headers)[0] == "10.0.0.1"


def test_a_network_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"trusted proxy '10\.0\.0\.1/8'"):
        TrustedProxies(["10.0.0.1/8"])
