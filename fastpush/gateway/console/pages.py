"""What all pages share: templates, their filters, static files, headers, and the way in."""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any, final
from urllib.parse import quote, urlencode, urlsplit

import jinja2
import msgspec
from markupsafe import Markup
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from fastpush.gateway.console.handles import MOST_DIGITS, ending
from fastpush.gateway.console.sessions import Session, Sessions
from fastpush.gateway.phone import Card, card
from fastpush.gateway.problems import Problem

if TYPE_CHECKING:
    from fastpush.gateway.api import Gateway

__all__ = ["HEADERS", "Console", "Visit", "page_route", "problem_page", "static_routes"]

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
        " frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Nothing goes to others; with "no-referrer" a browser would send our own forms with the origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_FORM_OCTETS = 256 << 10

Handler = Callable[["Visit"], Awaitable[Response]]


@final
class Console:
    """The console of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @cached_property
    def sessions(self) -> Sessions:
        """Who is logged in. Made when it is first asked for: routes are listed without a gateway too."""
        return self.gateway.sessions or Sessions(self.gateway.storage, self.gateway.clock)


@final
@dataclass(frozen=True)
class Visit:
    """One request of somebody who is logged in.

    Attributes:
      principal: the key behind the session.
      form: of a POST, checked to be from one of our pages.
      notices: what the watchdog has to say; on every page.
    """

    console: Console
    request: Request
    session: Session
    principal: Any
    form: FormData
    notices: tuple[Any, ...] = ()

    @property
    def gateway(self) -> Gateway:
        return self.console.gateway

    @property
    def may_change(self) -> bool:
        """Whether the key is an administrator's; one of scope console only looks."""
        return "admin" in self.principal.scopes

    def stands(self) -> bool:
        """Whether its session, and the key behind it, are good still; for what goes on after the answer."""
        return (
            self.console.sessions.stands(self.session)
            and principal_of(self.gateway, self.session.key_id) is not None
        )

    def asked(self, name: str, default: str = "") -> str:
        """A value of the query, without blanks around it."""
        return self.request.query_params.get(name, default).strip()

    def given(self, name: str, default: str = "") -> str:
        """A text of the form."""
        value = self.form.get(name, default)
        return value.strip() if isinstance(value, str) else default

    def page_of(self, app: str, device_token: str) -> str:
        """The address of a device's page, in which its device token does not stand."""
        return f"/devices/{quote(app, safe='')}/{self.handle(app, device_token)}"

    def handle(self, app: str, device_token: str) -> str:
        """What stands for a device token in an address."""
        return self.console.sessions.handles.seal(app, device_token)

    def opened(self, app: str, handle: str) -> str | None:
        """The device token that a handle stands for, None where it is none of this app."""
        return self.console.sessions.handles.open(app, handle)

    def place(self, name: str) -> int | None:
        """A number of the query that says where a list goes on; None where it is none of ours."""
        return row_number(self.asked(name))

    async def audit(self, action: str, target: str = "", detail: str = "") -> None:
        """Write what is done into the audit log, under the key's name."""
        await self.gateway.keys.audit(self.principal, action, target, detail)

    def render(self, template: str, status: int = 200, **values: object) -> Response:
        """A page."""
        text = templates().get_template(template).render(
            visit=self,
            here=self.request.url.path,
            csrf=self.session.csrf,
            may_change=self.may_change,
            now=self.gateway.clock(),
            said=self.console.sessions.take_said(self.session, self.asked("said")),
            **values,
        )  # fmt: skip
        return Response(text, status, HEADERS, "text/html; charset=utf-8")

    def back(self, path: str, said: str = "") -> Response:
        """On to a page after a change, with a sentence on what was done.

        The address has a word that stands for the sentence, in this session and once: no link of others can
        let a page say something.
        """
        if said:
            path += f"{'&' if '?' in path else '?'}said={self.console.sessions.say(self.session, said)}"
        return RedirectResponse(path, 303, HEADERS)


def problem_page(problem: Problem) -> Response:
    """A refusal for a browser that is not in one of our pages: an address that is none, or a failure."""
    text = templates().get_template("outside.html").render(problem=problem)
    return Response(text, problem.status, HEADERS | problem.headers, "text/html; charset=utf-8")


