"""The gateway's file: what is durable when, who may write, and what becomes of it when the disk fails."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from fastpush.gateway.storage import (
    BackupRefused,
    Job,
    Limits,
    Question,
    StorageBroken,
    StorageError,
    StorageFull,
    StorageUnknown,
    StorageUnusable,
    backup_database,
    open_storage,
)
from tests.gateway.small_disk import run_on_small_disk

ROOT = Path(__file__).resolve().parent.parent.parent
# Never full, whatever the disk under the tests is.
ROOMY = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096)
NOTES = [("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT UNIQUE)",)]


@pytest.fixture
async def path(tmp_path):
    return tmp_path / "gateway.db"


def add(text):
    return lambda connection: connection.execute("INSERT INTO note (text) VALUES (?)", (text,)).lastrowid


def texts(connection):
    return [text for (text,) in connection.execute("SELECT text FROM note ORDER BY id")]


def rows_of(path):
    with sqlite3.connect(path) as connection:
        found = texts(connection)
    connection.close()
    return found


async def test_what_was_written_is_read_by_another_connection_and_after_opening_again(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        assert await storage.write(add("one")) == 1
        assert await storage.read(texts) == ["one"]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await storage.read(add("two"))
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        assert await storage.read(texts) == ["one"]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_change_that_raises_undoes_its_own_doing_only(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        raised = []

        def fails(connection):
            add("bad")(connection)
            raise LookupError("nothing there")

        async def failing():
            with pytest.raises(LookupError, match="nothing there"):
                await storage.write(fails)
            raised.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.write, add("before"))
            nursery.start_soon(failing)
            nursery.start_soon(storage.write, add("after"))
        assert raised
        assert sorted(await storage.read(texts)) == ["after", "before"]


async def test_a_change_that_ends_the_transaction_is_told_so(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        with pytest.raises(StorageError, match="ended the transaction"):
            await storage.write(lambda connection: connection.execute("COMMIT"))
        await storage.write(add("still here"))
        assert await storage.read(texts) == ["still here"]


async def test_all_that_waits_is_committed_at_once(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        kind = await storage.add_kind("INSERT INTO note (text) VALUES (NEW.a)")
        before = storage.statistics()
        hold = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.write, lambda connection: hold.wait() and None)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(300):
                nursery.start_soon(storage.insert, [(kind, f"row {number}")])
            await trio.testing.wait_all_tasks_blocked()
            assert storage.statistics().waiting_rows == 301
            hold.set()
        after = storage.statistics()
        assert after.rows - before.rows == 301
        assert after.commits - before.commits <= 3
        assert after.waiting_rows == 0
        assert len(await storage.read(texts)) == 300


async def test_a_busy_thread_does_not_keep_the_writing_thread_waiting(path):
    """One that lets go of Python's lock often, as at each system call, and takes it back at once."""
    before = sys.getswitchinterval()
    one, other = socket.socketpair()

    async def keep_busy():
        while True:
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pause = time.perf_counter() + 100e-6
                while time.perf_counter() < pause:
                    sum(range(20))
                one.send(b"x")
                other.recv(1)
            await trio.lowlevel.checkpoint()

    with one, other:
        async with open_storage(path, ROOMY) as storage, trio.open_nursery() as nursery:
            await storage.add_schema("notes", NOTES)
            nursery.start_soon(keep_busy)
            with trio.fail_after(10):  # with Python's own 5 ms it is a minute and more
                for number in range(100):
                    await storage.write(add(str(number)))
            nursery.cancel_scope.cancel()
    assert sys.getswitchinterval() == before


