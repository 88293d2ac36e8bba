# ruff: noqa: E501
"""The configuration: every mistake at once with its line, the environment over the file, secrets in files."""

import os
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpush.gateway.banners import STYLES
from fastpush.gateway.config import (
    AppSettings,
    Config,
    InvalidConfig,
    LookSettings,
    SecretUnusable,
    StyleSettings,
    database_path,
    load_config,
    read_config,
    read_secret,
)
from fastpush.gateway.config.positions import positions
from fastpush.gateway.config.reading import _plain

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "fastpush.example.toml"

SMALL = """\
[apps.opm]
topic = "com.example.opm"
[apps.opm.credential]
key_file = "key.p8"
key_id = "ABC123DEFG"
team_id = "DEF123GHIJ"
"""


ALL_MISTAKES = """\
:2: ingest.listen[0]: is "127.0.0.1:80800"; allowed: host:port, [::1]:port, :port, unix:/path, fd://NUMBER, fd://NAME
:2: ingest.listen[1]: is "somewhere"; allowed: host:port, [::1]:port, :port, unix:/path, fd://NUMBER, fd://NAME
:3: ingest.lisen: is unknown; did you mean "listen"?
:4: ingest.trusted_proxies[0]: is "10.0.0.300"; allowed: an address, a network such as 10.0.0.0/8, "unix"
:7: storage.max_waiting: is -1; allowed: a whole number from 1 up
:8: storage.bodies_hours: is "a day"; allowed: a number from 0 up
:12: apps.opm.environment: is "prod"; allowed: "production", "development", "both"
:13: apps.opm.max_connections: is 65; allowed: a whole number from 1 to 64
:15: apps.opm.credential.key_file: /none.p8: No such file or directory
:16: apps.opm.credential.team_id: is "abc"; allowed: 10 upper-case letters and digits
:20: apps.other.proxy: has a user or password; put the whole URL into a file and name it as proxy_file
:21: apps.other.credential: either key_file (a signing key, .p8) or certificate_file (a certificate) is needed
:23: apps.other.credential.certificate_file: /push.p12: No such file or directory
:29: routes[1].name: "a" is the name of routes[0] too
:30: routes[1].tags: is empty: nobody would be told
:31: routes[1].severity[0]: is "criticl"; allowed: critical, service_down, trouble, attention, info
:34: alarms.app: is "another"; there are opm, other
:35: alarms.look.styles.critcal: is unknown; did you mean "critical"?
:38: nonsense: is unknown; known: apps, ingest, admin, storage, dispatch, routes, alarms, auth, devices, watchdog, notices, log, tracing"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "key.p8").write_text("a key")
    (tmp_path / "key.p8").chmod(0o600)
    return tmp_path


def read(folder, text, environ=None):
    return read_config(text, environ or {}, where="fastpush.toml", directory=folder)


def mistakes(folder, text, environ=None):
    with pytest.raises(InvalidConfig) as caught:
        read(folder, text, environ)
    return [str(mistake) for mistake in caught.value.mistakes]


# The file.


def test_little_is_needed(folder):
    config = read(folder, SMALL)
    assert config.ingest.listen == ("127.0.0.1:8080",)
    assert config.storage.path == folder / "gateway.db"
    assert config.apps["opm"].name == "opm"
    assert config.alarm_app == "opm"


def test_paths_count_from_the_file_and_not_from_where_we_are(folder, monkeypatch):
    (folder / "fastpush.toml").write_text(SMALL + '[storage]\npath = "state.db"\n')
    monkeypatch.chdir("/")
    config = load_config(folder / "fastpush.toml", {})
    assert config.storage.path == folder / "state.db"
    assert config.apps["opm"].credential.key_file == folder / "key.p8"


def test_every_mistake_is_told_at_once_with_its_line_and_what_is_allowed(folder):
    text = """\
[ingest]
listen = ["127.0.0.1:80800", "somewhere"]
lisen = 3
trusted_proxies = ["10.0.0.300"]

[storage]
max_waiting = -1
bodies_hours = "a day"

[apps.opm]
topic = "com.example.opm"
environment = "prod"
max_connections = 65
[apps.opm.credential]
key_file = "none.p8"
team_id = "abc"

