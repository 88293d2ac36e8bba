"""HTTP/2 servers that others wrote, each a child process on loopback over TLS, answering as APNs does.

The benchmarks use haproxy as their sink, the interoperability tests use all of them. Each answers 200
to `POST /3/device/...` after it has read the whole body, and keeps a count of its own, so that both ends
of a run can be compared:

    with tempfile.TemporaryDirectory() as directory, haproxy(Path(directory)) as server:
        ...                               # send to https://{server.host}:{server.port}
        print(server.tally().answered)

A server that this machine does not have raises `NotInstalled` with the reason in words.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
STARTS_WITHIN = 15.0  # seconds until a server must take connections
LOOK_EVERY = 0.02  # seconds; other people's servers do not say when they listen
STOPS_WITHIN = 15.0  # seconds a server has to end after it was asked to


class NotInstalled(Exception):
    """This machine lacks the server; the message says what to install."""


class ServerFailed(Exception):
    """A server ended, or never listened; the message ends with what it had printed."""


@dataclass(frozen=True)
class Tally:
    """What a server says it has done since it was started."""

    answered: int
    """Requests that it answered with 200."""
    device_tokens: int | None = None
    """Distinct device tokens among them; None where the server does not keep them."""
    connections: int | None = None
    """Connections taken; None where there is no count."""
    body_octets: int | None = None
    """Octets of request bodies, with haproxy also of header fields; None where there is no count."""
    cpu_seconds: float | None = None
    """User and system time of the server since it listened; None where it does not say."""


class Server:
    """A running child process. Its certificate is good for `localhost` and 127.0.0.1."""

    def __init__(
        self,
        name: str,
        version: str,
        port: int,
        ca_file: Path,
        process: subprocess.Popen[bytes],
        output: Path,
        count: Callable[[Server], Tally],
        *,
        counts_while_running: bool,
    ) -> None:
        self.name = name
        self.version = version
        self.host = LOOPBACK
        self.port = port
        self.ca_file = ca_file
        self.process = process
        self.output = output
        self._count = count
        self.counts_while_running = counts_while_running

    def __repr__(self) -> str:
        return f"<{self.name} {self.version} on port {self.port}, process {self.process.pid}>"

    def tally(self) -> Tally:
        """The server's own count. All but haproxy are stopped for it: they write theirs down at their end."""
        if not self.counts_while_running:
            self.stop()
        return self._count(self)

    def stop(self) -> None:
        """Ask the process to end as it does in service, and wait for it. Calling it again does nothing."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ServerFailed(f"{self.name} did not end within {STOPS_WITHIN:.0f} s") from None


# haproxy: fast and strict, in C, with its own HTTP/2 code; the benchmarks' sink.


@contextmanager
def haproxy(
    directory: Path, *, apns_id: bool = True, body_octets: int = 0, core: int | None = None
) -> Iterator[Server]:
    """Start haproxy with one thread and 1,000 streams to a connection.

    Args:
      directory: an empty one, for its configuration, certificate and socket.
      apns_id: answer with the request's apns-id, as APNs does; otherwise with `:status` and a length only.
      body_octets: answer 400 to a body that has fewer.
      core: the processor that it may use; None for any.
    """
    program = find("haproxy", "haproxy")
    port = free_port()
    certificates = issue_certificate(directory)
    stats_socket = directory / "stats.sock"
    answer = "http-request return status 200" + (" hdr apns-id %[req.hdr(apns-id)]" if apns_id else "")
    judge = (
        f"http-request return status 400 unless {{ req.body_len ge {body_octets} }}" if body_octets else ""
    )
    configuration = fill_in(
        "haproxy.cfg",
        directory,
        port=port,
        certificate=certificates.chain_with_key,
        stats=stats_socket,
        judge=judge,
        answer=answer,
    )

    def count(server: Server) -> Tally:
        row = haproxy_frontend_row(stats_socket)
        return Tally(int(row["hrsp_2xx"]), connections=int(row["stot"]), body_octets=int(row["bin"]))

    with started(
        [program, "-db", "-q", "-f", str(configuration)],
        name="haproxy",
        version=version_of([program, "-v"]),
        port=port,
        ca_file=certificates.ca_file,
        directory=directory,
        core=core,
        count=count,
        counts_while_running=True,
    ) as server:
        # It may listen before its statistics' socket has its final name.
        wait_until(server, stats_socket.exists)
        yield server


def haproxy_frontend_row(stats_socket: Path) -> dict[str, str]:
    """What haproxy's statistics say of the only frontend (haproxy management guide, "show stat")."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(stats_socket))
        connection.sendall(b"show stat apns 1 -1\n")
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    return next(csv.DictReader(io.StringIO(answer.decode().removeprefix("# "))))


