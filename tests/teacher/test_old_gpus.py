"""What a GPU without a grouped product or flash attention would run gives the same logits."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from moe_distill.models import pretrained
from moe_distill.models.pretrained import experts_implementation, load_causal_lm
from tests.teacher.conftest import FAMILIES, VOCABULARY, make_teacher

P100, V100, T4, A100, H100 = (6, 0), (7, 0), (7, 5), (8, 0), (9, 0)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [(P100, "eager"), (V100, "eager"), (T4, "eager"), (A100, None), (H100, None), ((12, 0), None), (None, None)],
)
def test_experts_are_computed_one_by_one_where_there_is_no_grouped_product(
    capability: tuple[int, int] | None, expected: str | None
) -> None:
    assert experts_implementation(capability) == expected


def load(
    folder: Path, dtype: torch.dtype, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> PreTrainedModel:
    """As on a GPU of this compute capability."""
    with monkeypatch.context() as patched:
        patched.setattr(pretrained, "experts_implementation", lambda _found: experts_implementation(capability))
        return load_causal_lm(folder, dtype, torch.device("cpu"))


def logits(model: PreTrainedModel, *backends: SDPBackend) -> torch.Tensor:
    ids = torch.randint(VOCABULARY, (3, 80), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), sdpa_kernel(list(backends)) if backends else nullcontext():
        found: torch.Tensor = model(input_ids=ids).logits.float()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_p100_gives_the_logits_of_a_newer_gpu(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_teacher(family).save_pretrained(tmp_path)
    new, old = (load(tmp_path, torch.float32, capability, monkeypatch) for capability in (H100, P100))
    if family != "dense":
        assert new.config._experts_implementation == "grouped_mm"
        assert old.config._experts_implementation == "eager"
    torch.testing.assert_close(logits(old, SDPBackend.MATH), logits(new), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_fp16_it_is_as_near_to_fp32_as_a_newer_gpu(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By all but the worst twentieth of the positions: rounding sends some to other experts, not the same on both."""
    make_teacher(family).save_pretrained(tmp_path)
    truth = logits(load(tmp_path, torch.float32, H100, monkeypatch))
    new, old = (load(tmp_path, torch.float16, capability, monkeypatch) for capability in (H100, P100))
    errors_of_new, errors_of_old = (
        ((found - truth).abs().mean(-1) / truth.abs().mean(-1)).flatten().sort().values
        for found in (logits(new), logits(old, SDPBackend.MATH))
    )
    kept = len(errors_of_new) * 19 // 20
    assert errors_of_old[:kept].mean() < 1.25 * errors_of_new[:kept].mean()
    assert errors_of_old.mean() < 0.01
