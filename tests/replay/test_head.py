"""The teacher's head on disk."""

import math
from pathlib import Path

import pytest
import torch

from moe_distill.errors import DataError
from moe_distill.replay.head import HeadDescription, read_head, write_head

CPU = torch.device("cpu")


def test_a_head_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = {"gate": torch.arange(32.0).view(4, 8) / 7, "output": torch.arange(160.0).view(20, 8).half() / 7}
    write_head(tmp_path, tensors, HeadDescription(teacher_fingerprint="a", num_experts=4, output_scale=0.22))
    description, found = read_head(tmp_path, CPU)
    assert (description.teacher_fingerprint, description.num_experts, description.output_scale) == ("a", 4, 0.22)
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype is each.dtype and torch.equal(found[name], each) for name, each in tensors.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    gate = torch.zeros(4, 8)
    gate[2, 3] = value
    write_head(tmp_path, {"gate": gate, "output": torch.zeros(20, 8)}, HeadDescription(teacher_fingerprint="a"))
    with pytest.raises(DataError, match=r"teacher_head\.safetensors: tensor gate"):
        read_head(tmp_path, CPU)
