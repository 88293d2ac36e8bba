"""fastpush's simulated APNs in a process of its own; prints its counts and its CPU at its end.

python -m benchmarks.servers.simulator_server HOST PORT CA_FILE
"""

import json
import resource
import signal
import sys

import trio

from fastpush.simulator import open_simulator


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def main() -> None:
    host, port, ca_file = sys.argv[1:]
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        # The contenders sign with a key that it does not know. Without `probing`, since h2load opens a
        # hundred streams before it has read SETTINGS, of which all but one would be refused.
        async with open_simulator(
            host=host, port=int(port), verify=False, probing=False, ledger="counts"
        ) as simulator:
            await trio.Path(ca_file).write_bytes(simulator.ca_pem)
            before = cpu_seconds()
            await anext(aiter(signals))
            used = cpu_seconds() - before
            answered = simulator.statistics().fates.get("accepted", 0)
    print(json.dumps({"answered": answered, "cpu_seconds": used}), flush=True)


if __name__ == "__main__":
    trio.run(main)