# nginx: what stands before most HTTP/2 services; it sends RST_STREAM with NO_ERROR after every answer, and
# GOAWAY after each 1,000 requests of a connection unless told otherwise.


@contextmanager
def nginx(directory: Path, *, keepalive_requests: int = 1_000, core: int | None = None) -> Iterator[Server]:
    """Start nginx with one worker; it counts by its access log.

    Args:
      directory: an empty one, for its configuration, certificate and logs.
      keepalive_requests: after so many a connection gets GOAWAY; nginx's own default is 1,000.
      core: the processor that it may use; None for any.
    """
    program = find("nginx", "nginx")
    port = free_port()
    certificates = issue_certificate(directory)
    access_log = directory / "access.log"
    configuration = fill_in(
        "nginx.conf",
        directory,
        port=port,
        certificate=certificates.chain_with_key,
        access_log=access_log,
        error_log=directory / "error.log",
        pid=directory / "nginx.pid",
        scratch=directory,
        keepalive_requests=keepalive_requests,
    )

    def count(server: Server) -> Tally:
        lines = [line.split() for line in access_log.read_text().splitlines()]
        paths = [path for status, path in lines if status == "200"]
        return Tally(answered=len(paths), device_tokens=len(set(paths)))

    with started(
        [program, "-p", str(directory), "-c", str(configuration), "-e", str(directory / "error.log")],
        name="nginx",
        version=version_of([program, "-v"]),
        port=port,
        ca_file=certificates.ca_file,
        directory=directory,
        core=core,
        count=count,
    ) as server:
        yield server


# Node's http2 module: nghttp2 under JavaScript.


@contextmanager
def node(directory: Path) -> Iterator[Server]:
    """Start `node_server.js`; it echoes apns-id and prints its count when it is ended."""
    program = find("node", "nodejs")
    certificates = issue_certificate(directory)
    port = free_port()
    command = [program, str(HERE / "node_server.js"), LOOPBACK, str(port), str(certificates.chain_with_key)]
    with started(
        command,
        name="node",
        version=version_of([program, "--version"]),
        port=port,
        ca_file=certificates.ca_file,
        directory=directory,
        count=printed_tally,
    ) as server:
        yield server


# hypercorn's trio worker: h2, the Python library, as a server.


@contextmanager
def hypercorn(directory: Path) -> Iterator[Server]:
    """Start `asgi_server.py`: hypercorn on trio; no limit to the requests of a connection."""
    try:
        import hypercorn as package  # noqa: F401  (only whether it is there)
    except ImportError:
        raise NotInstalled("hypercorn is not installed: pip install hypercorn[trio]") from None
    from importlib.metadata import version

    certificates = issue_certificate(directory)
    port = free_port()
    command = [
        sys.executable,
        str(HERE / "asgi_server.py"),
        LOOPBACK,
        str(port),
        str(certificates.chain_with_key),
    ]
    with started(
        command,
        name="hypercorn",
        version=version("hypercorn"),
        port=port,
        ca_file=certificates.ca_file,
        directory=directory,
        count=printed_tally,
    ) as server:
        yield server


# nghttpd: nghttp2's own server.


@contextmanager
def nghttpd(directory: Path) -> Iterator[Server]:
    """Start nghttpd, which sends each body back with its 200; it counts by its log of frames."""
    program = find("nghttpd", "nghttp2-server")
    certificates = issue_certificate(directory)
    port = free_port()
    command = [
        program,
        "--address",
        LOOPBACK,
        "--echo-upload",
        "--max-concurrent-streams=1000",
        "--verbose",
        "--htdocs",
        str(directory),
        str(port),
        str(certificates.chain_with_key),
        str(certificates.chain_with_key),
    ]

    def count(server: Server) -> Tally:
        answered = 0
        paths = set()
        for line in server.output.read_text(errors="replace").splitlines():
            # Each frame is a line; the fields of a header list are lines of their own before it.
            if ":path: /3/device/" in line:
                paths.add(line.split()[-1])
            answered += " :status: 200" in line
        return Tally(answered=answered, device_tokens=len(paths))

    with started(
        command,
        name="nghttpd",
        version=version_of([program, "--version"]),
        port=port,
        ca_file=certificates.ca_file,
        directory=directory,
        count=count,
    ) as server:
        yield server


