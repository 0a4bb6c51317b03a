"""Where does the signal lie? KL(target || student after LM alone), by how the student's next token meets the teacher's.

Three targets: the exact one (benchmarks/exact_search.py says what that is), ours (what the project makes of the cache,
at T = 1 and at aligned positions alone; its KL is the bucketed one, a lower bound), and a teacher that has the
student's own tokenizer. A large KL is only worth having where the target is right: so each target's NLL of the text is
shown beside that of the student, and KL(exact target || x) of our target and of students.

Positions fall into four classes: the student's next token ends where the teacher's does, before it, after it
("overruns"), or the position stands inside a teacher token. Those in a window's last pre-token are left out. Shares
have the standard error of a bootstrap over windows. After `dvc repro` (profile tiny), `exact_targets.py` and, for the
native teacher, `objectives.py prepare`; the first student is the one that learned from the text alone:

    python benchmarks/attribution.py models/student_lm_only models/student
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import typer
from exact_targets import HOME
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.batches.split import Split, open_split
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.shards.window_store import SPLITS, NextToken, model_inputs
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.window_targets import TargetSettings, WindowTargets

CLASSES = {
    "ends together": (NextToken.SAME,),
    "ends before": (NextToken.SHORTER,),
    "no later (both)": (NextToken.SAME, NextToken.SHORTER),
    "overruns": (NextToken.LONGER,),
    "inside": (NextToken.UNALIGNED,),
    "all": tuple(NextToken),
}
RESAMPLES = 1000
NATIVE_TEACHER = Path(".work/benchmarks/native_teacher")
Column = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Values of each position, by name; NaN where there is none."""

    windows_N: NDArray[np.int64]  # numbers from 0
    relations_N: NDArray[np.int64]  # NextToken
    columns: dict[str, Column]

    def of(self, name: str) -> Callable[[Column], Column]:
        """What sums a column over a class' positions, by window: [N] -> [windows]."""
        chosen = np.isin(self.relations_N, CLASSES[name])
        n_windows = int(self.windows_N.max()) + 1

        def summed(column_N: Column) -> Column:
            return np.bincount(self.windows_N[chosen], np.nan_to_num(column_N[chosen]), n_windows).astype(np.float64)

        return summed


def dense_kl(target_NV: Tensor, logprobs_NV: Tensor) -> Tensor:
    return (torch.xlogy(target_NV, target_NV) - target_NV * logprobs_NV).sum(-1)


def our_kl(target: SparseTarget, logprobs_NV: Tensor) -> Tensor:
    """KL(ours || student), all outside the entries in one bucket, [N]; NaN where there is no target."""
    places, probs_Z = (target.entry_positions_Z.long(), target.entry_ids_Z.long()), target.entry_probs_Z
    other_Z, none_N = logprobs_NV[places], torch.zeros(len(target))
    inside_N = none_N.index_add(0, places[0], torch.xlogy(probs_Z, probs_Z) - probs_Z * other_Z)
    rest_N = (1.0 - none_N.index_add(0, places[0], other_Z.exp())).clamp_min(1e-7)
    kl_N = inside_N + torch.xlogy(target.residual_N, target.residual_N) - target.residual_N * rest_N.log()
    return kl_N.masked_fill(~target.has_target_N, float("nan"))


def kl_from_ours(exact_NV: Tensor, target: SparseTarget) -> Tensor:
    """KL(exact || ours), all outside our entries in one bucket, [N]; NaN where there is no target."""
    places = target.entry_positions_Z.long(), target.entry_ids_Z.long()
    exact_Z, none_N = exact_NV[places], torch.zeros(len(target))
    inside_N = none_N.index_add(0, places[0], torch.xlogy(exact_Z, exact_Z / target.entry_probs_Z))
    rest_N = (1.0 - none_N.index_add(0, places[0], exact_Z)).clamp_min(0.0)
    kl_N = inside_N + torch.xlogy(rest_N, rest_N / target.residual_N.clamp_min(1e-7))
    return kl_N.masked_fill(~target.has_target_N, float("nan"))


def our_nll(target: SparseTarget, labels_N: Tensor) -> Tensor:
    """Of the text, which is among the entries wherever there is a target; NaN elsewhere."""
    is_text_Z = target.entry_ids_Z == labels_N[target.entry_positions_Z.long()]
    nll_N = torch.full((len(target),), float("nan"))
    nll_N[target.entry_positions_Z[is_text_Z].long()] = -target.entry_probs_Z[is_text_Z].log()
    return nll_N


