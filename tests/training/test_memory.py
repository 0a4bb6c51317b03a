"""What the replay of a step holds at once, in counted bytes, at the real pair's sizes (no tensor has content)."""

import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_distill.replay.block import TeacherHead
from moe_distill.replay.head import HeadDescription
from moe_distill.shards.teacher_store import TAIL_TEMPERATURES, TeacherRows
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.token_shares import MAX_STUDENT_TOKENS, VocabularyMap
from moe_distill.training.batch import Batch, HiddenRuns
from moe_distill.training.routed_kd import routed_kd, routed_text
from moe_distill.training.routing import RouterSettings, route, routed_state_terms
from moe_distill.training.student import Heads

WINDOWS, LENGTH, K, TAIL_SAMPLES = 4, 384, 64, 32
EXPERTS, TEACHER_SIZE, EXPERT_SIZE, TEACHER_VOCABULARY = 3, 1024, 3072, 151_936
STUDENT_SIZE, STUDENT_ROWS = 576, 49_152
CHUNK_TOKENS = 512  # profiles/p100.yaml
LIMIT = 1.5 * 2**30


class CountedMemory(TorchDispatchMode):
    """Bytes of all storages made inside, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, _types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return result

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            weakref.finalize(storage, self._free, key, size)
            self.live += size
            self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def test_bytes_are_counted_while_tensors_live() -> None:
    with CountedMemory() as memory:
        first = torch.empty(1000, device="meta")
        view = first[10:]
        second = (first + 1).sum()
        del first
        assert memory.live == 4004, "a view keeps its storage; the sum's argument is gone"
        del view, second
        assert (memory.live, memory.peak, memory.largest) == (0, 8004, 4000)
        free = torch.empty(1000, device="meta", requires_grad=True)
        total = (2 * free).exp().sum()
        assert memory.live == 8004, "autograd keeps what exp gave"
        del total
        assert memory.live == 4000


def real_head() -> TeacherHead:
    shapes = {
        "final_norm": (TEACHER_SIZE,),
        "output": (TEACHER_VOCABULARY, TEACHER_SIZE),
        "moe_norm": (TEACHER_SIZE,),
        "gate": (EXPERTS, TEACHER_SIZE),
        "gate_up": (EXPERTS, 2 * EXPERT_SIZE, TEACHER_SIZE),
        "down": (EXPERTS, TEACHER_SIZE, EXPERT_SIZE),
    }
    description = HeadDescription(
        teacher_fingerprint="",
        num_experts=EXPERTS,
        experts_per_token=1,
        normalizes_topk=True,
        activation="silu",
        norm_epsilon=1e-6,
        weights_sha256="",
    )
    return TeacherHead(description, {name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()})


def real_batch() -> tuple[Batch, HiddenRuns]:
    """Four windows of 384 positions, every one aligned and with teacher states."""
    n = WINDOWS * LENGTH
    places = torch.empty(n, dtype=torch.int64)
    runs = HiddenRuns(
        windows_W=places[:WINDOWS],
        places_WR=places.view(WINDOWS, LENGTH),
        mask_WR=torch.empty(WINDOWS, LENGTH, dtype=torch.bool),
        filled_N=places,
        states_WRSD=torch.empty(WINDOWS, LENGTH, 2, TEACHER_SIZE),
        moe_input_WRD=torch.empty(WINDOWS, LENGTH, TEACHER_SIZE),
    )
    rows = TeacherRows(
        topk_ids=torch.empty(n, K, dtype=torch.int64),
        topk_logprobs=torch.empty(n, K),
        tail_logsumexp=torch.empty(n, len(TAIL_TEMPERATURES)),
        tail_ids=torch.empty(n, TAIL_SAMPLES, dtype=torch.int64),
        tail_logprobs=torch.empty(n, TAIL_SAMPLES),
        tail_log_density=torch.empty(n, TAIL_SAMPLES),
        target_logprob=torch.empty(n),
    )
    inputs = places.view(WINDOWS, LENGTH)
    return Batch(inputs, places, places, places, rows, places, runs, inside=None, chunks=None, n_bytes=4 * n), runs


def widest_target(rows: TeacherRows, *_others: object, **_more: object) -> SparseTarget:
    """As many entries as there can be: how many there are depends on contents, and here are none."""
    logprobs = rows.topk_logprobs.repeat(1, MAX_STUDENT_TOKENS)
    ids, nothing = torch.empty(logprobs.shape, dtype=torch.int64), logprobs[:, :0]
    return SparseTarget(ids, logprobs, 1.0 - logprobs.exp().sum(-1), ids[:, :0], nothing)


@pytest.mark.parametrize("with_router_kd", [False, True])
def test_replay_of_a_real_step_fits_in_one_and_a_half_gib_beyond_the_student(
    with_router_kd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_distill.training.routed_kd.sparse_target", widest_target)
    with torch.device("meta"):
        student_WRD = torch.empty(WINDOWS, LENGTH, STUDENT_SIZE, requires_grad=True)
        weight_VD = torch.empty(STUDENT_ROWS, STUDENT_SIZE, requires_grad=True)
        shape = (TEACHER_VOCABULARY, MAX_STUDENT_TOKENS)
        vocabulary_map = VocabularyMap(
            torch.empty(shape, dtype=torch.int64),
            torch.empty(shape),
            torch.empty(TEACHER_VOCABULARY),
            torch.empty(STUDENT_ROWS),
        )
        with CountedMemory() as memory:
            head, (batch, runs) = real_head(), real_batch()
            heads = Heads([15, 30], STUDENT_SIZE, TEACHER_SIZE, EXPERTS).to("meta")
            resident, memory.largest = memory.live, 0
            routing = route(heads, head, student_WRD, runs, RouterSettings(1.0, EXPERTS, 0.0, 0))
            weights = {"router_feature": 1.0, "router_attention": 1.0}
            terms = routed_state_terms(heads, routing, student_WRD, runs, weights, WINDOWS * LENGTH)
            total = torch.stack([term.weighted for term in terms.values()]).sum()
            if with_router_kd:
                text = routed_text(batch, runs, student_WRD, routing.routed_WRT)
                total = (
                    total + routed_kd(text, weight_VD, head, vocabulary_map, 1.0, "map_then_temper", CHUNK_TOKENS).sum()
                )
            total.backward()
    assert student_WRD.grad is not None
    output_matrix = TEACHER_VOCABULARY * TEACHER_SIZE * 2
    assert resident > output_matrix + EXPERTS * 3 * TEACHER_SIZE * EXPERT_SIZE * 2, "the head is counted"
    assert memory.peak <= LIMIT
    whole_logits = WINDOWS * LENGTH * STUDENT_ROWS * 4
    assert memory.largest < whole_logits / 2, "no [positions, vocabulary], no copy of the output matrix"
