"""Does phase 2 help? The same student, text, seed and number of steps, with phase 1 alone for all steps, with each term
of phase 2 by itself, and with all of them; validation bits per byte and agreement with the teacher.

Every run is a call of the library on folders that `dvc repro` has published, in a process of one thread. A seed changes
the order of the windows, the heads and the router's noise; the student's first weights and the shards stay. Phase 1 is
trained once a seed and shared by all variants. After `dvc repro`:

    python benchmarks/ablation.py .work/ablation --seeds 0,1,2 --steps 800
"""

import json
import statistics
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import torch
import typer

from moe_distill.config.params import Params, load_params
from moe_distill.evaluation.evaluate import AGREED_WITH
from moe_distill.evaluation.measure import compare, score
from moe_distill.losses.registry import GATE_TERMS, HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.window_targets import WindowTargets
from moe_distill.training.phases import train_kd, train_router
from moe_distill.training.stage_folders import TrainingInputs, TrainingOutputs

WINDOWS, TARGETS = Path("data/windows/student"), Path("data/teacher_shards")

Metrics = dict[str, float]


def main(output: Path, seeds: str = "0,1,2", variants: str = "", steps: int = 800, processes: int = 2) -> None:
    """Run what `output` does not hold yet, one JSON file a run, and print the table."""
    params = load_params()
    known = dict(losses_of(params))
    chosen = {name: known[name] for name in variants.split(",")} if variants else known
    numbers = list(map(int, seeds.split(",")))
    with get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        pool.starmap(first_phase, [(with_losses(params, seed, steps, known["none"]), output) for seed in numbers])
        runs = [
            (with_losses(params, seed, steps, losses), output, name)
            for seed in numbers
            for name, losses in chosen.items()
        ]
        pool.starmap(second_phase, runs, chunksize=1)
    results = {
        name: [json.loads((output / f"{name}_{seed}.json").read_text(encoding="utf-8")) for seed in numbers]
        for name in chosen
    }
    for line in table(results):
        print(line)


def losses_of(params: Params) -> Iterator[tuple[str, Metrics]]:
    """Each variant and its weights: those of params.yaml, one at a time and together."""
    weights = params.experiment.losses.model_dump()
    off = dict.fromkeys(weights, 0.0)
    yield "none", off
    for term in HIDDEN_TERMS + ROUTER_TERMS:
        if term not in GATE_TERMS:  # the gate acts only through the other terms
            gate = {name: weights[name] for name in GATE_TERMS} if term in ROUTER_TERMS else {}
            yield term, off | gate | {term: weights[term]}
    yield "all", weights


def with_losses(params: Params, seed: int, steps: int, losses: Metrics) -> Params:
    experiment = params.experiment.model_dump() | {"seed": seed, "losses": losses}
    profile = params.profile.model_dump()
    return Params.model_validate(
        {"experiment": experiment, "profile": profile | {"train": profile["train"] | {"max_steps": steps}}}
    )


def first_phase(params: Params, output: Path) -> None:
    torch.set_num_threads(1)
    folder = output / f"phase1_{params.experiment.seed}"
    if not (folder / "done").is_file():
        inputs = TrainingInputs(WINDOWS, TARGETS, Path("models/student_init"), None, None)
        train_kd(params, inputs, outputs_in(folder, folder / "optimizer"))
        (folder / "done").touch()


def second_phase(params: Params, output: Path, name: str) -> None:
    """Phase 2 under the weights of `params`, and the metrics of the exported student."""
    torch.set_num_threads(1)
    phase1, folder = output / f"phase1_{params.experiment.seed}", output / f"{name}_{params.experiment.seed}"
    if folder.with_suffix(".json").is_file():
        return
    inputs = TrainingInputs(WINDOWS, TARGETS, phase1 / "student", Path("models/teacher_head"), phase1 / "optimizer")
    train_router(params, inputs, outputs_in(folder, None))
    metrics = metrics_of(folder / "student", params.profile.evaluate.batch_windows)
    folder.with_suffix(".json").write_text(json.dumps(metrics), encoding="utf-8")


def outputs_in(folder: Path, optimizer: Path | None) -> TrainingOutputs:
    return TrainingOutputs(folder / "work", folder / "student", optimizer, folder / "curves", lambda: None)


def metrics_of(student: Path, batch_windows: int) -> Metrics:
    model = load_causal_lm(student, torch.float32, torch.device("cpu"))
    windows = WindowStore(WINDOWS / "validation", STUDENT_WINDOWS)
    vocabulary_map = load_vocabulary_map(WINDOWS / "vocabulary_map", WindowStore(WINDOWS / "train", STUDENT_WINDOWS))
    targets = WindowTargets(windows, open_targets(TARGETS / "validation"), vocabulary_map, AGREED_WITH)
    agreed = compare(model, windows, targets, batch_windows).agreement
    return {
        "bits_per_byte": score(model, windows, batch_windows).bits_per_byte,
        "top1_agreement": agreed.top1 / agreed.positions,
        "kl_teacher_student": agreed.kl / agreed.positions,
    }


def table(results: dict[str, list[Metrics]]) -> Iterator[str]:
    """Markdown; gains are paired by seed: bits per byte of "none" less those of the variant."""
    yield "| terms of phase 2 | bits per byte | gain: mean ± spread | top-1 agreement | KL to the student |"
    yield "|---|---|---|---|---|"
    for name, runs in results.items():
        means = {figure: statistics.mean(run[figure] for run in runs) for figure in runs[0]}
        base = results.get("none", runs)
        gains = [none["bits_per_byte"] - run["bits_per_byte"] for none, run in zip(base, runs, strict=True)]
        spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
        yield (
            f"| {name} | {means['bits_per_byte']:.4f} | {statistics.mean(gains):+.4f} ± {spread:.4f} "
            f"| {means['top1_agreement']:.4f} | {means['kl_teacher_student']:.4f} |"
        )


if __name__ == "__main__":
    typer.run(main)
