"""A report of made-up figures, in which one thing at a time can be changed."""

from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

from moe_distill.evaluation.evaluate import Evaluation
from moe_distill.evaluation.metrics import CalibrationBin
from moe_distill.reporting.model_facts import ModelFacts
from moe_distill.reporting.pieces import Guess, Segment
from moe_distill.reporting.report import write_report
from moe_distill.reporting.report_inputs import ReportInputs
from moe_distill.reporting.run_facts import RunFacts, StageFacts
from moe_distill.reporting.student_examples import Position, Sample
from tests.params import fixed_params

SECTIONS = ["verdict", "models", "figures", "curves", "experts", "agreement", "positions", "samples"]
SECTIONS += ["data", "cost", "run"]
METRICS = {
    "teacher_bits_per_byte": 1.5,
    "student_bits_per_byte": 1.8,
    "student_kd_bits_per_byte": 2.5,
    "student_init_bits_per_byte": 3.5,
    "lm_only_bits_per_byte": 1.9,
    "gain_over_lm_only": 0.1,
    "gain_over_lm_only_low": 0.05,
    "gain_over_lm_only_high": 0.15,
    "retention": 0.85,
    "student_steps": 24.0,
    "student_stopped_early": 0.0,
    "lm_only_steps": 24.0,
    "lm_only_stopped_early": 0.0,
    "teacher_experts": 4.0,
    "teacher_parameters": 4_000_000.0,
    "student_parameters": 1_000_000.0,
    "compression_ratio": 4.0,
    "teacher_bytes": 16e6,
    "student_bytes": 4e6,
    "bytes_ratio": 4.0,
    "student_nll_per_token": 3.9,
    "student_perplexity": 49.4,
    "top1_agreement": 0.6,
    "top5_overlap": 0.65,
    "kl_teacher_student": 0.25,
    "expected_calibration_error": 0.0125,
    "student_tokens_per_second": 6000.0,
    "teacher_tokens_per_second": 3000.0,
    "watched_windows": 4.0,
    "validation_windows": 12.0,
    "teacher_watched_bits_per_byte": 1.4375,
}
NO_BASELINE = [name for name in METRICS if "lm_only" in name]
TOKENIZE = {
    "student_windows": 99.0,
    "train_tokens_student": 5000.0,
    "train_tokens_teacher": 4000.0,
    "aligned_position_coverage": 0.861,
    "one_to_one_coverage": 0.7,
    "shorter_context_row_share": 0.0,
    "exact_vocabulary_share": 0.8125,
}
CORPUS = {
    f"{prefix}{split}_{what}": 77.0
    for prefix in ("", "python_docs_")
    for split in ("train", "validation")
    for what in ("documents", "bytes")
}
SAMPLE = Sample("# No <b>heading</b>", "*text*", "| ``` |", "\n&amp; <script>alert(1)</script>")
POSITION = Position(
    segments=[Segment(["·<a>"], ["·<", "a>"], is_read=True), Segment(["&"], ["&"], is_read=False)],
    teacher=[Guess("&", 0.5)],
    target=[Guess("&", 0.5)],
    student=[Guess("<i>", 0.25), Guess("&", 0.125)],
    text="&",
)
STAGES = (StageFacts("corpus", 61.0, 5_000_000), StageFacts("train_kd", None, 0), StageFacts("evaluate", None, 9))
FACTS = RunFacts(
    commit="0123456789abcdef",
    changed=("src/a.py",),
    experiment="quiet-frog",
    collected="2026-01-02",
    machine="Abacus 9, 2 cores",
    versions={"torch": "9.9"},
    stages=STAGES,
    commands=("git checkout 0123456789abcdef", "dvc exp run -S 'temperature=2.0'"),
)
TERMS = "kd_raw\tkd_weighted\tlm_raw\tlm_weighted"


def write_curves(folder: Path, baseline: bool = True, router: bool = True) -> Path:
    """Curves of two rows each, with a column of a term that was never computed; returns the folder."""
    folder.mkdir(exist_ok=True)
    experts = "\texpert_share_0\texpert_share_1\texpert_entropy\tgate_divergence" if router else ""
    values = "\t0.75\t0.25\t0.56\t0.1" if router else ""
    for stage in ("train_kd", "train_router"):
        extra, row = (experts, values) if stage == "train_router" else ("", "")
        for kind in ("", "_validation"):
            (folder / f"{stage}{kind}.tsv").write_text(
                f"step\ttotal\tbits_per_byte\t{TERMS}\tfeature_raw{extra}\n"
                f"10\t2.5\t2.25\t1.5\t1.25\t4\t1\t{row}\n20\t2\t2.125\t1.25\t1\t3\t1\t{row}\n"
            )
    rows = "10\t2.5\n20\t2.25\n" if baseline else ""
    for kind in ("", "_validation"):
        (folder / f"control{kind}.tsv").write_text(f"step\tbits_per_byte\n{rows}")
    return folder


def crafted_inputs(folder: Path, changes: Mapping[str, float | None], router: bool = True) -> ReportInputs:
    """Inputs of a report with some metrics changed; None takes one away."""
    merged = {name: value for name, value in (METRICS | dict(changes)).items() if value is not None}
    measured = Evaluation(merged, [CalibrationBin(0.25, 0.2, 0.75), CalibrationBin(0.9, 0.8, 0.25)])
    about: ModelFacts = {"model_type": "qwen3_moe", "vocab_size": 500}
    return ReportInputs(
        params=fixed_params(),
        measured=measured,
        corpus=CORPUS,
        tokenize=TOKENIZE,
        curves=write_curves(folder / "curves", "lm_only_bits_per_byte" in merged, router),
        teacher=about,
        student=about | {"model_type": "llama"},
        positions=[POSITION],
        samples=[SAMPLE],
        facts=FACTS,
    )


class Page(HTMLParser):
    """The parts of a page: elements with their attributes, and the text inside each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def attribute(self, name: str) -> list[str]:
        """All values of an attribute in the page."""
        return [value for _, found in self.elements for key, value in found.items() if key == name and value]


def written(folder: Path, changes: Mapping[str, float | None], router: bool = True) -> tuple[Page, str]:
    """The page and the Markdown of a crafted report."""
    write_report(crafted_inputs(folder, changes, router), folder)
    return Page((folder / "report.html").read_text()), (folder / "report.md").read_text()
