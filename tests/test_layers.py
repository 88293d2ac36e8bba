"""Arrows point one way: who may import whom, and who may wait, read a clock or draw a random number.

The house from top to bottom. A module may import what stands on a lower floor; of its own floor only
what is in its own package. Where the house is narrower than that, `ONLY` says so.

    cli
     └─ gateway
         └─ aio, blocking                     doors to the client
             └─ client, channels
                 └─ pool
                     └─ connection            the only place that knows both APNs and HTTP/2
                         ├─ transport
                         ├─ http2
                         └─ notification, credentials, retry → _notification →
                            _live_activity → _encode → errors, _json
    simulator stands beside client, on http2, notification and credentials
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastpush"

# From top to bottom. A name stands for a module, or for a package with all that is in it.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["gateway"],
    ["aio", "blocking"],
    ["client", "channels", "simulator"],
    ["pool"],
    ["proof"],
    ["connection"],
    ["apart", "ending"],
    ["_connection"],
    ["transport", "http2", "credentials", "retry", "events"],
    ["notification"],
    ["_notification"],
    ["_live_activity"],
    ["_encode"],
    ["_encode_checks", "_encode_writing"],  # its parts, included
    ["_tls_context", "_token_file"],
    ["_credential_files"],
    ["_apple_certificate"],
    ["errors"],
    ["_json"],
    ["_buffer", "_vectorcall", "_begun_as_command"],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# Narrower than the floors allow.
ONLY = {
    "http2": {"_buffer"},
    "transport": {"_tls_context", "errors"},
    "retry": {"errors", "notification", "_notification"},
    "credentials": {"_apple_certificate", "_credential_files", "_tls_context", "_token_file", "errors"},
    "simulator": {
        "http2",
        "_notification",
        "notification",
        "_encode",
        "credentials",
        "_apple_certificate",
        "errors",
        "_buffer",
    },
}

# Bytes and a clock reading in, bytes and events out.
WITHOUT_IO = [
    "http2", "retry", "notification", "_notification", "_live_activity", "_encode", "_encode_checks",
    "_encode_writing", "_json", "errors", "_buffer", "gateway/sources", "gateway/alarms.py",
    "gateway/banners.py", "gateway/routes.py", "gateway/notices/values.py", "gateway/notices/echo.py",
    "gateway/watchdog/judge.py",
]  # fmt: skip
IO = {
    "asyncio", "concurrent", "http", "io", "logging", "multiprocessing", "os", "pathlib", "queue", "random",
    "secrets", "select", "selectors", "signal", "socket", "ssl", "subprocess", "tempfile", "threading",
    "time", "trio", "urllib",
}  # fmt: skip
# What the C side would reach the same things by.
IO_IN_C = re.compile(
    r"posix|libc\.(time|stdio|signal)|cpython\.(time|pythread)|^time\.h|^stdio\.h|unistd|^sys/"
)
ALLOWED_IO = {
    ("http2/__init__.py", "os"): "FASTPUSH_ENGINE chooses the engine, once, where one is opened",
    ("gateway/sources/bodies.py", "urllib"): "urllib.parse alone, which decodes percents",
}


CYTHON = {".pyx", ".pxd", ".pxi"}
SOURCES = sorted(
    path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.suffix in {".py", ".pyi", *CYTHON}
)


def part(path: Path) -> str:
    """The name by which a source stands in `FLOORS`."""
    return path.parts[0].split(".")[0]


def python_imports(source: str, package: str) -> Iterator[str]:
    """The full names that a Python source imports, wherever they are; `from x import y` gives x and x.y."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from expand(node.module or "", node.level, [alias.name for alias in node.names], package)


IMPORT = re.compile(r"^\s*c?import\s+(?P<names>.+)$")
FROM = re.compile(r"^\s*from\s+(?P<dots>\.*)(?P<module>[\w.]*)\s+c?import\s+(?P<names>.+)$")
INCLUDE = re.compile(r"""^\s*include\s+["'](?P<path>[^"']+)["']""")
EXTERN = re.compile(r"""(?:^\s*cdef\s+extern\s+from|#\s*include)\s+["<']+([^">']+)""", re.MULTILINE)


