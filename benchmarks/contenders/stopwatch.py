"""What the contenders in Python share: reading the job, the device tokens, CPU and memory, the report."""

from __future__ import annotations

import resource
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import data
from benchmarks.contenders import Job, Report


class Contest:
    """One run of a contender: its job, its device tokens, and what was measured."""

    def __init__(self) -> None:
        self.job = Job.from_arguments()
        before = status_octets("VmRSS")
        tokens = list(data.device_tokens(self.job.seed, self.job.warm_up + self.job.pushes))
        self._token_octets = status_octets("VmRSS") - before
        self.warm_up_tokens = tokens[: self.job.warm_up]
        self.device_tokens = tokens[self.job.warm_up :]
        self.cpu_seconds = self.wall_seconds = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the block: CPU of the whole process, user and system, and time on the clock."""
        cpu, wall = cpu_seconds(), time.perf_counter()
        yield
        self.cpu_seconds, self.wall_seconds = cpu_seconds() - cpu, time.perf_counter() - wall

    def signing_key(self) -> str:
        return Path(self.job.key_file).read_text()

    def tls_context(self) -> ssl.SSLContext:
        """Verify the sink's certificate and offer HTTP/2, as each contender does against Apple."""
        context = ssl.create_default_context(cafile=self.job.ca_file)
        context.set_alpn_protocols(["h2"])
        return context

    def report(self, accepted: int, versions: str) -> None:
        peak = status_octets("VmHWM") - self._token_octets
        Report(accepted, self.cpu_seconds, self.wall_seconds, peak, versions).print()


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def status_octets(name: str) -> int:
    """A size out of /proc/self/status; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)