[apps.other]
topic = "com.example.other"
proxy = "http://user:secret@proxy.example.com"
[apps.other.credential]
key_file = "key.p8"
certificate_file = "push.p12"

[[routes]]
name = "a"
tags = ["x"]
[[routes]]
name = "a"
tags = []
severity = ["criticl"]

[alarms]
app = "another"
[alarms.look.styles.critcal]
level = "active"

[nonsense]
"""
    told = "\n".join(mistakes(folder, text)).replace("fastpush.toml", "").replace(str(folder), "")
    assert told == ALL_MISTAKES


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "apps is missing: at least one [apps.NAME] is needed"),
        ("apps = 3", "fastpush.toml:1: apps: is 3; a table is expected: [apps.NAME]"),
        ("[apps]", "fastpush.toml:1: apps: is empty: at least one [apps.NAME] is needed"),
        ("[apps.a]", "fastpush.toml:1: apps.a: topic is missing: a bundle id such as com.example.app"),
        ('[apps."a b"]', 'fastpush.toml:1: apps."a b": a name has up to 64 letters, digits, `.`, `_` and `-`'),
        (SMALL + "name = 'x'", 'fastpush.toml:7: apps.opm.credential.name: is unknown; '),
        (SMALL.replace("topic", "name = 'b'\ntopic"), "fastpush.toml:2: apps.opm.name: is unknown; "),
        (SMALL + "[ingest]\nlisten = 8080", "fastpush.toml:8: ingest.listen: is 8080; a list is expected"),
        (SMALL + "[ingest]\nlisten = []", "fastpush.toml:8: ingest.listen: is empty: nobody could connect"),
        (SMALL + "[ingest]\nlisten = ['unix:sock']", "the path of a Unix socket begins with /"),
        (SMALL + f"[ingest]\nlisten = ['unix:/{'x' * 107}']", "has at most 107 octets"),
        (SMALL + "[admin]\nlisten = ['127.0.0.1:8080']", "admin.listen[0]: is \"127.0.0.1:8080\", as for ingest"),
        (SMALL + "[storage]\npath = 'no/such.db'", "no: there is no such directory"),
        (SMALL + "[storage]\nbodies_hours = nan", "storage.bodies_hours: is nan; allowed: a number from 0 up"),
        (SMALL.replace("team_id", "#"), "apps.opm.credential: team_id is missing: 10 upper-case letters"),
        (SMALL + "password_file = 'key.p8'", "password_file: goes with certificate_file, not with key_file"),
        (SMALL.replace("key_file", "certificate_file"), "key_id: goes with key_file, not with certificate_file"),
        (SMALL.replace('key_file = "key.p8"', ""), "apps.opm.credential: either key_file (a signing key, .p8) or"),
        (SMALL + "[devices.webhook]\nurl='ftp://x'", 'url: is "ftp://x"; allowed: a URL with http or https'),
        (SMALL + "[devices.webhook]\nurl='https://a:b@x/'\nsecret_file='key.p8'", "without user and password"),
        (SMALL + "[notices.smtp]\nhost='h'\nsender='s@x'\nrecipients=[]", "recipients: is empty: nobody would"),
        (SMALL + "[notices.smtp]\nhost='h'\nsender='s@x'\nrecipients=['r']", "recipients[0]: is \"r\"; allowed: a mail"),
        (SMALL + "[watchdog]\ncanary_minutes = 5", "watchdog.canary_minutes: needs canary_device_token_file"),
        (SMALL + "[log]\nlevel = true", 'log.level: is true; allowed: "debug", "info", "warning", "error"'),
        ("[apps.opm\n", "fastpush.toml:1: is not TOML, column 10: "),
        ("a = 1\na = 2", "fastpush.toml:2: is not TOML, at the end: Cannot overwrite a value"),
    ],
)  # fmt: skip
def test_a_mistake_is_told(folder, text, told):
    assert any(told in each for each in mistakes(folder, text)), mistakes(folder, text)


def test_a_file_that_cannot_be_read_is_one_mistake(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"# a\n# \xe9\n")
    for name, told in [("none.toml", "none.toml: No such file or directory"), (".", "Is a directory"),
                       ("latin.toml", "latin.toml:2: is not text in UTF-8")]:  # fmt: skip
        with pytest.raises(InvalidConfig, match=re.escape(told)):
            load_config(tmp_path / name, {})


def test_the_database_is_found_whatever_else_is_wrong(tmp_path):
    file = tmp_path / "fastpush.toml"
    file.write_text("[apps]\nnonsense = 1\n")
    assert database_path(file, {}) == tmp_path / "gateway.db"
    file.write_text("[storage]\npath = '/var/lib/x.db'\n")
    assert database_path(file, {}) == Path("/var/lib/x.db")
    assert database_path(file, {"FASTPUSH_STORAGE__PATH": "y.db"}) == tmp_path / "y.db"
    assert database_path(None, {}) == Path.cwd() / "gateway.db"
    for text, told in [("storage = 3", "storage.path: is no path"), ("[storage", "is not TOML"),
                       ("[storage]\npath = 1", "fastpush.toml:2: storage.path: is no path")]:  # fmt: skip
        file.write_text(text)
        with pytest.raises(InvalidConfig, match=told):
            database_path(file, {})


# The environment.


def test_the_environment_counts_more_than_the_file(folder):
    config = read(folder, SMALL.replace("[apps.opm", "[apps.My-App") + "[ingest]\nlisten = [':1']\n", {
        "FASTPUSH_INGEST__LISTEN": "127.0.0.1:1, 127.0.0.1:2",
        "FASTPUSH_STORAGE__MAX_WAITING": "7",
        "FASTPUSH_STORAGE__BODIES_HOURS": "0.5",
        "FASTPUSH_ALARMS__LOOK__PRIVATE": "yes",
        "FASTPUSH_ALARMS__LOOK__STYLES__CRITICAL__PRIORITY": "5",
        "FASTPUSH_APPS__MY_APP__TOPIC": "com.example.other",
        "FASTPUSH_ROUTES": '[{"name": "a", "tags": ["b"]}]',
        "FASTPUSH_LOG__LEVEL": "",  # as good as not there
        "FASTPUSH_ENGINE": "h2", "HOME": "/",
    })  # fmt: skip
    assert config.ingest.listen == ("127.0.0.1:1", "127.0.0.1:2")
    assert config.storage.max_waiting == 7
    assert config.storage.bodies_hours == 0.5
    assert config.alarms.look.private is True
    assert config.alarms.look.styles["critical"].priority == 5
    assert config.apps["My-App"].topic == "com.example.other"
    assert config.routes[0].tags == ("b",)
    assert config.log.level == "info"


def test_everything_may_come_from_the_environment(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = load_config(None, {
        "FASTPUSH_APPS__OPM__TOPIC": "com.example.opm",
        "FASTPUSH_APPS__OPM__CREDENTIAL": '{"key_file": "key.p8", "team_id": "DEF123GHIJ"}',
    })  # fmt: skip
    assert config.apps["opm"].credential.key_file == folder / "key.p8"


def test_mistakes_of_the_environment_name_the_variable(folder):
    told = mistakes(folder, SMALL, {
        "FASTPUSH_INGST__LISTEN": ":1", "FASTPUSH_LOG_LEVEL": "info", "FASTPUSH_KEY": "x", "FASTPUSH_LOG__LEVEL": "loud",
        "FASTPUSH_ROUTES": "[", "FASTPUSH_INGEST__LISTEN": "x", "FASTPUSH_APPS__OPM__TOPIC__X": "1",
        "FASTPUSH_STORAGE__MAX_WAITING": "many",
    })  # fmt: skip
    assert told[0].startswith("FASTPUSH_APPS__OPM__TOPIC__X: reaches into something that is no table")
    assert 'FASTPUSH_INGST__LISTEN: ingst: is unknown; did you mean "ingest"?' in told
    assert "FASTPUSH_LOG_LEVEL: is unknown; between table and option stand two _: FASTPUSH_LOG__LEVEL" in told
    assert not any("FASTPUSH_KEY" in each for each in told), "of `fastpush send`"
    assert 'FASTPUSH_LOG__LEVEL: log.level: is "loud"; allowed: "debug", "info", "warning", "error"' in told
    assert any(each.startswith("FASTPUSH_ROUTES: routes: is no JSON; ") for each in told)
    assert any(each.startswith('FASTPUSH_INGEST__LISTEN: ingest.listen[0]: is "x"') for each in told)
    assert any(
        each.startswith('FASTPUSH_STORAGE__MAX_WAITING: storage.max_waiting: is "many"') for each in told
    )


# Secrets.


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        (0o600, None), (0o400, None), (0o640, None), (0o440, None),
        (0o644, "everybody may read or write it (mode 0644); chmod o= {}"),
        (0o602, "everybody may read or write it (mode 0602); chmod o= {}"),
        (0o660, "its group may write it (mode 0660); chmod g-w {}"),
    ],
)  # fmt: skip
def test_a_secret_is_for_its_owner_and_a_group_of_ours(folder, mode, told):
    key = folder / "key.p8"
    key.chmod(mode)
    link = folder / "link.p8"
    link.symlink_to(key)
    for name in ("key.p8", "link.p8"):
        text = SMALL.replace("key.p8", name)
        if told is None:
            assert read(folder, text).apps["opm"].credential.key_file == folder / name
        else:
            (found,) = mistakes(folder, text)
            assert found.endswith(told.format(folder / name))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another group")
def test_a_group_that_is_not_ours_may_not_read_a_secret(folder):
    key = folder / "key.p8"
    os.chown(key, 0, 54_321)
    key.chmod(0o640)
    (told,) = mistakes(folder, SMALL)
    assert told.endswith(f"a group that is not ours may read it (id 54321); chmod 600 {key}")


def test_a_secret_in_place_of_its_file_is_not_repeated(folder):
    text = SMALL.replace('"key.p8"', '"""-----BEGIN PRIVATE KEY-----\nMIGTAgEAMBMG\n"""')
    (told,) = mistakes(folder, text)
    assert told == (
        "fastpush.toml:4: apps.opm.credential.key_file: is the secret itself; "
        "put it into a file and name the file"
    )


def test_a_secret_is_read_without_the_white_space_around_it(folder):
    file = folder / "password"
    file.write_text("  pass word \n")
    file.chmod(0o600)
    assert read_secret(file) == "pass word"
    for octets, told in [
        (b" \n", "is empty"),
        (b"\xff", "is not text in UTF-8"),
        (b"x" * 70_000, "is larger"),
    ]:
        file.write_bytes(octets)
        with pytest.raises(SecretUnusable, match=told):
            read_secret(file)
    file.chmod(0o604)
    with pytest.raises(SecretUnusable, match="chmod o="):
        read_secret(file)


# What is made of it.


def test_a_style_changes_only_what_it_names():
    look = LookSettings(styles={"critical": StyleSettings(sound="", lifetime_hours=1)}).look()
    assert look.styles["critical"].sound is None
    assert look.styles["critical"].lifetime == 3600
    assert look.styles["critical"].level == STYLES["critical"].level
    assert look.styles["trouble"] == STYLES["trouble"]


# The example and the documentation.


def options(kind=Config, at=()):
    """Each option by its path, names of tables that are free as NAME."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        if kind is AppSettings and field.name == "name":
            continue
        bare, _, _ = _plain(hints[field.name])
        path = (*at, field.name)
        origin, arguments = typing.get_origin(bare), typing.get_args(bare)
        if origin is tuple and isinstance(arguments[0], type) and issubclass(arguments[0], msgspec.Struct):
            yield from options(arguments[0], path)
        elif isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            yield from options(bare, path)
        elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(arguments[1], type):
            yield from options(arguments[1], (*path, "NAME"))
        else:
            yield ".".join(path)


