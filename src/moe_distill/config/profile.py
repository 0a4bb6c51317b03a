"""Every key of profiles/<profile>.yaml with type, range and meaning.

A profile holds what a machine, a corpus and a pair of models need. No key has a default, so that DVC sees every change
of a value in the file; an option that may be left out is then off. Unknown keys are refused.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moe_distill.config.corpus_keys import Corpus
from moe_distill.config.model_keys import Models, TinyStudent, TinyTeacher
from moe_distill.config.values import Count, Positive, Precision, Rate, Real, Section, Seed, Share, Weight, Whole
from moe_distill.errors import ConfigError, DataError

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
    gradient_checkpointing: bool  # the student's layers are computed twice: less memory, a third more time
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


class Launch(Section):
    """Processes that capture and train together."""

    processes: Positive  # of torchrun on this machine; 1: none is started


class Profile(Section):
    """profiles/<profile>.yaml."""

    corpus: Corpus
    models: Models
    windows: Windows
    teacher: Capture
    train: Train
    evaluate: Evaluate
    baseline: Literal["full", "none"]  # the student trained on LM alone, to compare with; none: it is not
    launch: Launch

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
