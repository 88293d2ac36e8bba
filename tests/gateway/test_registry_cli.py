"""`fastpush keys` and `fastpush devices`, on the file of a stopped gateway and beside a running one."""

import json
import re
import sqlite3
from contextlib import contextmanager
from functools import partial
from threading import Event, Thread

import pytest
import trio
from click.testing import CliRunner

from fastpush.cli import main
from fastpush.cli.tables import table
from fastpush.gateway.app import admin_app, body_rule
from fastpush.gateway.auth.secret import read_secret
from fastpush.gateway.control import socket_path, trusted
from fastpush.gateway.http import open_listener, serve
from tests.gateway.registry_house import APP, open_house, token


def stopped(folder):
    """A file that a gateway has left."""

    async def make():
        async with open_house(folder):
            pass

    trio.run(make)


@contextmanager
def running(folder):
    """A gateway's administration in a thread of its own, on the control socket."""
    started, stopping = Event(), []

    async def live():
        stop = trio.Event()
        stopping.append((trio.lowlevel.current_trio_token(), stop))
        async with open_house(folder) as house, trio.open_nursery() as nursery:
            listener = open_listener(f"unix:{socket_path(folder / 'gateway.db')}", mode=0o600)
            await nursery.start(
                partial(
                    serve, trusted(admin_app(house.gateway(None))), [listener], body_rules=body_rule,
                    shutdown_trigger=stop.wait,
                )
            )  # fmt: skip
            started.set()

    thread = Thread(target=trio.run, args=(live,))
    thread.start()
    assert started.wait(10)
    try:
        yield
    finally:
        [(trio_token, stop)] = stopping
        trio.from_thread.run_sync(stop.set, trio_token=trio_token)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(params=["stopped", "running"])
def fastpush(request, tmp_path):
    def run(*arguments, **fields):
        given = [*map(str, arguments), "--database", str(tmp_path / "gateway.db")]
        return CliRunner().invoke(main, given, **fields)

    if request.param == "stopped":
        stopped(tmp_path)
        yield run
    else:
        with running(tmp_path):
            yield run


def wide(text):
    return max(map(len, text.splitlines()))


def test_a_key_is_made_listed_and_revoked(fastpush):
    assert "There is no key" in fastpush("keys", "list").stdout
    made = fastpush(
        "keys",
        "create",
        "zabbix of the whole building",
        "--scope",
        "notify",
        "--scope",
        "alarms",
        "--app",
        APP,
    )
    assert made.exit_code == 0, made.output
    secret = read_secret(made.stdout.strip())
    assert secret is not None, "nothing but the key on standard output"
    assert secret.id in made.stderr
    assert secret.secret not in made.stderr
    listed = fastpush("keys", "list")
    assert secret.id in listed.stdout
    assert secret.secret not in listed.stdout
    assert wide(listed.stdout) <= 80
    [key] = json.loads(fastpush("keys", "list", "--json").stdout)["keys"]
    assert (key["scopes"], key["apps"], key["revoked_at"]) == (["notify", "alarms"], [APP], None)
    assert 364 < (key["expires_at"] - key["created_at"]) / 86_400 < 366 or key["created_at"] > 1.79e9
    revoked = fastpush("keys", "revoke", made.stdout.strip())  # somebody pastes the whole of it
    assert (revoked.exit_code, revoked.stdout) == (
        0,
        f"{secret.id} (zabbix of the whole building) is revoked.\n",
    )
    assert json.loads(fastpush("keys", "list", "--json").stdout) == {"keys": []}
    assert "revoked" in fastpush("keys", "list", "--all").stdout


def test_a_signing_key(fastpush):
    made = fastpush("keys", "create", "hook", "--scope", "alarms", "--signed", "--expires", "never")
    assert made.stdout.startswith("whsec_")
    assert re.search(r"fpk_\w{8} in place of a key", made.stderr)
    created = json.loads(fastpush("keys", "create", "hook", "--scope", "alarms", "--signed", "--json").stdout)
    assert set(created) == {"key_id", "secret"}
    assert "(signs)" in fastpush("keys", "list").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "x"],
        ["create", "x", "--scope", "root"],
        ["create", "x", "--scope", "notify", "--expires", "soon"],
        ["create", "x", "--scope", "notify", "--expires", "0d"],
        ["create", "x", "--scope", "notify", "--expires", "2027-02-30"],
        ["revoke"],
    ],
)
def test_what_is_said_wrongly_is_2(tmp_path, arguments):
    result = CliRunner().invoke(main, ["keys", *arguments, "--database", str(tmp_path / "gateway.db")])
    assert result.exit_code == 2


