"""A replay that is not what the teacher ran is seen before the router trains on it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_distill.replay.block import TeacherHead, load_teacher_head
from moe_distill.replay.head import write_head
from moe_distill.shards.teacher_store import open_targets
from moe_distill.training.phases import train_router
from moe_distill.training.replay_check import replay_fault
from tests.replay.teachers import FAMILIES, make_teacher
from tests.training.folders import Folders, make_folders, make_params

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("replay"), make_teacher(request.param, 0), hidden_layers=[0, 1])


def changed(head: TeacherHead, what: str) -> TeacherHead:
    """As the head of another kind of block would be read."""
    tensors = dict(head.tensors)
    if what == "norm":  # (1 + w), as Gemma has it
        tensors["moe_norm"] = tensors["moe_norm"] + 1.0
    if what == "expert":  # a scaling factor that is not known of
        tensors["down"] = 2.5 * tensors["down"]
    if what == "gate":
        tensors["gate"] = tensors["gate"] + 0.1
    return replace(head, tensors=tensors)


def test_r15_the_families_that_are_known_replay_as_cached(folders: Folders) -> None:
    head = load_teacher_head(folders.inputs.teacher_head or Path(), CPU)
    assert replay_fault(open_targets(folders.root / "targets/train"), head) is None


@pytest.mark.parametrize(
    ("what", "named"), [("norm", "router logits"), ("expert", "log-prob"), ("gate", "router logits")]
)
def test_r15_another_block_is_told_by_what_differs(folders: Folders, what: str, named: str) -> None:
    head = changed(load_teacher_head(folders.inputs.teacher_head or Path(), CPU), what)
    fault = replay_fault(open_targets(folders.root / "targets/train"), head)
    assert fault is not None
    assert named in fault


def test_r15_the_router_is_off_where_replay_is_another_block(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = load_teacher_head(folders.inputs.teacher_head or Path(), CPU)
    write_head(tmp_path / "head", changed(head, "expert").tensors, head.description)
    inputs = replace(folders.inputs, teacher_head=tmp_path / "head")
    result = train_router(
        make_params(capture={"hidden_layers": [0, 1]}, max_steps=4), inputs, folders.outputs(tmp_path.name)
    )
    assert result.final.experts is None
    assert not [name for name in result.final.terms if name.startswith("router")]
    assert "feature" in result.final.terms
    assert "the router is off" in capsys.readouterr().out
