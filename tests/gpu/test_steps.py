"""Single steps: no waiting for the device, the same values on the paths that a P100 takes, and a resume to the bit."""

import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gpu_check import make_case
from random_run import short_params, train
from safetensors.torch import load_file
from step_kinds import make_step
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.integrations import moe

from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.forward import forward
from moe_distill.utils.device import Runtime
from tests.gpu.conftest import Setting, WholeRuns
from tests.training.test_no_host_sync import EXEMPT, WaitsForTheDevice

MICRO_BATCHES = 2
TOLERANCE = 1e-3  # nats, bits per byte


@contextmanager
def waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count what waits for the device, by name: what is called, on a CPU; who calls, on a GPU."""
    if device.type == "cpu":
        with WaitsForTheDevice() as counted:
            yield counted.seen
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with noted_warnings() as seen:
            yield seen
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def noted_warnings() -> Iterator[Counter[str]]:
    """Count torch's warnings of a wait, by the function that caused them."""
    seen: Counter[str] = Counter()

    def note(message: Warning | str, *_others: object, **_named: object) -> None:
        if "synchronizing CUDA operation" in str(message):
            frames = traceback.extract_stack()[:-1]  # but this one
            names = [frame.name for frame in frames if frame.filename != warnings.__file__]
            seen[EXEMPT if EXEMPT in names else names[-1]] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield seen


def test_warnings_of_a_wait_are_counted_by_the_function_that_waits() -> None:
    def find_packed_sequence_indices() -> None:
        reads()

    def reads() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    with noted_warnings() as seen:
        for _ in range(2):
            find_packed_sequence_indices()
        reads()
        warnings.warn("of something else", stacklevel=1)
    assert seen == {EXEMPT: 2, "reads": 1}


@pytest.mark.parametrize("kind", ["lm", "kd", "phase2"])
def test_a_step_waits_for_the_device_once(setting: Setting, kind: str) -> None:
    runtime = Runtime(setting.device, torch.float16)
    step = make_step(make_case(setting.pair, setting.teacher("fp16"), runtime, MICRO_BATCHES), kind)
    for number in range(2):  # the first makes the optimizer's state
        with waits(setting.device) as seen:
            update = step(number)
        assert update is not None
        assert update.applied
        assert seen.pop(EXEMPT) == MICRO_BATCHES
        assert sum(seen.values()) == 1, seen


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by matrix products: a P100 has no flash kernels."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


PATHS: dict[str, Callable[[pytest.MonkeyPatch], str]] = {
    # what transformers falls back to below compute capability 8.0, and what it calls eager
    "fallback": lambda patched: patched.setattr(moe, "_can_use_grouped_mm", lambda *_: False) or "grouped_mm",
    "eager": lambda _patched: "eager",
}


@pytest.mark.parametrize("path", PATHS)
def test_a_p100s_experts_and_attention_give_the_same_states(
    setting: Setting, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = setting.teacher("fp16")
    architecture, layers = find_architecture(teacher), [1, 2]
    head = architecture.decoder.head.to_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(1, setting.pair.teacher.vocabulary, (4, 100), generator=generator).to(setting.device)
    expected, in_fp32 = forward(teacher, architecture, ids_BL, layers)
    assert not in_fp32
    teacher.set_experts_implementation(PATHS[path](monkeypatch))
    with math_attention():
        found, in_fp32 = forward(teacher, architecture, ids_BL, layers)
    assert not in_fp32
    one, other = (head.logits(states.final_BLT.flatten(0, 1)).log_softmax(-1) for states in (expected, found))
    labels = ids_BL.flatten()[:, None]
    assert float((one.gather(1, labels) - other.gather(1, labels)).mean().abs()) < TOLERANCE
    assert float((one - other).abs().max()) < 0.1
    assert expected.moe_input_BLT is not None
    assert found.moe_input_BLT is not None


@pytest.mark.parametrize("kind", ["kd", "phase2"])
def test_a_p100s_attention_gives_the_same_step(setting: Setting, kind: str) -> None:
    teacher = setting.teacher("fp16")
    losses = []
    for context in (warnings.catch_warnings, math_attention):
        torch.manual_seed(0)
        case = make_case(setting.pair, teacher, Runtime(setting.device, torch.float16), MICRO_BATCHES)
        with context():
            update = make_step(case, kind)(0)
        assert update is not None
        assert update.applied
        losses.append(update.loss)
    assert losses[1] == pytest.approx(losses[0], abs=TOLERANCE)


@pytest.mark.parametrize("stage", ["train_kd", "train_router"])
def test_r21_a_resumed_training_has_the_same_bits(runs: WholeRuns, tmp_path: Path, stage: str) -> None:
    """Unless two unbroken ones have not: then a kernel of the card adds in no fixed order, and a resume cannot help."""
    folders = runs.of("fp16").folders
    previous = folders.root / "train_kd" if stage == "train_router" else None
    last = {"train_kd": 4, "train_router": 8}[stage]
    saving, plain = (
        short_params(runs.setting.pair, "fp16", max_steps=8, checkpoint_every=every) for every in (last - 1, 100)
    )
    train(folders, stage, saving, tmp_path / "unbroken", previous)
    train(folders, stage, plain, tmp_path / "again", previous)
    checkpoint = f"checkpoint_{last - 1:06}"
    shutil.copytree(tmp_path / "unbroken" / checkpoint, tmp_path / "resumed" / checkpoint)
    train(folders, stage, plain, tmp_path / "resumed", previous)
    unbroken, again, resumed = (
        load_file(tmp_path / each / "export/model.safetensors") for each in ("unbroken", "again", "resumed")
    )
    if any(not torch.equal(weight, again[name]) for name, weight in unbroken.items()):
        pytest.xfail("two unbroken trainings differ on this card: a kernel adds in no fixed order")
    assert all(torch.equal(weight, resumed[name]) for name, weight in unbroken.items())