def page_route(
    console: Console, path: str, handler: Handler, *methods: str, changes: bool = True, digits: str = ""
) -> BaseRoute:
    """A route for who is logged in: GET for all of them, POST for administrators and by our own forms.

    Args:
      changes: False for a POST that only asks, with what does not belong in an address.
      digits: the name of a value of the query that is the end of a device token. Who brings a whole one in
        an address of their own is led on, before anything else, to one that has its last digits only.
    """

    async def endpoint(request: Request) -> Response:
        if digits and request.method == "GET":
            cut = [
                (name, ending(value) if name == digits else value)
                for name, value in request.query_params.multi_items()
            ]
            if any(
                len(value) > MOST_DIGITS and ending(value) != value
                for name, value in request.query_params.multi_items()
                if name == digits
            ):
                return RedirectResponse(f"{quote(request.url.path)}?{urlencode(cut)}", 303, HEADERS)
        session = await console.sessions.find(cookie_of(request))
        principal = None if session is None else principal_of(console.gateway, session.key_id)
        if session is None or principal is None:
            if request.method == "GET":
                here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                return RedirectResponse(f"/login?next={quote(here)}", 303, HEADERS)
            return RedirectResponse("/login", 303, HEADERS)
        form = FormData()
        notices = await notices_of(console.gateway)
        try:
            if request.method != "GET":
                form = await own_form(request, session)
                if changes and "admin" not in principal.scopes:
                    raise Problem(403, "Read only", f"The key {principal.name} may look and change nothing.")
            return await handler(Visit(console, request, session, principal, form, notices))
        except Problem as problem:
            visit = Visit(console, request, session, principal, FormData(), notices)
            return visit.render("problem.html", problem.status, problem=problem)
        finally:
            await form.close()

    return Route(path, endpoint, methods=list(methods or ("GET",)), include_in_schema=False)


async def own_form(request: Request, session: Session | None) -> FormData:
    """The form of a POST, surely sent by one of our pages.

    Raises:
      Problem: 400, it is no form; 403, it was not; 413, it is too large.
    """
    if not from_here(request):
        raise Problem(
            403, "Foreign form", "The request comes from a page of another site, or does not say from which."
        )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_FORM_OCTETS:
        raise Problem(413, detail=f"A form may have {MAX_FORM_OCTETS:,} octets.")
    try:
        form = await request.form(max_files=4, max_fields=100, max_part_size=MAX_FORM_OCTETS)
    except (
        MultiPartException,
        HTTPException,
    ) as error:  # the latter where an application of Starlette's is above
        told = error.message if isinstance(error, MultiPartException) else error.detail
        raise Problem(400, "No form", f"The form cannot be read: {told}") from None
    if session is not None and form.get("csrf") != session.csrf:
        raise Problem(
            403, "Stale form", "The form is not of this session. Load the page again and repeat it."
        )
    return form


def row_number(text: str) -> int | None:
    """A number of a row in the storage; None for what cannot be one, however long."""
    if not (0 < len(text) < 20 and text.isascii() and text.isdecimal()):
        return None
    number = int(text)
    return number if number < 1 << 63 else None


def from_here(request: Request) -> bool:
    """Whether a request was sent by a page of this origin: what the browser says of that agrees.

    Of Sec-Fetch-Site (over TLS and on this machine only), Origin and Referer a browser sends one at least
    with each POST of our forms; where there is none it is no browser, or something has cut them off.
    """
    headers, here = request.headers, request.headers.get("host", "")
    site, origin, referer = headers.get("sec-fetch-site"), headers.get("origin"), headers.get("referer")
    if site is not None and site not in ("same-origin", "none"):
        return False
    if origin is not None:
        return _netloc(origin) == here
    if referer is not None:
        return _netloc(referer) == here
    return site == "same-origin"


def _netloc(address: str) -> str | None:
    try:
        return urlsplit(address).netloc or None
    except ValueError:  # such as http://[
        return None


def principal_of(gateway: Gateway, key_id: str) -> Any:
    """The principal of a key that may use the console, None if it may not any more."""
    principal = gateway.keys.principal(key_id)
    if principal is None or not principal.scopes & {"admin", "console"}:
        return None
    if principal.apps is not None:  # the pages show all apps
        return None
    return principal


async def notices_of(gateway: Gateway) -> tuple[Any, ...]:
    """What the watchdog has to say, the most urgent first."""
    return () if gateway.notices is None else tuple(await gateway.notices.shown("console"))


