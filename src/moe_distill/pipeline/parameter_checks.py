"""What parameters ask of models and machine, checked before anything runs; what can only be told later is not here."""

from collections.abc import Iterator
from pathlib import Path

from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.config.params import Params
from moe_distill.errors import ConfigError
from moe_distill.models.config_checks import ModelSizes, check_capture, check_windows, read_sizes
from moe_distill.pipeline.hub_revisions import check_revisions
from moe_distill.pipeline.local_models import check_local_models
from moe_distill.training.curriculum import experts_warning, phase1_steps
from moe_distill.utils.files import project_root
from moe_distill.utils.hub_commits import recorded_commit

Model = TinyTeacher | TinyStudent | HubModel | FolderModel


def check_parameters(params: Params) -> Iterator[str]:
    """Yield warnings.

    Raises:
        ConfigError: a key asks for more than a model or this machine has, a phase would have no step, or a revision of
            the hub is no commit.
        DataError: a model's folder is unusable.
        ResourceError: the GPU cannot be used.
    """
    _check_steps(params)
    yield from check_revisions(params.profile)
    check_local_models(params.profile)
    windows, capture, models = params.profile.windows, params.profile.teacher, params.profile.models
    teacher, student = model_sizes(models.teacher), model_sizes(models.student)
    if teacher is not None:
        check_windows(teacher.positions, teacher.model_type, "teacher", windows.teacher_max_length)
        check_capture(teacher, capture.k, capture.hidden_layers)
    if student is not None:
        check_windows(student.positions, student.model_type, "student", windows.student_max_length)
    if {params.experiment.precision, capture.precision} & {"bf16", "fp16"}:
        _check_precisions(params)
    tiny = models.teacher.num_experts if isinstance(models.teacher, TinyTeacher) else 0
    warning = experts_warning(params.experiment, tiny if teacher is None else teacher.experts)
    if warning is not None:
        yield warning


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
