"""`fastpush serve` as a process: its start, its signals, its end."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys

import pytest
import trio
import trustme

from fastpush.gateway.supervisor import Notifier, inherited_sockets
from fastpush.simulator import Answer, Delay, open_simulator
from tests.clocks import story_clock
from tests.gateway.processes import ROOT, TOPIC, ask, ask_control, listening, running, until, write_settings

ALARM = b'{"displayName":"core-sw-01","entity":"core-sw-01_Poll","stringseverity":"Critical","message":"x"}'


@pytest.fixture
def clock():
    return story_clock(0)


@pytest.fixture
async def simulator():
    async with open_simulator(topics=[TOPIC]) as simulator:
        yield simulator


def run(*arguments, environ=None):
    """A command that ends by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "fastpush", "serve", *map(str, arguments)], cwd=ROOT, capture_output=True,
        text=True, timeout=30, env=os.environ | (environ or {}),
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def push(number=1, **fields):
    fields = {"device_token": f"{number:064x}", "payload": {"aps": {"alert": "x"}}} | fields
    return json.dumps(fields).encode()


async def accepted(port, apns_id):
    return (await ask(port, f"/v1/notifications/{apns_id}")).body["outcome"] == "accepted"


# The start.


async def test_it_takes_an_alarm_and_a_notification_and_ends_in_order(tmp_path, simulator):
    """From a configuration of twenty lines to a push and its outcome, and exit code 0 at SIGTERM."""
    async with running(write_settings(tmp_path, simulator)) as gateway:
        assert "READY=1" in gateway.told[0]
        port = gateway.port()
        answer = await ask(port, "/readyz")
        assert (answer.status, answer.body["ready"]) == (200, True)
        answer = await ask(port, "/v1/opmanager", ALARM)
        assert (answer.status, answer.body["result"]) == (200, "recorded")
        answer = await ask(port, "/v1/notifications", push())
        assert answer.status == 202
        (apns_id,) = answer.body["ids"]
        await until(lambda: accepted(port, apns_id))
        assert await gateway.end() == 0
        assert [seen.apns_id for seen in simulator.ledger.seen] == [apns_id]
        assert [line["event"] for line in gateway.lines][-1] == "ended"
        gateway.hear()
        assert gateway.told[-1] == "STOPPING=1"
        assert not (tmp_path / "gateway.db.control").exists()


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (("key.p8", "none.p8"), 2, "credential.key_file: {folder}/none.p8: No such file or directory"),
        (("[apps.opm]", "[apps.opm]\nnonsense = 1"), 2, "apps.opm.nonsense: is unknown; known: "),
        (("key.p8", "ca.pem"), 1, "apps.opm.credential: {folder}/ca.pem: "),
        (("127.0.0.1:0", "{taken}"), 1, "ingest.listen: {taken}: another process listens there"),
        (("127.0.0.1:0", "192.0.2.1:8080"), 1, "192.0.2.1:8080: this machine does not have that address"),
        (("127.0.0.1:0", "fd://ingest"), 1, "fd://ingest: no socket of this name was handed over"),
        (("127.0.0.1:0", "fd://77"), 1, "'fd://77': no socket has been inherited there"),
    ],
)  # fmt: skip
async def test_a_start_that_fails_is_one_line_with_the_cure(tmp_path, simulator, change, code, told):
    file = write_settings(tmp_path, simulator)
    (tmp_path / "ca.pem").chmod(0o600)
    with listening() as (taken,):
        host, port = taken.getsockname()
        names = {"folder": tmp_path, "taken": f"{host}:{port}"}
        old, new = (each.format(**names) if "{" in each else each for each in change)
        file.write_text(file.read_text().replace(old, new, 1))
        done = await trio.to_thread.run_sync(run, "--config", file)
    assert done.returncode == code
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert told.format(**names) in line
    assert not done.stdout


async def test_a_second_gateway_on_the_same_file_is_refused_and_the_first_unharmed(tmp_path, simulator):
    """D16."""
    file = write_settings(tmp_path, simulator)
    async with running(file) as gateway:
        done = await trio.to_thread.run_sync(run, "--config", file)
        assert done.returncode == 1
        assert f"is in use by another process (its id is {gateway.pid})" in done.stderr
        assert (await ask(gateway.port(), "/readyz")).status == 200
        assert await gateway.end() == 0


