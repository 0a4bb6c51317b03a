"""The tables of what a run was made of: models, text, alignment, cost, commit.

Pure functions, but for the record of what a branch of the hub was when it was downloaded.
"""

from collections.abc import Sequence

from moe_distill.config.corpus_keys import Files, Hub, Source, source_name
from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.config.params import Params
from moe_distill.evaluation.metrics import Metrics
from moe_distill.reporting.model_facts import ModelFacts
from moe_distill.reporting.run_facts import RunFacts, StageFacts
from moe_distill.reporting.tables import UNKNOWN, Table, told_bytes, told_count, told_seconds
from moe_distill.utils.hub_commits import recorded_commit


def models_table(params: Params, teacher: ModelFacts, student: ModelFacts, metrics: Metrics) -> Table:
    """What was distilled into what."""
    models = params.profile.models
    of_teacher, of_student = _origin(models.teacher, teacher), _origin(models.student, student)
    rows = [
        (what, of_teacher[number], of_student[number])
        for number, what in enumerate(("name", "revision", "licence", "architecture"))
    ]
    rows += [
        (what, f"{teacher.get(key, UNKNOWN)}", f"{student.get(key, UNKNOWN)}")
        for what, key in (
            ("layers", "num_hidden_layers"),
            ("hidden size", "hidden_size"),
            ("rows of the vocabulary", "vocab_size"),
        )
    ]
    rows.append(
        (
            "experts of the last block",
            told_count(metrics["teacher_experts"]) if metrics["teacher_experts"] else "none",
            "none",
        )
    )
    rows.append(("parameters", told_count(metrics["teacher_parameters"]), told_count(metrics["student_parameters"])))
    rows.append(
        (
            "bytes of the weights",
            f"{told_bytes(metrics['teacher_bytes'])} (as captured)",
            f"{told_bytes(metrics['student_bytes'])} (fp32, as exported)",
        )
    )
    rows.append(("tuned on the training text first", "yes" if models.teacher_correction else "no", ""))
    note = (
        f"The student has {metrics['compression_ratio']:.2f} times fewer parameters "
        f"and {metrics['bytes_ratio']:.2f} times fewer bytes."
    )
    return Table(("", "teacher", "student"), tuple(rows), note)


def corpus_table(params: Params, corpus: Metrics) -> Table:
    """Documents and bytes of each source, as they were collected."""
    columns = ("train_documents", "train_bytes", "validation_documents", "validation_bytes")
    named = [(source_name(each), _source_told(each), f"{source_name(each)}_") for each in params.profile.corpus.sources]
    if len(named) > 1:
        named.append(("all", "", ""))
    rows = tuple(
        (name, told, *(_sized(column, corpus.get(f"{prefix}{column}")) for column in columns))
        for name, told, prefix in named
    )
    header = ("source", "of", "training documents", "bytes", "validation documents", "bytes")
    return Table(header, rows, "As collected; the share that is distilled on is below.")


def alignment_table(tokenize: Metrics) -> Table:
    """How far the two tokenizers agree."""
    rows = [
        ("windows of the student, both splits", told_count(tokenize["student_windows"])),
        ("training tokens of the student", told_count(tokenize["train_tokens_student"])),
        ("training tokens of the teacher", told_count(tokenize["train_tokens_teacher"])),
        ("aligned positions", f"{tokenize['aligned_position_coverage']:.1%}"),
        ("positions where both tokens span the same bytes", f"{tokenize['one_to_one_coverage']:.1%}"),
        ("aligned positions where the student has read less", f"{tokenize['shorter_context_row_share']:.1%}"),
        ("student's tokens that are tokens of the teacher too", f"{tokenize['exact_vocabulary_share']:.1%}"),
    ]
    if "skipped_documents" in tokenize:
        rows.append(("documents left out", told_count(tokenize["skipped_documents"])))
    note = (
        "A position is aligned where both models stand before the same byte: there both next tokens say what follows."
    )
    return Table(("figure", "value"), tuple(rows), note)


def cost_table(stages: Sequence[StageFacts]) -> Table:
    """Wall time and bytes of each stage."""
    rows = [(each.name, _stage_seconds(each), told_bytes(each.n_bytes) if each.n_bytes else "none") for each in stages]
    total = sum(each.seconds or 0.0 for each in stages)
    rows.append(("all of these", told_seconds(total), told_bytes(sum(each.n_bytes for each in stages))))
    note = (
        "Wall time of the process that finished the stage: what one that was killed had done before is not in it. "
        "Where no time stands, the outputs came from a cache, or from another machine. Bytes are of the outputs."
    )
    return Table(("stage", "wall time", "bytes"), tuple(rows), note)


def run_table(facts: RunFacts) -> Table:
    """Where the run comes from."""
    changed = f", with {len(facts.changed)} changed files: {', '.join(facts.changed[:5])}" if facts.changed else ""
    rows = [
        ("commit", f"{facts.commit}{changed}" if facts.commit else "not known: no git repository"),
        ("text collected", facts.collected or UNKNOWN),
        ("machine that evaluated", facts.machine),
        ("versions", ", ".join(f"{name} {number}" for name, number in facts.versions.items())),
    ]
    if facts.experiment:
        rows.insert(1, ("DVC experiment", facts.experiment))
    return Table(("", ""), tuple(rows))


def parameters_table(params: Params, kd_weight: str) -> Table:
    """What an experiment varies, as it was for this run."""
    flat = {
        name: told
        for name, value in params.experiment.model_dump(mode="json").items()
        for name, told in _flat(name, value)
    }
    flat["kd_weight"] = kd_weight
    flat["train.max_steps"] = told_count(params.profile.train.max_steps)
    flat["train.batch_windows"] = told_count(params.profile.train.batch_windows)
    flat["train.learning_rate"] = f"{params.profile.train.learning_rate:g}"
    return Table(("key", "value"), tuple(flat.items()))


def _stage_seconds(stage: StageFacts) -> str:
    """The wall time of a stage."""
    if stage.name == "evaluate" and stage.seconds is None:
        return "not over when this was written"
    return "" if stage.seconds is None else told_seconds(stage.seconds)


def _origin(model: TinyTeacher | TinyStudent | HubModel | FolderModel, facts: ModelFacts) -> tuple[str, str, str, str]:
    """Name, revision, licence and architecture of a model."""
    licence, architecture = str(facts.get("licence", UNKNOWN)), str(facts.get("model_type", UNKNOWN))
    if isinstance(model, HubModel):
        commit = recorded_commit("model", model.repository, model.revision)
        return model.repository, commit, licence, architecture
    if isinstance(model, FolderModel):
        return model.path, "a local folder", licence, architecture
    trained = "trained here from random weights" if isinstance(model, TinyTeacher) else "random weights, made here"
    return f"small {architecture}, {trained}", "of this run", "that of this project", architecture


def _source_told(source: Source) -> str:
    if isinstance(source, Hub):
        subset = f", {source.subset}" if source.subset else ""
        commit = recorded_commit("dataset", source.repository, source.revision)
        return f"{source.repository} at {commit[:12]}{subset}, split {source.split}"
    if isinstance(source, Files):
        return ", ".join(source.paths)
    return "documentation of the installed Python"


def _sized(column: str, value: float | None) -> str:
    if value is None:
        return ""
    return told_bytes(value) if column.endswith("bytes") else told_count(value)


def _flat(name: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(f"{name}.{key}", inner)]
    return [(name, str(value))]
