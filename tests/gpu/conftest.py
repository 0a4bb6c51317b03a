"""Every stage at the real pair's sizes on a GPU (`make test-gpu`), and at toy sizes wherever the tests run.

The toy keeps the code of the real one from rotting. What only a GPU can show, its memory, is not known there.
"""

import gc
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from device_measures import peak_memory
from random_pair import REAL, TOY, Pair, make_teacher
from random_run import RandomRun, make_run, short_params, train
from transformers import PreTrainedModel

from moe_distill.training.result import Result
from moe_distill.utils.device import PRECISIONS, seed_everything

CARD_BYTES = 16e9  # of a P100 or a T4: a larger card is limited to them
STEPS = 10  # of both phases, half of them in each
RATE = 1e-3  # the profile's moves nothing in so few steps
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@dataclass(frozen=True)
class Setting:
    """Sizes, and the device that they run on."""

    pair: Pair
    device: torch.device

    def require(self, precision: str) -> None:
        """Skip what the card would only emulate."""
        if precision == "bf16" and self.device.type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
            pytest.skip("no bf16 below compute capability 8.0")

    def teacher(self, precision: str) -> PreTrainedModel:
        seed_everything(0)
        return make_teacher(self.pair, PRECISIONS[precision], self.device)


@dataclass(frozen=True)
class WholeRun:
    """The teacher's pass and the three trainings in one precision."""

    folders: RandomRun
    results: dict[str, Result]  # by stage
    peaks: dict[str, int]  # bytes, by stage; empty on a CPU


@dataclass(frozen=True)
class WholeRuns:
    """Runs by precision, each made once, in a folder of its own."""

    setting: Setting
    folder: Path
    made: dict[str, WholeRun] = field(default_factory=dict)

    def of(self, precision: str) -> WholeRun:
        self.setting.require(precision)
        if precision not in self.made:
            self.made[precision] = _run(self.setting, precision, self.folder / precision)
        return self.made[precision]


@pytest.fixture(
    scope="session",
    params=[pytest.param("toy", id="toy"), pytest.param("real", id="real", marks=[pytest.mark.gpu, no_gpu])],
)
def setting(request: pytest.FixtureRequest) -> Setting:
    if request.param == "toy":
        return Setting(TOY, torch.device("cpu"))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_BYTES / total))
    return Setting(REAL, torch.device("cuda"))


@pytest.fixture(scope="session")
def runs(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> WholeRuns:
    return WholeRuns(setting, tmp_path_factory.mktemp("runs"))


def _run(setting: Setting, precision: str, folder: Path) -> WholeRun:
    params, peaks = short_params(setting.pair, precision, STEPS, learning_rate=RATE, checkpoint_every=2 * STEPS), {}
    n_windows = {"train": params.profile.train.batch_windows, "validation": 8}
    teacher = setting.teacher(precision)
    with peak_memory(setting.device) as peak:
        folders = make_run(folder, setting.pair, teacher, n_windows)
    peaks["teacher"] = peak
    del teacher
    gc.collect()  # parts of a model refer to each other
    results = {}
    for stage in ("train_kd", "train_router", "control"):
        previous = folder / "train_kd" if stage == "train_router" else None
        with peak_memory(setting.device) as peak:
            results[stage] = train(folders, stage, params, folder / stage, previous)
        peaks[stage] = peak
    return WholeRun(folders, results, {stage: found[0] for stage, found in peaks.items() if found})
