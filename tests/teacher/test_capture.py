"""Capture against the running teacher, and replay against both."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from moe_distill.config.profile import Capture
from moe_distill.errors import ConfigError, DataError
from moe_distill.replay.block import (
    block_input,
    expert_outputs,
    gate_logits,
    load_teacher_head,
    replayed_logits,
    routed_hidden,
    teacher_mixture,
)
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import TAIL_TEMPERATURES, open_targets
from moe_distill.shards.window_store import WindowStore
from moe_distill.teacher import capture as capture_module
from moe_distill.teacher import columns
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.capture import Captured, capture
from moe_distill.teacher.columns import run_of
from moe_distill.teacher.forward import States, forward
from moe_distill.teacher.run import export_head
from moe_distill.utils.processes import ALONE, Processes
from tests.replay.teachers import FAMILIES as MOE_FAMILIES
from tests.replay.teachers import certain
from tests.replay.teachers import make_teacher as random_moe
from tests.teacher.conftest import FAMILIES, VOCABULARY, make_teacher

CPU = torch.device("cpu")


def params(**changes: object) -> Capture:
    values = {
        "seed": 0,
        "k": 8,
        "tail_samples": 4,
        "hidden_layers": [1, 3],
        "hidden_fraction": 0.7,
        "hidden_run": 64,
        "precision": "fp32",
        "batch_windows": 2,
        "chunk_positions": 50,
        "shard_positions": 200,
    }
    return Capture.model_validate(values | changes)


def run(
    model: PreTrainedModel, windows: WindowStore, output: Path, processes: Processes = ALONE, **changes: object
) -> Captured:
    text_ids = torch.ones(VOCABULARY, dtype=torch.bool)
    text_ids[0] = False
    return capture(
        model,
        find_architecture(model),
        windows,
        text_ids,
        params(**changes),
        0,
        "teacher",
        "key",
        output,
        output.with_name(f"{output.name}-progress"),
        processes,
    )


def true_logits(model: PreTrainedModel, windows: WindowStore) -> torch.Tensor:
    """fp32 logits at every position, one window at a time."""
    rows = []
    for number in range(len(windows)):
        ids = windows.tokens("token_ids", number).long()
        with torch.inference_mode():
            rows.append(model(torch.cat([torch.tensor([0]), ids[:-1]])[None]).logits[0].float())
    return torch.cat(rows)


def column(reader: ShardReader, name: str) -> torch.Tensor:
    return torch.cat(list(reader.columns(name)))


@pytest.mark.parametrize("rows_in_cache", [0, 3])
def test_a_few_rows_at_a_time_have_the_records_of_all_at_once(
    windows: WindowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_in_cache: int
) -> None:
    """A chunk of 50 positions is made sparse at once by default; row by row, and by threes with two left over."""
    model = make_teacher("dense")
    at_once = run(model, windows, tmp_path / "at_once")
    monkeypatch.setattr(columns, "CACHED_BYTES", rows_in_cache * VOCABULARY * 4)
    few = run(model, windows, tmp_path / "few")
    expected, found = open_targets(tmp_path / "at_once"), open_targets(tmp_path / "few")
    for name in ("topk_ids", "topk_logprobs", "tail_logsumexp", "tail_ids", "tail_logprobs", "target_logprob"):
        torch.testing.assert_close(column(found, name), column(expected, name), atol=1e-3, rtol=2**-10)
    assert few.text_token_probability == pytest.approx(at_once.text_token_probability, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_records_are_the_teachers_distribution(family: str, windows: WindowStore, tmp_path: Path) -> None:
    model = make_teacher(family)
    captured = run(model, windows, tmp_path / "shards")
    reader = open_targets(tmp_path / "shards")
    logprobs = true_logits(model, windows).double().log_softmax(-1)
    assert reader.rows("positions") == len(logprobs) == sum(70 + 2 * n for n in range(12))
    ids, kept = column(reader, "topk_ids").long(), column(reader, "topk_logprobs").float()
    torch.testing.assert_close(kept.double(), logprobs.topk(8).values, atol=1e-3, rtol=2**-10)
    torch.testing.assert_close(kept.double(), logprobs.gather(1, ids), atol=1e-3, rtol=2**-10)
    tail = logprobs.scatter(1, ids, float("-inf"))
    for node, temperature in enumerate(TAIL_TEMPERATURES):
        expected = (tail / temperature).logsumexp(-1)
        torch.testing.assert_close(column(reader, "tail_logsumexp")[:, node].double(), expected, atol=2e-4, rtol=1e-4)
    samples = column(reader, "tail_ids").long()
    assert not (samples[:, :, None] == ids[:, None, :]).any()  # outside the top-k
    torch.testing.assert_close(
        column(reader, "tail_logprobs").double(), logprobs.gather(1, samples), atol=2e-3, rtol=2**-10
    )
    targets = torch.cat([windows.tokens("token_ids", number).long() for number in range(12)])
    expected = logprobs.gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(column(reader, "target_logprob").double(), expected, atol=2e-4, rtol=1e-5)
    assert captured.text_token_probability == pytest.approx(float(1 - logprobs[:, 0].exp().mean()), abs=1e-6)


class Exponentials(TorchDispatchMode):
    """Counts the rows over the vocabulary of which exponentials are computed."""

    NAMES = ("exp", "exp_", "_softmax", "_log_softmax", "logsumexp")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = 0

    def __torch_dispatch__(self, function: Any, _types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function._schema.name.removeprefix("aten::") in self.NAMES and arguments[0].shape[-1] == VOCABULARY:
            self.rows += len(arguments[0])
        return function(*arguments, **(named or {}))


def test_one_exponential_of_each_logit_gives_all_that_is_kept_of_a_position(
    windows: WindowStore, tmp_path: Path
) -> None:
    model = make_teacher("dense")
    with Exponentials() as exponentials:
        captured = run(model, windows, tmp_path / "shards")
    assert exponentials.rows == captured.index.rows("positions")


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_r15_replay_from_the_shards_gives_back_the_cached_logprobs(
    family: str, windows: WindowStore, tmp_path: Path
) -> None:
    model = random_moe(family, 1)
    run(model, windows, tmp_path / "shards", hidden_layers=[0, len(model.model.layers)])
    export_head(find_architecture(model), "teacher", tmp_path / "head")
    head, reader = load_teacher_head(tmp_path / "head", CPU), open_targets(tmp_path / "shards")
    moe_input = column(reader, "moe_input").float() * column(reader, "moe_input_scales")[:, None]
    read = block_input(head, moe_input)
    gate = gate_logits(head, read)
    torch.testing.assert_close(gate, column(reader, "router_logits")[:, 0].float(), atol=1e-2, rtol=2**-9)
    residual = routed_hidden(moe_input, expert_outputs(head, read), teacher_mixture(head, gate))
    last = column(reader, "hidden")[:, 1].float() * column(reader, "hidden_scales")[:, 1, None]
    certain_N = certain(gate, head)
    assert torch.cosine_similarity(residual, last, dim=-1)[certain_N].min() > 0.9999
    rows = column(reader, "hidden_rows")
    ids, cached = column(reader, "topk_ids").long()[rows], column(reader, "topk_logprobs").float()[rows]
    everything = torch.arange(VOCABULARY).expand(len(rows), -1)
    replayed = replayed_logits(head, residual, everything).log_softmax(-1).gather(1, ids)
    assert ((replayed - cached).abs() <= 1e-2 + 2**-10 * cached.abs())[certain_N].all()


def test_dense_teacher_has_no_router_columns(windows: WindowStore, tmp_path: Path) -> None:
    run(make_teacher("dense"), windows, tmp_path / "shards")
    assert not {"router_logits", "moe_input"} & set(open_targets(tmp_path / "shards").index.fields)
    export_head(find_architecture(make_teacher("dense")), "teacher", tmp_path / "head")
    assert load_teacher_head(tmp_path / "head", CPU).num_experts == 0


def test_states_lie_in_whole_runs_of_the_sampled_windows(windows: WindowStore, tmp_path: Path) -> None:
    run(make_teacher("qwen3_moe"), windows, tmp_path / "shards")
    rows = column(open_targets(tmp_path / "shards"), "hidden_rows")
    runs = rows.view(-1, 64)
    assert bool((runs.diff(dim=1) == 1).all())
    starts = [windows.span(number) for number in range(12)]
    owners = [next(n for n, span in enumerate(starts) if span.start <= int(first) < span.stop) for first in runs[:, 0]]
    assert len(set(owners)) == len(owners)
    assert 4 <= len(owners) <= 12
    run(make_teacher("dense"), windows, tmp_path / "few", hidden_fraction=0.2)
    assert len(column(open_targets(tmp_path / "few"), "hidden_rows")) < len(rows)
    assert all(starts[owner].stop > int(run[-1]) for owner, run in zip(owners, runs, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_states_all_else_is_the_same(windows: WindowStore, tmp_path: Path, family: str) -> None:
    for name, share in (("with", 1.0), ("without", 0.0)):
        run(make_teacher(family), windows, tmp_path / name, hidden_fraction=share)
    whole, bare = open_targets(tmp_path / "with"), open_targets(tmp_path / "without")
    bare.verify()
    assert (whole.rows("hidden"), bare.rows("hidden")) == (12 * 64, 0)
    for name, spec in whole.index.fields.items():
        if spec.table == "positions":
            assert torch.equal(column(whole, name), column(bare, name))


@pytest.mark.parametrize("share", [0.14, 0.5, 0.9])
def test_hidden_fraction_is_the_share_of_windows_that_keep_a_run(share: float) -> None:
    sampled = params(hidden_fraction=share)
    runs = [run for window in range(10_000) if (run := run_of(window, 100, sampled, seed=0)) is not None]
    assert len(runs) / 10_000 == pytest.approx(share, abs=0.02)
    starts = torch.tensor([run.start for run in runs])
    assert set(starts.tolist()) == set(range(100 - sampled.hidden_run + 1))
    assert float(starts.float().mean()) == pytest.approx((100 - sampled.hidden_run) / 2, abs=1.0)


def test_states_beyond_fp16_are_kept_by_their_scale(windows: WindowStore, tmp_path: Path) -> None:
    model = make_teacher("qwen3_moe")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e6)
    run(model, windows, tmp_path / "shards", hidden_layers=[0])
    reader = open_targets(tmp_path / "shards")
    states = column(reader, "hidden").float() * column(reader, "hidden_scales")[..., None]
    ids = torch.cat([torch.cat([torch.tensor([0]), windows.tokens("token_ids", n).long()[:-1]]) for n in range(12)])
    expected = model.model.embed_tokens.weight[ids[column(reader, "hidden_rows")]]
    assert expected.abs().max() > 65_504
    error = (states[:, 0] - expected).abs().amax(-1) / expected.abs().amax(-1)
    assert error.max() < 1e-3


def test_r21_killed_capture_continues_to_the_same_bytes(
    windows: WindowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_teacher("qwen3_moe")
    run(model, windows, tmp_path / "whole")
    calls = []

    def dying(*arguments: Any) -> tuple[States, bool]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(capture_module, "forward", dying)
    with pytest.raises(KeyboardInterrupt):
        run(model, windows, tmp_path / "broken")
    finished = list((tmp_path / "broken").glob("*.safetensors"))
    assert finished
    run(model, windows, tmp_path / "broken")
    assert len(calls) < 4 + 6  # finished shards were not computed again
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "broken").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


def test_overflow_in_half_precision_is_computed_again_in_fp32(windows: WindowStore, tmp_path: Path) -> None:
    model = make_teacher("qwen3_moe")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj.mul_(1e4)
        model.model.layers[1].mlp.experts.gate_up_proj.mul_(50)
    half = make_teacher("qwen3_moe")
    half.load_state_dict(model.state_dict())
    captured = run(half.half(), windows, tmp_path / "shards", precision="fp16")
    assert captured.nonfinite_batches > 0
    assert all(bool(torch.isfinite(part).all()) for part in open_targets(tmp_path / "shards").columns("hidden"))


def test_parameters_that_do_not_fit_the_teacher_are_refused(windows: WindowStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hidden_layers"):
        run(make_teacher("dense"), windows, tmp_path / "a", hidden_layers=[4])
    with pytest.raises(ConfigError, match="needs a tail"):
        run(make_teacher("dense"), windows, tmp_path / "b", k=VOCABULARY)


def test_head_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    export_head(find_architecture(make_teacher("qwen3_moe")), "one", tmp_path / "head")
    shutil.copytree(tmp_path / "head", tmp_path / "bad")
    path = tmp_path / "bad/teacher_head.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="corrupt"):
        load_teacher_head(tmp_path / "bad", CPU)
