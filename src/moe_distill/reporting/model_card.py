"""The student's model card: metadata as the Hugging Face hub reads it, how to use the model, and its results."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from moe_distill.config.corpus_keys import Hub, source_name
from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.config.params import Params
from moe_distill.models.source_card import CARD_NAME, source_card
from moe_distill.reporting.markdown import make_environment
from moe_distill.utils.hub_commits import recorded_commit

FIGURES = {  # of metrics/evaluate.json that are the student's own, with the hub's name of the metric
    "student_bits_per_byte": ("bits_per_byte", "bits per byte of text"),
    "student_perplexity": ("perplexity", "perplexity per token of its own tokenizer"),
    "top1_agreement": ("top1_agreement", "share of aligned positions where teacher and student rank the same first"),
}
DIGITS = 6  # significant ones of a result
STUDENT = "models/student"  # as the usage names it; an export puts its own place there


def write_model_card(params: Params, metrics: Mapping[str, float], tokenizer_class: str, folder: Path) -> None:
    """Write README.md into the folder of the student.

    Args:
        metrics: of metrics/evaluate.json.
        tokenizer_class: the class of transformers that reads its tokenizer (`share_model`).
    """
    models, sources = params.profile.models, params.profile.corpus.sources
    text = (
        make_environment(is_page=False)
        .get_template("model_card.md.jinja")
        .render(
            metadata=card_metadata(params, metrics).to_yaml(),
            metrics=metrics,
            params=params,
            name=STUDENT,
            tokenizer_class=tokenizer_class,
            sources=[source_name(each) for each in sources],
            teacher=_named(models.teacher),
            student=_named(models.student),
            teacher_license=_license(models.teacher),
            student_license=_license(models.student),
        )
    )
    (folder / CARD_NAME).write_text(text, encoding="utf-8")


def card_metadata(params: Params, metrics: Mapping[str, float]) -> ModelCardData:
    """The card's front matter; what is not known is left out.

    `base_model` is the model whose weights the student began with, not the teacher, whose weights it does not have.
    """
    student, sources = params.profile.models.student, params.profile.corpus.sources
    own, datasets = source_card(student), [each.repository for each in sources if isinstance(each, Hub)]
    spoken = own.get("language")  # Norwegian, `no`, is text to the hub, and false to YAML here
    listed = spoken if isinstance(spoken, list) else [spoken]
    known = ["no" if each is False else each for each in listed if isinstance(each, str) or each is False]
    english = ["en"] if any(source_name(each) == "python_docs" for each in sources) else []
    base = student.repository if isinstance(student, HubModel) else None
    return ModelCardData(
        model_name=f"{base.split('/')[-1]}-distilled" if base else "student",
        base_model=base,
        base_model_relation="finetune" if base else None,
        license=_text(own, "license"),
        license_name=_text(own, "license_name"),
        license_link=_text(own, "license_link"),
        language=sorted({*known, *english}) or None,
        datasets=datasets or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation", "moe-distill"],
        eval_results=_results(params, metrics),
    )


def _results(params: Params, metrics: Mapping[str, float]) -> list[EvalResult]:
    """The figures of FIGURES that are known, of the validation text."""
    sources = params.profile.corpus.sources
    only = sources[0] if len(sources) == 1 else None
    hub = only if isinstance(only, Hub) else None
    named = ", ".join(source_name(each) for each in sources)
    return [
        EvalResult(
            task_type="text-generation",
            task_name="next-token prediction",
            dataset_type=named if hub is None else hub.repository,
            dataset_name=f"held-out documents of {named}",
            dataset_config=None if hub is None else hub.subset,
            dataset_split=None if hub is None else hub.split,
            dataset_revision=None if hub is None else recorded_commit("dataset", hub.repository, hub.revision),
            metric_type=kind,
            metric_name=told,
            metric_value=float(f"{metrics[name]:.{DIGITS}g}"),
        )
        for name, (kind, told) in FIGURES.items()
        if name in metrics
    ]


def _named(model: HubModel | FolderModel | TinyStudent | TinyTeacher) -> str:
    """A model for a sentence; of a local folder its own name alone, since the rest is of one machine."""
    if isinstance(model, HubModel):
        revision = recorded_commit("model", model.repository, model.revision)
        return f"[{model.repository}](https://huggingface.co/{model.repository}) at revision `{revision}`"
    return f"a local model, `{Path(model.path).name}`" if isinstance(model, FolderModel) else ""


def _license(model: HubModel | FolderModel | TinyStudent | TinyTeacher) -> str:
    own = source_card(model)
    return _text(own, "license_name") or _text(own, "license") or ""


def _text(card: Mapping[str, object], key: str) -> str | None:
    value = card.get(key)
    return value if isinstance(value, str) else None
