"""Write 10,000 alarms as OpManager would raise them, each as a notification for `fastpush send --from`.

    python examples/make_alarms.py > examples/alarms.ndjson

The same seed gives the same octets on every machine, so that two measurements send the same work. Every line
has a device token of its own and a text of its own. The mapping from an alarm to a notification: severity to
interruption level, priority and sound; device to thread id; the failing object to collapse id.

The expiration is left out on purpose: an instant would be in the past by the time the file is sent.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

ALARMS = 10_000
SEED = 20_260_317


class Severity(NamedTuple):
    """How loud one of OpManager's severities is on the phone."""

    name: str
    interruption_level: str
    priority: int
    sound: str | None


CRITICAL = Severity("Critical", "time-sensitive", 10, "opm_critical.caf")
TROUBLE = Severity("Trouble", "active", 10, "default")
ATTENTION = Severity("Attention", "active", 10, None)
SERVICE_DOWN = Severity("Service Down", "time-sensitive", 10, "opm_critical.caf")
CLEAR = Severity("Clear", "passive", 5, None)


class Device(NamedTuple):
    """A monitored device: its display name, where it stands, its address."""

    name: str
    site: str
    address: str


SITES = [
    ("fra", "Frankfurt, Rechenzentrum 2"),
    ("muc", "München, Büro Süd"),
    ("zrh", "Zürich, Keller"),
    ("cdg", "Paris, siège"),
    ("mad", "Málaga, almacén"),
    ("gru", "São Paulo, filial"),
    ("waw", "Łódź, serwerownia"),
    ("ist", "İzmir, ofis"),
    ("nrt", "東京 第3サーバー室"),
    ("sin", "Singapore, Level 14"),
    ("lhr", "London, Docklands"),
    ("iad", "Ashburn, cage 17"),
    ("sfo", "San Francisco, floor 3"),
    ("maa", "Chennai, Guindy"),
]

ROLES = ["sw-core", "sw-access", "rtr-edge", "fw", "esx", "dc", "sql", "mail", "web", "nas", "ups", "wlc"]

INTERFACES = ["Gi0/1", "Gi1/0/24", "Te1/1/1", "Po3", "Vlan210", "ge-0/0/7", "eth2", "wan1"]
SERVICES = ["HTTPS", "DNS", "LDAP", "SMTP", "MSSQL", "Oracle listener", "SSH", "IIS", "DHCP", "NTP"]
DRIVES = ["C:", "D:", "/var", "/srv/backup", "/home"]
TRAPS = ["linkDown", "coldStart", "bgpBackwardTransition", "ciscoEnvMonFanNotification", "upsOnBattery"]


class Alarm(NamedTuple):
    """What OpManager says of one failing object."""

    entity: str
    severity: Severity
    monitor: str
    message: str


