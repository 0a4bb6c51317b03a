"""Value, gradients and memory of `text_loss`, against whole float64 tables and autograd."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_distill.evaluation.metrics import bits_per_byte
from moe_distill.losses import softmax as module
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, TextLoss, text_loss
from moe_distill.targets.sparse_target import SparseTarget, joined
from moe_distill.targets.stretches import stretches
from tests.targets.reference import PlainTextLoss, part_of, plain_text_loss, random_logits, text_of

SIZE, VOCABULARY = 16, 40
KINDS = ("ordinary", "masked", "empty", "full", "full_and_unmapped", "no_residual", "certain")
TAILS = ("sampled", "residual", "mixed")
EXACT = 1e-5  # of a sum, and of a gradient's norm


def target_of(kind: str, temperature: float, is_sampled: bool, seed: int) -> SparseTarget:
    """One position."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"masked": 0, "empty": 0, "full": VOCABULARY, "full_and_unmapped": VOCABULARY, "certain": 1}
    n_entries = sizes.get(kind, 7)
    residual = {"masked": 0.0, "empty": 1.0, "full": 0.0, "no_residual": 1e-9, "certain": 1e-5}.get(kind, 0.3)
    ids = torch.randperm(VOCABULARY, generator=generator)[:n_entries].sort().values
    probs = (1.0 - residual) * torch.rand(n_entries, generator=generator).softmax(0)
    n_samples = 5 if is_sampled and kind not in ("masked", "full", "full_and_unmapped") else 0
    rest = torch.tensor([each for each in range(VOCABULARY) if each not in ids.tolist()], dtype=torch.int64)
    drawn = torch.randint(len(rest), (n_samples,), generator=generator) if n_samples else torch.zeros(0).long()
    sample_probs = 0.9 * residual * torch.rand(n_samples, generator=generator).softmax(0)
    return SparseTarget(
        temperature=temperature,
        has_target_N=torch.tensor([kind != "masked"]),
        has_bucket_N=torch.tensor([kind != "masked" and not is_sampled]),
        residual_N=torch.tensor([residual]),
        listed_mass_N=(probs.sum() + sample_probs.sum())[None],
        entry_positions_Z=torch.zeros(n_entries, dtype=torch.int32),
        entry_ids_Z=ids.int(),
        entry_probs_Z=probs,
        sample_positions_Y=torch.zeros(n_samples, dtype=torch.int32),
        sample_ids_Y=rest[drawn].int(),
        sample_probs_Y=sample_probs,
    )


def targets_of(kinds: tuple[str, ...], temperature: float, tail: str) -> SparseTarget:
    """A position of each kind; with `mixed`, samples at every second one and buckets at the others."""
    is_sampled = {"sampled": [True, True], "residual": [False, False], "mixed": [True, False]}[tail]
    return joined([target_of(kind, temperature, is_sampled[seed % 2], seed) for seed, kind in enumerate(kinds)])


