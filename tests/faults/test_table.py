"""The page's table is the suite's: each fault and what is expected of it, and what was measured."""

from pathlib import Path

import pytest

from tests.helpers.fault_table import BEGIN, END, EXPECTED, Seen, read_table, summary, write_table

PAGE = Path(__file__).parents[2] / "skindist/training/README.md"


def test_the_page_shows_every_fault() -> None:
    rows = read_table(PAGE)
    assert {fault: expected for fault, expected, _ in rows} == EXPECTED
    assert all(observed for _, _, observed in rows)


def test_the_table_is_written_only_when_every_fault_was_tried(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old{END}\nafter\n")
    observed = {fault: [Seen("seen on {ranks} ranks", {"ranks": 2})] for fault in EXPECTED}
    write_table(page, observed)
    assert [observed for _, _, observed in read_table(page)] == ["seen on 2 ranks"] * len(EXPECTED)
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")
    del observed["one rank hangs"]
    with pytest.raises(ValueError, match="not tried: one rank hangs; run the slow tests"):
        write_table(page, observed)


def test_figures_of_tests_that_say_the_same_are_joined() -> None:
    words = "{kills} kills on {ranks} ranks, ended after {seconds} s"
    seen = [Seen(words, {"kills": 25, "ranks": rank, "seconds": 1.25 * int(rank)}) for rank in ("1", "2", "4")]
    assert summary(seen) == "25 kills on 1, 2 and 4 ranks, ended after 1.2 to 5.0 s"
    assert summary([*seen[:1], Seen("saved step {step}", {"step": 6})]) == (
        "25 kills on 1 ranks, ended after 1.2 s; saved step 6"
    )
