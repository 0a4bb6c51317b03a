"""The keys of a profile that bound a stage's memory on the GPU, and what to change where it does not suffice."""

from moe_distill.config.params import load_params
from moe_distill.errors import MoeDistillError
from moe_distill.utils.files import Json

TRAINING_KEYS = ("train.micro_batch_windows", "train.chunk_tokens", "train.gradient_checkpointing")
MEMORY_KEYS = {
    "models@teacher": ("models.teacher.batch_windows",),
    "self_test": ("windows.teacher_max_length", "windows.student_max_length"),
    "teacher_correction": (
        "models.teacher_correction.micro_batch_windows",
        "models.teacher_correction.gradient_checkpointing",
    ),
    "teacher": ("teacher.batch_windows", "teacher.chunk_positions"),
    "train_kd": TRAINING_KEYS,
    "train_router": TRAINING_KEYS,
    "control": TRAINING_KEYS,
    "teacher_examples": ("windows.teacher_max_length",),
    "teacher_lead": ("evaluate.batch_windows",),
    "evaluate": ("evaluate.batch_windows",),
}


def memory_fix(stage: str) -> str:
    """What to change in the profile where a stage ran out of memory, with the present value of each key.

    A number is lowered; a switch that is on already is left out.
    """
    try:
        profile: dict[str, Json] = load_params().profile.model_dump(mode="json")
    except MoeDistillError:  # edited while the stage ran
        profile = {}
    found = {key: _value(profile, key) for key in MEMORY_KEYS[stage]}
    lowered = [_told(key, value) for key, value in found.items() if not key.endswith("gradient_checkpointing")]
    switches = [key for key, value in found.items() if key.endswith("gradient_checkpointing") and value is not True]
    return " or ".join(["lower " + " or ".join(lowered), *(f"set `{key}: true`" for key in switches)])


def _value(profile: dict[str, Json], key: str) -> Json:
    """The value of a dotted key; None where it is not in this profile."""
    value: Json = profile
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _told(key: str, value: Json) -> str:
    return f"`{key}`" if value is None else f"`{key}` (now {value})"
