"""README's table is the suite's: each fault and what is expected of it, and what was seen."""

from pathlib import Path

import pytest

from tests.faults.table import BEGIN, END, EXPECTED, read_table, write_table

README = Path(__file__).parents[2] / "README.md"


def test_readme_shows_every_fault() -> None:
    rows = read_table(README)
    assert {fault: expected for fault, expected, _ in rows} == EXPECTED
    assert all(observed for _, _, observed in rows)


def test_the_table_is_written_only_when_every_fault_was_tried(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old{END}\nafter\n")
    observed = {fault: ["seen", "seen", "seen again"] for fault in EXPECTED}
    write_table(page, observed)
    assert [observed for _, _, observed in read_table(page)] == ["seen; seen again"] * len(EXPECTED)
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")
    del observed["one rank hangs"]
    with pytest.raises(ValueError, match="not tried: one rank hangs; run the slow tests"):
        write_table(page, observed)
