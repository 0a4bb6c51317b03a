"""Every key of profiles/<profile>.yaml with type, range and meaning.

A profile holds what a machine, a corpus and a pair of models need. No key has a default, so that DVC sees every change
of a value in the file; an option that may be left out is then off. Unknown keys are refused.
"""

from collections import Counter
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from moe_distill.errors import ConfigError, DataError


def no_truth_value(value: object) -> object:
    """Refuse `on` and `yes`, which YAML takes for true and pydantic for the number 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}: YAML reads on, yes, off and no so")
    return value


Whole = Annotated[int, BeforeValidator(no_truth_value)]
Real = Annotated[float, BeforeValidator(no_truth_value)]
Share = Annotated[Real, Field(ge=0.0, le=1.0)]
Positive = Annotated[Whole, Field(gt=0, lt=2**31)]
Count = Annotated[Whole, Field(ge=0, lt=2**31)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]  # what NumPy takes
Weight = Annotated[Real, Field(ge=0.0)]
Rate = Annotated[Real, Field(gt=0.0)]
PrefixToken = str | Count | None  # begins every window; a token or its id; absent: BOS, else EOS
Precision = Literal["auto", "fp32", "fp16", "bf16"]

MINIMUM_ROUTER_POSITIONS = 256  # with teacher states in a step; with fewer, balance and importance are mostly noise


def require_router_positions(positions: float) -> None:
    """Refuse parameters under which a step has too few positions with teacher states.

    Args:
        positions: mean number of positions with teacher states in a step of train_router.

    Raises:
        ConfigError: there are fewer than MINIMUM_ROUTER_POSITIONS.
    """
    if positions < MINIMUM_ROUTER_POSITIONS:
        raise ConfigError(
            f"a step sees {positions:.0f} positions with teacher states, the router needs {MINIMUM_ROUTER_POSITIONS}",
            fix="raise `teacher.hidden_fraction` or `train.batch_windows`",
        )


def require_a_batch(n_windows: int, batch_windows: int) -> None:
    """Refuse a training split of fewer windows than a step reads.

    Raises:
        DataError: naming both numbers.
    """
    if n_windows < batch_windows:
        raise DataError(
            f"the training split has {n_windows} windows, one batch has {batch_windows}",
            fix="lower `train.batch_windows`, or raise `windows.train_fraction` or the corpus",
        )


class Section(BaseModel):
    """A group of keys: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# Under which the metrics of a source are reported, by MLflow and in tables too.
SourceName = Annotated[str, Field(pattern=r"^\w[\w. -]*$", max_length=100)]


class PythonDocs(Section):
    """The documentation inside the installed Python."""

    kind: Literal["python_docs"]
    weight: Share  # share of its training documents that is kept


class Files(Section):
    """Local text: .txt, .jsonl or .parquet files, folders of them, or globs."""

    kind: Literal["files"]
    name: SourceName
    paths: list[str] = Field(min_length=1)
    field: str  # column (parquet) or key (jsonl) that holds the text; ignored for .txt
    weight: Share
    max_documents: Positive | None
    join_rows_to_characters: Positive | None = None  # see Hub; a .txt stays one document


class Hub(Section):
    """A dataset of the Hugging Face hub, streamed at a pinned revision."""

    kind: Literal["hub"]
    name: SourceName
    repository: str
    revision: str = Field(min_length=1)
    subset: str | None
    split: str
    field: str
    weight: Share
    max_documents: Positive
    join_rows_to_characters: Positive | None = None  # consecutive rows make a document; absent: each row is one


Source = Annotated[PythonDocs | Files | Hub, Field(discriminator="kind")]


def source_name(source: Source) -> str:
    """The name under which the metrics of a source are reported."""
    return "python_docs" if isinstance(source, PythonDocs) else source.name