def student(n: int, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, an output matrix that makes logits of this scale, and labels."""
    hidden_ND, weight_VD = random_logits(n, SIZE, seed=1, scale=1.0), random_logits(VOCABULARY, SIZE, seed=2, scale=1.0)
    labels_N = torch.randint(VOCABULARY, (n,), generator=torch.Generator().manual_seed(3))
    return hidden_ND.requires_grad_(), (scale / math.sqrt(SIZE) * weight_VD).requires_grad_(), labels_N


def gradients(loss: Tensor, hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    of_hidden, of_weight = torch.autograd.grad(loss, (hidden_ND, weight_VD))
    return of_hidden, of_weight


def assert_near(found: Tensor, expected: Tensor, name: str, relative: float = EXACT) -> None:
    """Absolute where next to nothing is expected."""
    error = float((found.detach().double() - expected).norm())
    assert error <= relative * max(float(expected.norm()), 1e-2), (name, error, float(expected.norm()))


def assert_equals_plain(text: Text, kd_weight: float, scale: float = 3.0) -> None:
    hidden_ND, weight_VD, _ = student(len(text.labels_N), scale)
    found = text_loss(hidden_ND, OutputHead(weight_VD), text, kd_weight, torch.float32)
    plain = plain_text_loss(hidden_ND, weight_VD, text.labels_N, text.target, kd_weight)
    assert_values_equal(found, plain, has_kl=text.target is not None)
    pairs = zip(gradients(found.loss, hidden_ND, weight_VD), gradients(plain.loss, hidden_ND, weight_VD), strict=True)
    for name, (found_gradient, plain_gradient) in zip(("hidden states", "output matrix"), pairs, strict=True):
        assert_near(found_gradient, plain_gradient.double(), name)


def assert_values_equal(found: TextLoss, plain: PlainTextLoss, has_kl: bool) -> None:
    for name in ("loss", "nll", "weighted_nll"):
        assert_near(getattr(found, name), getattr(plain, name).detach(), name)
        assert getattr(found, name).dtype is torch.float32
    assert (found.kl is not None) is has_kl
    if found.kl is not None:
        assert_near(found.kl, plain.kl, "kl")


@pytest.mark.parametrize("kinds", [KINDS * 3, *((kind,) * 4 for kind in KINDS)], ids=["mixed", *KINDS])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("tail", TAILS)
def test_value_and_gradients_are_the_plain_ones(kinds: tuple[str, ...], temperature: float, tail: str) -> None:
    text = text_of(targets_of(kinds, temperature, tail), student(len(kinds))[2], chunk_tokens=4)
    for kd_weight in (0.7, 1.0):
        assert_equals_plain(text, kd_weight)


@pytest.mark.parametrize("scale", [0.01, 30.0, 300.0])  # even; certain; a softmax of zeros and ones in fp32
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", TAILS)
def test_flat_and_certain_students(scale: float, temperature: float, tail: str) -> None:
    text = text_of(targets_of(KINDS * 2, temperature, tail), student(2 * len(KINDS))[2])
    assert_equals_plain(text, 0.7, scale)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 5, 7, 13, 14, 100])
@pytest.mark.parametrize("tail", TAILS)
def test_stretches_that_cut_windows_change_nothing(chunk_tokens: int, tail: str) -> None:
    """Of 5, 1 and 8 positions."""
    windows = [KINDS[2:], KINDS[:1], (*KINDS, "ordinary")]
    target = joined([targets_of(kinds, 2.0, tail) for kinds in windows])
    assert_equals_plain(text_of(target, student(14)[2], chunk_tokens), 0.7)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 100])
def test_without_a_target_it_is_the_cross_entropy(chunk_tokens: int) -> None:
    text = Text(student(14)[2], None, stretches(14, chunk_tokens, None))
    assert_equals_plain(text, 0.7)


@pytest.mark.parametrize("block_values", [1, 3 * VOCABULARY, 10 * VOCABULARY + 7])
@pytest.mark.parametrize("tail", TAILS)
def test_blocks_of_rows_change_nothing(block_values: int, tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.BLOCK_VALUES, "cpu", block_values)
    target = targets_of(KINDS * 2, 2.0, tail)
    assert_equals_plain(text_of(target, student(14)[2]), 0.7)


@pytest.mark.parametrize("tail", [*TAILS, None])
@pytest.mark.parametrize("n", [0, 1])
def test_one_position_and_no_positions(tail: str | None, n: int) -> None:
    hidden_ND, weight_VD, labels_N = student(n)
    target = None if tail is None else part_of(targets_of(("ordinary",), 2.0, tail), 0, n)
    text = Text(labels_N, target, stretches(n, 4, target))
    assert_equals_plain(text, 0.7)
    found = text_loss(hidden_ND, OutputHead(weight_VD), text, 0.7, torch.float32)
    of_hidden, of_weight = gradients(found.loss, hidden_ND, weight_VD)
    assert (of_hidden.shape, of_weight.shape) == (hidden_ND.shape, weight_VD.shape)
    assert bool(of_weight.any()) is (n == 1)


@pytest.mark.parametrize("tail", [*TAILS, None])
def test_without_gradients_the_values_are_the_same(tail: str | None) -> None:
    hidden_ND, weight_VD, labels_N = student(14)
    target = None if tail is None else targets_of(KINDS * 2, 3.0, tail)
    text = Text(labels_N, target, stretches(14, 4, target))
    expected = text_loss(hidden_ND, OutputHead(weight_VD), text, 0.7, torch.float32)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            found = text_loss(hidden_ND, OutputHead(weight_VD), text, 0.7, torch.float32)
        for name, value in vars(expected).items():
            assert getattr(found, name) is None if value is None else torch.equal(getattr(found, name), value), name
        assert not found.loss.requires_grad


def test_only_the_loss_has_a_gradient() -> None:
    hidden_ND, weight_VD, labels_N = student(14)
    found = text_loss(
        hidden_ND,
        OutputHead(weight_VD),
        text_of(targets_of(KINDS * 2, 2.0, "mixed"), labels_N),
        0.7,
        torch.float32,
    )
    assert found.kl is not None
    assert found.loss.requires_grad
    assert not any(each.requires_grad for each in (found.nll, found.weighted_nll, found.kl))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_scaled_loss_has_the_scaled_gradient_and_is_not_changed_by_it(dtype: torch.dtype) -> None:
    """As a GradScaler does it; a power of two costs no digit, whatever dtype the logits have."""
    text = text_of(targets_of(KINDS * 2, 2.0, "mixed"), student(14)[2], chunk_tokens=4)
    found = {}
    for scale in (1.0, 2.0**16):
        hidden_ND, weight_VD, _ = student(14)
        loss = text_loss(hidden_ND, OutputHead(weight_VD), text, 0.7, dtype).loss
        (loss / 14 * scale).backward()
        assert hidden_ND.grad is not None
        assert weight_VD.grad is not None
        found[scale] = hidden_ND.grad / scale, weight_VD.grad / scale
    for unscaled, scaled in zip(*found.values(), strict=True):
        assert torch.equal(unscaled, scaled)


def test_gradients_of_parts_add_up() -> None:
    """Two parts of a step, one after the other, and the output matrix as an embedding besides."""
    hidden_ND, weight_VD, labels_N = student(14)
    target = targets_of(KINDS * 2, 2.0, "mixed")
    plain = plain_text_loss(hidden_ND, weight_VD, labels_N, target, 0.7).loss + (weight_VD[labels_N] ** 2).sum()
    expected = gradients(plain, hidden_ND, weight_VD)
    for start, stop in ((0, 5), (5, 14)):
        labels_n = labels_N[start:stop]
        text = text_of(part_of(target, start, stop), labels_n, chunk_tokens=4)
        found = text_loss(hidden_ND[start:stop], OutputHead(weight_VD), text, 0.7, torch.float32)
        (found.loss + (weight_VD[labels_n] ** 2).sum()).backward()
    assert hidden_ND.grad is not None
    assert weight_VD.grad is not None
    assert_near(hidden_ND.grad, expected[0].double(), "hidden states")
    assert_near(weight_VD.grad, expected[1].double(), "output matrix")


def test_one_word_repeated_does_not_overflow_half_precision() -> None:
    """The sum over a stretch, 2,048 x 40, is beyond fp16 before any loss scale can help."""
    hidden_ND, weight_VD, _ = student(2048)
    hidden_ND = torch.full_like(hidden_ND, 40.0).requires_grad_()
    text = Text(torch.zeros(2048, dtype=torch.int64), None, stretches(2048, 2048, None))
    text_loss(hidden_ND, OutputHead(weight_VD), text, 0.9, torch.float16).loss.backward()
    assert weight_VD.grad is not None
    assert bool(torch.isfinite(weight_VD.grad).all())
    assert float(weight_VD.grad.abs().max()) > 65_504.0


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("tail", [*TAILS, None])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits_in_reduced_precision_are_finite_and_near(
    dtype: torch.dtype, relative: float, tail: str | None, temperature: float
) -> None:
    n, found = 8 * len(KINDS), {}
    target = None if tail is None else targets_of(KINDS * 8, temperature, tail)
    text = Text(student(n)[2], target, stretches(n, 16, target))
    for each in (torch.float32, dtype):
        hidden_ND, weight_VD, _ = student(n)
        value = text_loss(hidden_ND, OutputHead(weight_VD), text, 0.7, each)
        sums = [value.loss, value.nll, value.weighted_nll, *([] if value.kl is None else [value.kl])]
        assert {each.dtype for each in sums} == {torch.float32}
        found[each] = torch.stack(sums).detach(), *gradients(value.loss, hidden_ND, weight_VD)
    for number, (exact, near) in enumerate(zip(found[torch.float32], found[dtype], strict=True)):
        assert torch.isfinite(near).all()
        assert_near(near, exact.double(), str(number), relative)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("sureness", [4.0, 9.0, 12.0])  # of labels: p = 0.6, 0.995, 0.9998
@pytest.mark.parametrize("tail", [*TAILS, None])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_where_the_student_is_sure_its_gradient_is_as_exact(
    dtype: torch.dtype, relative: float, sureness: float, tail: str | None, temperature: float
) -> None:
    """The head passes logits on, which the dtype can tell: all error is that of the gradient."""
    n = 8 * len(KINDS)
    target = None if tail is None else targets_of(KINDS * 8, temperature, tail)
    text, weight_VD = Text(student(n)[2], target, stretches(n, 16, target)), torch.eye(VOCABULARY)
    logits_NV = random_logits(n, VOCABULARY, seed=5, scale=0.5)
    logits_NV[torch.arange(n), text.labels_N] += sureness
    logits_NV = logits_NV.to(dtype).float().requires_grad_()
    plain = plain_text_loss(logits_NV, weight_VD, text.labels_N, target, 0.7)
    (expected,) = torch.autograd.grad(plain.loss, logits_NV)
    (found,) = torch.autograd.grad(text_loss(logits_NV, OutputHead(weight_VD), text, 0.7, dtype).loss, logits_NV)
    for place in range(n):
        assert_near(found[place], expected[place].double(), f"position {place}", relative)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("size", "vocabulary"), [(96, 2048), (576, 8192)])
@pytest.mark.parametrize("scale", [1.0, 2.5, 4.0])  # untrained, as trained, certain: 7 to 8, 5 to 6, 2.5 to 3 nats
def test_logits_in_reduced_precision_hardly_change_bits_per_byte(
    dtype: torch.dtype, size: int, vocabulary: int, scale: float
) -> None:
    """Of a text that the model itself has drawn, with 3 bytes a token."""
    n, bytes_per_token = 512, 3
    hidden_ND = random_logits(n, size, seed=1, scale=1.0)
    weight_VD = random_logits(vocabulary, size, seed=2, scale=scale / math.sqrt(size))
    probs_NV = (hidden_ND @ weight_VD.T).softmax(-1)
    labels_N = torch.multinomial(probs_NV, 1, generator=torch.Generator().manual_seed(3)).squeeze(1)
    text = Text(labels_N, None, stretches(n, 256, None))
    with torch.no_grad():
        exact, near = (
            float(text_loss(hidden_ND, OutputHead(weight_VD), text, 0.0, each).nll) for each in (torch.float32, dtype)
        )
    n_bytes = n * bytes_per_token
    assert bits_per_byte(near, n_bytes) == pytest.approx(bits_per_byte(exact, n_bytes), abs=1e-3)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that some work has held at once beyond what was there, by the allocator's own record."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        result = work()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    del result
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def test_memory_that_only_a_kernel_holds_is_counted() -> None:
    values = torch.zeros(1000, 1000)
    assert peak_bytes(lambda: values + 1.0) == pytest.approx(4e6, rel=0.01)
    assert peak_bytes(lambda: (values + 1.0) + 1.0) == pytest.approx(8e6, rel=0.01)
    assert peak_bytes(lambda: values.logsumexp(-1)) == pytest.approx(4e6, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tail", [*TAILS, None])
@pytest.mark.parametrize("chunk_tokens", [250, 1000])
def test_the_logits_of_a_stretch_are_held_once(
    dtype: torch.dtype, tail: str | None, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[stretch, vocabulary] in the dtype of the logits; what there is besides is small."""
    n, vocabulary = 1000, 4000
    monkeypatch.setitem(module.BLOCK_VALUES, "cpu", 2**14)
    hidden_ND = random_logits(n, 4, seed=1).requires_grad_()
    weight_VD = random_logits(vocabulary, 4, seed=2).requires_grad_()
    target = None
    if tail is not None:
        target = joined([targets_of(KINDS[:1], 2.0, tail)] * n)
    text = Text(torch.arange(n), target, stretches(n, chunk_tokens, target))

    def step() -> None:
        text_loss(hidden_ND, OutputHead(weight_VD), text, 0.7, dtype).loss.backward()

    once = chunk_tokens * vocabulary * dtype.itemsize
    assert once <= peak_bytes(step) <= 1.3 * once
