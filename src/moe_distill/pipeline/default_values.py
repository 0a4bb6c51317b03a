"""What a profile leaves out, for DVC, which follows a profile's sections by name and knows no default.

The stage `check`, which always runs, writes it to data/defaults.json, and the stages name its keys under `params`.
"""

from pathlib import Path
from typing import Any

from moe_distill.config.profile import Profile

OUTPUT = Path("data/defaults.json")
NOTHING_LEFT_OUT = "none"
VALUES = {  # single keys that a stage depends on: they may be left out, where DVC would find no such key in the profile
    "models": ("seed", "teacher_correction"),
    "windows": ("teacher_max_length", "student_max_length"),
    "teacher": ("precision",),
    "evaluate": ("batch_windows", "samples", "sample_tokens"),
}


def default_values(profile: Profile) -> dict[str, Any]:
    """The content of data/defaults.json.

    `left_out` has the defaults that each section uses, or NOTHING_LEFT_OUT; `values` single keys, default or not.
    """
    dumped = profile.model_dump(mode="json")
    sections = {
        "corpus": profile.corpus,
        "windows": profile.windows,
        "teacher": profile.teacher,
        "train": profile.train,
        "evaluate": profile.evaluate,
    }
    models = {"teacher": profile.models.teacher, "student": profile.models.student}
    return {
        "left_out": {name: section.left_out() or NOTHING_LEFT_OUT for name, section in sections.items()}
        | {"models": {name: model.left_out() or NOTHING_LEFT_OUT for name, model in models.items()}},
        "values": {section: {key: dumped[section][key] for key in keys} for section, keys in VALUES.items()}
        | {"baseline": profile.baseline},
    }
