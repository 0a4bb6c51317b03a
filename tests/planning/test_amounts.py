"""Bytes that a plan tells, against what the stages write."""

from pathlib import Path
from random import Random

import pytest
from transformers import AutoModelForCausalLM

from moe_distill.config.params import Params
from moe_distill.planning.amounts import count_amounts, count_bytes
from moe_distill.planning.devices import find_device
from moe_distill.planning.model_configs import find_configs
from moe_distill.planning.model_work import count_work
from moe_distill.teacher.architecture import find_architecture
from tests.params import fixed_params


@pytest.mark.parametrize(("device", "share"), [("CPU", 1.0), ("T4", 0.5), ("A100", 0.5)])
def test_the_head_is_in_the_precision_that_the_device_captures_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, share: float
) -> None:
    """`auto` is fp32 on a CPU; the norm is not counted."""
    monkeypatch.chdir(tmp_path)
    params = fixed_params("tiny")
    teacher, student = find_configs(params.profile)
    assert teacher is not None
    assert student is not None
    of_both = (count_work(teacher), teacher), (count_work(student), student)
    stored = count_bytes(params, count_amounts(params, {}, {}), *of_both, find_device(device))
    written = find_architecture(AutoModelForCausalLM.from_config(teacher)).head_bytes  # in fp32
    assert stored.head == pytest.approx(share * written, rel=0.01)


def test_the_corpus_is_that_of_its_files_where_they_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    values = fixed_params("tiny").model_dump()
    values["profile"]["corpus"]["sources"] = [{"kind": "files", "paths": ["mine.txt"]}]
    params = Params.model_validate(values)
    teacher, student = find_configs(params.profile)
    assert teacher is not None
    assert student is not None
    of_both = (count_work(teacher), teacher), (count_work(student), student)
    amounts, device = count_amounts(params, {}, {}), find_device("CPU")
    assert count_bytes(params, amounts, *of_both, device).corpus == 0
    Path("mine.txt").write_bytes(Random(0).randbytes(300_000).hex().encode())
    assert count_bytes(params, amounts, *of_both, device).corpus == pytest.approx(300_000, rel=0.15)