class Corpus(Section):
    """The sources of text, and the split into training and validation documents."""

    sources: list[Source] = Field(min_length=1)
    validation_fraction: Annotated[Real, Field(gt=0.0, lt=1.0)]  # by document hash

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        for name, count in Counter(source_name(source) for source in self.sources).items():
            if count > 1:
                raise ValueError(f"{count} sources are named `{name}`: give each its own `name`")
        return self


class TinyTokenizer(Section):
    """A byte-level BPE tokenizer trained on a share of the training documents."""

    vocabulary_size: Annotated[Whole, Field(ge=300, lt=2**31)]
    pre_tokenizer: Literal["qwen", "smollm", "gpt2"]  # whose splitting rules it imitates
    sample_fraction: Share
    sample_seed: Seed


class Attention(Section):
    """Sizes of a small model that must fit each other."""

    hidden_size: Positive
    layers: Positive
    heads: Positive
    key_value_heads: Positive

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of 2 * heads: rotary embeddings halve a head")
        if self.heads % self.key_value_heads:
            raise ValueError("heads must be a multiple of key_value_heads")
        return self


class TinyTeacher(Attention):
    """A small Qwen3-MoE, trained from random weights on the training split."""

    kind: Literal["tiny"]
    tokenizer: TinyTokenizer
    num_experts: Annotated[Whole, Field(ge=2, lt=2**31)]
    experts_per_token: Positive
    expert_size: Positive
    max_length: Positive
    router_auxiliary_weight: Weight
    steps: Positive
    batch_windows: Positive
    learning_rate: Rate

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.experts_per_token > self.num_experts:
            raise ValueError("experts_per_token must not exceed num_experts")
        return self


class TinyStudent(Attention):
    """A small Llama with random weights: deeper and narrower than the teacher."""

    kind: Literal["tiny"]
    tokenizer: TinyTokenizer
    intermediate_size: Positive
    max_length: Positive


class HubModel(Section):
    """A model of the Hugging Face hub at a pinned revision: safetensors only, no remote code."""

    kind: Literal["hub"]
    repository: str
    revision: str = Field(min_length=1)
    prefix_token: PrefixToken = None


class FolderModel(Section):
    """A local `save_pretrained` folder with its tokenizer."""

    kind: Literal["folder"]
    path: str
    prefix_token: PrefixToken = None


class TeacherCorrection(Section):
    """Low-rank adapters, tuned on the training text and merged into the teacher before it is captured."""

    steps: Positive  # optimizer steps
    learning_rate: Rate  # at the peak: a short warm-up, then a cosine to a tenth
    rank: Positive  # of the adapters
    train_experts: bool  # adapters on the experts too, where the teacher has any; else these stay as they are
    train_router: bool
    batch_windows: Positive  # teacher windows of an optimizer step
    micro_batch_windows: Positive  # of one forward pass, whose logits are held whole; the rest is accumulated
    gradient_checkpointing: bool  # layers are computed twice: less memory, a half more time
    validation_windows: Positive  # evenly spread teacher windows, measured before and after
    checkpoint_every: Positive

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_windows % self.micro_batch_windows:
            raise ValueError("batch_windows must be a multiple of micro_batch_windows")
        return self


class Models(Section):
    """Where teacher and student come from."""

    seed: Seed  # of both models' random weights, where they are made here, and of the teacher's correction
    teacher: Annotated[TinyTeacher | HubModel | FolderModel, Field(discriminator="kind")]
    teacher_correction: TeacherCorrection | None  # null: the teacher is captured as it is
    student: Annotated[TinyStudent | HubModel | FolderModel, Field(discriminator="kind")]


class Windows(Section):
    """The windows that `tokenize` cuts."""

    teacher_max_length: Annotated[Whole, Field(ge=8, lt=2**31)]  # tokens of a teacher window, prefix token included
    student_max_length: Annotated[Whole, Field(ge=8, lt=2**31)]
    train_fraction: Annotated[Real, Field(gt=0.0, le=1.0)]  # share of training documents distilled on
    max_train_windows: Positive | None  # of the teacher; documents are left out by their hash, evenly over the sources
    max_validation_windows: Positive | None
    shard_tokens: Positive  # tokens a windows file holds


