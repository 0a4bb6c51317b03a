"""`moe-distill plan`: counted where it lies on disk, estimated where it does not."""

import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from moe_distill import cli
from moe_distill.batches.loader import BatchReader, BatchRequest
from moe_distill.batches.split import open_split
from moe_distill.commands.plan import bytes_to_come, describe
from moe_distill.config.params import Losses, Params
from moe_distill.shards.window_store import TEACHER_WINDOWS, WindowStore
from moe_distill.training.early_stopping import EarlyStoppingState, observe, should_stop
from moe_distill.training.schedule import ramps_are_complete
from tests.correction.conftest import PARAMS as CORRECTION
from tests.params import fixed_params
from tests.replay.teachers import make_teacher
from tests.training.folders import CAPTURE, WINDOWS, Folders, make_folders, make_params


def with_capture(**changes: object) -> Params:
    """The capture of tests/training/folders and that teacher's sizes, 6 windows a step."""
    params = make_params(batch_windows=6, micro_batch_windows=3, max_steps=40)
    values = params.model_dump()
    values["profile"]["teacher"] = CAPTURE | changes
    values["profile"]["models"]["teacher"] |= {"hidden_size": 32, "num_experts": 4}
    return Params.model_validate(values)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("plan"), make_teacher("olmoe", 1))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def link(workspace: Path, name: str, target: Path) -> None:
    (workspace / name).parent.mkdir(parents=True, exist_ok=True)
    (workspace / name).symlink_to(target)


def number(pattern: str, lines: list[str]) -> float:
    found = re.search(pattern, "\n".join(lines))
    assert found, lines
    return float(found[1].replace(",", ""))


def test_before_anything_is_made(workspace: Path) -> None:
    assert list(workspace.iterdir()) == []
    params = with_capture(hidden_fraction=0.5)
    assert list(describe(params)) == [
        "windows: not known before: dvc repro tokenize",
        "steps: 3 of train_kd, 37 of train_router, 6 windows each",
        # 8 ids and log-probabilities, 4 samples, 5 nodes, the target; a row number, 2 layers and the MoE's input with
        # their scales, 4 router logits
        f"teacher: {8 * 6 + 4 * 6 + 5 * 4 + 4} bytes a row, {8 + 3 * (2 * 32 + 4) + 4 * 2} more with states",
        "router: a step sees at most 192 positions with states, 256 are needed: too few: "
        "raise `teacher.hidden_fraction` or `train.batch_windows`, "
        "or lower `teacher.hidden_run` if most texts are shorter than it",
        "early stopping: 2 validations follow the last ramp; it cannot end the training: that would need a lower "
        "`early_stopping.patience`, `early_stopping.warmup_steps` or `train.validate_every`",
    ]


@pytest.mark.usefixtures("workspace")
def test_no_states_are_asked_for_where_no_term_reads_them() -> None:
    params = with_capture(hidden_fraction=0.0)
    losses = Losses.model_validate(dict.fromkeys(Losses.model_fields, 0.0))
    experiment = params.experiment.model_copy(update={"losses": losses})
    lines = list(describe(params.model_copy(update={"experiment": experiment})))
    assert lines[3] == "router: no term of phase 2 has a weight; no states are needed"


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("max_steps", [40, 43])
@pytest.mark.parametrize("validate_every", [1, 3, 50])
@pytest.mark.parametrize("patience", [1, 2, 6, 7, 8])
@pytest.mark.parametrize("warmup_steps", [0, 36, 1000])
def test_r10_early_stopping_is_said_to_end_the_training_where_it_first_can(
    max_steps: int, validate_every: int, patience: int, warmup_steps: int
) -> None:
    stopping = {"patience": patience, "min_delta": 0.0, "warmup_steps": warmup_steps}
    params = make_params(max_steps=max_steps, validate_every=validate_every, early_stopping=stopping)
    watch, ended, seen = EarlyStoppingState(), None, 0
    for step in range(1, max_steps + 1):  # a student that learns nothing any more
        if step == max_steps or step % validate_every == 0:
            if ramps_are_complete(step, params.experiment, params.profile.train):
                watch, seen = observe(watch, step, 1.0, params.experiment.early_stopping), seen + 1
            if should_stop(watch, params.experiment.early_stopping) and ended is None and step < max_steps:
                ended = step
    line = list(describe(params))[-1]
    assert f"early stopping: {seen} validations follow the last ramp" in line
    assert line.endswith(
        "`train.validate_every`" if ended is None else f" it can end the training from step {ended} on"
    )


@pytest.mark.usefixtures("workspace")
def test_r10_the_real_run_can_end_early() -> None:
    line = list(describe(fixed_params("p100")))[-1]
    assert line == "early stopping: 25 validations follow the last ramp; it can end the training from step 11,600 on"


GPT2 = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
DEEPSEEK: dict[str, int] = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "n_routed_experts": 4}


