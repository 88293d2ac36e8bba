"""Senders under test, each run in a process of its own: `ALL` names them, in the order of the table.

A contender gets one JSON object (`Job`) as its last argument, sends that many pushes after a small warm-up,
and prints one JSON object (`Report`) as its last line. h2load knows nothing of this; `h2load.py` translates.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
NODE_PATH = os.pathsep.join(
    filter(None, (os.environ.get("NODE_PATH"), str(Path(sys.prefix, "peers", "node_modules"))))
)
"""Where node looks for the peers: where `make bench` puts them, and where the caller says."""


@dataclass(frozen=True)
class Job:
    """What a contender is to do."""

    host: str
    port: int
    ca_file: str
    key_file: str
    """The signing key, PKCS #8 in PEM, as Apple's .p8 files are."""
    provider_token: str
    """Signed with that key, for contenders that cannot sign."""
    pushes: int
    """To be measured."""
    warm_up: int
    """To be sent before; they are counted by the sink and not measured."""
    seed: int
    streams: int
    """Pushes under way at once."""
    connections: int = 1
    """To send over, where the contender has a choice."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_arguments(cls) -> Job:
        return cls(**json.loads(sys.argv[-1]))


@dataclass(frozen=True)
class Report:
    """What a contender says of itself."""

    accepted: int
    """Pushes answered with 200, the warm-up among them."""
    cpu_seconds: float
    """User and system time of the process while it sent `pushes`."""
    wall_seconds: float
    peak_octets: int
    """The largest resident set, less what the list of device tokens takes."""
    versions: str = ""

    def print(self) -> None:
        print(json.dumps(asdict(self)), flush=True)


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    command: tuple[str, ...]
    share: float = 1.0
    """Of the pushes asked for: a slow one gets fewer, for a run of a few seconds."""
    warm_up: int = 1_000
    connections: int = 1
    """That it opens one after the other, the warm-up among them; 0: a new one for each push."""
    connections_vary: bool = False
    """It opens as many at most, by need."""
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""
    """The module, program or npm package without which it cannot run."""
    package: str = ""
    """What pip calls the module, where that is another name."""
    program: str = ""
    """What a script in Python starts."""
    program_package: str = ""
    """What apt calls the package that it comes with."""

    def surroundings(self) -> dict[str, str]:
        """The environment in which it runs."""
        return os.environ | {"NODE_PATH": NODE_PATH} | self.environment

    def missing(self) -> str | None:
        """What to install before it can run; None when it can."""
        if self.command[0] == sys.executable:
            if self.program and shutil.which(self.program) is None:
                return f"apt install {self.program_package}"
            if self.needs and importlib.util.find_spec(self.needs) is None:
                return f"pip install {self.package or self.needs}"
            return None
        if shutil.which(self.command[0]) is None:
            return f"{self.command[0]} is not installed: apt install nodejs npm"
        if self.needs:
            found = subprocess.run(
                ["node", "-e", f"require.resolve('{self.needs}')"],
                capture_output=True,
                cwd=HERE,
                env=self.surroundings(),
            )
            if found.returncode != 0:
                return f"npm install --prefix {Path(sys.prefix, 'peers')} {self.needs}"
        return None


def python(script: str, *arguments: str) -> tuple[str, ...]:
    return sys.executable, "-m", f"benchmarks.contenders.{script}", *arguments


def javascript(script: str) -> tuple[str, ...]:
    return "node", str(HERE / script)


H2LOAD = Contender(
    "h2load",
    "h2load (C, nghttp2)",
    python("h2load"),
    warm_up=1,
    connections=2,
    program="h2load",
    program_package="nghttp2-client",
)

ALL = (
    H2LOAD,
    Contender("bulk", "fastpush send_many, taken in batches", python("fastpush_client", "bulk")),
    Contender("each", "fastpush send_many, taken one by one", python("fastpush_client", "each")),
    Contender("fan-out", "fastpush send_many, one payload", python("fastpush_client", "fan-out")),
    Contender("awaited", "fastpush send, 1,000 tasks", python("fastpush_client", "awaited")),
    Contender(
        "bulk-h2",
        "fastpush send_many, FASTPUSH_ENGINE=h2",
        python("fastpush_client", "bulk"),
        share=0.05,
        environment={"FASTPUSH_ENGINE": "h2"},
    ),
    Contender("pycurl", "pycurl (libcurl)", python("pycurl_client"), share=0.1, needs="pycurl"),
    Contender("node", "Node's http2 module", javascript("node_http2.js"), share=0.1),
    Contender("node-apn", "@parse/node-apn", javascript("node_apn.js"), share=0.05, needs="@parse/node-apn"),
    Contender("aioapns", "aioapns", python("aioapns_client"), share=0.02, needs="aioapns"),
    Contender("httpx", "httpx", python("httpx_client"), share=0.005, warm_up=100, needs="httpx"),
    Contender("h2", "h2 on trio, bare", python("h2_client"), share=0.02, needs="h2"),
    Contender(
        "apns2",
        "apns2 (npm), 32 connections",
        javascript("npm_apns2.js"),
        share=0.02,
        needs="apns2",
        connections=32,
        connections_vary=True,
    ),
    Contender(
        "kalyke",
        "kalyke-apns, one connection each",
        python("kalyke_client"),
        share=0.001,
        warm_up=10,
        needs="kalyke",
        package="kalyke-apns",
        connections=0,
    ),
    # Over more connections.
    replace(
        H2LOAD,
        name="h2load-4",
        title="h2load, 4 connections",
        command=python("h2load", "4"),
        warm_up=4,
        connections=8,
    ),
    *(
        Contender(
            f"{name}-{connections}",
            title.format(tasks=1_000 * connections, connections=connections),
            python("fastpush_client", name, str(connections)),
            warm_up=1_000 * connections,
            connections=connections,
            connections_vary=True,
        )
        for connections in (2, 4)
        for name, title in (
            ("bulk", "fastpush send_many, up to {connections} connections"),
            ("fan-out", "fastpush send_many, one payload, up to {connections} connections"),
            ("awaited", "fastpush send, {tasks:,} tasks, up to {connections} connections"),
        )
    ),
)

BY_NAME = {contender.name: contender for contender in ALL}
