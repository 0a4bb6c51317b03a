"""Every topic runs at its smallest size, and the page's table is made of what was measured."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import bench
import pytest
import typer
from bench_row import Row, Size, at_least, at_most, missing
from bench_table import BEGIN, END, Result, commit, letters, read_results, table, write_results, write_table
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
    results = {"one": Result("short", "a machine", "abc", ROWS), "two": Result("full", "a machine", "abc", ROWS[:1])}
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results


def test_the_table_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nText\n")
    first, other = Result("short", "one machine", "abc", ROWS), Result("full", "another", "def+", ROWS[1:2])
    write_table(page, [first, other])
    text = page.read_text()
    assert text == f"# Title\n\n{BEGIN}\n" + "\n".join(table([first, other])) + f"\n{END}\n\nText\n"
    assert "| a | short | 2 s | 1 s | 2 (1.5 to 2.5; 4 pairs) | <= 1.05x | **no** | A, abc |" in text
    assert "| b [1] | full | 3 B | 4 B |  |  |  | B, def+ |" in text
    assert "| c [2] | short |  |  |  | >= 2.5x |  | A, abc |" in text
    assert "Machine B: another." in text
    assert "[2] no figure: no data." in text
    write_table(page, [first, other])
    assert page.read_text() == text, "again: the same page"


def a_topic(_size: Size) -> Iterator[Row]:
    yield from ROWS


def test_only_the_topics_that_are_asked_for_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, path = tmp_path / "page.md", tmp_path / "page.json"
    third = Result("full", "another", "def", [Row("z", "5 s", note="of old")])
    page.write_text("\n".join([BEGIN, *table([third]), f"{END}\n"]))
    write_results(path, {"three": third})
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench, "RESULTS", path)
    monkeypatch.setattr(bench, "TOPICS", {"one": a_topic, "two": a_topic, "three": a_topic})
    bench.main(full=False, only="one")
    bench.main(full=True, only="two")
    results = read_results(path)
    assert {topic: result.size for topic, result in results.items()} == {"one": "short", "two": "full", "three": "full"}
    assert results["three"] == third
    text = page.read_text()
    assert text.count("| a |") == 2
    assert "| z [3] | full | 5 s |  |  |  |  | B, def |" in text, "the line of a topic that was not measured stays"
    assert "[3] of old." in text, "and its note"
    with pytest.raises(typer.BadParameter, match="no topic four: one, two, three"):
        bench.main(full=False, only="four")


def test_the_page_has_the_table_of_all_results() -> None:
    text, results = bench.PAGE.read_text(encoding="utf-8"), read_results(bench.RESULTS)
    assert text.count(BEGIN) == text.count(END) == 1
    assert list(results) == [topic for topic in bench.TOPICS if topic in results]
    assert "\n".join([BEGIN, *table(list(results.values())), END]) in text


def test_there_are_letters_for_any_number_of_machines() -> None:
    assert [letters(number) for number in (0, 25, 26, 51, 52, 702)] == ["A", "Z", "AA", "AZ", "BA", "AAA"]


@pytest.mark.parametrize("name", ["src/a.py", "profiles/a.yaml", "tests/params.yaml", "dvc.yaml"])
def test_a_commit_is_marked_where_what_a_line_depends_on_differs(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / name, tmp_path / "README.md"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1\n")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b -c commit.gpgsign=false commit -q -m a"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    (tmp_path / "README.md").write_text("2\n")
    assert not commit(tmp_path).endswith("+")
    (tmp_path / name).write_text("2\n")
    assert commit(tmp_path).endswith("+")
