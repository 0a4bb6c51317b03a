"""Every topic runs at its smallest size, and the page's table is made of what was measured."""

from collections.abc import Iterator
from pathlib import Path

import bench
import pytest
import typer
from bench_row import Row, Size, at_least, at_most, missing
from bench_table import BEGIN, END, Result, read_result, table, write_result, write_table
from interleaved import Spread, Times, interleave, spread


@pytest.mark.parametrize("topic", bench.TOPICS)
def test_a_topic_runs_at_its_smallest_size(topic: str) -> None:
    rows = list(bench.TOPICS[topic](Size.SMALLEST))
    assert rows
    assert all(row.ours or row.note.startswith("no figure: ") for row in rows)
    assert any(row.ours for row in rows)
    assert all(row.ratio is None or row.ratio.median > 0.0 for row in rows)


def test_each_kind_of_work_is_done_once_a_round_in_turn() -> None:
    done: list[str] = []
    times = interleave({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, rounds=2)
    assert done == ["a", "b"] * 3, "the first round warms up"
    assert [len(seconds) for seconds in (times.cpu["a"], times.wall["b"])] == [2, 2]


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    times = Times(cpu={"a": [1.0, 9.0, 2.0], "b": [1.0, 3.0, 1.0]}, wall={"a": [1.0], "b": [4.0]})
    assert times.ratio("a", "b", "cpu") == Spread(2.0, 1.0, 3.0, 3)
    assert times.ratio("a", "b", "wall").median == 0.25
    assert times.median("a", "cpu") == 2.0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 1.5, 4.5, 5), "quartiles, where there are enough"


def test_a_target_is_asked_of_the_ratio_or_of_a_value() -> None:
    one = Spread(1.0, 1.0, 1.0, 1)
    assert Row("a", ratio=one, target=at_most(1.05)).holds is True
    assert Row("a", ratio=one, target=at_least(1.05)).holds is False
    assert Row("a", ratio=one, target=at_most(0.3, "s"), value=0.4).holds is False
    assert Row("a", ratio=one).holds is None
    assert missing("a", "there is no GPU here", at_most(1.0)).holds is None


ROWS = [
    Row("a", "2 s", "1 s", Spread(2.0, 1.5, 2.5, 4), at_most(1.05)),
    Row("b", "3 B", "4 B", note="quoted"),
    missing("c", "no data", at_least(2.5)),
]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    result = Result("short", "a machine", "abc", ROWS)
    write_result(tmp_path / "results/a.json", result)
    assert read_result(tmp_path / "results/a.json") == result


def test_the_table_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nText\n")
    first, other = Result("short", "one machine", "abc", ROWS), Result("full", "another", "def+", ROWS[1:2])
    write_table(page, [first, other])
    text = page.read_text()
    assert text == f"# Title\n\n{BEGIN}\n" + "\n".join(table([first, other])) + f"\n{END}\n\nText\n"
    assert "| a | 2 s | 1 s | 2 (1.5 to 2.5; 4 pairs) | <= 1.05x | **no** | A, abc |" in text
    assert "| b [1] | 3 B | 4 B |  |  |  | B, def+ |" in text
    assert "| c [2] |  |  |  | >= 2.5x |  | A, abc |" in text
    assert "Machine B: another." in text
    assert "[2] no figure: no data." in text
    write_table(page, [first, other])
    assert page.read_text() == text, "again: the same page"


def a_topic(_size: Size) -> Iterator[Row]:
    yield from ROWS


def test_only_the_topics_that_are_asked_for_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench, "TOPICS", {"one": a_topic, "two": a_topic})
    bench.main(full=False, only="one")
    bench.main(full=True, only="two")
    sizes = {path.stem: read_result(path).size for path in (tmp_path / "results").iterdir()}
    assert sizes == {"one": "short", "two": "full"}
    assert page.read_text().count("| a |") == 2, "the lines of the other topic stay"
    with pytest.raises(typer.BadParameter, match="no topic three: one, two"):
        bench.main(full=False, only="three")


def test_the_page_has_the_marks() -> None:
    text = bench.PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