def paths(document, at=()):
    for name, value in document.items():
        here = "NAME" if at in (("apps",), ("alarms", "look", "styles")) else name
        for each in value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]:
            if isinstance(each, dict) and (*at, here) != ("watchdog", "source_silence_minutes"):
                yield from paths(each, (*at, here))
            else:
                yield ".".join((*at, here))


def full_example():
    """The example with each line that shows an option or a table made real."""
    kept = []
    for line in EXAMPLE.read_text().splitlines():
        bare = line.removeprefix("# ")
        if re.match(r"(\[\[?[a-z.]+\]\]?|[a-z_]+ = .*)$", bare):
            line = bare
        kept.append(line)
    return "\n".join(kept)


def test_the_example_can_be_used_as_it_is_but_for_its_key(tmp_path):
    (tmp_path / "AuthKey_ABC123DEFG.p8").write_text("a key")
    (tmp_path / "AuthKey_ABC123DEFG.p8").chmod(0o600)
    (tmp_path / "fastpush.toml").write_text(EXAMPLE.read_text())
    config = load_config(tmp_path / "fastpush.toml", {})
    assert [route.name for route in config.routes] == ["network on call", "everything"]


def test_the_example_shows_every_option_and_no_other():
    shown = set(paths(tomllib.loads(full_example())))
    assert shown == set(options())