def test_what_the_gateway_refuses_is_1(fastpush):
    for arguments in (["create", "a\nb", "--scope", "notify"], ["revoke", "fpk_nothing"],
                      ["create", "x", "--scope", "notify", "--expires", "2001-01-01"]):  # fmt: skip
        result = fastpush("keys", *arguments)
        assert result.exit_code == 1
        assert result.stderr.count("Error: ") == 1
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("expires_at", "shown"),
    [
        (253_402_300_799.0, "9999-12-31"),
        (253_402_300_800.0, "after 9999"),
        (1_900_000_000_000.0, "after 9999"),  # milliseconds
        (1e300, "after 9999"),
    ],
)
def test_a_key_of_a_time_beyond_the_calendar_is_listed(tmp_path, expires_at, shown):
    """None is made any more; an older version took whatever came, and one such key ended the listing."""
    stopped(tmp_path)
    where = ["--database", str(tmp_path / "gateway.db")]
    made = CliRunner().invoke(main, ["keys", "create", "old", "--scope", "notify", *where])
    assert made.exit_code == 0, made.output
    with sqlite3.connect(tmp_path / "gateway.db") as connection:
        connection.execute("UPDATE api_key SET expires_at = ?", (expires_at,))
    connection.close()
    listed = CliRunner().invoke(main, ["keys", "list", *where])
    assert listed.exit_code == 0, listed.exception
    assert shown in listed.stdout
    assert CliRunner().invoke(main, ["keys", "list", "--json", *where]).exit_code == 0


@pytest.mark.parametrize("expires", ["9999-12-31", "999999999w"])
def test_a_key_for_thousands_of_years_is_refused(fastpush, expires):
    result = fastpush("keys", "create", "x", "--scope", "notify", "--expires", expires)
    assert result.exit_code == 1
    assert "100 years" in result.stderr


def test_devices_go_in_and_out(fastpush, tmp_path):
    file = tmp_path / "devices.ndjson"
    lines = [
        json.dumps({"device_token": token(n), "user": f"=user{n}", "tags": ["net"]}) for n in range(1, 1_201)
    ]
    file.write_text("\n".join([*lines, "nonsense", '{"device_token": "abc"}']))
    taken = fastpush("devices", "import", file, "--app", APP)
    assert (taken.exit_code, taken.stdout) == (1, "Devices registered: 1,200. Lines refused: 2.\n")
    assert "line 1201: is not JSON." in taken.stderr
    assert "line 1202: device_token has 3 hex digits" in taken.stderr
    listed = fastpush("devices", "list", "--limit", 5, "--tag", "net")
    assert wide(listed.stdout) <= 80
    assert token(1) not in listed.stdout
    assert f"--after {token(5)}" in listed.stderr
    listed = json.loads(fastpush("devices", "list", "--user", "=user7", "--json").stdout)
    assert [device["device_token"] for device in listed["devices"]] == [token(7)]
    out = tmp_path / "out.csv"
    assert fastpush("devices", "export", out, "--app", APP).exit_code == 0
    assert out.stat().st_mode & 0o777 == 0o600
    assert out.read_text().count("\n") == 1_201
    assert "'=user7" in out.read_text()
    again = fastpush("devices", "import", out, "--json")
    assert (again.exit_code, json.loads(again.stdout)) == (
        0,
        {"imported": 1_200, "refused": 0, "problems": []},
    )
    piped = fastpush("devices", "export", "--json").stdout
    assert len(piped.splitlines()) == 1_200
    assert fastpush("devices", "import", "-", "--app", APP, input=piped).exit_code == 0
    nothing = fastpush("devices", "import", "-", "--app", APP, input="x\n")
    assert (nothing.exit_code, nothing.stdout) == (1, "Devices registered: 0. Lines refused: 1.\n")
    assert fastpush("devices", "export", tmp_path / "no" / "where.csv").exit_code == 1


def test_an_enrolment_code(fastpush):
    made = fastpush("devices", "code", "--app", APP, "--user", "alice", "--tag", "net", "--valid-for", "2h")
    assert re.fullmatch(r"\w{4}-\w{6}\n", made.stdout)
    assert "alice" in made.stderr
    made = json.loads(fastpush("devices", "code", "--app", APP, "--json").stdout)
    assert (made["user"], made["tags"]) == ("", [])
    assert fastpush("devices", "code", "--app", APP, "--valid-for", "31d").exit_code == 1
    assert fastpush("devices", "code", "--app", APP, "--valid-for", "long").exit_code == 2


def test_tables_fit():
    text = table(("A", "B", "C"), [("x" * 100, "y" * 30, "z"), ("1", "2", "3")])
    assert wide(text) == 80
    assert "…" in text
    assert table(("A",), []) == "A"