def cython_imports(source: str, package: str) -> Iterator[str]:
    """The same of a Cython source, line by line; its C headers and included parts count as imports."""
    yield from EXTERN.findall(source)
    source = re.sub(r'("""|\'\'\').*?\1', "", source, flags=re.DOTALL)
    source = re.sub(r"#[^\n]*", "", source)
    source = re.sub(r"(import\s*)\(([^()]*)\)", lambda found: found[1] + " ".join(found[2].split()), source)
    for line in source.replace("\\\n", " ").splitlines():
        if found := FROM.match(line):
            names = [name.split()[0] for name in found["names"].split(",") if name.strip()]
            yield from expand(found["module"], len(found["dots"]), names, package)
        elif found := IMPORT.match(line):
            yield from (name.split()[0] for name in found["names"].split(","))
        elif found := INCLUDE.match(line):
            included = posixpath.normpath("/".join([*package.split("."), found["path"]]))
            yield included.removesuffix(".pxi").replace("/", ".")


def expand(module: str, level: int, names: list[str], package: str) -> Iterator[str]:
    if level:
        parents = package.split(".")
        module = ".".join([*parents[: len(parents) - level + 1], *([module] if module else [])])
    if module != "fastpush":  # `from fastpush import http2` takes a module, and not what `__init__` names
        yield module
    yield from (f"{module}.{name}" for name in names)


def imports(path: Path) -> set[str]:
    package = ".".join(["fastpush", *path.parent.parts])
    source = (PACKAGE / path).read_text()
    reader = cython_imports if path.suffix in CYTHON else python_imports
    return set(reader(source, package))


def ours(names: set[str]) -> set[str]:
    """Which parts of fastpush are among these imports."""
    return {name.split(".")[1] for name in names if name.startswith("fastpush.")} & set(FLOOR)


def upward(path: Path, names: set[str]) -> list[str]:
    """What a source imports although it stands on the same floor or above."""
    here = part(path)
    return sorted(
        there
        for there in ours(names)
        if there != here and (FLOOR[there] <= FLOOR[here] or (here in ONLY and there not in ONLY[here]))
    )


def is_without_io(path: Path) -> bool:
    """By its part, or by the package or file that stands in `WITHOUT_IO`."""
    return any(name in WITHOUT_IO for name in (part(path), *map(str, (path, *path.parents))))


def waits(path: Path, names: set[str]) -> list[str]:
    """What a source without I/O imports to do I/O, read a clock or draw a number."""
    if not is_without_io(path):
        return []
    python = {name.split(".")[0] for name in names if not name.endswith(".h")} & IO
    c = {name for name in names if IO_IN_C.search(name)}
    return sorted(name for name in python | c if (str(path), name) not in ALLOWED_IO)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_every_arrow_points_down(path: Path) -> None:
    if path == Path("__init__.py"):
        return  # names the public things, whatever floor they are on
    assert part(path) in FLOOR, f"fastpush/{path} stands on no floor: give it its place in FLOORS"
    found = upward(path, imports(path))
    assert not found, f"fastpush/{path} imports {found}, which stand above it or beside it"


@pytest.mark.parametrize("path", [path for path in SOURCES if is_without_io(path)], ids=str)
def test_values_encoder_and_engine_do_no_io_and_own_no_clock(path: Path) -> None:
    found = waits(path, imports(path))
    assert not found, f"fastpush/{path} imports {found}; time, randomness and octets are arguments there"


def through_the_roof(names: set[str]) -> list[str]:
    """What a source imports from `fastpush/__init__.py`, which itself imports every floor."""
    return sorted(
        name
        for name in names
        if name == "fastpush" or (name.startswith("fastpush.") and name.split(".")[1] not in FLOOR)
    )


@pytest.mark.parametrize("path", [path for path in SOURCES if path != Path("__init__.py")], ids=str)
def test_no_module_of_the_package_imports_the_package_itself(path: Path) -> None:
    found = through_the_roof(imports(path))
    assert not found, f"fastpush/{path} imports {found}: take them from the module that defines them"


