"""The work of the `teacher_correction` stage: measure the teacher, tune it, measure what is written.

After the Minitron recipe (Sreenivas et al. 2024, arXiv 2408.11796): a teacher that was trained on other text is a worse
guide than one tuned lightly on the text that the student learns from. Validation text is measured on, never trained on.
"""

from pathlib import Path

from transformers import PreTrainedModel

from moe_distill.batches.batch_order import spread_windows
from moe_distill.config.model_keys import TeacherCorrection
from moe_distill.config.values import Precision
from moe_distill.correction.adapters import adapter_parameters, attach_adapters, merge_adapters
from moe_distill.correction.correction_disk_use import model_bytes, work_bytes
from moe_distill.correction.held_out import HeldOut, measure
from moe_distill.correction.moe_modules import effective_experts, find_moe_modules
from moe_distill.correction.tuning import Counters, tune
from moe_distill.log import log
from moe_distill.models.corrected_teacher import CORRECTION_NAME
from moe_distill.models.pretrained import load_causal_lm, save_causal_lm
from moe_distill.shards.format import read_index
from moe_distill.shards.provenance import check_tokenizer, windows_fingerprint
from moe_distill.shards.window_store import SPLITS, TEACHER_WINDOWS, WindowStore
from moe_distill.utils.device import Runtime, make_runtime, seed_everything
from moe_distill.utils.disk_space import require_space
from moe_distill.utils.files import Json, fingerprint, folder_fingerprint, write_json

TEACHER_FOLDER, BEFORE_NAME = "teacher", "before.json"  # in a work folder
COLLAPSE_SHARE = 0.75  # of the effective experts that a layer had; below it its use has narrowed


def correction_key(params: TeacherCorrection, seed: int, precision: Precision, windows: Path, teacher: Path) -> str:
    """Everything that determines the corrected teacher and its metrics."""
    inputs = {split: windows_fingerprint(read_index(windows / split, TEACHER_WINDOWS)) for split in SPLITS}
    chosen: list[Json] = [params.model_dump(mode="json"), seed, precision]
    return fingerprint({"windows": inputs, "teacher": folder_fingerprint(teacher), "correction": chosen})


def correct_teacher(
    params: TeacherCorrection, seed: int, precision: Precision, windows: Path, teacher: Path, output: Path
) -> dict[str, float]:
    """Write a `save_pretrained` folder `teacher` below `output`, in the precision that the teacher is run in.

    Continues where a killed run ended.

    Args:
        seed: of the adapters' weights and of the order of the windows.
        precision: of the frozen weights; those of the adapters are fp32.
        windows: the teacher's, of both splits.

    Returns:
        metrics/teacher_correction.json.

    Raises:
        DataError: windows and teacher do not belong together, or there are too few windows.
        DivergenceError: the tuning does not stay finite.
        ResourceError: the disk cannot take checkpoints and model.
    """
    seed_everything(seed)
    stores = {split: WindowStore(windows / split, TEACHER_WINDOWS) for split in SPLITS}
    for store in stores.values():
        check_tokenizer(store.reader, teacher)
    runtime = make_runtime(precision)
    log(f"teacher_correction: {runtime.describe()}")
    model = load_causal_lm(teacher, runtime.dtype, runtime.device)
    if find_moe_modules(model).experts:
        # Sums have one order. The backward pass of `grouped_mm` adds experts in any, and needs a newer GPU.
        model.set_experts_implementation("eager")
    output.mkdir(parents=True, exist_ok=True)
    numbers = spread_windows(len(stores["validation"]), params.validation_windows)
    before = _before(model, stores["validation"], numbers, params, output / BEFORE_NAME)
    log(f"teacher_correction: {before.bits_per_byte:.4f} bits per byte on {len(numbers)} validation windows")

    adapted = attach_adapters(model, params, seed)
    adapters = adapter_parameters(adapted)
    trained = sum(each.numel() for each in adapters.values())
    needed = model_bytes(model) + work_bytes(4 * trained)
    found = sum(path.stat().st_size for path in output.rglob("*.safetensors"))
    require_space(output, needed - found, "the corrected teacher", "lower `models.teacher_correction.rank`")
    log(f"teacher_correction: {trained:,} weights in {len(adapters) // 2} adapters")
    counters = tune(model, adapters, stores["train"], params, seed, runtime, output)
    save_causal_lm(merge_adapters(adapted), teacher, output / TEACHER_FOLDER)
    write_json(output / TEACHER_FOLDER / CORRECTION_NAME, {"corrected": True, **params.model_dump(mode="json")})
    del model, adapted, adapters  # its memory is the next one's
    after = _measure_written(output / TEACHER_FOLDER, runtime, stores["validation"], numbers, params)
    _tell(before, after, counters)
    return _metrics(params, before, after, counters, trained, len(numbers))


