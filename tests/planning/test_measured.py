"""The loops of the stages, run on the shapes of profile `test`."""

import math
from pathlib import Path

import pytest
import torch

from moe_distill.config.params import Params
from moe_distill.config.profile import Capture
from moe_distill.errors import ResourceError
from moe_distill.planning.amounts import row_share
from moe_distill.planning.devices import find_device
from moe_distill.planning.measured import measure_rates
from moe_distill.planning.model_configs import find_configs
from moe_distill.planning.model_work import count_work
from moe_distill.planning.rates import Rates, estimate_rates
from moe_distill.planning.synthetic_inputs import write_windows
from tests.chain import Chain
from tests.params import fixed_params


def rates(params: Params, seconds: float) -> tuple[Rates, Rates]:
    """Measured, and estimated."""
    teacher, student = find_configs(params.profile)
    assert teacher is not None
    assert student is not None
    works, device = (count_work(teacher), count_work(student)), find_device(None)
    row = row_share(params, works[0])
    measured = measure_rates(params, device, (works[0], teacher), (works[1], student), row, seconds)
    return measured, estimate_rates(params, device, *works, row)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_whole(found: Rates) -> bool:
    values = vars(found) | found.training_token
    return all(0 < value < math.inf for value in values.values() if isinstance(value, float))


@pytest.mark.parametrize("twice", [False, True])
def test_models_that_are_not_here_are_measured_by_random_weights(workspace: Path, twice: bool) -> None:
    params = fixed_params()
    train = params.profile.train.model_copy(update={"gradient_checkpointing": twice})
    params = params.model_copy(update={"profile": params.profile.model_copy(update={"train": train})})
    measured, estimated = rates(params, 0.05)
    assert is_whole(measured)
    assert set(measured.training_token) == set(estimated.training_token) == {"control", "train_kd", "train_router"}
    assert measured.memory == estimated.memory, "on a CPU it stays an estimate"
    assert measured.training_token != estimated.training_token
    assert list(workspace.iterdir()) == [], "nothing is left behind"


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(("seconds", "own_batch"), [(1e-9, False), (60.0, True)])
def test_a_cpu_measures_no_more_windows_than_the_time_allows(
    monkeypatch: pytest.MonkeyPatch, seconds: float, own_batch: bool
) -> None:
    seen: list[int] = []

    def stop(*arguments: object) -> None:
        settings = arguments[4]
        assert isinstance(settings, Capture)
        seen.append(settings.batch_windows)
        raise torch.OutOfMemoryError

    monkeypatch.setattr("moe_distill.planning.measured.capture", stop)
    params = fixed_params()
    with pytest.raises(ResourceError):
        rates(params, seconds)
    assert params.profile.teacher.batch_windows > 1
    assert seen == [params.profile.teacher.batch_windows if own_batch else 1]


@pytest.mark.usefixtures("workspace")
def test_a_gpu_that_is_too_small_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 4 GiB")

    monkeypatch.setattr("moe_distill.planning.measured.capture", refuse)
    with pytest.raises(ResourceError, match=r"CUDA out of memory. Tried to allocate 4 GiB; leave out `--measure`"):
        rates(fixed_params(), 0.0)


def test_models_that_are_here_are_measured_themselves(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chain.folder)
    made: list[object] = []
    monkeypatch.setattr("moe_distill.planning.measured.write_model", lambda *arguments: made.append(arguments))
    measured, _ = rates(chain.params, 0.0)
    assert is_whole(measured)
    assert made == []


def test_a_teacher_without_experts_has_no_router_to_measure(workspace: Path) -> None:
    values = fixed_params().model_dump()
    dense = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    dense |= {"num_key_value_heads": 1, "intermediate_size": 48, "vocab_size": 300, "tie_word_embeddings": True}
    values["profile"]["models"]["teacher"] = {"kind": "hub", "repository": "a/b", "revision": "0", "config": dense}
    measured, _ = rates(Params.model_validate(values), 0.0)
    assert is_whole(measured)
    assert list(workspace.iterdir()) == []


def test_synthetic_windows_are_full_and_aligned_one_by_one(tmp_path: Path) -> None:
    teacher, student = write_windows(tmp_path, 3, (5, 7), (11, 13))
    assert teacher.token_counts.tolist() == [5] * 3
    assert student.token_counts.tolist() == [7] * 3
    for window in range(3):
        rows, next_ids = (student.tokens(name, window) for name in ("teacher_rows", "next_teacher_ids"))
        assert rows.tolist() == [*range(5 * window, 5 * window + 5), -1, -1]
        assert next_ids[:5].tolist() == teacher.tokens("token_ids", window).tolist()