class Capture(Section):
    """What the `teacher` stage stores for each position."""

    seed: Seed  # of the tail samples and of the choice of runs
    k: Positive  # logits kept per position
    tail_samples: Count  # samples of the distribution outside the top-k
    hidden_layers: list[Count] = Field(min_length=1)  # residual states kept; 0 = embeddings
    hidden_fraction: Share  # share of the windows that keep a run of hidden states
    hidden_run: Annotated[
        Whole, Field(ge=64, le=128)
    ]  # positions of such a run; `contrastive` starts near its logarithm
    precision: Precision
    batch_windows: Positive
    chunk_positions: Positive  # positions whose logits are held at once
    shard_positions: Positive  # positions a shard file holds

    @model_validator(mode="after")
    def _layers_ascend(self) -> Self:
        if any(layer >= after for layer, after in pairwise(self.hidden_layers)):
            raise ValueError("hidden_layers must ascend, each named once")
        return self


class Train(Section):
    """Steps, batches and optimizer of the three training stages."""

    max_steps: Positive  # optimizer steps of both phases together
    batch_windows: Positive  # student windows of one optimizer step
    micro_batch_windows: Positive  # of one forward pass; the rest is accumulated
    learning_rate: Rate
    router_learning_rate: Rate  # of the projections and the student-aware router
    warmup_fraction: Share  # of the optimizer steps
    final_learning_rate_fraction: Share  # of the learning rate, at the end of the cosine
    weight_decay: Weight
    gradient_clip: Rate
    chunk_tokens: Positive  # positions whose logits are held at once
    loader_workers: Count  # processes that make batches ready; 0: the one that trains
    target_memory_mb: Count  # of targets kept for later epochs, by all these
    log_every: Positive
    validate_every: Positive
    validation_windows: Positive  # student windows of an in-training validation, evenly spread
    checkpoint_every: Positive
    max_consecutive_nonfinite: Positive

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_windows % self.micro_batch_windows:
            raise ValueError("batch_windows must be a multiple of micro_batch_windows")
        return self


class Evaluate(Section):
    """Batches of the evaluation, and sample texts in the report."""

    batch_windows: Positive
    samples: Annotated[Whole, Field(ge=0, le=3)]  # sample texts by the student in the report
    sample_tokens: Positive  # tokens of a sample text


class Profile(Section):
    """profiles/<profile>.yaml."""

    corpus: Corpus
    models: Models
    windows: Windows
    teacher: Capture
    train: Train
    evaluate: Evaluate

    @model_validator(mode="after")
    def _models_take_windows(self) -> Self:
        teacher, student, capture = self.models.teacher, self.models.student, self.teacher
        if capture.hidden_run >= self.windows.teacher_max_length:  # which counts the prefix token
            raise ValueError("teacher.hidden_run must be below windows.teacher_max_length: a run lies in one window")
        if isinstance(teacher, TinyTeacher):
            if capture.hidden_layers[-1] > teacher.layers:
                raise ValueError(f"teacher.hidden_layers names a layer beyond models.teacher.layers, {teacher.layers}")
            if capture.k >= teacher.tokenizer.vocabulary_size:
                raise ValueError("teacher.k must be below models.teacher.tokenizer.vocabulary_size: there is a tail")
            if self.windows.teacher_max_length > teacher.max_length:
                raise ValueError("windows.teacher_max_length must not exceed models.teacher.max_length")
        if isinstance(student, TinyStudent) and self.windows.student_max_length > student.max_length:
            raise ValueError("windows.student_max_length must not exceed models.student.max_length")
        if self.evaluate.sample_tokens >= self.windows.student_max_length:
            raise ValueError(
                "evaluate.sample_tokens must be below windows.student_max_length: the student reads no more"
            )
        return self
