"""docs/nasty-servers.md and the tests say the same: each row is there, and is told where it says."""

import importlib
import pathlib
import re

from .not_on_h2 import NOT_ON_H2

HERE = pathlib.Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "nasty-servers.md").read_text(encoding="utf-8")


def all_tests():
    """Every test here: name -> its file."""
    return {
        name: path.name
        for path in HERE.glob("test_*.py")
        for name in vars(importlib.import_module(f".{path.stem}", __package__))
        if name.startswith("test_")
    }


def rows():
    """The rows of the page: number -> the file that its group names."""
    found, group = {}, ""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| | **"):
            group = cells[4] if len(cells) > 4 else ""
        elif re.match(r"\| \d+ \|", line):
            found[int(cells[0])] = cells[4] if "`" in cells[4] and "there" not in cells[4] else group
    return found


def test_the_page_has_all_62_rows_in_order():
    assert list(rows()) == list(range(1, 63))


def test_each_row_of_the_engine_is_told_where_the_page_says():
    for number, place in rows().items():
        if number <= 57:
            files = {file for name, file in all_tests().items() if name.startswith(f"test_row_{number:02}_")}
            assert files, f"row {number} has no test"
            assert any(f"`{file}`" in place for file in files), (
                f"row {number} is told in {files}, not in {place}"
            )


def test_what_is_not_on_h2_names_tests_that_are():
    for name, reason in NOT_ON_H2.items():
        assert name.split("[")[0] in all_tests()
        assert reason
