"""Sockets that listen, and the TLS that they speak."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

BACKLOG = 2048
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # for TLS 1.2; 1.3 has its own


class ClientCertificate(NamedTuple):
    """Of a client that showed one, in `scope["state"]["client_certificate"]`.

    Attributes:
        subject: Names and values in the certificate's order, e.g. `(("commonName", "opmanager"),)`.
        common_name: The last of that name, or None.
        sha256: Of the certificate's DER, in hexadecimal.
    """

    subject: tuple[tuple[str, str], ...]
    common_name: str | None
    sha256: str


def client_certificate(tls: ssl.SSLObject | ssl.SSLSocket) -> ClientCertificate | None:
    """What the peer showed and the handshake checked."""
    shown, der = tls.getpeercert(), tls.getpeercert(binary_form=True)
    if not shown or der is None:
        return None
    parts: Any = shown.get("subject", ())
    subject = tuple((str(name), str(value)) for part in parts for name, value in part)
    common = [value for name, value in subject if name == "commonName"]
    return ClientCertificate(subject, common[-1] if common else None, hashlib.sha256(der).hexdigest())


@final
class ServerTLS:
    """A certificate with its key, from files that may change: `reload` serves new handshakes with the new.

    TLS 1.2 or later, h2 and http/1.1 by ALPN, no renegotiation, no compression.

    Args:
        certificate: PEM, the server's first and then its chain.
        key: PEM.
        client_ca: PEM of the authorities of client certificates.
        client_certificates: Whether clients may, or must, show one; needs `client_ca`.

    Raises:
        ValueError: `client_certificates` without `client_ca`, or the other way round.
        OSError: A file cannot be read; `ssl.SSLError`, one of them, that it is not what it should be.
    """

    def __init__(
        self,
        certificate: str | os.PathLike[str],
        key: str | os.PathLike[str],
        *,
        client_ca: str | os.PathLike[str] | None = None,
        client_certificates: Literal["none", "optional", "required"] = "none",
    ) -> None:
        if (client_ca is None) != (client_certificates == "none"):
            raise ValueError("client certificates need client_ca, and client_ca is for nothing else")
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._verify = {
            "none": ssl.CERT_NONE,
            "optional": ssl.CERT_OPTIONAL,
            "required": ssl.CERT_REQUIRED,
        }[client_certificates]
        self._digest = b""
        self._context = self._load()

    @property
    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        return self._context

    def reload(self) -> bool:
        """Read the files again, and tell whether they are others.

        Where that fails the old context stays, and the error is raised.
        """
        before = self._digest
        self._context = self._load()
        return self._digest != before

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.load_cert_chain(self._certificate, self._key)
        context.verify_mode = self._verify
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
        self._digest = self._digest_of_files()
        return context

    def _digest_of_files(self) -> bytes:
        digest = hashlib.sha256()
        for path in (self._certificate, self._key, self._client_ca):
            if path is not None:
                digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
        return digest.digest()


@final
class Listener:
    """A socket that listens; `open_listener` makes one.

    Attributes:
        socket: Non-blocking, listening.
        tls: What it speaks, None for plain.
        inherited: The socket belongs to whoever started us and outlives us: who waits in its queue when
            we end is left to the next process.
        address: How to reach it.
    """

    def __init__(
        self, listening: socket.socket, tls: ServerTLS | None, *, inherited: bool, path: Path | None = None
    ) -> None:
        self.socket, self.tls, self.inherited = listening, tls, inherited
        self._path = path
        self._inode = path.stat().st_ino if path is not None else 0
        self.address = _address(listening, tls is not None)

    @property
    def port(self) -> int | None:
        """Of a TCP socket."""
        return None if self.socket.family == socket.AF_UNIX else int(self.socket.getsockname()[1])

    def close(self) -> None:
        """Stop listening; a Unix socket that we bound goes from its directory, unless it was replaced."""
        self.socket.close()
        if self._path is not None:
            with suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            self._path = None


def open_listener(address: str, *, tls: ServerTLS | None = None, mode: int = 0o660) -> Listener:
    """Bind and listen.

    Args:
        address: `127.0.0.1:8080`, `[::1]:8443`, `:8080` for all of IPv4; `unix:/run/fastpush.sock`; or
            `fd://3`, a socket that whoever started us has opened.
        tls: To speak TLS on it.
        mode: Permissions of a Unix socket.

    Raises:
        ValueError: The address cannot be read, or the inherited descriptor is no stream socket.
        OSError: The socket cannot be had; for a Unix socket also that another process answers there.
    """
    if address.startswith("fd://"):
        return Listener(_inherited(address), tls, inherited=True)
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        return Listener(_unix(path, mode), tls, inherited=False, path=path)
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"listener {address!r}: expected host:port, unix:/path or fd://N")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return Listener(listening, tls, inherited=False)


def _inherited(address: str) -> socket.socket:
    number = address.removeprefix("fd://")
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"listener {address!r}: expected fd://N with the number of a descriptor")
    try:
        listening = socket.socket(fileno=int(number))
    except OSError as error:
        raise ValueError(f"listener {address!r}: no socket has been inherited there: {error}") from None
    if listening.type != socket.SOCK_STREAM:
        listening.detach()
        raise ValueError(f"listener {address!r}: the descriptor is no stream socket")
    if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listening.listen(BACKLOG)
    listening.setblocking(False)
    listening.set_inheritable(False)
    return listening


def _unix(path: Path, mode: int) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(f"{path} exists and is no socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(os.fspath(path))
                except ConnectionRefusedError:
                    path.unlink()  # of a process that is no more
                else:
                    raise OSError(f"another process listens on {path}")
        before = os.umask(0o777 & ~mode)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(before)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _address(listening: socket.socket, secure: bool) -> str:
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
