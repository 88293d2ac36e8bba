"""The guard of instruction counts: what it compares with, what it reads, when it fails; without valgrind."""

import subprocess

import pytest

from benchmarks import guard, instructions
from benchmarks.guard import Announced, MalformedTrailer, announced, judge
from benchmarks.servers import NotInstalled


def test_a_stretch_is_the_dump_at_its_end_and_start_up_vanishes():
    """Two dumps to each stretch: what came before it, and it."""
    stretches = [
        ("values/alert", 200),
        ("values/alert", 1_000),
        ("encode/usual", 200),
        ("encode/usual", 1_000),
    ]
    dumps = [9_000_000, 60_500, 77, 300_500, 88, 1_000, 99, 5_000, 123]
    assert instructions.per_push(stretches, dumps) == {"values/alert": 300.0, "encode/usual": 5.0}


def test_a_missing_dump_is_an_error_and_no_figure():
    with pytest.raises(RuntimeError, match="wrote 3 dumps"):
        instructions.per_push([("a", 200), ("a", 1_000)], [1, 2, 3])


def test_dumps_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in range(1, 12):
        (tmp_path / f"callgrind.out.{number}").write_text(
            f"desc: x\nevents: Ir\nsummary: {number * 10}\n\nfn=1\n"
        )
    (tmp_path / "callgrind.out").write_text("totals: 7\n")
    assert instructions.totals(tmp_path) == [number * 10 for number in range(1, 12)]


def test_a_dump_without_a_sum_is_an_error(tmp_path):
    (tmp_path / "callgrind.out.1").write_text("events: Ir\n")
    with pytest.raises(RuntimeError, match="no sum"):
        instructions.totals(tmp_path)


def test_trailers_are_read_from_all_messages():
    messages = """Check a key

    Instructions: not this one, it is indented
Instructions: encode/usual +7 %, because a key of iOS 20 is checked
Signed-off-by: someone

Another

Instructions: engine +5.5% because of RFC 9999
"""
    assert announced(messages) == [
        Announced("encode/usual", 0.07, "a key of iOS 20 is checked"),
        Announced("engine", 0.055, "of RFC 9999"),
    ]
    assert announced("Write faster\n\nInstructions to a push: 5 -> 4\n") == []


@pytest.mark.parametrize(
    "line",
    [
        "Instructions: encode +7 %",
        "Instructions: encode +7 %, because",
        "Instructions: encode +7 %, because ",
        "Instructions: +7 %, because of it",
        "Instructions: encode 7 %, because of it",
        "Instructions: encode rose, because of it",
        "Instructions:",
    ],
)
def test_a_trailer_without_part_rise_or_reason_is_refused(line):
    with pytest.raises(MalformedTrailer, match="because"):
        announced(f"Subject\n\n{line}\n")


def failed(before, now, *trailers):
    return [one.name for one in judge(before, now, list(trailers)) if one.failed]


def test_up_to_five_per_cent_needs_no_reason():
    before = {"encode/usual": 1_000.0, "encode/alarm": 1_000.0, "engine/request": 1_000.0}
    assert failed(before, before) == []
    assert failed(before, {**before, "encode/usual": 1_050.0}) == []
    assert failed(before, {**before, "encode/usual": 1_050.1}) == ["encode/usual"]
    assert failed(before, {**before, "engine/request": 10.0}) == []


def test_a_trailer_allows_its_part_or_case_its_rise_and_no_more():
    before = {"encode/usual": 1_000.0, "encoder/x": 1_000.0}
    now = {"encode/usual": 1_070.0, "encoder/x": 1_000.0}
    assert failed(before, now) == ["encode/usual"]
    assert failed(before, now, Announced("encode", 0.07, "why")) == []
    assert failed(before, now, Announced("encode/usual", 0.07, "why")) == []
    assert failed(before, now, Announced("encode/alarm", 0.07, "why")) == ["encode/usual"]
    assert failed(before, now, Announced("engine", 0.07, "why")) == ["encode/usual"]
    assert failed(before, {**now, "encoder/x": 1_070.0}, Announced("encode", 0.07, "why")) == ["encoder/x"]
    assert failed(before, {**now, "encode/usual": 1_080.0}, Announced("encode", 0.07, "why")) == [
        "encode/usual"
    ]


