"""What the files of a stage say, under the names that MLflow shows; what stands before `/` is a section.

MLflow shows the sections in the order of their names: `final` first, then the curves.

Three figures are called bits per byte in the files: `train/batch_bits_per_byte` is of the batches of a step,
`validation/bits_per_byte` of the same sample of the validation windows each time, and `final/..._bits_per_byte` of all
validation windows, by `evaluate`.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from moe_distill.utils.files import fingerprint

Curves = Mapping[str, Mapping[int, float]]  # name -> step -> value

STARTED, ENDED = "started_at", "ended_at"  # in metrics/<stage>.json, Unix seconds
OPTIMIZER_NAMES = ("learning_rate", "gradient_norm", "loss_scale", "skipped_steps", "padding_share")
EXPERT_NAMES = {"expert_entropy": "entropy", "gate_divergence": "gate_divergence"}
SHARE = "expert_share_"
SHOWN_EXPERTS = 8  # shares of more experts are shown as the largest and the smallest; the report draws all
OWN_FIGURES = {  # of the model that a training ends with, in metrics/evaluate.json
    "train_kd": "student_kd_bits_per_byte",
    "train_router": "student_bits_per_byte",
    "control": "lm_only_bits_per_byte",
}
# Of metrics/evaluate.json: what one compares first; all else is `validation_all`, of all validation windows too.
FINAL = r"(teacher|student\w*|lm_only)_bits_per_byte|retention\w*|gain_over_lm_only"
SPEED = r".*_per_second"
# Sizes, which are the same in every run of a pair, and what the nested runs show.
LEFT_OUT = r"\w+_(parameters|bytes|ratio|steps|stopped_early)|teacher_experts"


@dataclass(frozen=True)
class StageFigures:
    """Curves and figures of a stage."""

    curves: Curves = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    first_row: str = ""  # fingerprint of the curve's first row: another training has another
    started: float | None = None  # Unix seconds; None: unknown, or not yet
    ended: float | None = None  # None: the stage has not ended

    def __bool__(self) -> bool:
        return bool(self.curves or self.figures)


def read_stage(stage: str, is_running: bool = False) -> StageFigures:
    """What `metrics/curves/<stage>*.tsv` and, when it has ended, `metrics/<stage>.json` hold; empty if nothing is."""
    training, first_row = _read_table(Path("metrics/curves", f"{stage}.tsv"))
    validation, _ = _read_table(Path("metrics/curves", f"{stage}_validation.tsv"))
    curves = _without_repetition({**_sections(training, "train"), **_sections(validation, "validation")})
    content = {} if is_running else _read_figures(stage)
    started, ended = content.pop(STARTED, None), content.pop(ENDED, None)
    if ended is None and content:
        started, ended = _times_of_the_file(Path("metrics", f"{stage}.json"))
    figures = _evaluation_figures(content) if stage == "evaluate" else _training_figures(content)
    return StageFigures(curves, figures, first_row, started, ended)


def figure_of(stage: str) -> dict[str, float]:
    """Bits per byte on all validation windows of the model that a training ends with, where `evaluate` has said so."""
    name = OWN_FIGURES.get(stage, "")
    found = _read_figures("evaluate").get(name)
    return {} if found is None else {f"final/{name}": found}


def _read_table(path: Path) -> tuple[Curves, str]:
    """The columns of a TSV file, which may still be growing, and a fingerprint of its header and first row."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line.split("\t") for line in text.split("\n")[:-1]]  # a line without a newline is incomplete
    columns: dict[str, dict[int, float]] = {}
    for cells in lines[1:]:
        row = dict(zip(lines[0], cells, strict=True))
        step = int(row.pop("step"))
        for name, cell in row.items():
            if cell and math.isfinite(value := float(cell)):  # a step that was skipped for it is counted
                columns.setdefault(name, {})[step] = value + 0.0  # no -0
    return columns, fingerprint(lines[:2])[:16] if lines[1:] else ""