def test_the_example_shows_the_defaults(tmp_path):
    """Where an option has one; a comment that shows something else would mislead."""
    document = tomllib.loads(full_example())
    for section in ("ingest", "admin", "storage", "auth", "log", "alarms"):
        kind = typing.get_type_hints(Config)[section]
        default = msgspec.to_builtins(kind(), enc_hook=str)
        for name, value in document[section].items():
            if not isinstance(value, dict) and default[name] is not None:
                assert value == (list(default[name]) if isinstance(value, list) else default[name]), name


def test_each_option_is_documented():
    documented = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z_.A-Z]+)` \|", documented, re.MULTILINE)
    assert sorted(rows) == sorted(options())


# Lines.


def test_lines_are_those_of_the_text():
    text = '''\
a = 1  # [not.a.table]
"b c".'d' = """
[nor.this]
x = "\\""" """

[e.f]
g = [ 1,
  # a comment, with ] and "
  { h = '#', i = [2,
  3] } ]

[[k]]
[[k]]
[k.l]
[[k.m]]
n = 1979-05-27 07:32:00
'''
    tomllib.loads(text)
    lines = positions(text)
    assert lines["a",] == 1
    assert lines["b c", "d"] == 2
    assert ("x",) not in lines
    assert lines["e", "f"] == 6
    assert lines["e", "f", "g"] == 7
    assert lines["e", "f", "g", 1] == 9
    assert lines["e", "f", "g", 1, "i", 1] == 10
    assert lines["k", 0] == 12
    assert lines["k", 1] == 13
    assert lines["k", 1, "l"] == 14
    assert lines["k", 1, "m", 0, "n"] == 16


KEYS = st.sampled_from(["a", "b-1", "c_", "'d e'", '"f.\\"g"', "7"])
VALUES = st.recursive(
    st.sampled_from(["1", "-2.5e3", "true", "inf", "1979-05-27T07:32:00Z", "07:32:00", '"#]}"', "'=['",
                     '"""\n[x]\n"y" \\\n z"""', "'''\n# ''\n'''", '"\\\\"', '""', "''", '""""a""""']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: "[ # x\n" + ",\n".join(each) + "\n]"),
        st.lists(st.tuples(KEYS, inner), max_size=3, unique_by=lambda pair: pair[0]).map(
            lambda pairs: "{" + ", ".join(f"{key} = {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=6,
)  # fmt: skip
LINES = st.one_of(
    st.tuples(st.lists(KEYS, min_size=1, max_size=2), VALUES).map(lambda pair: f"{' . '.join(pair[0])} = {pair[1]}"),
    st.lists(KEYS, min_size=1, max_size=3).map(lambda names: f"[ {'.'.join(names)} ] # t"),
    st.lists(KEYS, min_size=1, max_size=2).map(lambda names: f"[[{'.'.join(names)}]]"),
    st.sampled_from(["", "# a [comment] = {", "  "]),
)  # fmt: skip


def keys(value, at=()):
    if at:
        yield at
    for name, each in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(each, dict | list):
            yield from keys(each, (*at, name))
        else:
            yield (*at, name)


@given(st.lists(LINES, max_size=8).map("\n".join))
def test_the_lines_are_found_of_exactly_the_keys_that_tomllib_reads(text):
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = positions(text)
    assert set(lines) == set(keys(document))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
