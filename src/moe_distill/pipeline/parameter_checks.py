"""What parameters ask of models and machine, checked before anything runs; what can only be told later is not here."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.config.params import Params
from moe_distill.config.profile import most_positions_with_states, require_router_positions
from moe_distill.corpus.field_checks import check_fields
from moe_distill.errors import ConfigError, MoeDistillError, together
from moe_distill.models.config_checks import ModelSizes, check_capture, check_windows, read_sizes
from moe_distill.pipeline.hub_revisions import check_revisions
from moe_distill.pipeline.local_inputs import missing_inputs
from moe_distill.pipeline.local_models import check_local_model
from moe_distill.training.curriculum import experts_warning, phase1_steps
from moe_distill.utils.files import project_root
from moe_distill.utils.hub_commits import recorded_commit

Model = TinyTeacher | TinyStudent | HubModel | FolderModel
Result = TypeVar("Result")


def check_parameters(params: Params, needs_commits: bool = True) -> Iterator[str]:
    """Yield warnings.

    Args:
        needs_commits: a revision of the hub that is no commit is wrong; else it is warned of: a plan downloads nothing.

    Raises:
        MoeDistillError: all that is wrong, in one (`examine_parameters`).
    """
    faults, warnings = examine_parameters(params, needs_commits)
    if faults:
        raise together(faults)
    yield from warnings


def examine_parameters(params: Params, needs_commits: bool = True) -> tuple[list[MoeDistillError], list[str]]:
    """What is wrong, and warnings.

    A fault is a ConfigError (a key asks for more than a model or this machine has, or a phase would have no step),
    a DataError (a path is not here, a model's folder or a file of text is unusable) or a ResourceError (the GPU is).
    """
    found = list[MoeDistillError]()
    unpinned, warnings = _collect(found, partial(check_revisions, params.profile)) or ([], [])
    found += unpinned
    if not needs_commits:
        warnings, found = [*warnings, *map(str, found)], []
    windows, capture, models = params.profile.windows, params.profile.teacher, params.profile.models
    _collect(found, partial(_check_steps, params))
    found += missing_inputs(params.profile)
    for source in params.profile.corpus.sources:
        _collect(found, partial(check_fields, source))
    teacher = _collect(found, partial(_checked_sizes, models.teacher, "teacher", windows.teacher_max_length))
    _collect(found, partial(_checked_sizes, models.student, "student", windows.student_max_length))
    if teacher is not None:
        _collect(found, partial(check_capture, teacher, capture.k, capture.hidden_layers))
    tiny = models.teacher.num_experts if isinstance(models.teacher, TinyTeacher) else 0
    experts = tiny if teacher is None else teacher.experts
    if experts and params.experiment.losses.terms_of_states():
        too_few = list[MoeDistillError]()
        _collect(too_few, partial(require_router_positions, most_positions_with_states(params.profile), "at most "))
        if tiny:
            found += too_few
        else:  # whether its experts can be replayed is not known yet
            warnings += [f"{each}; it is refused later if the teacher's experts can be replayed" for each in too_few]
    if {params.experiment.precision, capture.precision} & {"bf16", "fp16"}:
        _collect(found, partial(_check_precisions, params))
    warning = experts_warning(params.experiment, experts)
    return found, warnings + ([] if warning is None else [warning])


def _collect(found: list[MoeDistillError], check: Callable[[], Result]) -> Result | None:
    """What `check` returns; None where it refuses, which is added to `found`."""
    try:
        return check()
    except MoeDistillError as error:
        found.append(error)
        return None


def _checked_sizes(model: Model, role: str, window: int) -> ModelSizes | None:
    """Sizes of a model that is here, whose folder is usable and whose positions take the windows."""
    check_local_model(model)
    sizes = model_sizes(model)
    if sizes is not None:
        check_windows(sizes.positions, sizes.model_type, role, window)
    return sizes


def model_sizes(model: Model) -> ModelSizes | None:
    """Sizes of a model that is here: a folder, or one of the hub in its cache; None for any other."""
    folder = model_folder(model)
    return None if folder is None else read_sizes(folder)


def model_folder(model: Model) -> Path | None:
    """The folder of a model that is here: the user's own, or one of the hub in its cache; None for any other."""
    if isinstance(model, FolderModel):
        folder = project_root() / model.path
        return folder if folder.is_dir() else None
    if isinstance(model, HubModel):
        from huggingface_hub import try_to_load_from_cache  # imported here: tiny models need none of it

        revision = recorded_commit("model", model.repository, model.revision)
        cached = try_to_load_from_cache(model.repository, "config.json", revision=revision)
        return Path(cached).parent if isinstance(cached, str) else None
    return None


def _check_steps(params: Params) -> None:
    """Refuse a curriculum that leaves the second phase without a step."""
    steps, curriculum = params.profile.train.max_steps, params.experiment.curriculum
    first = phase1_steps(steps, curriculum.curriculum_share, curriculum.phase1_share)
    if first >= steps:
        raise ConfigError(
            f"`train.max_steps` is {steps}, and the first phase takes all of them",
            f"it has curriculum_share * phase1_share of them, at least 1: {first}",
            "raise `train.max_steps`, or lower `curriculum.phase1_share` or `curriculum.curriculum_share`",
        )


def _check_precisions(params: Params) -> None:
    from moe_distill.utils.device import make_runtime  # imports torch: seconds

    for precision in (params.experiment.precision, params.profile.teacher.precision):
        make_runtime(precision)
