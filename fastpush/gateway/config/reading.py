"""From a file and the environment to a `Config`, or to every mistake in them at once."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, NamedTuple, final, get_args, get_origin, get_type_hints

import msgspec
import orjson
from msgspec import Meta

from fastpush.gateway.config.positions import Key, positions
from fastpush.gateway.config.secrets import refusal
from fastpush.gateway.config.sections import (
    SECRET,
    AdminSettings,
    AppSettings,
    Config,
    CredentialSettings,
    IngestSettings,
    SmtpSettings,
    StorageSettings,
    TLSSettings,
)
from fastpush.gateway.http import TrustedProxies
from fastpush.gateway.routes import InvalidRoutes, Route, Routes
from fastpush.transport import Proxy

__all__ = ["PREFIX", "InvalidConfig", "Mistake", "database_path", "load_config", "read_config"]

PREFIX = "FASTPUSH_"
MAX_FILE_OCTETS = 4 << 20
_MISSING: Any = object()
_PLACE = re.compile(
    r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)", re.DOTALL
)
_FALSE_AND_TRUE = {"false": False, "no": False, "off": False, "0": False} | {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
}


class Mistake(NamedTuple):
    """One thing that is wrong with a configuration.

    Attributes:
      where: the file, or the environment variable.
      line: from 1; None in the environment.
      key: from the top, `apps.opmanager.credential.key_id`, `routes[1].tags`.
      problem: what was found and what is allowed.
    """

    where: str
    line: int | None
    key: str
    problem: str

    def __str__(self) -> str:
        where = self.where if self.line is None else f"{self.where}:{self.line}"
        return f"{where}: {self.key}: {self.problem}" if self.key else f"{where}: {self.problem}"


class InvalidConfig(ValueError):
    """A configuration that cannot be used.

    Attributes:
      mistakes: every one, in the order of the file.
    """

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def load_config(path: str | os.PathLike[str] | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read a configuration file, the environment over it, and look at the files that it names.

    Args:
      path: of the file; None where everything comes from the environment. Paths in it, and in the
        environment, are relative to its directory (without a file, to the current one).
      environ: variables such as FASTPUSH_INGEST__LISTEN.

    Raises:
      InvalidConfig: with every mistake.
    """
    if path is None:
        return read_config("", environ, where="the configuration", directory=Path.cwd())
    where = os.fspath(path)
    text = _text(path)
    return read_config(text, environ, where=where, directory=Path(path).absolute().parent)