# Our own, for its speed beside the others.


@contextmanager
def simulator(directory: Path, *, core: int | None = None) -> Iterator[Server]:
    """Start `simulator_server.py`: fastpush's simulated APNs, keeping counts only."""
    import fastpush

    port = free_port()
    ca_file = directory / "ca.pem"
    command = [sys.executable, "-m", "benchmarks.servers.simulator_server", LOOPBACK, str(port), str(ca_file)]
    with started(
        command,
        name="simulator",
        version=getattr(fastpush, "__version__", "of this checkout"),
        port=port,
        ca_file=ca_file,
        directory=directory,
        core=core,
        count=printed_tally,
    ) as server:
        yield server


# The servers of others: what the interoperability tests go through.
ALL = {"nginx": nginx, "haproxy": haproxy, "node": node, "hypercorn": hypercorn, "nghttpd": nghttpd}


# What they share.


@dataclass(frozen=True)
class Certificates:
    ca_file: Path
    chain_with_key: Path


def issue_certificate(directory: Path) -> Certificates:
    """Write a certificate for `localhost` and 127.0.0.1 with its key, and the authority that signed it."""
    try:
        import trustme
    except ImportError:
        raise NotInstalled("trustme is not installed: pip install trustme") from None
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", LOOPBACK)
    files = Certificates(directory / "ca.pem", directory / "server.pem")
    authority.cert_pem.write_to_path(str(files.ca_file))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(files.chain_with_key))
    return files


def find(program: str, package: str) -> str:
    """The program's path; daemons live in sbin, which not every user's PATH has."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise NotInstalled(f"{program} is not installed: it comes with the package {package}")
    return path


def version_of(command: Sequence[str]) -> str:
    """The first thing like a version that the program says of itself."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    version = re.search(r"\d+\.\d+\S*", done.stdout)
    return version[0] if version else "of unknown version"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def fill_in(template: str, directory: Path, **values: object) -> Path:
    configuration = directory / template
    configuration.write_text(Template((HERE / template).read_text()).substitute(values))
    return configuration


def printed_tally(server: Server) -> Tally:
    """Read the count that `node_server.js` and `asgi_server.py` print last: one JSON object."""
    assert server.process.stdout is not None
    return Tally(**json.loads(server.process.stdout.read().splitlines()[-1]))


@contextmanager
def started(
    command: list[str],
    *,
    name: str,
    version: str,
    port: int,
    ca_file: Path,
    directory: Path,
    count: Callable[[Server], Tally],
    counts_while_running: bool = False,
    core: int | None = None,
) -> Iterator[Server]:
    """Run the command until the block is left; enter the block once its port takes connections."""
    if core is not None and shutil.which("taskset"):
        command = ["taskset", "-c", str(core), *command]
    output = directory / "output"
    log = output.open("wb")
    stdout = subprocess.PIPE if count is printed_tally else log
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log)
    server = Server(
        name, version, port, ca_file, process, output, count, counts_while_running=counts_while_running
    )
    try:
        wait_until(server, lambda: takes_connections(server))
        yield server
    finally:
        try:
            server.stop()
        finally:
            log.close()
            if process.stdout is not None:
                process.stdout.close()


def takes_connections(server: Server) -> bool:
    try:
        socket.create_connection((server.host, server.port), timeout=1.0).close()
    except OSError:
        return False
    return True


def wait_until(server: Server, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while not ready():
        ended = server.process.poll() is not None
        if ended or time.monotonic() > deadline:
            last = "\n".join(server.output.read_text(errors="replace").splitlines()[-10:])
            what = f"ended with {server.process.returncode}" if ended else "does not listen"
            raise ServerFailed(f"{server.name} {what}\n{last}")
        time.sleep(LOOK_EVERY)
