"""The line that a stage ends with: its time, its figures, and where its outputs lie."""

import json
from pathlib import Path

from moe_distill.errors import DataError
from moe_distill.pipeline.dvc_lock import made_as_asked
from moe_distill.pipeline.dvc_stage import stage_outputs

FIGURES = {  # stage -> key of metrics/<stage>.json -> how it is written
    "corpus": {"train_documents": "{:,.0f} training documents", "validation_documents": "{:,.0f} for validation"},
    "models@teacher": {"teacher_parameters": "{:,.0f} parameters"},
    "models@student": {"student_parameters": "{:,.0f} parameters"},
    "tokenize": {"windows": "{:,.0f} windows", "aligned_position_coverage": "{:.1%} of the positions aligned"},
    "teacher": {"positions": "{:,.0f} positions", "positions_per_second": "{:,.0f} tokens/s"},
    "train_kd": {"steps": "{:,.0f} steps", "validation_bits_per_byte": "{:.4f} bits per byte"},
    "evaluate": {
        "student_bits_per_byte": "student {:.4f} bits per byte",
        "lm_only_bits_per_byte": "LM only {:.4f}",
        "teacher_bits_per_byte": "teacher {:.4f}",
    },
}
STUDIED = ("tokenize", "teacher", "train_kd", "train_router", "control", "evaluate")  # what a result depends on
FIGURES["train_router"] = FIGURES["control"] = FIGURES["train_kd"]


def summary(stage: str, seconds: float) -> str:
    """The line, of the workspace that is the current folder."""
    path = Path(f"metrics/{stage.replace('@', '_')}.json")
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    figures = [words.format(metrics[key]) for key, words in FIGURES.get(stage, {}).items() if key in metrics]
    outputs = [str(each) for each in stage_outputs().get(stage, []) if each.parts[0] != "metrics"]
    where = f" -> {', '.join(outputs)}" if outputs else ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{stage}: done in {minutes}:{rest:02} min{''.join(f', {each}' for each in figures)}{where}"


def result_lines() -> list[str]:
    """What came out of the run of the current folder, and where it lies.

    Raises:
        DataError: nothing has been evaluated yet.
    """
    from moe_distill.reporting.verdicts import doubts, gain  # imports torch, which the stage `check` does without

    path = Path("metrics/evaluate.json")
    if not path.is_file():
        raise DataError("there is no result yet", fix="run: dvc repro")
    found = json.loads(path.read_text(encoding="utf-8"))
    pairs = {"teacher": "teacher", "student": "student", "the same student, LM only": "lm_only"}
    known = {words: found.get(f"{key}_bits_per_byte") for words, key in pairs.items()}
    figures = [f"{words} {value:.4f}" for words, value in known.items() if value is not None]  # None: `baseline: none`
    report = next((each for each in ("report.html", "report.md") if Path("reports", each).is_file()), "report.md")
    earlier = "of an earlier run: params.yaml or the profile say something else now, which `dvc repro` would run"
    return [
        *([] if made_as_asked(*STUDIED) else [earlier]),
        f"{gain(found).headline}.",
        f"validation bits per byte, less is better: {', '.join(figures)}",
        *(f"{each.headline}: {each.detail}" for each in doubts(found)),
        f"report:  {Path('reports', report)}",
        "student: models/student",
    ]