@pytest.mark.parametrize("is_made", [False, True])
@pytest.mark.parametrize(("family", "settings", "experts"), [("gpt2", GPT2, 0), ("deepseek_v3", DEEPSEEK, 4)])
def test_sizes_of_a_teacher_are_read_by_its_familys_names(
    workspace: Path, family: str, settings: dict[str, int], experts: int, is_made: bool
) -> None:
    if family == "deepseek_v3":
        settings = settings | {"first_k_dense_replace": 1, "max_position_embeddings": 256}
    folder = workspace / ("models/teacher" if is_made else "mine")
    AutoConfig.for_model(family, **settings).save_pretrained(folder)
    (folder / "tokenizer.json").touch()
    (folder / "model.safetensors").touch()
    teacher = {"kind": "folder", "path": "elsewhere" if is_made else "mine"}
    values = with_capture().model_dump()
    values["profile"]["models"]["teacher"] = teacher
    lines = list(describe(Params.model_validate(values)))
    assert lines[2] == (
        f"teacher: {8 * 6 + 4 * 6 + 5 * 4 + 4} bytes a row, "
        f"{8 + 2 * (2 * 32 + 4) + (2 * 32 + 4 + 4 * 2 if experts else 0)} more with states"
    )
    if experts:
        assert lines[3].startswith("router: a step sees at most 384 positions")
        assert lines[3].endswith("it may be enough")
    else:
        assert lines[3] == "router: the teacher's last block is dense; the router is off"


@pytest.mark.usefixtures("workspace")
def test_a_plan_of_two_thousand_million_steps_is_made_at_once() -> None:
    values = with_capture().model_dump()
    values["profile"]["train"] |= {"max_steps": 2**31 - 1, "validate_every": 1}
    line = list(describe(Params.model_validate(values)))[-1]
    assert "can end the training from step 1,717,986,9" in line


def test_estimates_from_the_windows_hold_for_the_shards(workspace: Path, folders: Folders) -> None:
    link(workspace, "data/windows/student", folders.root / "windows")
    link(workspace, "data/windows/teacher", folders.root / "teacher_windows")
    params = with_capture()
    estimated = list(describe(params))
    assert estimated[0] == f"windows: {WINDOWS['train']} for train, {WINDOWS['validation']} for validation"
    assert estimated[1].endswith("6 windows each: 10.0 epochs")
    link(workspace, "data/teacher_shards", folders.root / "targets")
    counted = list(describe(params))
    for pattern in (
        r"teacher: ([\d,]+) rows",
        r"rows, (?:about )?([\d,]+) with",
        r"sees (?:about )?([\d,]+) positions",
    ):
        assert number(pattern, estimated) == number(pattern, counted) > 0
    assert estimated[2].count("about") == 2
    assert "about" not in counted[2] + counted[3]


def with_correction(**changes: object) -> Params:
    values = with_capture().model_dump()
    values["profile"]["models"]["teacher_correction"] = CORRECTION.model_dump() | changes
    return Params.model_validate(values)


def correction_line(params: Params) -> str:
    [line] = [line for line in describe(params) if line.startswith("teacher correction")]
    return line


@pytest.mark.usefixtures("workspace")
def test_a_correction_has_a_line_before_anything_is_made() -> None:
    said = "teacher correction: 6 steps of 8 windows; memory and disk are not known before: dvc repro models"
    assert correction_line(with_correction()) == said
    assert "corrected teacher" not in bytes_to_come(with_correction())


def test_work_memory_and_disk_of_a_correction(workspace: Path, folders: Folders) -> None:
    link(workspace, "data/windows/teacher", folders.root / "teacher_windows")
    models = workspace / "models/teacher"
    make_teacher("olmoe", 1).save_pretrained(models)
    params = with_correction(steps=3, batch_windows=WINDOWS["train"], micro_batch_windows=1, validation_windows=1000)
    tokens = {
        split: int(WindowStore(folders.root / "teacher_windows" / split, TEACHER_WINDOWS).token_counts.sum())
        for split in WINDOWS
    }
    passes = (2 * 3 * tokens["train"] + 2 * tokens["validation"]) / sum(tokens.values())
    line = correction_line(params)
    assert f"windows, 3.0 epochs, the work of about {passes:.1f} passes of the teacher over all windows; " in line
    disk = bytes_to_come(params)["corrected teacher"]
    assert line.endswith(f"GB of memory and the layers' activations, at most {disk / 1e9:.2f} GB of disk")
    assert disk > sum(path.stat().st_size for path in models.glob("*.safetensors"))
    link(workspace, "models/teacher_corrected", models)
    assert "corrected teacher" not in bytes_to_come(params)


def test_positions_of_a_step_are_those_that_batches_hold(workspace: Path, folders: Folders) -> None:
    link(workspace, "data/windows/student", folders.root / "windows")
    link(workspace, "data/windows/teacher", folders.root / "teacher_windows")
    link(workspace, "data/teacher_shards", folders.root / "targets")
    split = open_split(folders.root / "windows/train", folders.root / "targets/train")
    reader = BatchReader(split, None, with_states=True, chunk_tokens=64)
    held = sum(reader.read(BatchRequest((window,))).counts.hidden for window in range(WINDOWS["train"]))
    said = number(r"sees ([\d,]+) positions", list(describe(with_capture())))
    assert said == pytest.approx(held / WINDOWS["train"] * 6, abs=1)


def test_command_prints_the_lines(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "load_params", with_capture)
    monkeypatch.setattr("sys.argv", ["moe-distill", "plan"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    said = capsys.readouterr().out.splitlines()
    first = list(describe(with_capture()))
    assert said[: len(first)] == first
    assert said[len(first)].startswith("hours: estimated from sizes")
    assert workspace.is_dir()
