"""kill -9 inside an operation of a real stage: the same command finishes the run, with the bytes of an unbroken one."""

import random
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest

from moe_distill.utils.files import folder_fingerprint
from tests.end_to_end.conftest import Checkout
from tests.end_to_end.killing import Run, Stages, stages_of

OUTPUTS = {
    "corpus": ["data/corpus"],
    "tokenize": ["data/windows/teacher", "data/windows/student"],
    "teacher": ["data/teacher_shards", "models/teacher_head"],
    "train_kd": ["models/student_kd", "models/student_kd_optimizer"],
    "train_router": ["models/student_router"],
}
# The temporary name that stands only while a process is inside the operation to hit.
INSIDE = {
    "corpus": "data/.corpus.{pid}.tmp",
    "tokenize": "data/.windows.{pid}.tmp",
    "teacher": ".work/teacher/*/shards/*/.shard_*.{pid}.tmp",
    "train_kd": ".work/train_kd/*/.checkpoint_*.{pid}.tmp",
    "train_router": ".work/train_router/*/.checkpoint_*.{pid}.tmp",
}
CHECKPOINT_EVERY = 1  # step, in profiles/test.yaml
FIRST_STEPS = {"train_kd": 0, "train_router": 5}  # where a phase begins
SLOW_KILLS = 50


@pytest.fixture(scope="module")
def runnable(checkout: Checkout, first_run: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    """The finished checkout, copied, without what DVC keeps."""
    assert first_run
    folder = tmp_path_factory.mktemp("kills") / "checkout"
    shutil.copytree(checkout.folder, folder, ignore=shutil.ignore_patterns(".git", ".dvc", ".work"))
    with stages_of(folder) as made:
        yield made


@pytest.fixture
def stages(runnable: Stages) -> Stages:
    """Without the work of another test, whose result would be taken."""
    shutil.rmtree(runnable.folder / ".work", ignore_errors=True)
    return runnable


def outputs(stages: Stages, stage: str) -> list[str]:
    return [folder_fingerprint(stages.folder / output) for output in OUTPUTS[stage]]


def like_dvc(stages: Stages, stage: str) -> None:
    """Remove the outputs, as DVC does before it runs a stage."""
    for output in OUTPUTS[stage]:
        shutil.rmtree(stages.folder / output, ignore_errors=True)


def finished_shards(stages: Stages) -> dict[str, int]:
    """Inode of each shard whose progress is written."""
    progress = (stages.folder / ".work/teacher").glob("*/progress/*/*.json")
    shards = [path.parents[2] / "shards" / path.parent.name / path.stem for path in progress]
    return {f"{shard.parent.name}/{shard.name}": shard.stat().st_ino for shard in shards}


def finish(stages: Stages, stage: str) -> Run:
    like_dvc(stages, stage)
    run = stages.start(stage)
    assert run.wait() == 0, run.said
    return run


def nothing_half_is_visible(stages: Stages, stage: str) -> None:
    for output in OUTPUTS[stage]:
        assert not (stages.folder / output / "index.json").exists()
        assert not list((stages.folder / output).glob("**/*.safetensors"))


@pytest.mark.parametrize("stage", list(OUTPUTS))
def test_r21_killed_inside_an_operation(stages: Stages, stage: str) -> None:
    expected = outputs(stages, stage)
    like_dvc(stages, stage)
    run = stages.start(stage)
    is_inside = stages.exists(INSIDE[stage].format(pid=run.pid))

    def is_far() -> bool:
        if stage == "teacher":
            return len(finished_shards(stages)) >= 3
        return stage not in FIRST_STEPS or len(run.steps()) >= 3

    assert run.signal_when(lambda: is_inside() and is_far()), run.said
    assert run.wait() == -signal.SIGKILL
    assert is_inside()  # what it was writing is there, under its temporary name alone
    nothing_half_is_visible(stages, stage)
    shards = finished_shards(stages)
    again = finish(stages, stage)
    assert outputs(stages, stage) == expected
    if stage in FIRST_STEPS:
        assert 0 <= max(run.steps()) - again.resumed_at() <= CHECKPOINT_EVERY
    if stage == "teacher":
        assert len(shards) >= 3
        assert shards.items() <= finished_shards(stages).items()  # not one of them was written again


def test_r21_killed_exactly_between_the_phases(stages: Stages) -> None:
    """Phase 1 has published its result, its process has not ended: DVC runs the stage again, which computes nothing."""
    expected = outputs(stages, "train_kd")
    like_dvc(stages, "train_kd")
    (stages.folder / "metrics/train_kd.json").unlink()
    run = stages.start("train_kd")
    is_published = stages.exists("models/student_kd_optimizer")
    assert run.signal_when(lambda: is_published() and stages.exists(".work/train_kd/*/done.json")()), run.said
    assert run.wait() == -signal.SIGKILL
    again = finish(stages, "train_kd")
    assert again.steps() == []
    assert "its result is taken" in again.said
    assert outputs(stages, "train_kd") == expected
    assert (stages.folder / "metrics/train_kd.json").exists()
    assert (stages.folder / "metrics/curves/train_kd.tsv").read_text().count("\n") == 6


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_r21_a_signal_ends_a_training_after_its_step_with_a_checkpoint(
    stages: Stages, number: signal.Signals, code: int
) -> None:
    expected = outputs(stages, "train_kd")
    like_dvc(stages, "train_kd")
    run = stages.start("train_kd")
    assert run.signal_when(lambda: 2 <= len(run.steps()) <= 4, number)
    assert run.wait() == code
    assert run.said.splitlines()[-1].startswith("train_kd: ")
    assert "the same command continues" in run.said.splitlines()[-1]
    assert "Traceback" not in run.said
    again = finish(stages, "train_kd")
    assert again.resumed_at() == max(run.steps()) < 5
    assert outputs(stages, "train_kd") == expected


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(OUTPUTS))
def test_r21_killed_fifty_times_at_random_points(stages: Stages, stage: str) -> None:
    draw = random.Random(stage)
    expected = outputs(stages, stage)
    kills = inside = 0
    last_step = 0
    while kills < SLOW_KILLS:
        like_dvc(stages, stage)
        run = stages.start(stage)
        shards = finished_shards(stages)
        aims_inside = kills % 2 == 0
        is_inside = stages.exists(INSIDE[stage].format(pid=run.pid))
        if run.signal_when(is_inside if aims_inside else after(draw.randrange(1, 40), is_inside)):
            assert run.wait() == -signal.SIGKILL
            kills += 1
            inside += aims_inside and is_inside()
        else:
            assert run.wait() == 0, run.said
            assert outputs(stages, stage) == expected
            shutil.rmtree(stages.folder / f".work/{stage}", ignore_errors=True)
            last_step = 0
            continue
        now = finished_shards(stages)
        assert shards.items() <= now.items()
        if stage in FIRST_STEPS and last_step:
            assert last_step - max(run.resumed_at(), FIRST_STEPS[stage]) <= CHECKPOINT_EVERY
        last_step = max(run.steps(), default=last_step)
    finish(stages, stage)
    assert outputs(stages, stage) == expected
    assert inside >= 20


def after(polls: int, condition: Callable[[], bool]) -> Callable[[], bool]:
    """True some time after the condition has held, whatever the process does then."""
    left = [polls]

    def is_time() -> bool:
        if left[0] == polls and not condition():
            return False
        left[0] -= 1
        return left[0] < 0

    return is_time