@torch.inference_mode()
def measure(
    split: Split, exact: dict[str, Tensor], models: dict[str, PreTrainedModel], targets: WindowTargets
) -> Measured:
    """All columns; the first model is the student after LM alone, one that is called `native` is a target too."""
    reference, parts, relations = next(iter(models)), [], []
    counts = exact["counts"].tolist()
    columns_of = zip(exact["windows"].tolist(), counts, exact["targets"].split(counts), strict=True)
    for window, n, exact_NV in columns_of:
        inputs, labels = model_inputs(split.windows, [window])
        labels_N, target = labels[0][:n], first(targets.of(window), n)
        logprobs = {
            name: model(inputs, use_cache=False).logits[0, :n, : exact_NV.shape[1]].log_softmax(-1)
            for name, model in models.items()
        }
        column = {
            "nll exact": -exact_NV[torch.arange(n), labels_N].log(),
            "nll ours": our_nll(target, labels_N),
            "kl exact": dense_kl(exact_NV, logprobs[reference]),
            "kl ours": our_kl(target, logprobs[reference]),
            "from ours": kl_from_ours(exact_NV, target),
        }
        for name, logprobs_NV in logprobs.items():
            column[f"nll {name}"] = -logprobs_NV[torch.arange(n), labels_N]
            column[f"from {name}"] = dense_kl(exact_NV, logprobs_NV)
        if "native" in models:
            column["kl native"] = dense_kl(logprobs["native"].exp(), logprobs[reference])
        parts.append(column)
        relations.append(split.windows.tokens("next_tokens", window)[:n])
    columns = {name: torch.cat([part[name] for part in parts]).double().numpy() for name in parts[0]}
    columns["guessed"] = exact["guessed"].numpy()
    columns["nll teacher"] = exact["teacher_nll"].numpy()
    windows_N = np.repeat(np.arange(len(counts)), counts)
    return Measured(windows_N, torch.cat(relations).long().numpy(), columns)


def first(target: SparseTarget, n: int) -> SparseTarget:
    """The target of the first n positions."""
    is_entry, is_sample = target.entry_positions_Z < n, target.sample_positions_Y < n
    return SparseTarget(
        target.temperature,
        target.has_target_N[:n],
        target.has_bucket_N[:n],
        target.residual_N[:n],
        target.listed_mass_N[:n],
        *(each[is_entry] for each in (target.entry_positions_Z, target.entry_ids_Z, target.entry_probs_Z)),
        *(each[is_sample] for each in (target.sample_positions_Y, target.sample_ids_Y, target.sample_probs_Y)),
    )


def print_tables(found: Measured, names: list[str]) -> None:
    kinds = [kind for kind in ("exact", "native", "ours") if f"kl {kind}" in found.columns]
    print("| next token | positions | share | guessed |" + "".join(f" {k}: nats | a position | share |" for k in kinds))
    print("|---" * (4 + 3 * len(kinds)) + "|")
    ones = np.ones(len(found.windows_N))
    resamples = np.random.default_rng(0).multinomial(n := int(found.windows_N.max()) + 1, np.ones(n) / n, RESAMPLES)
    for name in CLASSES:
        summed, whole = found.of(name), found.of("all")
        n_positions = summed(ones).sum()
        row = f"| {name} | {n_positions:.0f} | {n_positions / len(ones):.3f}"
        row += f" | {summed(found.columns['guessed']).sum() / n_positions:.3f} |"
        for kind in kinds:
            of_class, of_all = (each(found.columns[f"kl {kind}"]) for each in (summed, whole))
            nats, error = of_class.sum(), (resamples @ of_class / (resamples @ of_all)).std()
            row += f" {nats:.0f} | {nats / n_positions:.2f} | {nats / of_all.sum():.3f} ± {error:.3f} |"
        print(row)
    for head, kind, columns in (
        ("NLL of the text, nats a position", "nll", ["teacher", "exact", *names]),
        ("KL(exact target to x), nats a position, and share of the sum", "from", names),
    ):
        print(f"\n| {head}: |" + "".join(f" {name} |" for name in columns))
        print("|---" * (1 + len(columns)) + "|")
        for name in CLASSES:
            print(f"| {name} |" + "".join(told(found, kind, name, each) for each in columns))


def told(found: Measured, kind: str, class_name: str, x: str) -> str:
    """A cell of a table: the mean over the positions that have a value."""
    column = found.columns[f"{kind} {x}"]
    summed = found.of(class_name)
    total, count = summed(column).sum(), summed((~np.isnan(column)).astype(np.float64)).sum()
    share = f" ({total / np.nansum(column):.2f})" if kind == "from" else ""
    return f" {total / count:.3f}{share} |" if count else " |"


def main(students: list[Path], native: Path = NATIVE_TEACHER) -> None:
    folders = {str(folder): folder for folder in students} | ({"native": native} if native.exists() else {})
    models = {
        name: load_causal_lm(folder, torch.float32, torch.device("cpu")).eval() for name, folder in folders.items()
    }
    for number, name in enumerate(models):
        print(f"x{number}: {name}")
    vocabulary = None
    for split_name in SPLITS:
        split = open_split(Path("data/windows/student") / split_name, Path("data/teacher_shards") / split_name)
        assert split.shards is not None
        # shares are counted on the training text, wherever they are used
        vocabulary = vocabulary or load_vocabulary_map(Path("data/windows/student/vocabulary_map"), split.windows)
        targets = WindowTargets(
            split.windows, split.shards, vocabulary, TargetSettings(1.0, "map_then_temper", "sampled")
        )
        exact = load_file(HOME / f"{split_name}.safetensors")
        print(f"\n{split_name}, {len(exact['windows'])} windows\n")
        print_tables(measure(split, exact, models, targets), ["ours", *models])


if __name__ == "__main__":
    typer.run(main)
