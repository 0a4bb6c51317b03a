"""Phase 2 as a stage runs it, from folders of a small random teacher."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_distill.batches import loader
from moe_distill.errors import ConfigError
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS, TEXT_TERMS
from moe_distill.shards.reader import ShardReader
from moe_distill.training import phases
from moe_distill.training.phases import train_kd, train_router
from moe_distill.training.result import Result
from moe_distill.training.schedule import first_phase_steps
from moe_distill.training.student import Heads, make_heads
from tests.params import fixed_params
from tests.replay.teachers import make_teacher as random_moe
from tests.teacher.conftest import make_teacher
from tests.training.folders import Folders, make_folders, make_params

ALL_ON = dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.05)
NONE_ON = dict.fromkeys(ALL_ON, 0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Of a teacher with the shape of Huihui-MoE-1B's block: one expert a token, its weight normalised."""
    teacher = make_teacher("qwen3_moe_top1")
    return make_folders(tmp_path_factory.mktemp("moe"), teacher)


def test_r05_total_is_the_sum_of_the_weighted_terms_at_every_logged_step(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    params = make_params(losses=ALL_ON)
    result = train_router(params, folders.inputs, folders.outputs("whole"))
    rows, first = folders.curve("whole"), first_phase_steps(params.experiment, params.profile.train)
    assert [row["step"] for row in rows] == list(range(first + 1, 21))
    for row in rows + folders.curve("whole", validation=True):
        weighted = [value for name, value in row.items() if name.endswith("_weighted")]
        assert row["total"] == pytest.approx(sum(weighted), abs=1e-5)
    assert {name.removesuffix("_raw") for name in rows[-1] if name.endswith("_raw")} == {*TEXT_TERMS, *ALL_ON}
    assert {"expert_share_0", "expert_share_1", "expert_share_2", "expert_entropy", "gate_divergence"} <= rows[
        -1
    ].keys()
    assert rows[-1]["gate_divergence"] > 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "go up to 4, the teacher has 3 experts" in line]
    lines = [line for line in said if " total " in line]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        total, *shown = line.split(" total ")[1].split("  lr ")[0].split("  ")
        assert float(total) == pytest.approx(row["total"], abs=6e-4), "three digits are shown"
        terms = dict(term.split() for term in shown)
        assert {"lm", "kd"} <= terms.keys()
        for name, value in terms.items():
            assert float(value) == pytest.approx(row[f"{name}_raw"], abs=6e-4)
    assert result.final.experts is not None


def test_a_dense_teacher_has_no_router_and_all_else_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = make_folders(tmp_path, make_teacher("dense"))
    result = train_router(make_params(losses=ALL_ON), folders.inputs, folders.outputs("dense"))
    said = [line for line in capsys.readouterr().out.splitlines() if "router is off" in line]
    assert said == ["train_router: the teacher has no experts; the router is off"]
    assert result.final.terms.keys() == {*TEXT_TERMS, *HIDDEN_TERMS}
    assert result.final.experts is None
    assert not [name for name in folders.curve("dense")[0] if name.startswith(("expert", "gate", "router"))]
    exported = AutoModelForCausalLM.from_pretrained(folders.outputs("dense").student)
    assert exported.num_parameters() == AutoModelForCausalLM.from_pretrained(folders.inputs.student).num_parameters()


def test_other_families_train_too(tmp_path: Path) -> None:
    """OLMoE does not normalise the weights of the chosen experts."""
    teacher = random_moe("olmoe", 1)
    folders = make_folders(tmp_path, teacher)
    assert not teacher.config.norm_topk_prob
    result = train_router(make_params(losses=ALL_ON), folders.inputs, folders.outputs("olmoe"))
    assert math.isfinite(result.final.total)
    assert result.skipped_steps == 0


def test_fewer_positions_than_a_router_needs_are_refused_from_the_first_phase_on(folders: Folders) -> None:
    per_window = ShardReader(folders.root / "targets/train", "moe-distill/teacher-targets").rows("hidden") / 24
    assert 3 * per_window < 256 <= 4 * per_window
    refused = make_params(batch_windows=3, micro_batch_windows=3)
    for stage in (train_kd, train_router):
        with pytest.raises(ConfigError, match=r"a step sees 192 .* needs 256.*hidden_fraction"):
            stage(refused, folders.inputs, folders.outputs("few"))
    accepted = make_params(batch_windows=4, micro_batch_windows=2)
    train_router(accepted, folders.inputs, folders.outputs("enough"))


