"""Teacher states of windows, read from real shards."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_distill.batches.batch import HiddenRuns
from moe_distill.batches.hidden_runs import read_hidden_runs
from moe_distill.batches.split import Split, open_split
from moe_distill.replay.block import TeacherHead, block_input, gate_logits, load_teacher_head
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore
from moe_distill.training.routing import RouterSettings, read_gate, student_aware_logits
from moe_distill.training.student import make_heads
from tests.replay.teachers import FAMILIES
from tests.replay.teachers import make_teacher as random_moe
from tests.stores import Stores
from tests.teacher.conftest import make_teacher
from tests.training.folders import Folders, make_folders

NUMBERS, LENGTH = [3, 0, 11], 70


@pytest.fixture(scope="module", params=FAMILIES)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp(request.param), random_moe(request.param, 1))


def open_train(folders: Folders) -> Split:
    return open_split(folders.root / "windows/train", folders.root / "targets/train")


def read(split: Split, numbers: list[int], noise_seed: int = 0) -> HiddenRuns:
    assert split.shards is not None
    runs = read_hidden_runs(split.windows, split.shards, numbers, LENGTH, noise_seed)
    assert runs is not None
    return runs


def moe_inputs(runs: HiddenRuns) -> Tensor:
    assert runs.moe_input_WPT is not None
    return runs.packed(runs.moe_input_WPT)


def head_of(folders: Folders) -> TeacherHead:
    return load_teacher_head(folders.root / "head", torch.device("cpu"))


def test_a_run_stands_where_its_positions_are_in_the_batch(folders: Folders) -> None:
    """Row by row from the shards; each student position here is aligned with the teacher's of the same number."""
    split = open_train(folders)
    assert split.shards is not None
    runs, first = read(split, NUMBERS), 0
    for place, number in enumerate(NUMBERS):
        span = split.windows.span(number)
        file, _ = split.shards.locate("positions", span.start)
        rows = split.shards.column("hidden_rows", file)
        is_own = (rows >= span.start) & (rows < span.stop)
        n = int(is_own.sum())
        assert n == 64
        assert runs.places_WP[place, :n].tolist() == (rows[is_own] - span.start + place * LENGTH).tolist()
        stored, scales = (split.shards.column(name, file)[is_own] for name in ("hidden", "hidden_scales"))
        assert torch.equal(runs.states_WPST[place, :n], stored.float() * scales[..., None])
        assert runs.router_logits_NE is not None
        logits = split.shards.column("router_logits", file)[is_own]
        assert torch.equal(runs.router_logits_NE[first : first + n], logits[:, 0].float())
        first += n
    assert len(runs.filled_N) == first


def test_every_stored_state_is_read_the_last_one_of_a_file_too(folders: Folders) -> None:
    split = open_train(folders)
    assert split.shards is not None
    n_last = len(split.shards.column("hidden_rows", 0))
    assert 0 < n_last < split.shards.rows("hidden"), "there are several files"
    assert len(read(split, [*range(len(split.windows))]).filled_N) == split.shards.rows("hidden")


def test_r15_replayed_gate_logits_are_the_stored_ones(folders: Folders) -> None:
    """Within the rounding of both to fp16."""
    runs, head = read(open_train(folders), [*range(24)]), head_of(folders)
    assert runs.router_logits_NE is not None
    replayed = gate_logits(head, block_input(head, moe_inputs(runs)))
    largest = float(replayed.abs().max())
    assert largest > 0.5
    torch.testing.assert_close(runs.router_logits_NE, replayed, atol=2**-10 * largest, rtol=2**-10)


def test_r15_the_gate_begins_as_the_stored_one(folders: Folders) -> None:
    runs, head = read(open_train(folders), NUMBERS), head_of(folders)
    heads = make_heads([1], 16, len(head.tensors["final_norm"]), head.num_experts, seed=0)
    states = torch.randn(*runs.places_WP.shape, 16, generator=torch.Generator().manual_seed(0))
    gate = read_gate(states, runs, RouterSettings(1.0, 1, 0.0))
    assert runs.router_logits_NE is not None
    assert torch.equal(student_aware_logits(heads, gate), runs.router_logits_NE)


def test_r28_noise_is_seeded_by_step_and_window(folders: Folders) -> None:
    """However a step is split."""
    split = open_train(folders)

    def noise(numbers: list[int], seed: int) -> Tensor:
        drawn = read(split, numbers, seed).gate_noise_NE
        assert drawn is not None
        return drawn

    drawn = noise(NUMBERS, 5)
    assert torch.equal(drawn, noise(NUMBERS, 5))
    assert not torch.equal(drawn, noise(NUMBERS, 6))
    assert drawn.std() == pytest.approx(1.0, rel=0.2)
    assert not torch.equal(drawn[:64], drawn[64:128])
    assert torch.equal(torch.cat([noise([number], 5) for number in NUMBERS]), drawn)
    of_a_window = torch.randn(64, drawn.shape[1], generator=torch.Generator().manual_seed(5 * 1_000_003 + 3))
    assert torch.equal(drawn[:64], of_a_window)


def test_a_shorter_run_is_padded(folders: Folders) -> None:
    """The student shares fewer positions of one window."""
    split = open_train(folders)
    windows = WindowStore(folders.root / "windows/train", STUDENT_WINDOWS)
    span = windows.span(0)
    windows.tokens("teacher_rows", 0)[10 : span.stop - span.start : 2] = -1
    assert split.shards is not None
    runs, whole = read_hidden_runs(windows, split.shards, [0, 3], LENGTH, 7), read(split, [0, 3], 7)
    assert runs is not None
    n = int(runs.mask_WP[0].sum())
    assert 20 < n < 64
    assert runs.mask_WP.sum(1).tolist() == [n, 64]
    assert runs.filled_N.tolist() == [*range(n), *range(64, 128)]
    assert not runs.states_WPST[0, n:].any()
    kept = torch.isin(whole.places_WP[0], runs.places_WP[0, :n])
    assert torch.equal(runs.states_WPST[0, :n], whole.states_WPST[0, kept])
    assert torch.equal(runs.states_WPST[1], whole.states_WPST[1])


def test_a_dense_teacher_has_states_alone(tmp_path: Path) -> None:
    runs = read(open_train(make_folders(tmp_path, make_teacher("dense"))), NUMBERS)
    assert (runs.moe_input_WPT, runs.router_logits_NE, runs.gate_noise_NE) == (None, None, None)
    assert runs.states_WPST.shape == (3, 64, 2, 32)


@pytest.mark.parametrize("family", ["qwen3_moe_top1", "dense"])
def test_windows_without_states_have_no_runs(tmp_path: Path, family: str) -> None:
    folders = make_folders(tmp_path, make_teacher(family), hidden_fraction=0.0)
    shards = open_targets(folders.root / "targets/train")
    assert shards.rows("hidden") == 0
    windows = WindowStore(folders.root / "windows/train", STUDENT_WINDOWS)
    assert read_hidden_runs(windows, shards, NUMBERS, LENGTH, 0) is None


def test_a_window_without_an_aligned_position_has_no_run(stores: Stores) -> None:
    assert set(stores.teacher_rows[3]) == {-1}
    assert read_hidden_runs(stores.student, stores.targets, [3], 20, 0) is None