def is_secure(request: Request) -> bool:
    """Whether a cookie is bound to TLS: always, but where a browser speaks plain HTTP to this machine.

    A proxy on this machine does so as well, for a browser that has TLS with it: then the host that the
    browser named is another than this machine.
    """
    host = request.client.host if request.client else ""
    if request.scope["scheme"] != "http" or not (host.startswith("127.") or host in ("::1", "")):
        return True
    try:
        named = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:  # such as [
        return True
    return not (named in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", named))


def cookie_name(request: Request) -> str:
    return "__Host-fastpush" if is_secure(request) else "fastpush"


def cookie_of(request: Request) -> str | None:
    return request.cookies.get(cookie_name(request))


# Static files: few and small, so they stay in memory.

_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


def _static() -> Mapping[str, tuple[bytes, str]]:
    found = {}
    for file in files(__package__).joinpath("static").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            content = file.read_bytes()
            found[file.name] = (content, hashlib.sha256(content).hexdigest()[:12])
    return found


def static_routes() -> list[BaseRoute]:
    """The style sheet, the script and the icon; their addresses change with their content."""
    contents = _static()

    async def endpoint(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in contents:
            raise Problem(404, detail="There is no such file.")
        content, _ = contents[name]
        kind = _TYPES[name[name.rfind(".") :]]
        kept = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
        return Response(content, 200, kept, kind)

    return [Route("/static/{name}", endpoint, methods=["GET"], include_in_schema=False)]


# Templates.


def _moment(at: float | None, form: str = "auto") -> Markup:
    """A time: in UTC here, in the reader's zone once the script ran, exact on hover."""
    if at is None:
        return Markup("–")
    moment = datetime.fromtimestamp(at, UTC)
    shown = moment.strftime("%Y-%m-%d" if form == "date" else "%d %b %H:%M:%S").lstrip("0")
    return Markup('<time datetime="{}" title="{}" data-form="{}">{}</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC", form,
        shown + ("" if form == "date" else " UTC"),
    )  # fmt: skip


def _duration(seconds: float | None) -> str:
    """A duration with its unit, coarse enough to be read at a glance."""
    if seconds is None:
        return "–"
    for limit, unit, size in ((1e-3, "µs", 1e-6), (1.0, "ms", 1e-3), (120.0, "s", 1.0)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}" if seconds else "0 s"
    for limit, unit, size in ((7200.0, "min", 60.0), (172_800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def _number(value: float | None) -> str:
    """A number with its thousands apart; small ones with what makes them differ."""
    if value is None:
        return "–"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _short(device_token: str | None) -> str:
    """A device token's first and last four digits."""
    if not device_token:
        return "–"
    return f"{device_token[:4]}…{device_token[-4:]}" if len(device_token) >= 16 else "(short)"


def _bytes(count: float) -> str:
    for limit, unit, size in ((1 << 10, "B", 1), (1 << 20, "KiB", 1 << 10), (1 << 30, "MiB", 1 << 20)):
        if count < limit:
            return f"{count / size:.3g} {unit}"
    return f"{count / (1 << 30):.3g} GiB"


def _apns_id(octets: bytes) -> str:
    """An apns-id as Apple writes it."""
    return str(uuid.UUID(bytes=octets))


def _card(payload: bytes | None) -> Card | None:
    return card(payload) if payload else None


def _decoded(payload: bytes) -> str:
    """JSON laid out for people; anything else as it is."""
    try:
        return msgspec.json.format(payload, indent=2).decode(errors="replace")
    except msgspec.DecodeError:
        return payload.decode(errors="replace")


_environment: jinja2.Environment | None = None


def templates() -> jinja2.Environment:
    """The templates, all text escaped; an unknown name in one is an error, not an empty place."""
    global _environment
    if _environment is None:
        _environment = jinja2.Environment(
            loader=jinja2.PackageLoader(__package__, "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        _environment.filters |= {
            "moment": _moment, "duration": _duration, "number": _number, "short": _short, "octets": _bytes,
            "card": _card, "decoded": _decoded, "apns_id": _apns_id,
        }  # fmt: skip
        _environment.globals["static"] = {
            name: f"/static/{name}?{digest}" for name, (_, digest) in _static().items()
        }
    return _environment
