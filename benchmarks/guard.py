"""Fails when a change makes a push cost more instructions than before, and no commit message says why.

    python -m benchmarks.guard              # or: make guard

Counts the instructions of values, encode, engine and connection (`instructions.py`) in this checkout, as it
is built, and in the commit where its branch left origin/main (without one, or on it: in the commit before),
which is built in a folder of its own. No clock is read, so a busy machine changes nothing. More than 5 % in
one case needs a trailer in a commit message of the range that names part or case, the rise and the reason:

    Instructions: encode/usual +7 %, because a key of iOS 20 is checked

Several such lines add up. A case that rises by more than its lines say fails all the same. With a base that
cannot be built nothing is compared; it says so, with the compiler's words.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks import instructions
from benchmarks.reporting import Table
from benchmarks.servers import NotInstalled

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = 0.05
ROUNDING = 0.005  # a trailer is written in whole per cents
UNGUARDED = "yardstick/"
"""Not ours: orjson's own cost."""
DECIDES = ("fastpush", "setup.py", "pyproject.toml")
"""What can change a count."""

TRAILER = re.compile(
    r"^Instructions:\s+(?P<name>[\w/-]+)\s+\+(?P<percent>\d+(?:\.\d+)?)\s*%,?\s+because\s+(?P<reason>\S.*)$",
    re.MULTILINE,
)


class Announced(NamedTuple):
    """One trailer."""

    name: str
    rise: float
    reason: str


class Verdict(NamedTuple):
    name: str
    before: float | None
    now: float
    allowed: float
    """The rise that the trailers allow, 0.05 at the least."""

    @property
    def rise(self) -> float:
        return 0.0 if not self.before else round(self.now / self.before - 1, 6)

    @property
    def failed(self) -> bool:
        return self.rise > self.allowed


class MalformedTrailer(ValueError):
    """A line begins as a trailer does, but cannot be read."""


def announced(messages: str) -> list[Announced]:
    """The trailers of some commit messages.

    Raises:
      MalformedTrailer: a line that begins with `Instructions:` is not in the form of the trailer.
    """
    found = [
        Announced(one["name"], float(one["percent"]) / 100, one["reason"])
        for one in TRAILER.finditer(messages)
    ]
    lines = re.findall(r"^Instructions:.*$", messages, re.MULTILINE)
    if len(lines) != len(found):
        bad = next(line for line in lines if not TRAILER.match(line))
        raise MalformedTrailer(f"{bad!r} is not of the form 'Instructions: encode +7 %, because …'")
    return found


def judge(before: dict[str, float], now: dict[str, float], trailers: list[Announced]) -> list[Verdict]:
    """Hold each case against its former self. A trailer for a part holds for all cases of the part."""
    verdicts = []
    for name, count in now.items():
        if name.startswith(UNGUARDED):
            continue
        allowed = 1.0
        for trailer in trailers:
            if name == trailer.name or name.startswith(trailer.name + "/"):
                allowed *= 1 + trailer.rise
        verdicts.append(
            Verdict(name, before.get(name), count, max(ALLOWED, allowed - 1 + ROUNDING * (allowed > 1)))
        )
    return verdicts


def git(*arguments: str, cwd: Path = ROOT) -> str:
    """What git prints. Raises CalledProcessError."""
    return subprocess.run(
        ["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout.strip()


def find_base(cwd: Path = ROOT) -> str | None:
    """The commit to compare with: the merge base with origin/main, else the parent; None without either."""
    for arguments in (
        ["merge-base", "HEAD", "origin/main"],
        ["rev-parse", "--verify", "--quiet", "HEAD~1^{commit}"],
    ):
        try:
            base = git(*arguments, cwd=cwd)
        except (subprocess.CalledProcessError, FileNotFoundError):
            continue
        if base != git("rev-parse", "HEAD", cwd=cwd):
            return base
    return None


def changes(base: str, cwd: Path = ROOT) -> bool:
    """Whether something that can change a count differs between the commit and this checkout."""
    return bool(git("diff", "--name-only", base, "--", *DECIDES, cwd=cwd))


class NoBase(Exception):
    """The commit before cannot be counted; the message says why."""


def build(tree: Path) -> None:
    """Build the base. Raises NoBase."""
    ended = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--parallel", "2"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        raise NoBase(f"it could not be built:\n{ended.stderr[-2000:].strip()}")


def count_base(base: str) -> instructions.Counts:
    """Build and count the commit. Raises NoBase."""
    with tempfile.TemporaryDirectory(prefix="guard-") as folder:
        tree = Path(folder) / "base"
        git("worktree", "add", "--quiet", "--detach", str(tree), base)
        try:
            build(tree)
            return instructions.count(tree)
        except RuntimeError as error:
            raise NoBase(str(error)) from None
        finally:
            git("worktree", "remove", "--force", str(tree))


def report(verdicts: list[Verdict], base: str) -> Table:
    rows = Table(
        f"instructions to a push, against {base[:12]}", ("part", "before", "now", "change", "verdict")
    )
    for one in verdicts:
        rows.add(
            one.name,
            "none" if one.before is None else f"{one.before:,.0f}",
            f"{one.now:,.0f}",
            "" if one.before is None else f"{100 * one.rise:+.1f} %",
            f"more than {100 * one.allowed:.1f} %" if one.failed else "",
        )
    return rows


def main() -> int:
    try:
        base = find_base()
    except FileNotFoundError:
        base = None
    if base is None:
        print("guard: not compared: there is no earlier commit here (a shallow clone, or the first one)")
        return 0
    if not changes(base):
        print(f"guard: nothing in {', '.join(DECIDES)} differs from {base[:12]}")
        return 0
    try:
        trailers = announced(git("log", "--format=%B", f"{base}..HEAD"))
    except MalformedTrailer as error:
        print(f"guard: {error}")
        return 1
    try:
        now = instructions.count(ROOT)
    except NotInstalled as reason:
        print(f"guard: not compared: {reason}")
        return 0
    try:
        before = count_base(base)
    except NoBase as reason:
        # Or no commit that mends the build would ever pass.
        print(f"guard: not compared with {base[:12]}: {reason}")
        for part, why in now.failed.items():
            print(f"guard: {part} could not be counted here: {why}")
        return 1 if now.failed else 0
    for part, why in now.failed.items():
        print(f"guard: {part} could not be counted here: {why}")
    for part, why in before.failed.items():
        print(f"guard: {part} could not be counted in the base: {why}")
    verdicts = judge(before.each, now.each, trailers)
    print(report(verdicts, base))
    for trailer in trailers:
        print(f"  announced: {trailer.name} +{100 * trailer.rise:g} %, because {trailer.reason}")
    if any(verdict.failed for verdict in verdicts):
        print("  If it is worth it, say so in the commit message: Instructions: PART +N %, because …")
        return 1
    return 1 if now.failed else 0


if __name__ == "__main__":
    sys.exit(main())