async def test_a_row_that_is_refused_takes_no_other_down(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        kind = await storage.add_kind("INSERT INTO note (text) VALUES (NEW.a)")
        ends = {}
        done = trio.Event()

        def finished(name):
            def call(value, error):
                ends[name] = error
                if len(ends) == 3:
                    done.set()

            return call

        for name, rows in {"a": ["x", "y"], "b": ["z", "y"], "c": ["w"]}.items():
            storage.submit(Job(finished(name), rows=[(kind, text) for text in rows]))
        await done.wait()
        assert ends["a"] is None
        assert ends["c"] is None
        assert isinstance(ends["b"], sqlite3.IntegrityError)
        assert await storage.read(texts) == ["x", "y", "w"]


async def test_more_rows_than_a_statement_takes_are_one_transaction(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        kind = await storage.add_kind("INSERT INTO note (text) VALUES (NEW.a)")
        await storage.insert([(kind, str(number)) for number in range(1_500)])
        assert len(await storage.read(texts)) == 1_500
        with pytest.raises(sqlite3.IntegrityError):
            await storage.insert([(kind, str(number)) for number in range(2_999, 1_498, -1)])
        assert len(await storage.read(texts)) == 1_500


async def test_jobs_that_ask_are_answered_from_what_was_committed(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema(
            "names", [("CREATE TABLE name (key BLOB PRIMARY KEY, value INTEGER) WITHOUT ROWID",)]
        )
        kind = await storage.add_kind("INSERT OR IGNORE INTO name VALUES (NEW.a, NEW.b)")
        question = Question("name", "key", ("value", "hex(key)"))
        answers = []
        for key, value in [(b"k", 1), (b"l", 2), (b"k", 3)]:
            done = trio.Event()
            job = Job(
                lambda value, error, done=done: (answers.append(value), done.set()),
                rows=[(kind, key, value)], question=question, key=key,
            )  # fmt: skip
            storage.submit(job)
            await done.wait()
        assert answers == [[1, "6B"], [2, "6C"], [1, "6B"]]


async def test_a_cancelled_writer_is_gone_and_its_change_is_whole(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        hold = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.write, lambda connection: hold.wait() and None)
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                scope.cancel()
                await storage.write(add("nobody waits for me"))
            assert scope.cancelled_caught
            hold.set()
        await storage.write(add("next"))
        assert await storage.read(texts) == ["nobody waits for me", "next"]
        assert storage.statistics().waiting_rows == 0


async def test_leaving_writes_what_was_queued(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        for number in range(50):
            storage.submit(Job(lambda value, error: None, change=add(str(number))))
    assert len(rows_of(path)) == 50
    with pytest.raises(RuntimeError, match="closed"):
        await storage.write(add("late"))


# Who may open it.


async def test_a_second_process_is_refused_within_a_second_and_the_first_unharmed(path):
    """D16."""
    script = (
        "import sys, trio\n"
        "from fastpush.gateway.storage import open_storage, StorageUnusable\n"
        "async def main():\n"
        "    async with open_storage(sys.argv[1]): pass\n"
        "try:\n"
        "    trio.run(main)\n"
        "except StorageUnusable as error:\n"
        "    print(error); sys.exit(3)\n"
    )
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        second = await trio.run_process(
            [sys.executable, "-c", script, str(path)], capture_stdout=True, check=False, cwd=ROOT
        )
        assert second.returncode == 3
        assert f"in use by another process (its id is {os.getpid()})" in second.stdout.decode()
        started = time.monotonic()
        with pytest.raises(StorageUnusable, match="in use"):
            async with open_storage(path, ROOMY):
                pass
        assert time.monotonic() - started < 1.0
        await storage.write(add("unharmed"))
    async with open_storage(path, ROOMY):
        pass
    assert rows_of(path) == ["unharmed"]


async def test_what_cannot_be_opened_is_said(tmp_path):
    with pytest.raises(StorageUnusable, match=r"the directory .*nowhere does not exist"):
        async with open_storage(tmp_path / "nowhere" / "gateway.db"):
            pass
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StorageUnusable, match="a SQLite database of another program"):
        async with open_storage(other):
            pass
    text = tmp_path / "text.db"
    text.write_text("Dear operator,\n" * 100)
    with pytest.raises(StorageUnusable, match="not a database"):
        async with open_storage(text):
            pass
    # The refused left nothing locked.
    other.unlink()
    async with open_storage(other, ROOMY):
        pass


# Schema versions.


async def test_each_migration_runs_once_and_in_order(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        await storage.write(add("of version 1"))
    later = [
        *NOTES,
        ("ALTER TABLE note ADD COLUMN stars INTEGER NOT NULL DEFAULT 1", "UPDATE note SET stars = 5"),
        lambda connection: connection.execute("CREATE TABLE extra (x)"),
    ]
    for _ in range(2):
        async with open_storage(path, ROOMY) as storage:
            await storage.add_schema("notes", later)
            assert await storage.read(lambda c: c.execute("SELECT text, stars FROM note").fetchall()) == [
                ("of version 1", 5)
            ]
    async with open_storage(path, ROOMY) as storage:
        with pytest.raises(
            StorageUnusable, match=r"'notes' have version 3, this fastpush knows up to 1; .* newer"
        ):
            await storage.add_schema("notes", NOTES)


UPGRADE = """
import os, sys, trio
from fastpush.gateway.storage import open_storage, Limits
path = sys.argv[1]

async def main():
    limits = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4096)
    async with open_storage(path, limits) as storage:
        print("ready", flush=True)
        await storage.add_schema("notes", [
            ("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT UNIQUE)",),
            ("ALTER TABLE note ADD COLUMN size INTEGER", "UPDATE note SET size = length(text)"),
            ("CREATE TABLE moved (id INTEGER PRIMARY KEY, text TEXT, size INTEGER)",
             "INSERT INTO moved SELECT id, text, size FROM note", "DROP TABLE note",
             "ALTER TABLE moved RENAME TO note", "CREATE INDEX note_size ON note (size)"),
        ])
        print("done", flush=True)

trio.run(main)
"""


def kill_while_it_upgrades(path, after):
    with subprocess.Popen(
        [sys.executable, "-c", UPGRADE, str(path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        time.sleep(after)
        process.kill()


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.night])])
async def test_a_kill_in_the_middle_of_a_migration_loses_nothing(path, kills, seed):
    """D15."""
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        await storage.write(
            lambda c: (
                c.execute(
                    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
                    "INSERT INTO note (text) SELECT 'note ' || i FROM n"
                )
                and None
            )
        )
    original = path.read_bytes()
    versions = set()
    for _ in range(kills):
        path.write_bytes(original)
        kill_while_it_upgrades(path, seed.uniform(0.0, 0.12))
        with sqlite3.connect(path) as connection:
            (version,) = connection.execute("SELECT version FROM schema_version").fetchone()
            columns = [column[1] for column in connection.execute("PRAGMA table_info(note)")]
            assert columns == (["id", "text"] if version == 1 else ["id", "text", "size"])
            assert connection.execute("SELECT count(*) FROM note").fetchone() == (20_000,)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        versions.add(version)
        process = await trio.run_process(
            [sys.executable, "-c", UPGRADE, str(path)], cwd=ROOT, capture_stdout=True
        )
        assert process.stdout.split() == [b"ready", b"done"]
        for name in path.parent.glob("gateway.db-*"):
            name.unlink()
    print(f"killed at versions {sorted(versions)}")


# Full disks.


async def test_below_the_low_water_mark_only_the_essential_is_written(path):
    everything = shutil.disk_usage(path.parent).total
    async with open_storage(path, Limits(low_water_octets=everything, reserve_octets=4_096)) as storage:
        assert storage.full
        await storage.add_schema("notes", NOTES)
        with pytest.raises(StorageFull, match="nothing of this was stored"):
            await storage.write(add("new"))
        await storage.write(add("outcome"), essential=True)
        assert await storage.read(texts) == ["outcome"]
        assert storage.statistics().full


async def test_at_a_full_disk_the_reserve_is_given_up_for_outcomes(path, monkeypatch):
    """D6, with SQLite's own limit of pages in place of the disk's."""
    # The disk itself has room, and a look at it would say so.
    monkeypatch.setattr("fastpush.gateway.storage.file.LOOK_AGAIN_AFTER", 3_600.0)
    limits = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=1 << 20)
    async with open_storage(path, limits) as storage:
        await storage.add_schema("notes", NOTES)
        reserve = path.with_name("gateway.db.reserve")
        assert reserve.stat().st_size == 1 << 20
        await storage.write(lambda c: c.execute("PRAGMA max_page_count = 40").fetchone())
        kept = []

        async def fill():
            for number in range(10_000):
                await storage.write(add(f"{number}" * 200))
                kept.append(f"{number}" * 200)

        with pytest.raises(StorageFull):
            await fill()
        assert not reserve.exists()
        assert storage.full
        assert storage.healthy
        await storage.write(lambda c: c.execute("PRAGMA max_page_count = 60").fetchone(), essential=True)
        await storage.write(add("outcome"), essential=True)
        assert await storage.read(texts) == [*kept, "outcome"]
        monkeypatch.undo()
        with trio.fail_after(5):
            while storage.full:  # noqa: ASYNC110 (the disk tells nobody)
                await trio.sleep(0.05)
        await storage.write(add("again"))
        assert reserve.exists()


TMPFS = """
import sys, os, trio
from fastpush.gateway.storage import *
path = sys.argv[1] + "/gateway.db"

def add(text):
    return lambda c: c.execute("INSERT INTO note (text) VALUES (?)", (text,)) and None

async def main():
    limits = Limits(low_water_octets=int(sys.argv[2]), low_water_share=0.0, reserve_octets=1 << 20)
    async with open_storage(path, limits) as storage:
        await storage.add_schema("notes", [("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT)",)])
        accepted = 0
        try:
            while True:
                await storage.write(add("n" * 1000))
                accepted += 1
        except StorageFull:
            pass
        if sys.argv[3] == "filled":
            # Another program takes the rest, to the last octet.
            with open(sys.argv[1] + "/other", "wb", buffering=0) as other:
                try:
                    while True:
                        other.write(bytes(4096))
                except OSError:
                    pass
        outcomes = 0
        for _ in range(200):
            await storage.write(add("outcome"), essential=True)
            outcomes += 1
        try:
            await storage.write(add("n"))
        except StorageFull:
            pass
        else:
            sys.exit("accepted on a full disk")
        found = await storage.read(lambda c: c.execute(
            "SELECT count(*) FILTER (WHERE text = 'outcome'), count(*) FROM note").fetchone())
        assert found == (outcomes, accepted + outcomes), (found, accepted, outcomes)
        if os.path.exists(sys.argv[1] + "/other"):
            os.unlink(sys.argv[1] + "/other")
        os.unlink(sys.argv[1] + "/ballast")
        with trio.fail_after(5):
            while storage.full:
                await trio.sleep(0.05)
        await storage.write(add("again"))
        print("accepted", accepted, "outcomes", outcomes, "healthy", storage.healthy)

trio.run(main)
"""


@pytest.mark.parametrize(
    ("low_water", "what"),
    [(2 << 20, "left"), (2 << 20, "filled"), (0, "left")],
    ids=["D5 stopped by the mark", "D6 then filled by others", "D6 no mark"],
)
async def test_on_a_small_disk_all_outcomes_are_recorded(tmp_path, low_water, what):
    """D5, D6: 8 MiB of tmpfs."""
    printed = await run_on_small_disk(tmp_path, TMPFS, low_water, what)
    assert printed.endswith("outcomes 200 healthy True\n"), printed


# Failing disks: the path without strace; test_crash.py has real errors.


def fail(connection):
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    raise error


async def test_the_third_error_within_a_minute_ends_the_block_and_says_so(path):
    reached = []

    async def serve():
        async with open_storage(path, ROOMY) as storage:
            await storage.add_schema("notes", NOTES)
            for number in range(2):
                with pytest.raises(StorageUnknown, match="disk I/O error"):
                    await storage.write(fail)
                await storage.write(add(f"between {number}"))
            with pytest.raises(StorageUnknown, match="disk I/O error"):
                await storage.write(fail)
            reached.append(True)
            await trio.sleep_forever()

    with pytest.raises(StorageBroken, match="failed 3 times within 60 s"):
        await serve()
    assert reached
    assert rows_of(path) == ["between 0", "between 1"]


async def test_after_one_error_the_file_is_opened_again_and_goes_on(path):
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("notes", NOTES)
        kind = await storage.add_kind("INSERT INTO note (text) VALUES (NEW.a)")
        assert await storage.read(texts) == []

        with pytest.raises(StorageUnknown):
            await storage.write(fail)
        assert storage.healthy
        assert storage.statistics().flush_errors == 1
        await storage.insert([(kind, "after")])
        assert await storage.read(texts) == ["after"]


# Backup.


async def test_a_backup_is_one_consistent_state_while_writing_goes_on(path, tmp_path):
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    async with open_storage(path, ROOMY) as storage:
        await storage.add_schema("pairs", [("CREATE TABLE l (x)", "CREATE TABLE r (x)")])

        def pair(connection):
            for table in "lr":
                connection.executemany(f"INSERT INTO {table} VALUES (?)", [("x" * 500,)] * 20)

        async def write_on(task_status):
            task_status.started()
            while True:
                await storage.write(pair)

        async with trio.open_nursery() as nursery:
            await nursery.start(write_on)
            for _ in range(5):
                await storage.write(pair)
                await storage.backup(copy)
                with sqlite3.connect(copy) as connection:
                    left, right = connection.execute(
                        "SELECT (SELECT count(*) FROM l), (SELECT count(*) FROM r)"
                    ).fetchone()
                connection.close()
                assert left == right > 0
            nursery.cancel_scope.cancel()
    assert [file.name for file in copy.parent.iterdir()] == ["copy.db"]
    async with open_storage(copy, ROOMY) as storage:
        await storage.write(pair)


async def test_a_backup_that_cannot_be_made_leaves_nothing(path, tmp_path):
    async with open_storage(path, ROOMY) as storage:
        with pytest.raises(StorageError, match="could not be copied"):
            await storage.backup(tmp_path / "nowhere" / "copy.db")
    with pytest.raises(StorageError, match="could not be copied"):
        backup_database(tmp_path / "missing.db", tmp_path / "copy.db")
    assert not list(tmp_path.glob("copy*"))


async def test_a_backup_replaces_an_earlier_one_and_nothing_else(path, tmp_path):
    copy = tmp_path / "copy.db"
    async with open_storage(path, ROOMY) as storage:
        assert await storage.backup(copy) == copy.stat().st_size
        await storage.add_schema("notes", NOTES)
        await storage.backup(copy)
        assert rows_of(copy) == []
        other = tmp_path / "other.db"
        with sqlite3.connect(other) as connection:
            connection.execute("CREATE TABLE theirs (x)")
        connection.close()
        config = tmp_path / "fastpush.toml"
        config.write_text("[storage]\n")
        link = tmp_path / "link.db"
        link.symlink_to(path)
        for there, why in [
            (path, "is the database itself"),
            (link, "is the database itself"),
            (config, "is no backup of a gateway"),
            (other, "is no backup of a gateway"),
            (tmp_path, "is no file"),
        ]:
            before = None if there.is_dir() else there.read_bytes()
            with pytest.raises(BackupRefused, match=why):
                await storage.backup(there)
            assert there.is_dir() or there.read_bytes() == before
        async with open_storage(copy, ROOMY):
            with pytest.raises(BackupRefused, match="in use, not a backup"):
                await storage.backup(copy)
        assert not list(tmp_path.glob("*.partial"))


async def test_a_log_that_grows_is_told_of(path, caplog):
    limits = Limits(low_water_octets=0, low_water_share=0.0, reserve_octets=4_096, wal_octets=100_000)
    async with open_storage(path, limits) as storage:
        await storage.add_schema("notes", NOTES)
        await storage.write(add("x" * 400_000))
        await trio.sleep(0.11)
        await storage.write(add("y"))
    assert "the write-ahead log has grown" in caplog.text