def database_path(path: str | os.PathLike[str] | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Find the database that a configuration names, whatever else is wrong with it.

    For commands whose user may not read the secrets.

    Raises:
      InvalidConfig: the file cannot be read, is no TOML, or has something else in that place.
    """
    where = os.fspath(path) if path is not None else "the configuration"
    text = _text(path) if path is not None else ""
    directory = Path(path).absolute().parent if path is not None else Path.cwd()
    try:
        storage = tomllib.loads(text).get("storage", {})
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig([_syntax(where, text, error)]) from None
    named = environ.get(PREFIX + "STORAGE__PATH") or (storage.get("path") if isinstance(storage, dict) else 0)
    if named is not None and not isinstance(named, str):
        line = positions(text).get(("storage", "path"))
        raise InvalidConfig([Mistake(where, line, "storage.path", "is no path")])
    return directory / Path(named or StorageSettings().path).expanduser()


def _text(path: str | os.PathLike[str]) -> str:
    where = os.fspath(path)
    try:
        with open(path, "rb") as file:
            octets = file.read(MAX_FILE_OCTETS + 1)
        text = octets.decode()
    except OSError as error:
        raise InvalidConfig([Mistake(where, None, "", error.strerror or "cannot be read")]) from None
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise InvalidConfig([Mistake(where, line, "", "is not text in UTF-8")]) from None
    if len(octets) > MAX_FILE_OCTETS:
        raise InvalidConfig([Mistake(where, None, "", f"is larger than {MAX_FILE_OCTETS:,} octets")])
    return text


def read_config(text: str, environ: Mapping[str, str], *, where: str, directory: Path) -> Config:
    """Do the same with the text of a file.

    Args:
      text: TOML.
      environ: variables over it.
      where: what messages call the text.
      directory: what paths are relative to.

    Raises:
      InvalidConfig: with every mistake.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig([_syntax(where, text, error)]) from None
    reader = _Reader(where, positions(text), directory)
    _lay_over(document, environ, reader)
    config = reader.struct(Config, document, ())
    if reader.mistakes:
        reader.mistakes.sort(key=lambda mistake: (mistake.line is None, mistake.line or 0))
        raise InvalidConfig(reader.mistakes)
    checked: Config = config
    if not checked.storage.path.is_absolute():  # the default
        settings = msgspec.structs.replace(checked.storage, path=directory / checked.storage.path)
        return msgspec.structs.replace(checked, storage=settings)
    return checked


def _syntax(where: str, text: str, error: tomllib.TOMLDecodeError) -> Mistake:
    """tomllib puts the place behind its message."""
    found = _PLACE.fullmatch(str(error))
    if found is None:
        return Mistake(where, 1, "", f"is not TOML: {error}")
    line = int(found["line"] or text.count("\n") + 1)
    column = f", column {found['column']}" if found["column"] else ", at the end"
    return Mistake(where, line, "", f"is not TOML{column}: {found['what']}")


class _Variable(NamedTuple):
    """A value out of the environment, whose type its field decides."""

    text: str


def _lay_over(document: dict[str, Any], environ: Mapping[str, str], reader: _Reader) -> None:
    """Put FASTPUSH_A__B=text at a.b, in place of what the file has there."""
    for name in sorted(environ):
        text = environ[name]
        if not name.startswith(PREFIX) or not text:
            continue
        parts = [part.lower() for part in name.removeprefix(PREFIX).split("__")]
        if len(parts) == 1 and parts[0] not in Config.__struct_fields__:
            section, _, option = parts[0].partition("_")
            if section in Config.__struct_fields__:
                right = f"{PREFIX}{section}__{option}".upper()
                reader.report_variable(name, f"is unknown; between table and option stand two _: {right}")
            continue  # of other commands, such as FASTPUSH_KEY
        table: Any = document
        key: Key = ()
        for part in parts[:-1]:
            key = (*key, _same(part, table))
            if key[-1] not in table:
                reader.variables[key] = name
            table = table.setdefault(key[-1], {})
            if not isinstance(table, dict):
                reader.report_variable(name, "reaches into something that is no table")
                break
        else:
            key = (*key, _same(parts[-1], table))
            reader.variables[key] = name
            table[key[-1]] = _Variable(text)


def _same(part: str, table: Mapping[str, Any]) -> str:
    """The key of a table that a variable's part means: upper case and hyphens are lost in its name."""
    folded = {key.lower().replace("-", "_"): key for key in table}
    return folded.get(part.replace("-", "_"), part)


@final
class _Reader:
    """Walks the Structs and the document side by side, and notes what does not fit."""

    def __init__(self, where: str, lines: Mapping[Key, int], directory: Path) -> None:
        self.where, self.lines, self.directory = where, lines, directory
        self.mistakes: list[Mistake] = []
        self.variables: dict[Key, str] = {}
        self.told: dict[Key, Any] = {}  # each table as far as it could be read

    def report(self, key: Key, problem: str) -> None:
        for length in range(len(key), -1, -1):
            if key[:length] in self.variables:
                self.mistakes.append(Mistake(self.variables[key[:length]], None, shown(key), problem))
                return
            if key[:length] in self.lines:
                self.mistakes.append(Mistake(self.where, self.lines[key[:length]], shown(key), problem))
                return
        self.mistakes.append(Mistake(self.where, None, shown(key), problem))

    def report_variable(self, name: str, problem: str) -> None:
        self.mistakes.append(Mistake(name, None, "", problem))

    def read(self, kind: Any, value: Any, key: Key) -> Any:
        kind, secret, hints = _plain(kind)
        if isinstance(value, _Variable):
            try:
                value = _from_text(kind, value.text)
            except ValueError as error:
                self.report(key, str(error))
                return _MISSING
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.struct(kind, value, key)
        if get_origin(kind) is tuple:
            return self.elements(get_args(kind)[0], value, key)
        if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
            names, values = get_args(kind)
            return self.mapping(names, values, value, key)
        if kind is Path:
            return self.path(value, key, secret=secret)
        return self.leaf(hints, value, key)

    def struct(self, kind: type[msgspec.Struct], value: Any, key: Key) -> Any:
        if not isinstance(value, dict):
            self.report(key, f"is {_seen(value)}; a table is expected: [{shown(key)}]")
            return _MISSING
        hints = get_type_hints(kind, include_extras=True)
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        if kind is AppSettings:
            fields.pop("name")
        before = len(self.mistakes)
        read = {}
        for name, each in value.items():
            if name in fields:
                read[name] = self.read(hints[name], each, (*key, name))
            else:
                self.report((*key, name), _unknown(name, fields))
        for name, field in fields.items():
            if field.required and name not in value:
                self.report(key, f"{name} is missing" + _example(hints[name], name))
                read[name] = _MISSING
        told = SimpleNamespace(**{name: _default(field) for name, field in fields.items()} | read)
        self.told[key] = told
        for place, problem in _contradictions(kind, told):
            self.report((*key, *place), problem)
        if kind is Config:
            apps = value.get("apps")
            tables = SimpleNamespace(
                **vars(told) | {str(at[0]): self.told[at] for at in self.told if len(at) == 1}
            )
            for place, problem in _across(tables, list(apps) if isinstance(apps, dict) else []):
                self.report(place, problem)
        if len(self.mistakes) > before:
            return _MISSING
        if kind is AppSettings:
            read["name"] = str(key[-1])
        return kind(**read)

    def elements(self, kind: Any, value: Any, key: Key) -> Any:
        if not isinstance(value, list):
            self.report(key, f"is {_seen(value)}; a list is expected: [...]")
            return _MISSING
        read = [self.read(kind, each, (*key, number)) for number, each in enumerate(value)]
        readable = {number: each for number, each in enumerate(read) if each is not _MISSING}
        if kind is Route:
            for place, problem in _routes(readable):
                self.report((*key, *place), problem)
        return tuple(read) if len(readable) == len(read) else _MISSING

    def mapping(self, names: Any, kind: Any, value: Any, key: Key) -> Any:
        if not isinstance(value, dict):
            self.report(key, f"is {_seen(value)}; a table is expected: [{shown(key)}.NAME]")
            return _MISSING
        allowed = get_args(names) if get_origin(names) is Literal else None
        read = {}
        for name, each in value.items():
            if allowed is not None and name not in allowed:
                self.report((*key, name), _unknown(name, allowed))
            elif allowed is None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
                self.report((*key, name), "a name has up to 64 letters, digits, `.`, `_` and `-`")
            else:
                read[name] = self.read(kind, each, (*key, name))
        if not read and kind is AppSettings:
            self.report(key, "is empty: at least one [apps.NAME] is needed")
        return _MISSING if any(each is _MISSING for each in read.values()) else read

    def path(self, value: Any, key: Key, *, secret: bool) -> Any:
        if not isinstance(value, str) or not value:
            self.report(key, f"is {_seen(value)}; the path of a file is expected")
            return _MISSING
        path = self.directory / Path(value).expanduser()
        if secret:
            reason = refusal(Path(value) if "\n" in value else path)
        elif str(key[-1]).endswith("_file"):
            reason = _unreadable(path)
        else:
            reason = None if path.parent.is_dir() else f"{path.parent}: there is no such directory"
        if reason is not None:
            self.report(key, reason)
        return path

    def leaf(self, hint: Any, value: Any, key: Key) -> Any:
        try:
            return msgspec.convert(value, hint)
        except msgspec.ValidationError:
            self.report(key, f"is {_seen(value)}; allowed: {allowed(hint)}")
            return _MISSING


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return None if field.default is msgspec.NODEFAULT else field.default


def _plain(hint: Any) -> tuple[Any, bool, Any]:
    """Take None and annotations away: the bare type, whether it is of a secret, and the type with limits."""
    secret = False
    while True:
        if get_origin(hint) in (typing.Union, UnionType):
            (hint,) = [each for each in get_args(hint) if each is not type(None)]
        elif get_origin(hint) is Annotated:
            bare, *metas = get_args(hint)
            secret = secret or any(isinstance(m, Meta) and bool((m.extra or {}).get(SECRET)) for m in metas)
            return bare, secret, hint
        else:
            return hint, secret, hint


def _from_text(kind: Any, text: str) -> Any:
    """Read the text of a variable as its field's type wants it. Raises ValueError."""
    tabular = (isinstance(kind, type) and issubclass(kind, msgspec.Struct)) or (
        isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping)
    )
    if tabular or (get_origin(kind) is tuple and text.lstrip().startswith("[")):
        try:
            return orjson.loads(text)
        except ValueError:
            raise ValueError("is no JSON; a table or list in the environment is written in JSON") from None
    if get_origin(kind) is tuple:
        return [each.strip() for each in text.split(",") if each.strip()]
    if kind is bool:
        return _FALSE_AND_TRUE.get(text.strip().lower(), text)
    if kind in (int, float) or (
        get_origin(kind) is Literal and all(isinstance(each, int) for each in get_args(kind))
    ):
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                pass
    return text


