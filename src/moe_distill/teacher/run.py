"""The work of the `teacher` stage: capture the targets of both splits, and export the head."""

from itertools import chain
from pathlib import Path

from moe_distill.config.profile import Capture, require_router_positions
from moe_distill.log import log
from moe_distill.models.moe_block import has_experts
from moe_distill.models.pretrained import load_causal_lm, text_token_mask
from moe_distill.models.tokenizer_files import count_ids, load_tokenizer
from moe_distill.replay.head import write_head
from moe_distill.shards.format import read_index, row_bytes
from moe_distill.shards.provenance import check_tokenizer, windows_fingerprint
from moe_distill.shards.window_store import SPLITS, TEACHER_WINDOWS, WindowStore
from moe_distill.teacher.architecture import Architecture, find_architecture
from moe_distill.teacher.capture import Captured, capture
from moe_distill.teacher.shards_disk_use import count_positions_with_states, shard_bytes
from moe_distill.utils.device import make_runtime, seed_everything
from moe_distill.utils.disk_space import require_space
from moe_distill.utils.files import fingerprint, folder_fingerprint
from moe_distill.utils.processes import ALONE, Processes
from moe_distill.utils.wall_time import covered_seconds

SPARE_SHARE = 0.01  # of probability on ids that stand for no text, from which on it is told
LOGIT_FIELDS = ("topk_ids", "topk_logprobs", "tail_logsumexp", "tail_ids", "tail_logprobs")


def capture_key(params: Capture, windows: Path, teacher_fingerprint: str) -> str:
    """Everything that determines the shards, so that unfinished ones are continued only where they fit."""
    inputs = {split: windows_fingerprint(read_index(windows / split, TEACHER_WINDOWS)) for split in SPLITS}
    return fingerprint({"windows": inputs, "teacher": teacher_fingerprint, "capture": params.model_dump(mode="json")})


def run_teacher(
    params: Capture,
    windows: Path,
    teacher: Path,
    output: Path,
    step_windows: int | None = None,
    teacher_fingerprint: str | None = None,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Write `shards/{train,validation}` and `head` below `output`; continue where killed processes ended.

    Several processes call it together: each writes shards of its own, and returns the metrics of all.

    Args:
        step_windows: windows of a step of a training that reads states, which is refused before the teacher runs if
            too few of their positions would have any; None: no training will read them.
        teacher_fingerprint: of the folder `teacher`, by a caller that has read its gigabytes already.
        processes: those that capture together.
    """
    seed_everything(params.seed)
    stores = {split: WindowStore(windows / split, TEACHER_WINDOWS) for split in SPLITS}
    for store in stores.values():
        check_tokenizer(store.reader, teacher)
    runtime = make_runtime(params.precision)
    log(f"teacher: {runtime.describe()}")
    model = load_causal_lm(teacher, runtime.dtype, runtime.device)
    architecture = find_architecture(model)
    if isinstance(architecture.moe, str) and has_experts(model):
        log(f"teacher: warning: {architecture.moe}; the router will be off")
    text_ids_R = text_token_mask(load_tokenizer(teacher), len(architecture.decoder.head.weight_VD))
    if step_windows is not None and architecture.num_experts:
        # An upper bound: a student's window lies inside one of the teacher's, and so has at most as many states.
        seen = count_positions_with_states(stores["train"], params) / len(stores["train"])
        require_router_positions(seen * step_windows)
    needed = sum(shard_bytes(store, params, architecture) for store in stores.values()) + architecture.head_bytes
    output.mkdir(parents=True, exist_ok=True)
    finished = sum(path.stat().st_size for path in output.rglob("*.safetensors"))
    require_space(output, needed - finished, "the teacher's shards", "lower `teacher.k` or `teacher.hidden_fraction`")
    if teacher_fingerprint is None:
        teacher_fingerprint = processes.text(folder_fingerprint(teacher) if processes.is_first else "")
    key = capture_key(params, windows, teacher_fingerprint)
    captured = {
        split: capture(
            model,
            architecture,
            store,
            text_ids_R,
            params,
            params.seed,
            teacher_fingerprint,
            fingerprint([key, split]),
            output / "shards" / split,
            output / "progress" / split,
            processes,
        )
        for split, store in stores.items()
    }
    if processes.is_first:
        export_head(architecture, teacher_fingerprint, output / "head")
    metrics = _metrics(list(captured.values()))
    spare = 1.0 - metrics["text_token_probability"]
    if spare > SPARE_SHARE:
        n_ids = count_ids(load_tokenizer(teacher))
        log(
            f"teacher: warning: {spare:.1%} of its probability lies on ids that stand for no text: special tokens, and "
            f"{len(text_ids_R) - n_ids} rows without a token; no student token gets it"
        )
    return metrics


def export_head(architecture: Architecture, teacher_fingerprint: str, folder: Path) -> None:
    """Hand on the part of the teacher that replay needs, in the teacher's dtype."""
    tensors = {} if isinstance(architecture.moe, str) else architecture.moe.head.tensors
    write_head(folder, tensors, architecture.description(teacher_fingerprint))


def _metrics(captured: list[Captured]) -> dict[str, float]:
    positions = sum(each.index.rows("positions") for each in captured)
    n_bytes = sum(entry.bytes for each in captured for entry in each.index.files)
    fields = captured[0].index.fields
    logit_bytes = row_bytes({name: fields[name] for name in LOGIT_FIELDS})["positions"]
    return {
        "positions": float(positions),
        "hidden_positions": float(sum(each.index.rows("hidden") for each in captured)),
        "bytes_per_position": n_bytes / positions,
        "logit_bytes_per_position": float(logit_bytes),
        "positions_per_second": positions / covered_seconds(chain.from_iterable(each.spans for each in captured)),
        "nonfinite_batches": float(sum(each.nonfinite_batches for each in captured)),
        "text_token_probability": sum(each.text_token_probability * each.index.rows("positions") for each in captured)
        / positions,
    }
