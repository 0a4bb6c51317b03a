"""The script of ratios runs whole on small models, and its table says what holds."""

import json
from pathlib import Path

import gpu_check
import pytest
from device_measures import covered_share
from gpu_check import Figure, table


def test_the_script_runs_on_small_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_check.main(toy=True, precision="fp16", json_path=tmp_path / "found.json")
    content = json.loads((tmp_path / "found.json").read_text())
    named = {each["what"]: each for each in content["figures"]}
    asked = {what: each["target"] for what, each in named.items() if each["target"] is not None}
    assert sorted(asked.values()) == [0.9, 0.95, 1.05, 1.15, 2.5, 2.5]
    assert all(each["value"] > 0.0 for each in named.values())
    printed = capsys.readouterr().out
    assert all(f"| {what} |" in printed for what in named)


def test_a_figure_holds_on_its_side_of_the_target() -> None:
    figures = [Figure("a", 1.04, 1.05, at_most=True), Figure("b", 1.06, 1.05, at_most=True)]
    figures += [Figure("c", 2.6, 2.5), Figure("d", 2.4, 2.5), Figure("e", 3.0, None)]
    assert [each.holds for each in figures] == [True, False, True, False, None]
    assert [line.split("|")[4].strip() for line in table(figures)][2:] == ["yes", "NO", "yes", "NO", ""]


@pytest.mark.parametrize(
    ("ranges", "share"),
    [
        ([(0, 10)], 1.0),
        ([(0, 4), (6, 10)], 0.8),
        ([(6, 10), (0, 4), (1, 2)], 0.8),  # in any order, one inside another
        ([(0, 5), (3, 8), (9, 10)], 0.9),  # overlapping, as on two streams
    ],
)
def test_busy_share_counts_each_moment_once(ranges: list[tuple[float, float]], share: float) -> None:
    assert covered_share(ranges) == pytest.approx(share)
