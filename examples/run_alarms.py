"""Start a simulated APNs on this machine and send 10,000 network alarms to it.

Nothing here that one could not type: `fastpush simulate` in one terminal, `fastpush send` in another. More
arguments go to `fastpush send`, such as --json.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ALARMS = Path(__file__).with_name("alarms.ndjson")
FASTPUSH = [sys.executable, "-m", "fastpush"]


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        simulate = [*FASTPUSH, "simulate", "--port", "0", "--print-credentials", folder, "--json"]
        with subprocess.Popen(simulate, stdout=subprocess.PIPE) as simulator:
            try:
                assert simulator.stdout is not None
                apns = json.loads(simulator.stdout.readline())
                print(
                    f"A simulated APNs listens on {apns['host']} port {apns['port']}.\n"
                    f"Sending the alarms of {ALARMS.name} to it …",
                    file=sys.stderr,
                )
                return subprocess.call(
                    [
                        *FASTPUSH, "send",
                        "--key", apns["key_file"], "--key-id", apns["key_id"], "--team-id", apns["team_id"],
                        "--ca-file", apns["ca_file"], "--host", apns["host"], "--port", str(apns["port"]),
                        "--topic", "com.example.opmanager",
                        "--from", ALARMS,
                        *arguments,
                    ]
                )  # fmt: skip
            except KeyboardInterrupt:
                return 130
            finally:
                simulator.send_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
