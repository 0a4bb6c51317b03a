"""Every key of profiles/<profile>.yaml with type, range and meaning.

A profile holds what a machine, a corpus and a pair of models need. Its sections must stand in it, if empty: DVC follows
them by name. Most keys in them have a default, of a pair of pretrained models on one GPU; `left_out` tells DVC of the
defaults that are used (pipeline/default_values.py). Unknown keys are refused.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from moe_distill.config.corpus_keys import Corpus
from moe_distill.config.model_keys import Models, TinyStudent, TinyTeacher
from moe_distill.config.values import Count, Positive, Precision, Rate, Real, Section, Seed, Share, Weight, Whole
from moe_distill.errors import ConfigError, DataError

MINIMUM_ROUTER_POSITIONS = 256  # with teacher states in a step; with fewer, balance and importance are mostly noise
MORE_STATES = (  # a fix of too few
    "raise `teacher.hidden_fraction` or `train.batch_windows`, "
    "or lower `teacher.hidden_run` if most texts are shorter than it"
)


def require_router_positions(positions: float, word: str = "") -> None:
    """Refuse parameters under which a step has too few positions with teacher states.

    Args:
        positions: mean number of positions with teacher states in a step of train_router.
        word: stands before it in the error; before there are windows it is a bound.

    Raises:
        ConfigError: there are fewer than MINIMUM_ROUTER_POSITIONS.
    """
    if positions < MINIMUM_ROUTER_POSITIONS:
        raise ConfigError(
            f"a step sees {word}{positions:.0f} positions with teacher states, "
            f"the router needs {MINIMUM_ROUTER_POSITIONS}",
            fix=MORE_STATES,
        )


def most_positions_with_states(profile: "Profile") -> float:
    """The mean number of positions with teacher states in a step of train_router, at most."""
    return profile.train.batch_windows * profile.teacher.hidden_fraction * profile.teacher.hidden_run


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


class Windows(Section):
    """The windows that `tokenize` cuts."""

    teacher_max_length: Annotated[Whole, Field(ge=8, lt=2**31)] = 256  # tokens of a window, prefix token included
    student_max_length: Annotated[Whole, Field(ge=8, lt=2**31)] = 384  # the same, of the student's tokens
    train_fraction: Annotated[Real, Field(gt=0.0, le=1.0)] = 1.0  # share of training documents distilled on
    max_train_windows: Positive | None = None  # of the teacher; documents are left out by hash, evenly over the sources
    max_validation_windows: Positive | None = None  # the same, of the validation split
    shard_tokens: Positive = 4_000_000  # tokens a windows file holds


class Capture(Section):
    """What the `teacher` stage stores for each position."""

    seed: Seed = 0  # of the tail samples and of the choice of runs
    k: Positive = 64  # logits kept per position
    tail_samples: Count = 32  # samples of the distribution outside the top-k
    hidden_layers: list[Count] = Field(min_length=1)  # residual states kept; 0 = embeddings
    hidden_fraction: Share = 0.25  # share of the windows that keep a run of hidden states
    # positions of such a run; `contrastive` starts near its logarithm
    hidden_run: Annotated[Whole, Field(ge=64, le=128)] = 64
    precision: Precision = "auto"  # of the teacher's layers; as `precision` of params.yaml
    batch_windows: Positive = 16  # teacher windows of one forward pass
    chunk_positions: Positive = 1024  # positions whose logits are held at once
    shard_positions: Positive = 200_000  # positions a shard file holds

    @model_validator(mode="after")
    def _layers_ascend(self) -> Self:
        if any(layer >= after for layer, after in pairwise(self.hidden_layers)):
            raise ValueError("hidden_layers must ascend, each named once")
        return self


class Train(Section):
    """Steps, batches and optimizer of the three training stages."""

    max_steps: Positive  # optimizer steps of both phases together
    batch_windows: Positive = 32  # student windows of one optimizer step
    micro_batch_windows: Positive = 4  # of one forward pass; the rest is accumulated
    gradient_checkpointing: bool = False  # the student's layers are computed twice: less memory, a third more time
    learning_rate: Rate = 5e-5  # of the student, at the peak
    router_learning_rate: Rate = 1e-4  # of the projections and the student-aware router
    warmup_fraction: Share = 0.02  # of the optimizer steps
    final_learning_rate_fraction: Share = 0.1  # of the learning rate, at the end of the cosine
    weight_decay: Weight = 0.01  # of AdamW
    gradient_clip: Rate = 1.0  # largest norm of a step's gradient
    chunk_tokens: Positive = 512  # positions whose logits are held at once
    loader_workers: Count = 2  # processes that make batches ready; 0: the one that trains
    target_memory_mb: Count = 2048  # of targets kept for later epochs, by all these; each keeps its own
    log_every: Positive = 100  # optimizer steps between two logged ones
    validate_every: Positive = 200  # optimizer steps between two validations
    validation_windows: Positive = 400  # student windows of an in-training validation, evenly spread
    checkpoint_every: Positive = 500  # optimizer steps between two checkpoints
    max_consecutive_nonfinite: Positive = 20  # steps with a non-finite loss or gradient in a row that end the stage

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_windows % self.micro_batch_windows:
            raise ValueError("batch_windows must be a multiple of micro_batch_windows")
        return self


class Evaluate(Section):
    """Batches of the evaluation, and sample texts in the report."""

    batch_windows: Positive = 16  # student windows of one forward pass
    samples: Annotated[Whole, Field(ge=0, le=3)] = 3  # sample texts by the student in the report
    sample_tokens: Positive = 60  # tokens of a sample text


def nothing_for_null(value: object) -> object:
    """A section under which nothing stands, which YAML reads as null, has the defaults of all its keys."""
    return {} if value is None else value


class Launch(Section):
    """Processes that capture and train together."""

    # of torchrun on this machine; 1: none is started; must divide the micro-batches of a step
    processes: Positive = 1


class Profile(Section):
    """What a machine, a corpus and a pair of models need (profiles/<profile>.yaml)."""

    corpus: Corpus
    models: Models
    windows: Annotated[Windows, BeforeValidator(nothing_for_null)]
    teacher: Capture
    train: Train
    evaluate: Annotated[Evaluate, BeforeValidator(nothing_for_null)]
    baseline: Literal["full", "none"] = "full"  # the student trained on LM alone, to compare with; none: it is not
    launch: Annotated[Launch, BeforeValidator(nothing_for_null)] = Launch()

    @model_validator(mode="after")
    def _processes_share_steps(self) -> Self:
        """On several nodes there are so many times more, which only the training knows (training/loop.py)."""
        batch, micro = self.train.batch_windows, self.train.micro_batch_windows
        if batch // micro % self.launch.processes:
            raise ValueError(
                f"{self.launch.processes} processes cannot share a step of {batch // micro} micro-batches evenly, "
                f"which launch.processes must divide: train.batch_windows is {batch}, train.micro_batch_windows {micro}"
            )
        return self

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