def shown(key: Key) -> str:
    """`routes[1].tags`, with quotes where a name needs them."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else str(orjson.dumps(part[:64]), "utf-8")
            text += f".{name}" if text else name
    return text


def allowed(hint: Any) -> str:
    """What a value may be, in words."""
    bare, _, hint = _plain(hint)
    metas = [meta for meta in get_args(hint)[1:] if isinstance(meta, Meta)] if hint is not bare else []
    limits = {name: value for meta in metas for name in ("ge", "gt", "le", "lt", "max_length", "pattern")
              if (value := getattr(meta, name)) is not None}  # fmt: skip
    if get_origin(bare) is Literal:
        return ", ".join(str(each) if isinstance(each, int) else f'"{each}"' for each in get_args(bare))
    if bare is bool:
        return "true, false"
    if bare in (int, float):
        words = "a whole number" if bare is int else "a number"
        if "gt" in limits:
            words += f" above {limits['gt']:g}"
        if "ge" in limits and "le" in limits:
            return f"{words} from {limits['ge']:,} to {limits['le']:,}"
        if "ge" in limits:
            words += f" from {limits['ge']:,} up"
        if "le" in limits:
            words += f" up to {limits['le']:,}"
        return words
    return _TEXTS.get(limits.get("pattern", ""), "a text") + (
        f" of at most {limits['max_length']} characters" if "max_length" in limits else ""
    )


_TEXTS = {
    "^[A-Z0-9]{10}$": "10 upper-case letters and digits",
    "^[!-~]{1,200}$": "a bundle id such as com.example.app",
    r"^https?://[^\s/?#@]+([/?][^\s#]*)?$": "a URL with http or https, without user and password",
    r"^[^@\s]+@[^@\s]+$": "a mail address",
}


def _seen(value: object) -> str:
    if isinstance(value, str):
        return f'"{value[:40]}…"' if len(value) > 40 else f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return str(value)


def _unknown(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), names, 1, 0.6)
    if close:
        return f'is unknown; did you mean "{close[0]}"?'
    return f"is unknown; known: {', '.join(names)}"


def _example(hint: Any, name: str) -> str:
    bare, _, hint = _plain(hint)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return ""
    if isinstance(get_origin(bare), type) and issubclass(get_origin(bare), Mapping):
        return f": at least one [{name}.NAME] is needed"
    return "" if bare is Path or get_origin(bare) is tuple else f": {allowed(hint)}"


def _unreadable(path: Path) -> str | None:
    try:
        if path.is_dir():
            return f"{path}: is a directory"
        with path.open("rb"):
            return None
    except OSError as error:
        return f"{path}: {error.strerror}"


def _contradictions(kind: type[msgspec.Struct], told: Any) -> Iterator[tuple[Key, str]]:
    """What fits the types of a table and cannot be meant.

    Args:
      kind: the table's Struct.
      told: its fields, with defaults; `_MISSING` where one could not be read.

    Yields:
      The key within the table, and what is wrong.
    """
    check = {
        CredentialSettings: _credential,
        AppSettings: _proxy,
        TLSSettings: _tls,
        SmtpSettings: _smtp,
        IngestSettings: _ingest,
        AdminSettings: _listen,
    }.get(kind)
    if check is not None:
        yield from check(told)


def _across(told: Any, apps: list[str]) -> Iterator[tuple[Key, str]]:
    """What two tables disagree about.

    Args:
      told: the tables, with defaults; `_MISSING` where one, or a field of one, could not be read.
      apps: the names of all, readable or not.
    """
    ingest, admin = (getattr(each, "listen", _MISSING) for each in (told.ingest, told.admin))
    if ingest is not _MISSING and admin is not _MISSING:
        for number, address in enumerate(admin):
            if address in ingest and not address.endswith(":0"):
                yield ("admin", "listen", number), f'is "{address}", as for ingest; one address, one listener'
    for section, field in (("alarms", "app"), ("watchdog", "canary_app")):
        chosen = getattr(getattr(told, section), field, None)
        if isinstance(chosen, str) and chosen not in apps:
            yield (section, field), f'is "{chosen}"; there are {", ".join(apps)}'
    if told.alarms is not _MISSING and told.alarms.app is None and len(apps) > 1:
        yield ("alarms",), f"app is missing: with several apps, one of {', '.join(apps)}"
    watchdog = told.watchdog
    if watchdog is not _MISSING and watchdog.canary_minutes not in (0, _MISSING):
        if watchdog.canary_device_token_file is None:
            yield ("watchdog", "canary_minutes"), "needs canary_device_token_file"
        if watchdog.canary_app is None and len(apps) > 1:
            yield ("watchdog", "canary_minutes"), f"needs canary_app, one of {', '.join(apps)}"


def _routes(routes: Mapping[int, Route]) -> Iterator[tuple[Key, str]]:
    """What is wrong with the routes that could be read, by their places."""
    try:
        Routes(list(routes.values()))
    except InvalidRoutes as error:
        places = list(routes)
        for index, field, problem in error.problems:
            parts = re.findall(r"[a-z_]+|[0-9]+", field)
            yield (places[index], *(int(each) if each.isdigit() else each for each in parts)), problem


def _listen(told: Any) -> Iterator[tuple[Key, str]]:
    if told.listen is _MISSING:
        return
    if not told.listen:
        yield ("listen",), "is empty: nobody could connect"
    for number, address in enumerate(told.listen):
        if (problem := _address_problem(address)) is not None:
            yield ("listen", number), problem
        elif address in told.listen[:number] and not address.endswith(":0"):
            yield ("listen", number), f'is "{address}" again'


def _ingest(told: Any) -> Iterator[tuple[Key, str]]:
    yield from _listen(told)
    if told.trusted_proxies is _MISSING:
        return
    for number, network in enumerate(told.trusted_proxies):
        try:
            TrustedProxies([network])
        except ValueError:
            problem = f'is "{network[:64]}"; allowed: an address, a network such as 10.0.0.0/8, "unix"'
            yield ("trusted_proxies", number), problem


def _smtp(told: Any) -> Iterator[tuple[Key, str]]:
    if told.recipients == ():
        yield ("recipients",), "is empty: nobody would be told"
    if (told.user is None) != (told.password_file is None):
        yield (), "user and password_file are needed together"
    elif told.security == "none" and told.user is not None:
        yield ("security",), 'is "none": the password would be sent in clear'


def _credential(told: Any) -> Iterator[tuple[Key, str]]:
    if (told.key_file is None) == (told.certificate_file is None):
        yield (), "either key_file (a signing key, .p8) or certificate_file (a certificate) is needed"
        return
    if told.key_file is not None:
        if told.team_id is None:
            yield (), "team_id is missing: 10 upper-case letters and digits, from the developer account"
        for name in ("private_key_file", "password_file"):
            if getattr(told, name) is not None:
                yield (name,), "goes with certificate_file, not with key_file"
        return
    for name in ("key_id", "team_id"):
        if getattr(told, name) is not None:
            yield (name,), "goes with key_file, not with certificate_file"
    # Without a file for it the private key is in the certificate's.
    if told.private_key_file is None and told.certificate_file is not _MISSING:
        reason = refusal(told.certificate_file)
        if reason is not None:
            yield ("certificate_file",), reason


def _proxy(told: Any) -> Iterator[tuple[Key, str]]:
    if told.proxy is None or told.proxy is _MISSING:
        return
    if told.proxy_file is not None:
        yield ("proxy",), "and proxy_file name two proxies"
    if "@" in told.proxy:
        yield ("proxy",), "has a user or password; put the whole URL into a file and name it as proxy_file"
        return
    try:
        Proxy.parse(told.proxy)
    except ValueError as error:
        yield ("proxy",), str(error).removeprefix("proxy: ")


def _tls(told: Any) -> Iterator[tuple[Key, str]]:
    if told.client_certificates == "none" and told.client_ca_file is not None:
        yield ("client_ca_file",), 'is for client_certificates = "optional" or "required"'
    if told.client_certificates in ("optional", "required") and told.client_ca_file is None:
        yield ("client_certificates",), f'is "{told.client_certificates}"; client_ca_file is missing'


def _address_problem(address: str) -> str | None:
    if re.fullmatch(r"fd://([0-9]{1,5}|[a-z][a-z0-9._-]*)", address):
        return None
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.startswith("/"):
            return f'is "{address[:64]}"; the path of a Unix socket begins with /'
        # sun_path of sockaddr_un, unix(7)
        return "the path of a Unix socket has at most 107 octets" if len(os.fsencode(path)) > 107 else None
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):([0-9]{1,5})", address)
    if found is None or int(found[2]) > 65_535:
        return (
            f'is "{address[:64]}"; allowed: host:port, [::1]:port, :port, unix:/path, fd://NUMBER, fd://NAME'
        )
    return None
