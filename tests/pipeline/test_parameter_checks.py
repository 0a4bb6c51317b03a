"""Keys that ask for more than a model, a machine or the number of steps gives are refused before anything runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_distill.config.params import Params
from moe_distill.errors import ConfigError, DataError
from moe_distill.pipeline.parameter_checks import check_parameters, examine_parameters, model_sizes
from moe_distill.training.schedule import first_phase_steps
from stages import self_test
from tests.bare_models import write_bare_model
from tests.params import ROOT, fixed_params

TEACHER = {
    "model_type": "llama",
    "vocab_size": 90,
    "num_hidden_layers": 3,
    "max_position_embeddings": 200,
    "bos_token_id": 0,
}
STUDENT = {"model_type": "gpt2", "vocab_size": 90, "n_positions": 170}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of two models, of which only config.json says anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name, config in (("teacher", TEACHER), ("student", STUDENT)):
        write_bare_model(Path(name), config)


def test_the_stage_check_does_without_torch() -> None:
    """It runs in every `dvc repro`, and torch takes seconds."""
    code = "import sys, stages.check; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def params(changes: dict[str, Any]) -> Params:
    """The tests' parameters, models from folders; a changed key is dotted, from `experiment` or a section on."""
    values = fixed_params().model_dump()
    for name in ("teacher", "student"):
        values["profile"]["models"][name] = {"kind": "folder", "path": name}
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values if path[0] == "experiment" else values["profile"]
        for part in path:
            section = section[part]
        section[last] = value
    return Params.model_validate(values)


def test_folders_that_fit_are_accepted_without_a_word() -> None:
    assert list(check_parameters(params({}))) == []
    assert list(check_parameters(fixed_params())) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"windows.teacher_max_length": 201}, "the teacher has 200 positions"),
        ({"windows.student_max_length": 171}, "the student has 170 positions"),
        ({"teacher.k": 90}, "the teacher has 90 logits"),
        ({"teacher.hidden_layers": [1, 4]}, "the teacher has 3"),
        ({"train.max_steps": 1}, r"`train\.max_steps` is 1, and the first phase takes all"),
        ({"experiment.curriculum.phase1_share": 0.999, "experiment.curriculum.curriculum_share": 1.0}, "60, and the"),
    ],
)
def test_a_key_beyond_its_range_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        list(check_parameters(params(changes)))


@pytest.mark.parametrize("max_steps", range(1, 30))
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_what_is_accepted_leaves_both_phases_a_step(max_steps: int, share: float) -> None:
    values = params({"train.max_steps": max_steps, "experiment.curriculum.phase1_share": share})
    first = first_phase_steps(values.experiment, values.profile.train)
    if 0 < first < max_steps:
        list(check_parameters(values))
    else:
        with pytest.raises(ConfigError, match="the first phase takes all of them"):
            list(check_parameters(values))


