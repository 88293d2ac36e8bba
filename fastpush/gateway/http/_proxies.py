"""Whose word counts about where a request came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal, final

Address = tuple[str, int]

FOR = re.compile(r"(?:^|;)\s*for=(\"[^\"]*\"|[^;\s]*)", re.IGNORECASE)
LONGEST_CHAIN = 64


@final
class TrustedProxies:
    """The proxies whose forwarded addresses count.

    The chain is read from its right end, which our own proxy wrote: hops that are trusted are passed over,
    and the first that is not is the client. What stands left of it the client may have made up. One header
    only is read: a proxy that writes one lets the other through as the client sent it.

    Args:
        networks: Addresses and networks, `10.0.0.7` or `fd00::/8`; `unix` for whoever connects to our
            Unix socket.
        header: The one that the proxies write: `x-forwarded-for`, or `forwarded` (RFC 7239).

    Raises:
        ValueError: A network cannot be read.
    """

    def __init__(
        self,
        networks: Iterable[str] = (),
        *,
        header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for",
    ) -> None:
        if header not in ("x-forwarded-for", "forwarded"):
            raise ValueError(f"header is {header!r}; it may be 'x-forwarded-for' or 'forwarded'")
        named = list(networks)
        self._unix = "unix" in named
        self._networks = []
        for network in named:
            if network == "unix":
                continue
            try:
                self._networks.append(ip_network(network))
            except ValueError as error:
                raise ValueError(f"trusted proxy {network!r} is no address or network: {error}") from None
        self._header = header.encode()

    def trusts(self, peer: Address | None) -> bool:
        """Whether `peer` is one of our proxies; None is a peer on a Unix socket."""
        if peer is None:
            return self._unix
        if not self._networks:
            return False
        address = _address(peer[0])
        return address is not None and any(address in network for network in self._networks)

    def client(self, peer: Address | None, headers: Sequence[tuple[bytes, bytes]]) -> Address | None:
        """Where a request came from: the peer, or whom a trusted peer names."""
        if not self.trusts(peer):
            return peer
        named = b",".join(value for name, value in headers if name == self._header).decode("latin-1")
        client = peer
        for hop in reversed(named.split(",")[-LONGEST_CHAIN:] if named else []):
            found = _hop(hop.strip(), rfc7239=self._header == b"forwarded")
            if found is None:  # unknown, obfuscated or broken: the last one that we can tell
                return client
            client = found
            if not self.trusts(client):
                return client
        return client


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _hop(text: str, *, rfc7239: bool) -> Address | None:
    if rfc7239:
        found = FOR.search(text)
        if found is None:
            return None
        text = found[1].strip('"')
    port = "0"
    if text.startswith("["):
        text, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or "0"
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
    address = _address(text)
    if address is None or not (port.isascii() and port.isdigit() and len(port) <= 5):
        return None
    return str(address), int(port)