async def test_check_tells_what_a_start_would_find(tmp_path, simulator):
    file = write_settings(tmp_path, simulator)
    done = await trio.to_thread.run_sync(run, "--check", "--config", file)
    assert (done.returncode, done.stdout) == (0, f"{file}: good\n")
    (tmp_path / "key.p8").write_bytes(b"nothing")
    done = await trio.to_thread.run_sync(run, "--check", "--config", file)
    assert done.returncode == 1
    assert f"apps.opm.credential: {tmp_path}/key.p8: " in done.stderr
    (tmp_path / "key.p8").chmod(0o604)
    done = await trio.to_thread.run_sync(run, "--check", "--config", file)
    assert done.returncode == 2
    assert f"chmod o= {tmp_path}/key.p8" in done.stderr
    done = await trio.to_thread.run_sync(run, "--check", "--config", tmp_path / "none.toml")
    assert done.returncode == 2
    assert "No such file or directory" in done.stderr


async def test_the_environment_counts_more_than_the_file(tmp_path, simulator):
    file = write_settings(tmp_path, simulator, ingest="192.0.2.1:1")
    async with running(file, environ={"FASTPUSH_INGEST__LISTEN": "127.0.0.1:0,[::1]:0"}) as gateway:
        (line,) = [line for line in gateway.lines if line["event"] == "started"]
        assert [each.rpartition(":")[0] for each in line["ingest"].split(", ")] == [
            "http://127.0.0.1",
            "http://[::1]",
        ]


async def test_it_starts_while_apns_cannot_be_reached(tmp_path, simulator):
    """What is accepted waits, and goes out when APNs is there."""
    file = write_settings(tmp_path, simulator)
    simulator.refuse_connections()
    async with running(file) as gateway:
        port = gateway.port()
        assert (await ask(port, "/readyz")).status == 200
        assert (await ask(port, "/v1/notifications", push())).status == 202
        simulator.accept_connections()
        await until(lambda: simulator.ledger.seen, 20)


# Sockets.


async def test_it_listens_on_tls_unix_sockets_and_inherited_ones(tmp_path, simulator):
    authority = trustme.CA()
    identity = authority.issue_cert("localhost")
    identity.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    identity.private_key_pem.write_to_path(tmp_path / "server.key")
    (tmp_path / "server.key").chmod(0o600)
    path = tmp_path / "http.sock"
    with listening() as sockets:
        file = write_settings(
            tmp_path, simulator, ingest=["127.0.0.1:0", f"unix:{path}", f"fd://{sockets[0].fileno()}"],
            more_ingest='[ingest.tls]\ncertificate_file = "server.pem"\nkey_file = "server.key"\n',
        )  # fmt: skip
        async with running(file, sockets=sockets) as gateway:
            (line,) = [line for line in gateway.lines if line["event"] == "started"]
            tcp, unix, inherited = line["ingest"].split(", ")
            assert unix == f"unix:{path}"
            assert inherited == f"https://127.0.0.1:{sockets[0].getsockname()[1]}"
            assert (await ask_control(path, "/readyz"))["ready"]
            first = await served_certificate(authority, int(tcp.rpartition(":")[2]))
            assert first == await served_certificate(authority, sockets[0].getsockname()[1])
            # A renewed certificate is taken at SIGHUP (or before, as its file is watched), without a restart;
            # a broken one is refused.
            renewed = authority.issue_cert("localhost")
            renewed.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
            renewed.private_key_pem.write_to_path(tmp_path / "server.key")
            await hang_up(gateway)
            second = await served_certificate(authority, int(tcp.rpartition(":")[2]))
            assert second != first
            (tmp_path / "server.pem").write_text("nothing")
            await hang_up(gateway)
            assert second == await served_certificate(authority, int(tcp.rpartition(":")[2]))
            changes = [(line["option"], line["result"]) for line in gateway.lines if "option" in line]
            assert changes[-1] == ("tls", "refused")


async def served_certificate(authority, port):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    async with trio.SSLStream(tcp, context, server_hostname="localhost", https_compatible=True) as stream:
        await stream.do_handshake()
        return stream.getpeercert(binary_form=True)