def test_a_model_that_cannot_be_used_is_refused_at_once() -> None:
    write_bare_model(Path("student"), STUDENT | {"model_type": "t5"})
    with pytest.raises(DataError, match="a t5 model is no causal language model"):
        list(check_parameters(params({})))
    Path("student/tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"student has no tokenizer\.json"):
        list(check_parameters(params({})))


def test_a_folder_that_is_not_here_is_refused_unless_a_stage_has_read_it() -> None:
    values = params({"models.teacher": {"kind": "folder", "path": "nowhere"}})
    with pytest.raises(DataError, match="nowhere is no folder"):
        list(check_parameters(values))
    recorded = {"stages": {"models@teacher": {"params": {"data/sources.json": {"teacher": "0123"}}}}}
    Path("dvc.lock").write_text(json.dumps(recorded))
    assert list(check_parameters(values)) == []


def test_all_that_is_wrong_is_told_at_once() -> None:
    config = {key: value for key, value in TEACHER.items() if key != "bos_token_id"}
    Path("teacher/config.json").write_text(json.dumps(config))
    Path("texts").mkdir()
    Path("texts/a.jsonl").write_text('{"text": "a", "title": "b"}\n')
    sources = [
        {"kind": "files", "name": "nowhere", "paths": ["nowhere/"]},
        {"kind": "files", "paths": ["texts"], "field": "txet"},
    ]
    changes = {"corpus.sources": sources, "train.max_steps": 1, "windows.student_max_length": 171}
    faults, warnings = examine_parameters(params(changes))
    said = [str(fault) for fault in faults]
    for number, part in enumerate(
        (
            "`train.max_steps` is 1, and the first phase takes all",
            "`nowhere/` matches no",
            "no key `txet` in texts/a.jsonl; it has text, title; set `field` of source `texts`",
            "the config.json of teacher names neither a bos_token_id nor an eos_token_id",
            "the student has 170 positions",
        )
    ):
        assert part in said[number]
    assert warnings == []
    with pytest.raises(ConfigError) as caught:
        list(check_parameters(params(changes)))
    assert str(caught.value).splitlines() == ["5 things are wrong:", *(f"  {each}" for each in said)]


def test_both_a_layer_and_logits_beyond_the_teachers_are_named() -> None:
    with pytest.raises(ConfigError, match=r"has 90 logits(?s:.*)names layer 4"):
        list(check_parameters(params({"teacher.k": 90, "teacher.hidden_layers": [1, 4]})))


def test_too_few_positions_with_states_are_refused_where_there_are_experts() -> None:
    tiny = fixed_params().profile.models.teacher.model_dump()
    few = {"teacher.hidden_fraction": 0.25, "models.teacher": tiny}  # 8 windows, 64 positions
    with pytest.raises(ConfigError, match="a step sees at most 128 positions with teacher states"):
        list(check_parameters(params(few)))
    assert list(check_parameters(params(few | {"teacher.hidden_fraction": 0.5}))) == []
    assert list(check_parameters(params({"teacher.hidden_fraction": 0.25}))) == []  # dense: the router is off


def test_too_few_positions_are_warned_of_where_it_is_open_whether_experts_can_be_replayed() -> None:
    write_bare_model(Path("teacher"), TEACHER | {"model_type": "phimoe", "num_local_experts": 4})
    [told] = check_parameters(params({"teacher.hidden_fraction": 0.25}))
    assert told.startswith("a step sees at most 128 positions with teacher states")
    assert told.endswith("it is refused later if the teacher's experts can be replayed")


def test_the_self_test_refuses_too_few_positions_for_experts_that_can_be_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_bare_model(Path("models/teacher"), TEACHER)
    few = params({"teacher.hidden_fraction": 0.25})
    monkeypatch.setattr("stages.self_test.run_self_tests", lambda *_: {"router_replayable": 1.0})
    with pytest.raises(ConfigError, match="a step sees at most 128 positions with teacher states"):
        self_test.main(few)
    assert not Path("data").exists()
    monkeypatch.setattr("stages.self_test.run_self_tests", lambda *_: {"router_replayable": 0.0})
    self_test.main(few)
    assert Path("data/self_test.json").is_file()


def test_a_model_of_the_hub_is_checked_where_its_cache_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = {"kind": "hub", "repository": "owner/model", "revision": "0123", "allow_unpinned": True}
    values = params({"models.teacher": hub, "windows.teacher_max_length": 201})
    asked: list[tuple[object, ...]] = []

    def from_cache(*arguments: object, revision: str) -> str | None:
        asked.append((*arguments, revision))
        return str(Path("teacher/config.json").absolute()) if len(asked) == 1 else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", from_cache)
    with pytest.raises(ConfigError, match="the teacher has 200 positions"):
        list(check_parameters(values))
    assert len(list(check_parameters(values))) == 1  # that the revision is no commit
    assert asked[0] == ("owner/model", "config.json", "0123")


@pytest.mark.parametrize("key", ["experiment.precision", "teacher.precision"])
def test_a_precision_that_the_gpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    monkeypatch.setattr("moe_distill.utils.device.probe", lambda _device: None)
    with pytest.raises(ConfigError, match="`precision: bf16` needs compute capability"):
        list(check_parameters(params({key: "bf16"})))


def test_more_experts_than_the_teacher_has_are_told_of() -> None:
    tiny = fixed_params().profile.models.teacher.model_dump()
    asked = {"models.teacher": tiny, "experiment.router.experts_end": 5}
    [said] = check_parameters(params(asked))
    assert "go up to 5, the teacher has 4 experts" in said
    losses = {f"experiment.losses.router_{name}": 0.0 for name in ("feature", "attention", "balance", "importance")}
    assert list(check_parameters(params(asked | losses))) == []
    assert list(check_parameters(params({"experiment.router.experts_end": 5}))) == []  # a dense teacher


def test_sizes_of_a_tiny_model_are_in_the_profile() -> None:
    assert model_sizes(fixed_params().profile.models.teacher) is None
