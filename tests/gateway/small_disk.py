"""A script on a file system of 8 MiB that is its own, with 2 MiB of ballast to be taken away."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import trio

ROOT = Path(__file__).resolve().parent.parent.parent


async def run_on_small_disk(folder, script, *arguments):
    """Run a Python script there, with the folder and the arguments; gives what it printed."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting a small tmpfs takes root and unshare(1)")
    command = (
        f"mount -t tmpfs -o size=8m tmpfs {folder} && head -c 2097152 /dev/zero > {folder}/ballast && "
        f'exec {sys.executable} -c "$SCRIPT" {folder} {" ".join(map(str, arguments))}'
    )
    done = await trio.run_process(
        ["unshare", "-m", "sh", "-c", command], capture_stdout=True, capture_stderr=True, check=False,
        cwd=ROOT, env=os.environ | {"SCRIPT": script},
    )  # fmt: skip
    if b"mount:" in done.stderr:
        pytest.skip(f"no tmpfs here: {done.stderr.decode()}")
    assert done.returncode == 0, done.stderr.decode()[-2_000:]
    return done.stdout.decode()
