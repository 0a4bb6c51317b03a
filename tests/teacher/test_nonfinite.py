"""Teacher outputs that are not finite, or that fp16 cannot hold: computed again, clamped, or refused; never written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_distill.errors import DataError
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import WindowStore
from moe_distill.teacher import capture as capture_module
from moe_distill.teacher.forward import States, forward
from tests.teacher.conftest import make_teacher
from tests.teacher.test_capture import column, run


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite_in_fp32_either_is_refused_by_its_windows(
    windows: WindowStore, tmp_path: Path, value: float
) -> None:
    model = make_teacher("qwen3_moe")
    broken_id = int(windows.tokens("token_ids", 7)[3])
    with torch.no_grad():
        model.model.embed_tokens.weight[broken_id] = value
    first = next(n for n in range(12) if broken_id in windows.tokens("token_ids", n)[:-1].tolist()) // 2 * 2
    with pytest.raises(DataError, match=rf"non-finite values in windows {first} to {first + 1}; in fp32 too"):
        run(model, windows, tmp_path / "shards")
    assert not (tmp_path / "shards/index.json").exists()


def test_logits_beyond_fp32_are_refused(windows: WindowStore, tmp_path: Path) -> None:
    model = make_teacher("dense")
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
    with pytest.raises(DataError, match="non-finite logits in windows 0 to 1"):
        run(model, windows, tmp_path / "shards")


def test_log_probabilities_below_fp16_are_kept_as_its_lowest(windows: WindowStore, tmp_path: Path) -> None:
    model = make_teacher("dense")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    run(model, windows, tmp_path / "shards")
    reader = open_targets(tmp_path / "shards")
    kept = column(reader, "topk_logprobs").float()
    assert kept.min() == -65504
    assert kept[:, 0].max() <= 0


def test_router_logits_beyond_fp16_are_kept_as_its_largest(
    windows: WindowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def louder(*arguments: Any) -> tuple[States, bool]:
        states, in_fp32 = forward(*arguments)
        assert states.router_logits_BLE is not None
        return replace(states, router_logits_BLE=states.router_logits_BLE * 1e6), in_fp32

    monkeypatch.setattr(capture_module, "forward", louder)
    run(make_teacher("qwen3_moe"), windows, tmp_path / "shards")
    assert column(open_targets(tmp_path / "shards"), "router_logits").abs().max() == 65504
