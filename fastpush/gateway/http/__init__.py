"""HTTP for the gateway: hypercorn's trio worker behind a guard.

`serve` runs any ASGI application on TCP, TLS, Unix and inherited sockets, over HTTP/1.1 and HTTP/2. What
hypercorn 0.18 leaves open is closed here: no client can end the process, keep it from exiting, hold a
connection without sending, or make two readers disagree about where a request ends. docs/http-server.md has
the list and the table of limits.

    listener = open_listener("0.0.0.0:8443", tls=ServerTLS("server.pem", "server.key"))
    await serve(application, [listener], trusted_proxies=TrustedProxies(["10.0.0.0/8"]))
"""

from ._limits import BodyRule, Limits, Statistics, problem
from ._listeners import ClientCertificate, Listener, ServerTLS, open_listener
from ._proxies import TrustedProxies
from ._server import Server, serve

__all__ = [
    "BodyRule",
    "ClientCertificate",
    "Limits",
    "Listener",
    "Server",
    "ServerTLS",
    "Statistics",
    "TrustedProxies",
    "open_listener",
    "problem",
    "serve",
]
