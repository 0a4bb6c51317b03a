"""What an edit to the code runs again, asked of `dvc status` in a copy of the project whose outputs are recorded."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from moe_distill.pipeline.dvc_stage import stage_code
from tests.end_to_end.conftest import Checkout, copy_of_the_project
from tests.repository.stage_modules import GRAPH, definition, file_of, modules_of

STAGES = ("tokenize", "teacher")
OF_THE_TEACHER = modules_of("teacher")
NOT_OF_THE_TEACHER = GRAPH.modules - OF_THE_TEACHER


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """A checkout, the current folder, whose dvc.lock takes empty files for the results of its stages."""
    checkout = copy_of_the_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    for stage in STAGES:
        found = definition(stage)
        outputs = [each if isinstance(each, str) else next(iter(each)) for each in found["outs"]]
        for path in map(Path, (*found["deps"], *outputs)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    checkout.stage("check")
    checkout.run("dvc", "commit", "-f", *STAGES)
    return checkout


def edit(files: Iterable[str]) -> None:
    for file in files:
        with Path(file).open("a") as text:
            text.write("# another comment\n")


def changed_dependencies(checkout: Checkout) -> dict[str, set[str]]:
    """Of each stage that `dvc repro` would run again, the dependencies it would do so for."""
    changes = json.loads(checkout.run("dvc", "status", "--json", *STAGES))
    return {stage: {path for each in said for path in each["changed deps"]} for stage, said in changes.items()}


def test_only_an_edit_to_what_can_change_a_result_runs_a_stage_again(recorded: Checkout) -> None:
    assert {
        "moe_distill.teacher.shards_disk_use",  # an estimate
        "moe_distill.shards.vocabulary_store",  # a reader that only training uses
        "moe_distill.pipeline.resumable_work",  # plumbing
    } <= NOT_OF_THE_TEACHER
    key = stage_code("teacher")  # names the folder of its unfinished work
    edit(file_of(each) for each in NOT_OF_THE_TEACHER)
    of_tokenize = {file_of(each) for each in modules_of("tokenize") - OF_THE_TEACHER}
    assert changed_dependencies(recorded) == {"tokenize": of_tokenize}
    assert stage_code("teacher") == key
    edit(["src/moe_distill/teacher/sparsify.py"])
    assert changed_dependencies(recorded)["teacher"] == {"src/moe_distill/teacher/sparsify.py"}
    assert stage_code("teacher") != key
