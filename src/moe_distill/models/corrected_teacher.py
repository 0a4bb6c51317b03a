"""Which teacher is captured: the corrected one, or the one that came."""

from pathlib import Path

CORRECTION_NAME = "correction.json"  # in models/teacher_corrected; all there is where no correction is asked for


def teacher_to_capture(teacher: Path, corrected: Path) -> Path:
    """The folder of the teacher that the student learns from: the corrected one where it holds a model."""
    return corrected if (corrected / "config.json").is_file() else teacher