@pytest.fixture(scope="module", params=["qwen3_moe_top1", "dense"])
def without_states(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Captured with `hidden_fraction: 0`."""
    teacher = make_teacher(request.param)
    return make_folders(tmp_path_factory.mktemp("stateless"), teacher, hidden_fraction=0.0)


@pytest.mark.parametrize("head", ["none", "missing", "damaged"])
def test_without_terms_of_states_neither_states_nor_the_teachers_head_are_needed(
    without_states: Folders, tmp_path: Path, head: str
) -> None:
    params = make_params(capture={"hidden_fraction": 0.0}, losses=NONE_ON)
    folder = tmp_path / "head"
    if head == "damaged":
        shutil.copytree(without_states.root / "head", folder)
        for path in folder.iterdir():
            path.write_bytes(b"damaged")
    inputs = replace(without_states.inputs, teacher_head=None if head == "none" else folder)
    for stage in (train_kd, train_router):
        name = f"{stage.__name__} {head}"
        result = stage(params, inputs, without_states.outputs(name))
        assert result.final.terms.keys() == {"lm", "kd"}
        assert result.final.experts is None
        assert result.skipped_steps == 0
        for row in without_states.curve(name, stage=stage.__name__):
            assert {each for each in row if each.endswith(("_raw", "_weighted"))} == {
                f"{term}_{kind}" for term in TEXT_TERMS for kind in ("raw", "weighted")
            }
            assert not [each for each in row if each.startswith(("expert", "gate"))]
            assert row["total"] == pytest.approx(row["lm_weighted"] + row["kd_weighted"])


@pytest.mark.parametrize("stage", [train_kd, train_router])
@pytest.mark.parametrize("term", ["feature", "router_balance"])
def test_terms_of_states_are_refused_where_the_shards_have_none(
    without_states: Folders, stage: Callable[..., Result], term: str
) -> None:
    params = make_params(capture={"hidden_fraction": 0.0}, losses=NONE_ON | {term: 0.1})
    outputs = without_states.outputs("refused")
    with pytest.raises(ConfigError, match=r"has no hidden states of the teacher, and `losses` asks for them"):
        stage(params, without_states.inputs, outputs)
    assert not outputs.work.exists()


def test_a_study_without_terms_of_states_does_not_read_those_there_are(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> None:
        raise AssertionError("states were read")

    monkeypatch.setattr(loader, "read_hidden_runs", refused)
    monkeypatch.setattr(phases, "load_teacher_head", refused)
    result = train_router(make_params(losses=NONE_ON), folders.inputs, folders.outputs("text alone"))
    assert result.final.terms.keys() == {"lm", "kd"}
    with pytest.raises(AssertionError):
        train_router(make_params(losses=ALL_ON), folders.inputs, folders.outputs("not text alone"))


def collapsed(*arguments: Any, **keywords: Any) -> Heads:
    """Heads whose gate gives everything to expert 2."""
    heads = make_heads(*arguments, **keywords)
    torch.nn.init.constant_(heads.gate_bias[2], 8.0)
    return heads


DEFAULT = fixed_params().experiment.losses.model_dump()
BALANCE_ALONE = dict.fromkeys(DEFAULT, 0.0) | {"router_balance": DEFAULT["router_balance"]}


@pytest.mark.parametrize("losses", [BALANCE_ALONE, DEFAULT], ids=["balance alone", "all default terms"])
def test_r11_a_forced_collapse_is_reported_at_once_and_undone_by_balance(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], losses: dict[str, float]
) -> None:
    monkeypatch.setattr(phases, "make_heads", collapsed)
    params = make_params(losses=losses, max_steps=100, log_every=10, validate_every=100, router_learning_rate=0.1)
    name = f"collapse {len(set(losses.values()))}"
    train_router(params, folders.inputs, folders.outputs(name))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "collapsed" in line]
    rows = folders.curve(name)
    first = first_phase_steps(params.experiment, params.profile.train)
    assert rows[0]["step"] <= first + 10, "one log interval"
    assert rows[0]["expert_share_2"] > 0.99
    assert rows[0]["expert_entropy"] < 0.1
    assert "the router has collapsed: expert 2 takes 100% of the weight" in warnings[0]
    assert rows[-1]["expert_entropy"] > 0.9 * math.log(3)
    assert len(warnings) < len(rows) / 2