def _before(
    model: PreTrainedModel, store: WindowStore, numbers: list[int], params: TeacherCorrection, path: Path
) -> HeldOut:
    """The teacher as it came, measured once: a resumed run reads what was written."""
    if not path.is_file():
        measured = measure(model, store, numbers, params.micro_batch_windows)
        write_json(path, measured.model_dump(mode="json"))
    return HeldOut.model_validate_json(path.read_text(encoding="utf-8"))


def _measure_written(
    folder: Path, runtime: Runtime, store: WindowStore, numbers: list[int], params: TeacherCorrection
) -> HeldOut:
    """The teacher as it will be captured."""
    return measure(load_causal_lm(folder, runtime.dtype, runtime.device), store, numbers, params.micro_batch_windows)


def _tell(before: HeldOut, after: HeldOut, counters: Counters) -> None:
    gain = before.bits_per_byte - after.bits_per_byte
    log(
        f"teacher_correction: {before.bits_per_byte:.4f} -> {after.bits_per_byte:.4f} bits per byte on validation "
        f"text, {counters.seconds / 60:,.1f} minutes of training"
    )
    if gain <= 0.0:
        way_out = "lower `models.teacher_correction.learning_rate`, or set `models.teacher_correction: null`"
        log(f"warning: teacher_correction: the teacher has not become better on validation text; {way_out}")
    for layer, (old, new) in enumerate(zip(before.expert_shares, after.expert_shares, strict=True)):
        if effective_experts(new) < COLLAPSE_SHARE * effective_experts(old):
            busiest = max(range(len(new)), key=new.__getitem__)
            log(
                f"warning: teacher_correction: layer {layer} of those with experts uses {effective_experts(new):.1f} "
                f"experts where it used {effective_experts(old):.1f}; expert {busiest} gets {new[busiest]:.0%} of the "
                "choices; set `models.teacher_correction.train_router: false`, or lower its `learning_rate`"
            )


def _metrics(
    params: TeacherCorrection, before: HeldOut, after: HeldOut, counters: Counters, trained: int, n_windows: int
) -> dict[str, float]:
    metrics = {
        "corrected": 1.0,
        "steps": float(params.steps),
        "skipped_steps": float(counters.skipped_steps),
        "trained_parameters": float(trained),
        "seconds": counters.seconds,
        "train_tokens_per_second": counters.positions / max(counters.seconds, 1e-9),
        "validation_windows": float(n_windows),
    }
    for name, held_out in (("before", before), ("after", after)):
        metrics |= {f"{key}_{name}": value for key, value in _of(held_out).items()}
    return metrics


def _of(held_out: HeldOut) -> dict[str, float]:
    """Bits per byte; and where experts were counted, how evenly they are used, and the last such layer's shares."""
    layers = held_out.expert_shares
    if not layers:
        return {"bits_per_byte": held_out.bits_per_byte}
    return {
        "bits_per_byte": held_out.bits_per_byte,
        "effective_experts": sum(map(effective_experts, layers)) / len(layers),
        "busiest_expert_share": max(max(shares) for shares in layers),
        "experts_never_chosen": float(sum(shares.count(0.0) for shares in layers)),
        **{f"expert_{number}_share": share for number, share in enumerate(layers[-1])},
    }