# The reader of imports is code too: that it sees what is there is shown on sources that break each rule.


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("pool.py", "from fastpush.client import Client", ["client"]),
        ("pool.py", "def late():\n    from . import client", ["client"]),
        ("http2/reference.py", "from ..notification import Notification", ["notification"]),
        ("http2/reference.py", "from fastpush import errors", ["errors"]),
        ("http2/_engine.pyx", "from fastpush._notification cimport Notification", ["_notification"]),
        ("_encode.pyx", "cimport fastpush._notification as values", ["_notification"]),
        ("_encode.pyx", "from fastpush cimport (  # why\n    _notification,\n    errors)", ["_notification"]),
        ("simulator/rules.py", "import fastpush.connection", ["connection"]),
        ("channels.py", "import fastpush.client", ["client"]),
        ("connection.py", "from fastpush.http2 import open_engine\nfrom fastpush import transport", []),
        ("http2/_engine_input.pxi", "from fastpush.retry import decide", ["retry"]),
        ("http2/_engine.pyx", 'include "../transport/_records.pxi"  # why', ["transport"]),
        ("http2/_engine.pyx", 'include "_engine_input.pxi"', []),
        ("http2/_engine.pyx", "from fastpush._buffer cimport Buffer\nfrom ._hpack cimport Encoder", []),
        ("errors.py", '"""from fastpush.client import x"""', []),
    ],
)  # fmt: skip
def test_an_upward_arrow_is_seen(path: str, source: str, found: list[str]) -> None:
    assert upward(Path(path), read(path, source)) == found


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("http2/reference.py", "import time", ["time"]),
        ("http2/reference.py", "from os import environ", ["os"]),
        ("notification.py", "def late():\n    import trio", ["trio"]),
        ("_notification.pyx", "import secrets, math", ["secrets"]),
        ("http2/_engine_output.pxi", "from libc.time cimport time", ["libc.time", "libc.time.time"]),
        ("_encode.pyx", "from posix.time cimport clock_gettime", ["posix.time", "posix.time.clock_gettime"]),
        ("http2/_engine.pyx", 'cdef extern from "<sys/socket.h>" nogil:\n    pass', ["sys/socket.h"]),
        ("http2/_engine.pyx", 'cdef extern from *:\n    """\n    #include <time.h>\n    """', ["time.h"]),
        ("connection.py", "import time, trio", []),
        ("gateway/alarms.py", "import time", ["time"]),
        ("gateway/sources/opmanager.py", "import socket", ["socket"]),
        ("gateway/serve.py", "import trio", []),
        ("errors.py", "# import time", []),
    ],
)  # fmt: skip
def test_io_in_the_core_is_seen(path: str, source: str, found: list[str]) -> None:
    assert waits(Path(path), read(path, source)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fastpush", ["fastpush"]),
        ("from fastpush import Payload", ["fastpush.Payload"]),
        ("from fastpush import http2", []),
        ("import fastpush.errors", []),
    ],
)
def test_an_import_through_the_roof_is_seen(source: str, found: list[str]) -> None:
    assert through_the_roof(read("pool.py", source)) == found


def read(path: str, source: str) -> set[str]:
    package = ".".join(["fastpush", *Path(path).parent.parts])
    return set((cython_imports if Path(path).suffix in CYTHON else python_imports)(source, package))


def of_the_log(path: Path, found: set[str]) -> list[str]:
    """What a module imports of `logging` and structlog that is not for it."""
    gateway = path.parts[0] == "gateway"
    if path.as_posix() == "gateway/log.py":
        return []
    foreign = (
        {"logging", "structlog"} if gateway else {"structlog"} - {path.parts[0] == "cli" and "structlog"}
    )
    return sorted(name for name in found if name.split(".")[0] in foreign)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_the_gateway_logs_by_its_own_log_and_the_library_by_that_of_python(path: Path) -> None:
    assert not of_the_log(path, imports(path))


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("gateway/apps.py", "import logging", ["logging"]),
        ("gateway/http/_server.py", "from logging.handlers import QueueHandler", ["logging.handlers"]),
        ("gateway/apps.py", "def late():\n    import structlog", ["structlog"]),
        ("gateway/log.py", "import logging, structlog", []),
        ("pool.py", "import logging", []),
        ("pool.py", "from structlog import get_logger", ["structlog"]),
        ("http2/reference.py", "import structlog", ["structlog"]),
        ("cli/serve.py", "import logging, structlog", []),
    ],
)
def test_a_log_that_is_not_for_a_module_is_seen(path: str, source: str, found: list[str]) -> None:
    named = of_the_log(Path(path), read(path, source))
    assert [name for name in named if name in found] == found
    assert bool(named) == bool(found)


def test_every_exception_from_the_rule_is_still_needed() -> None:
    for path, name in ALLOWED_IO:
        assert name in imports(Path(path)), f"{path} no longer imports {name}: take it out of ALLOWED_IO"