def _sections(columns: Curves, kind: str) -> Curves:
    """Columns of training (`train`) or of validations (`validation`) under their names in MLflow."""
    shares = {name.removeprefix(SHARE): values for name, values in columns.items() if name.startswith(SHARE)}
    named = {f"{kind}_experts/{name}": values for name, values in _shown_shares(shares).items()}
    for column, values in columns.items():
        name = _name(column, kind)
        if name is not None:
            named[name] = values
    return named


def _name(column: str, kind: str) -> str | None:
    """Name of a column in MLflow; None: it is left out, or shown together with others."""
    if column.startswith(SHARE) or (kind != "train" and column in (*OPTIMIZER_NAMES, "kd_weight")):
        return None
    if column in EXPERT_NAMES:
        return f"{kind}_experts/{EXPERT_NAMES[column]}"
    if column in OPTIMIZER_NAMES:
        return f"train_optimizer/{column}"
    if column.endswith("_weighted"):
        return f"{kind}_weighted/{column.removesuffix('_weighted')}"
    if column == "bits_per_byte" and kind == "train":
        return "train/batch_bits_per_byte"
    return f"{kind}/{column.removesuffix('_raw')}"


def _shown_shares(shares: Curves) -> Curves:
    """The shares of a few experts; of many the largest and the smallest at each step."""
    if len(shares) <= SHOWN_EXPERTS:
        return {f"share_{expert}": values for expert, values in shares.items()}
    steps = sorted(set().union(*shares.values()))
    at = {step: [values[step] for values in shares.values() if step in values] for step in steps}
    return {f"{which.__name__}_share": {step: which(each) for step, each in at.items()} for which in (max, min)}


def _without_repetition(curves: Curves) -> Curves:
    """Leave out counters that have not changed yet, and what equals another curve: a total of one term of weight 1."""
    kept = {}
    for name, values in curves.items():
        section, _, last = name.partition("/")
        counter = section == "train_optimizer" or last == "kd_weight"
        twin = f"{section}/lm" if last == "total" else name.replace("_weighted/", "/")
        if not (counter and len(set(values.values())) < 2) and (twin == name or curves.get(twin) != values):
            kept[name] = values
    return kept


def _read_figures(stage: str) -> dict[str, float]:
    """The finite numbers of `metrics/<stage>.json`, under names that MLflow allows; a source has any name."""
    path = Path("metrics", f"{stage}.json")
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    numbers = {name: float(value) + 0.0 for name, value in content.items() if type(value) in (int, float)}
    return {re.sub(r"[^\w./ -]", "_", name): value for name, value in numbers.items() if math.isfinite(value)}


def _training_figures(content: Mapping[str, float]) -> dict[str, float]:
    """How a training ended; the last values of its terms and experts are those of its curves."""
    left_out = re.compile(rf"validation_.*|{SHARE}.*|{'|'.join(EXPERT_NAMES)}")
    figures = {
        f"{'work' if re.fullmatch(SPEED, name) else 'final'}/{name}": value
        for name, value in content.items()
        if not left_out.fullmatch(name)
    }
    if "validation_bits_per_byte" in content:
        figures["final/sample_bits_per_byte"] = content["validation_bits_per_byte"]
    return figures


def _evaluation_figures(content: Mapping[str, float]) -> dict[str, float]:
    """What `evaluate` has found, by section."""
    sections = {"work": SPEED, "final": FINAL}
    figures = {}
    for name, value in content.items():
        if not re.fullmatch(LEFT_OUT, name):
            section = next((each for each, names in sections.items() if re.fullmatch(names, name)), "validation_all")
            figures[f"{section}/{name}"] = value
    return figures


def _times_of_the_file(path: Path) -> tuple[float, float]:
    """Start and end of a stage whose figures do not say: this process, if it wrote them; else when they were."""
    ended, began = path.stat().st_mtime, psutil.Process().create_time()
    return (began if began < ended else ended), ended