async def hang_up(gateway):
    """SIGHUP, and wait until it has been dealt with."""
    gateway.told.clear()
    gateway.popen.send_signal(signal.SIGHUP)
    await gateway.wait_for_word("RELOADING=1")
    gateway.told.clear()
    await gateway.wait_for_word("READY=1")


async def test_the_control_socket_is_the_administrators(tmp_path, simulator):
    async with running(write_settings(tmp_path, simulator)):
        path = tmp_path / "gateway.db.control"
        assert path.stat().st_mode & 0o777 == 0o600
        assert (await ask_control(path, "/v1/outbox"))["apps"] is not None


# Another configuration.


async def test_hang_up_takes_routes_and_credentials_and_names_what_needs_a_restart(tmp_path, simulator):
    file = write_settings(tmp_path, simulator)
    async with running(file) as gateway:
        await hang_up(gateway)
        assert gateway.lines[-1]["result"] == "nothing has changed"
        other = simulator.issue_signing_key(key_id="SIMULATOR2")
        (tmp_path / "other.p8").write_bytes(other.p8)
        (tmp_path / "other.p8").chmod(0o600)
        text = file.read_text().replace("key.p8", "other.p8").replace("SIMULATOR1", "SIMULATOR2")
        file.write_text(
            text.replace('path = "gateway.db"', 'path = "another.db"')
            + '[[routes]]\nname = "all"\ntags = ["noc"]\n[alarms.look]\nprivate = true\n'
        )
        await hang_up(gateway)
        changes = {line["option"]: line["result"] for line in gateway.lines if "option" in line}
        assert changes == {
            "routes": "changed",
            "alarms.look": "changed",
            "apps.opm.credential": "changed",
            "storage.path": "needs a restart",
        }
        answer = await ask(gateway.port(), "/v1/opmanager", ALARM)
        assert answer.body["unrouted"] == "no device", "the route takes it now"
        # A mistake changes nothing and is told.
        file.write_text(text + "[nonsense]\n")
        await hang_up(gateway)
        assert gateway.lines[-1]["error"].endswith("nonsense: is unknown; known: apps, ingest, admin, "
            "storage, dispatch, routes, alarms, auth, devices, watchdog, notices, log, tracing")  # fmt: skip
        assert (await ask(gateway.port(), "/readyz")).status == 200
        assert await gateway.end() == 0


async def test_an_apps_limit_holds_for_uploads_until_it_is_raised(tmp_path, simulator):
    """What is stored of the upload is at most the limit and a chunk; the rest is refused."""
    file = write_settings(tmp_path, simulator)
    text = file.read_text()
    file.write_text(text.replace("[apps.opm]", "[apps.opm]\nmax_waiting = 1_000"))
    body = b"".join(push(number) + b"\n" for number in range(6_000))
    simulator.refuse_connections()
    async with running(file) as gateway:
        answer = await ask(gateway.port(), "/v1/notifications", body, "application/x-ndjson")
        assert (answer.status, answer.body["stored"]) == (503, "partly")
        assert 1_000 <= answer.body["stored_lines"] < 4_000
        file.write_text(text.replace("[apps.opm]", "[apps.opm]\nmax_waiting = 100_000"))
        await hang_up(gateway)
        answer = await ask(gateway.port(), "/v1/notifications", body, "application/x-ndjson")
        assert (answer.status, answer.body["count"]) == (202, 6_000)


async def test_a_credential_that_apns_refuses_is_not_taken(tmp_path, simulator):
    file = write_settings(tmp_path, simulator)
    async with running(file) as gateway:
        unknown = simulator.issue_signing_key(key_id="SIMULATOR3")
        simulator.revoke_key("SIMULATOR3")
        (tmp_path / "unknown.p8").write_bytes(unknown.p8)
        (tmp_path / "unknown.p8").chmod(0o600)
        file.write_text(file.read_text().replace("SIMULATOR1", "SIMULATOR3").replace("key.p8", "unknown.p8"))
        await hang_up(gateway)
        changes = [(line["option"], line["result"]) for line in gateway.lines if "option" in line]
        assert ("apps.opm.credential", "refused") in changes
        port = gateway.port()
        await ask(port, "/v1/notifications", push())
        await until(lambda: simulator.ledger.accepted)


# The end.


