"""The tables of a report, from figures and keys."""

from pathlib import Path

import pytest

from moe_distill.config.params import Params
from moe_distill.reporting.figure_tables import figures_table, sources_table, tiles
from moe_distill.reporting.run_facts import StageFacts
from moe_distill.reporting.run_tables import corpus_table, cost_table, models_table
from moe_distill.reporting.tables import told_bytes, told_seconds
from moe_distill.utils.hub_commits import record_commit
from tests.correction.conftest import PARAMS as CORRECTION
from tests.params import fixed_params
from tests.reporting.crafted import METRICS, NO_BASELINE

HUB = {"kind": "hub", "repository": "a/b", "revision": "c0ffee"}
FILES = {
    "kind": "files",
    "name": "notes",
    "paths": ["x", "y"],
    "field": "text",
    "weight": 1.0,
    "max_documents": None,
}


def changed(**models: object) -> Params:
    values = fixed_params().model_dump()
    values["profile"]["models"] |= models
    values["profile"]["corpus"]["sources"].append(FILES)
    return Params.model_validate(values)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1e3, "1.0 kB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (2.5e6, "2.5 MB"),
        (13.2e9, "13.2 GB"),
    ],
)
def test_bytes(value: float, told: str) -> None:
    assert told_bytes(value) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.25, "0.2 s"), (59.4, "59.4 s"), (61.0, "1 min 01 s"), (3599.6, "1 h 00 min"), (7380.0, "2 h 03 min")],
)
def test_seconds(value: float, told: str) -> None:
    assert told_seconds(value) == told


def test_models_are_named_with_revision_and_licence() -> None:
    folder = {"kind": "folder", "path": "models/own"}
    params = changed(teacher=HUB, student=folder, teacher_correction=CORRECTION.model_dump())
    table = models_table(params, {"licence": "mit", "vocab_size": 9}, {"model_type": "llama"}, METRICS)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["name"] == ("a/b", "models/own")
    assert rows["revision"] == ("c0ffee", "a local folder")
    assert rows["licence"] == ("mit", "not known")
    assert rows["architecture"] == ("not known", "llama")
    assert rows["tuned on the training text first"][0] == "yes"
    assert figures_table(params, METRICS).rows[0][0] == "teacher, corrected on the training text"


def test_a_branch_is_told_as_the_commit_that_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"kind": "hub", "name": "web", "repository": "d/e", "revision": "main", "max_documents": 3}
    values = changed(teacher=HUB | {"revision": "main"}).model_dump()
    values["profile"]["corpus"]["sources"].append(source)
    params = Params.model_validate(values)
    record_commit("model", "a/b", "main", "1" * 40)
    record_commit("dataset", "d/e", "main", "2" * 40)
    assert models_table(params, {}, {}, METRICS).rows[1][1] == "1" * 40
    assert corpus_table(params, {}).rows[-2][1] == "d/e at 222222222222, split train"


def test_each_source_has_its_row_and_all_together_one() -> None:
    counts = {"train_documents": 1200.0, "train_bytes": 3e6, "notes_train_documents": 200.0}
    table = corpus_table(changed(), counts)
    assert [row[0] for row in table.rows] == ["python_docs", "notes", "all"]
    assert table.rows[1][:3] == ("notes", "x, y", "200")
    assert table.rows[2][2:4] == ("1,200", "3.0 MB")
    figures = METRICS | {"bits_per_byte_notes": 1.25}
    found = sources_table(figures, ["python_docs", "notes"])
    assert found is not None
    assert found.rows == (("notes", "1.2500"),)
    assert sources_table(METRICS, ["python_docs"]) is None


def test_a_stage_of_another_machine_has_no_time_and_no_zero() -> None:
    table = cost_table([StageFacts("corpus", None, 5), StageFacts("teacher", 2.0, 0), StageFacts("evaluate", None, 0)])
    assert table.rows == (
        ("corpus", "", "5 bytes"),
        ("teacher", "2.0 s", "none"),
        ("evaluate", "not over when this was written", "none"),
        ("all of these", "2.0 s", "5 bytes"),
    )


def test_early_stops_and_a_missing_baseline_are_told() -> None:
    figures = METRICS | {"student_stopped_early": 1.0}
    rows = {row[0]: row[1:] for row in figures_table(fixed_params(), figures).rows}
    assert rows["student, distilled"] == ("1.8000", "24 (stopped early)")
    assert rows["the same student, LM only"] == ("1.9000", "24")
    without = {name: value for name, value in METRICS.items() if name not in NO_BASELINE}
    assert not [row for row in figures_table(fixed_params(), without).rows if "LM only" in row[0]]
    assert tiles(without)[1] == ("LM only", "not measured", "`baseline: none`")