def test_trailers_add_up_and_a_small_one_takes_nothing_away():
    before = {"encode/usual": 1_000.0}
    two = [Announced("encode", 0.06, "one"), Announced("encode/usual", 0.06, "two")]
    assert failed(before, {"encode/usual": 1_123.0}, *two) == []
    assert failed(before, {"encode/usual": 1_140.0}, *two) == ["encode/usual"]
    assert failed(before, {"encode/usual": 1_050.0}, Announced("encode", 0.01, "one")) == []


def test_a_new_case_has_nothing_to_be_held_against_and_orjsons_is_not_ours():
    assert failed({"yardstick/orjson": 10.0}, {"encode/new": 9_999.0, "yardstick/orjson": 99.0}) == []


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@y", *arguments], cwd=tmp_path, check=True
        )

    git("init", "--quiet", "--initial-branch=main")
    git("commit", "--quiet", "--allow-empty", "--message=first")
    return tmp_path, git


def test_the_first_commit_has_no_base(repository):
    tree, _ = repository
    assert guard.find_base(tree) is None


def test_the_base_is_the_commit_before_or_where_the_branch_left_main(repository):
    tree, git = repository
    first = guard.git("rev-parse", "HEAD", cwd=tree)
    git("commit", "--quiet", "--allow-empty", "--message=second")
    second = guard.git("rev-parse", "HEAD", cwd=tree)
    assert guard.find_base(tree) == first
    git("update-ref", "refs/remotes/origin/main", second)
    assert guard.find_base(tree) == first  # on origin/main itself: the commit before
    git("commit", "--quiet", "--allow-empty", "--message=third")
    git("commit", "--quiet", "--allow-empty", "--message=fourth")
    assert guard.find_base(tree) == second


def test_a_shallow_clone_has_no_base(repository, tmp_path_factory):
    tree, git = repository
    git("commit", "--quiet", "--allow-empty", "--message=second")
    clone = tmp_path_factory.mktemp("shallow") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{tree}", str(clone)], check=True)
    assert guard.find_base(clone) is None


def test_only_what_can_change_a_count_is_a_change(repository):
    tree, git = repository
    (tree / "fastpush").mkdir()
    (tree / "fastpush" / "x.pyx").write_text("a = 1\n")
    git("add", "--all")
    git("commit", "--quiet", "--message=second")
    base = guard.git("rev-parse", "HEAD", cwd=tree)
    (tree / "README.md").write_text("words\n")
    git("add", "--all")
    git("commit", "--quiet", "--message=third")
    assert not guard.changes(base, tree)
    (tree / "fastpush" / "x.pyx").write_text("a = 2\n")
    assert guard.changes(base, tree)  # what is not committed counts too


@pytest.fixture
def broken_base(repository, monkeypatch):
    """A commit that mends a build, and the guard as it stands in that repository."""
    tree, git = repository
    (tree / "setup.py").write_text("raise SystemExit('broken on purpose')\n")
    git("add", "--all")
    git("commit", "--quiet", "--message=break")
    (tree / "setup.py").write_text("")
    git("commit", "--quiet", "--all", "--message=mend")
    plain_git = guard.git
    monkeypatch.setattr(guard, "ROOT", tree)
    monkeypatch.setattr(guard, "git", lambda *arguments, cwd=tree: plain_git(*arguments, cwd=cwd))
    monkeypatch.setattr(guard, "find_base", lambda: plain_git("rev-parse", "HEAD~1", cwd=tree))
    return tree


def test_a_base_that_does_not_build_is_told_and_lets_what_mends_it_pass(broken_base, monkeypatch, capsys):
    failed = {}
    counts = instructions.Counts({"encode/usual": 1.0}, failed)
    monkeypatch.setattr(instructions, "count", lambda tree: counts)
    monkeypatch.setattr(guard, "changes", lambda base: True)
    assert guard.main() == 0
    told = capsys.readouterr().out
    assert "it could not be built" in told
    assert "broken on purpose" in told
    assert guard.git("worktree", "list").count("\n") == 0  # nothing is left behind
    failed["engine"] = "it fails here"
    assert guard.main() == 1


def test_a_base_whose_program_fails_cannot_be_compared_with(broken_base, monkeypatch):
    def fails(tree):
        raise RuntimeError("the counted program failed")

    monkeypatch.setattr(instructions, "count", fails)
    monkeypatch.setattr(guard, "build", lambda tree: None)
    with pytest.raises(guard.NoBase, match="the counted program failed"):
        guard.count_base("HEAD")


def test_without_valgrind_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalled, match="apt install valgrind"):
        instructions.count(tmp_path)