def devices(draw: random.Random) -> list[Device]:
    """2,400 devices over all sites, each with a name of its own."""
    found = []
    for number in range(2_400):
        code, site = SITES[number % len(SITES)]
        role = ROLES[number // len(SITES) % len(ROLES)]
        address = f"10.{number % len(SITES) + 20}.{draw.randrange(256)}.{draw.randrange(1, 255)}"
        found.append(Device(f"{role}-{code}-{number // (len(SITES) * len(ROLES)) + 1:02}", site, address))
    return found


def alarm(draw: random.Random, device: Device, number: int) -> Alarm:
    """Draw one of the things that go wrong with a device."""
    kind = draw.choices(
        [
            "down",
            "cpu",
            "memory",
            "disk",
            "interface",
            "traffic",
            "service",
            "latency",
            "trap",
            "temperature",
        ],
        weights=[10, 14, 10, 14, 14, 10, 10, 8, 5, 5],
    )[0]
    severity = draw.choices([CRITICAL, TROUBLE, ATTENTION, CLEAR], weights=[20, 25, 30, 25])[0]
    threshold = draw.choice([70, 75, 80, 85])
    value = draw.randint(3, threshold) if severity is CLEAR else draw.randint(threshold + 1, 99)
    if kind == "down":
        severity = draw.choice([CRITICAL, TROUBLE, ATTENTION, CLEAR])
        missed = {CRITICAL: 5, TROUBLE: 3, ATTENTION: 1}.get(severity)
        text = (
            f"Device is up again after {draw.randint(2, 240)} min."
            if missed is None
            else f"Device not responding: {device.address} missed {missed} poll{'s' if missed > 1 else ''}."
        )
        return Alarm(f"{device.name}_Poll", severity, "Availability", text)
    if kind == "service":
        service = draw.choice(SERVICES)
        severity = draw.choice([SERVICE_DOWN, SERVICE_DOWN, CLEAR])
        text = (
            f"{service} is up, response time {draw.randint(3, 900)} ms."
            if severity is CLEAR
            else f"{service} is down on {device.address}: {draw.choice(['refused', 'timed out after 30 s'])}."
        )
        return Alarm(f"{device.name}_{service}", severity, service, text)
    if kind == "interface":
        interface = draw.choice(INTERFACES)
        severity = draw.choice([TROUBLE, CLEAR])
        peer = f"{draw.choice(ROLES)}-{draw.choice(SITES)[0]}-{draw.randint(1, 14):02}"
        state = "is up" if severity is CLEAR else "is down"
        return Alarm(
            f"{device.name}_IF_{interface}",
            severity,
            interface,
            f"Interface {interface} (uplink to {peer}) {state}.",
        )
    if kind == "traffic":
        interface = draw.choice(INTERFACES)
        rate = draw.uniform(0.81, 9.99)
        return Alarm(
            f"{device.name}_TRAFFIC_{interface}", severity, interface,
            f"Rx traffic on {interface} is {rate:.2f} Gbit/s, {value} % of its speed (limit {threshold} %).",
        )  # fmt: skip
    if kind == "disk":
        drive = draw.choice(DRIVES)
        return Alarm(
            f"{number}_DiskUtilization", severity, f"Disk {drive}",
            f"Disk utilization of {drive} is {value} %, the threshold is {threshold} %. "
            f"Free: {draw.randint(1, 240)} GB.",
        )  # fmt: skip
    if kind == "latency":
        ms = draw.randint(2, 200) if severity is CLEAR else draw.randint(201, 2_400)
        return Alarm(
            f"{device.name}_RTT", severity, "Response time",
            f"Response time to {device.site} is {ms} ms, packet loss {draw.randint(0, 40)} % (limit 200 ms).",
        )  # fmt: skip
    if kind == "trap":
        trap = draw.choice(TRAPS)
        return Alarm(f"{device.name}_{trap}", severity, "SNMP trap", f"Trap {trap} from {device.address}.")
    if kind == "temperature":
        celsius = draw.uniform(18, 35) if severity is CLEAR else draw.uniform(35.1, 61)
        return Alarm(
            f"{device.name}_TEMP", severity, "Temperature",
            f"Inlet temperature is {celsius:.1f} °C, the limit is 35 °C ({device.site}).",
        )  # fmt: skip
    name = "CPU" if kind == "cpu" else "Memory"
    return Alarm(
        f"{device.name}_{name.upper()}USAGE", severity, f"{name} utilization",
        f"{name} utilization is {value} %, the threshold is {threshold} %.",
    )  # fmt: skip


def notifications(count: int = ALARMS, seed: int = SEED) -> Iterator[dict[str, Any]]:
    """The lines of the file: fields of a `fastpush.Notification`, the payload as APNs takes it.

    What APNs assumes anyway (push type alert, priority 10, level active) is left out.
    """
    draw = random.Random(seed)
    site = devices(draw)
    for number in range(count):
        device = draw.choice(site)
        raised = alarm(draw, device, number)
        severity = raised.severity
        alarm_id = 4_092 + number
        aps: dict[str, Any] = {
            "alert": {
                "title": f"{'Cleared' if severity is CLEAR else severity.name}: {device.name}",
                "subtitle": raised.monitor,
                "body": f"{raised.message} ({alarm_id})",
            },
            "badge": draw.randint(1, 99),
            "thread-id": device.name,
            "category": "OPM_CLEARED" if severity is CLEAR else "OPM_ALARM_OPEN",
        }
        if severity.interruption_level != "active":
            aps["interruption-level"] = severity.interruption_level
        if severity.sound is not None:
            aps["sound"] = severity.sound
        notification: dict[str, Any] = {"device_token": f"{draw.getrandbits(256):064x}"}
        if severity.priority != 10:
            notification["priority"] = severity.priority
        notification["collapse_id"] = raised.entity  # at most 64 octets; a longer one would be hashed
        notification["payload"] = {"aps": aps, "opm": {"alarmid": alarm_id}}
        yield notification


def main() -> None:
    parser = argparse.ArgumentParser(description="Write alarms as newline-delimited JSON to standard output.")
    parser.add_argument("--count", type=int, default=ALARMS, help="how many (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="another seed, other alarms (default: %(default)s)"
    )
    arguments = parser.parse_args()
    for notification in notifications(arguments.count, arguments.seed):
        sys.stdout.buffer.write(orjson.dumps(notification) + b"\n")


if __name__ == "__main__":
    main()