async def test_what_is_in_flight_ends_before_the_process_does(tmp_path, simulator):
    """Requests that wait for their outcome are answered; pushes that APNs is slow with are waited for."""
    slow = Delay(seconds=1.5)
    async with running(write_settings(tmp_path, simulator)) as gateway:
        port = gateway.port()
        await ask(port, "/v1/notifications", push())
        simulator.faults.add(slow)
        assert (await ask(port, "/v1/notifications", push(2))).status == 202
        answers = []

        async def wait_for_outcome():
            answers.append(await ask(port, "/v1/notifications?wait=10", push(3)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_outcome)
            await trio.sleep(0.3)
            gateway.popen.terminate()
            await trio.sleep(0.3)
            with pytest.raises(OSError, match="all attempts"):
                await trio.open_tcp_stream("127.0.0.1", gateway.port())
            assert gateway.popen.poll() is None
        assert await gateway.wait() == 0
        assert answers[0].status in (200, 202)
        assert len([seen for seen in simulator.ledger.seen if seen.fate == "accepted"]) == 3
        # All is on record: a second start has nothing to send.
        simulator.faults.clear()
        async with running(tmp_path / "fastpush.toml") as gateway:
            assert all(
                not app["waiting"]
                for app in (await ask_control(tmp_path / "gateway.db.control", "/v1/outbox"))["apps"]
            )
            assert await gateway.end() == 0
        assert len(simulator.ledger.seen) == 3


async def test_a_second_signal_cuts_the_end_short_and_loses_nothing(tmp_path, simulator):
    async with running(write_settings(tmp_path, simulator)) as gateway:
        port = gateway.port()
        await ask(port, "/v1/notifications", push())
        await until(lambda: simulator.ledger.seen)
        stalled = Delay(seconds=8)
        simulator.faults.add(stalled)
        (apns_id,) = (await ask(port, "/v1/notifications", push(2))).body["ids"]
        await trio.sleep(0.3)
        gateway.popen.terminate()
        await trio.sleep(0.5)
        assert gateway.popen.poll() is None
        gateway.popen.send_signal(signal.SIGINT)
        assert await gateway.wait(3) == 1
        assert "ended before all was answered" in gateway.log
    simulator.faults.clear()
    async with running(tmp_path / "fastpush.toml") as gateway:
        port = gateway.port()
        await until(lambda: accepted(port, apns_id))


async def test_apns_that_does_not_answer_does_not_keep_it_from_ending(tmp_path, simulator):
    """25 s at the most; what was in flight is sent again by the next start, under the same apns-id."""
    async with running(write_settings(tmp_path, simulator)) as gateway:
        port = gateway.port()
        await ask(port, "/v1/notifications", push())
        await until(lambda: simulator.ledger.seen)
        simulator.faults.add(Answer(status=503, reason="ServiceUnavailable"))
        ids = []
        for number in range(2, 50):
            ids += (await ask(port, "/v1/notifications", push(number))).body["ids"]
        started = trio.current_time()
        assert await gateway.end() == 0
        assert trio.current_time() - started < 25
    simulator.faults.clear()
    async with running(tmp_path / "fastpush.toml") as gateway:
        await until(lambda: len(simulator.ledger.accepted) >= 49, 40)
    assert simulator.ledger.accepted.keys() >= set(ids)
    assert set(simulator.ledger.accepted.values()) == {1}


# What a supervisor says and hears.


def test_sockets_are_found_by_their_names(monkeypatch):
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "ingest:admin:ingest"}
    assert inherited_sockets(environ) == {"ingest": (3, 5), "admin": (4,)}
    assert not environ, "no child may take them for its own"
    assert inherited_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == {}
    assert inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}) == {"unknown": (3,)}
    assert inherited_sockets({}) == {}


async def test_the_supervisors_watchdog_is_fed(tmp_path, clock):
    """Twice in each span; also to an abstract socket, and nobody is told where there is nobody."""
    for address in (str(tmp_path / "bell"), f"@fastpush-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
            bell.bind("\0" + address[1:] if address.startswith("@") else address)
            bell.setblocking(False)
            notifier = Notifier(
                {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
            )
            assert notifier.watchdog_after == 30.0
            with trio.move_on_after(40):
                await notifier.beat()
            assert [bell.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            with pytest.raises(BlockingIOError):
                bell.recv(100)
    nobody = Notifier({})
    nobody.tell("READY=1")
    await nobody.beat()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).tell("READY=1")
