"""How long each stage took, in `.work/times`: outside of what DVC compares, so that a clock runs no stage again.

A record is found by the content of what the stage wrote last. So a stage whose outputs came from DVC's cache has the
time of the very run that made them, where that run was made here, and else none.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from moe_distill.utils.files import project_root, sha256_file, write_json

EXAMPLES = Path("data/teacher_examples.json")


class StageTime(BaseModel):
    """When a stage began, and how long the process took that finished it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    began: datetime  # UTC
    seconds: float


def record_time(stage: str, began: datetime) -> None:
    """Record that a stage has just ended well; nothing for one that writes no figures (`check`)."""
    path = _record(stage)
    if path is not None:
        seconds = (datetime.now(UTC) - began).total_seconds()
        write_json(path, StageTime(began=began, seconds=seconds).model_dump(mode="json"))


def recorded_time(stage: str) -> StageTime | None:
    """The record of the run that made the stage's present outputs; None where there is none, or no output."""
    path = _record(stage)
    if path is None or not path.is_file():
        return None
    return StageTime.model_validate(json.loads(path.read_text(encoding="utf-8")))


def _record(stage: str) -> Path | None:
    figures = Path(f"metrics/{stage.replace('@', '_')}.json")
    written = EXAMPLES if stage == "teacher_examples" else figures
    if not written.is_file():
        return None
    return project_root() / ".work/times" / stage / f"{sha256_file(written)[:16]}.json"
