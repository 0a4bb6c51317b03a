"""The stage's work on a tiny pipeline: it gains, it reads no validation text for it, and a kill changes no byte."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_distill.correction import correct as stage_work
from moe_distill.correction.correct import correction_key
from moe_distill.correction.held_out import HeldOut
from moe_distill.correction.tuning import Counters
from moe_distill.errors import DataError, ResourceError
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.utils.files import folder_fingerprint
from tests.chain import Chain
from tests.correction.conftest import PARAMS, Corrected, correct

Usage = namedtuple("Usage", "total used free")


def test_the_teacher_is_better_afterwards_and_the_cost_is_told(corrected: Corrected) -> None:
    metrics = corrected[1]
    assert metrics["bits_per_byte_after"] < metrics["bits_per_byte_before"]
    told = {"corrected": 1.0, "steps": 6.0, "skipped_steps": 0.0, "validation_windows": 6.0}
    assert told.items() <= metrics.items()
    assert metrics["seconds"] > 0
    assert metrics["trained_parameters"] > 0
    for when in ("before", "after"):
        assert sum(metrics[f"expert_{number}_share_{when}"] for number in range(4)) == pytest.approx(1.0)
        assert 1.0 <= metrics[f"effective_experts_{when}"] <= 4.0
        assert 0.25 <= metrics[f"busiest_expert_share_{when}"] <= 1.0


def test_an_ordinary_folder_with_the_teachers_tokenizer_is_written(chain: Chain, corrected: Corrected) -> None:
    written, teacher = corrected[0] / "teacher", chain.folder / "models/teacher"
    model = load_causal_lm(written, torch.float32, torch.device("cpu"))
    assert model.config.model_type == "qwen3_moe"
    assert (written / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()
    tensors, before = load_file(written / "model.safetensors"), load_file(teacher / "model.safetensors")
    assert tensors.keys() == before.keys()
    changed = {name for name in tensors if not torch.equal(tensors[name], before[name])}
    assert not [name for name in changed if "norm" in name or "embed" in name or "lm_head" in name]
    assert {name.split(".")[-2] for name in changed} >= {"q_proj", "gate"}
    assert json.loads((written / "correction.json").read_text())["rank"] == PARAMS.rank


def with_split(chain: Chain, folder: Path, split: str, other: str) -> Chain:
    """A copy of the chain whose windows of one split are those of the other."""
    copied = chain.copy(folder)
    windows = copied.folder / "data/windows/teacher"
    shutil.rmtree(windows / split)
    shutil.copytree(windows / other, windows / split)
    return copied


def test_validation_text_reaches_the_figures_and_no_weight(chain: Chain, corrected: Corrected, tmp_path: Path) -> None:
    metrics = correct(with_split(chain, tmp_path / "chain", "validation", "train"), tmp_path / "work")
    assert folder_fingerprint(tmp_path / "work/teacher") == folder_fingerprint(corrected[0] / "teacher")
    assert metrics["bits_per_byte_before"] != corrected[1]["bits_per_byte_before"]


def test_training_text_does_reach_them(chain: Chain, corrected: Corrected, tmp_path: Path) -> None:
    """The counterpart of the test above: equal bytes there mean something."""
    correct(with_split(chain, tmp_path / "chain", "train", "validation"), tmp_path / "work")
    assert folder_fingerprint(tmp_path / "work/teacher") != folder_fingerprint(corrected[0] / "teacher")


def test_r21_killed_while_it_writes_the_model_it_ends_with_the_same_bytes(
    chain: Chain, corrected: Corrected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage_work, "save_causal_lm", killed)
        with pytest.raises(KeyboardInterrupt):
            correct(chain, tmp_path)
    metrics = correct(chain, tmp_path)
    assert folder_fingerprint(tmp_path / "teacher") == folder_fingerprint(corrected[0] / "teacher")
    timed = {"seconds", "train_tokens_per_second"}
    assert {name for name, value in metrics.items() if value != corrected[1][name]} <= timed


def test_the_key_is_of_all_that_determines_the_result(chain: Chain, tmp_path: Path) -> None:
    windows, teacher = chain.folder / "data/windows/teacher", chain.folder / "models/teacher"
    other_windows = with_split(chain, tmp_path / "chain", "train", "validation").folder / "data/windows/teacher"
    keys = [
        correction_key(PARAMS, 0, "fp32", windows, teacher),
        correction_key(PARAMS.model_copy(update={"rank": 5}), 0, "fp32", windows, teacher),
        correction_key(PARAMS, 1, "fp32", windows, teacher),
        correction_key(PARAMS, 0, "auto", windows, teacher),
        correction_key(PARAMS, 0, "fp32", other_windows, teacher),
        correction_key(PARAMS, 0, "fp32", windows, chain.folder / "models/student_init"),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == correction_key(PARAMS, 0, "fp32", windows, teacher)


def test_a_disk_that_cannot_take_it_is_refused_before_the_first_step(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(1 << 30, (1 << 30) - 1000, 1000))
    with pytest.raises(
        ResourceError, match=r"the corrected teacher will take .* lower `models.teacher_correction.rank`"
    ):
        correct(chain, tmp_path)
    assert not list(tmp_path.glob("checkpoint_*"))


def test_windows_of_another_tokenizer_are_refused(chain: Chain, tmp_path: Path) -> None:
    copied = chain.copy(tmp_path / "chain")
    path = copied.folder / "models/teacher/tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DataError, match=r"teacher/train was made with tokenizer .* dvc repro -f tokenize"):
        correct(copied, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def told(capsys: pytest.CaptureFixture[str], before: HeldOut, after: HeldOut) -> str:
    stage_work._tell(before, after, Counters(seconds=90.0))
    return capsys.readouterr().out


EVEN = HeldOut(bits_per_byte=1.0, expert_shares=[[0.25] * 4, [0.4, 0.3, 0.2, 0.1]])


def test_cost_and_gain_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, EVEN, EVEN.model_copy(update={"bits_per_byte": 0.9}))
    assert said == "teacher_correction: 1.0000 -> 0.9000 bits per byte on validation text, 1.5 minutes of training\n"


def test_a_teacher_that_has_not_gained_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert "warning: teacher_correction: the teacher has not become better" in told(capsys, EVEN, EVEN)


def test_a_collapse_names_layer_and_expert(capsys: pytest.CaptureFixture[str]) -> None:
    after = HeldOut(bits_per_byte=0.9, expert_shares=[[0.25] * 4, [0.01, 0.02, 0.95, 0.02]])
    said = told(capsys, EVEN, after)
    assert "layer 1 of those with experts uses 1.3 experts where it used 3.6; expert 2 gets 95%" in said
    assert "layer 0" not in said
