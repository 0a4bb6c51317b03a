"""The command line itself: start-up, version, help, completion, and a user's mistakes, each one line."""

import errno
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from moe_distill.cli import app, main
from moe_distill.errors import ResourceError
from tests.chain import Chain
from tests.params import ROOT

HEAVY = ("torch", "transformers", "mlflow", "pydantic", "numpy", "huggingface_hub")
COMMANDS = set(get_command(app).commands)  # type: ignore[attr-defined]
ANYWHERE = {"generate", "export"}  # they work on a folder that is named, in whatever folder they are given
MAIN = "import sys; from moe_distill.cli import main; main()"


def moe_distill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})


@pytest.mark.parametrize("arguments", [["--version"], ["-h"], ["--help"]])
def test_what_asks_for_no_work_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """What makes a start slow; seconds themselves depend on the machine."""
    loaded = f"import atexit, sys; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules])); {MAIN}"
    command = [sys.executable, "-c", loaded, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_the_packages() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"moe-distill {version('moe-distill')}\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_command_and_completion(option: str) -> None:
    done = CliRunner().invoke(app, [option])
    assert done.exit_code == 0
    for word in (*COMMANDS, "--install-completion", "--show-completion"):
        assert word in done.output


def test_a_users_mistake_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    for arguments, code, told in (
        (["generate", "x"], 3, "error: models/student does not exist; run: dvc repro student\n"),
        (["export", "--to", "out"], 3, "error: models/student does not exist; run: dvc repro student\n"),
        (["export", "--to", "out", "--push", "mine"], 2, "error: --push mine names no owner; give OWNER/NAME\n"),
        (["generate", "x", "--tokens", "0"], 2, "error: --tokens is 0; give 1 or more\n"),
    ):
        done = moe_distill(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


@pytest.mark.parametrize("command", [*sorted(COMMANDS - ANYWHERE - {"inspect"}), "inspect .", "recover --shard x"])
def test_outside_the_project_nothing_is_said_of_it_and_nothing_is_made(command: str, tmp_path: Path) -> None:
    done = moe_distill(*command.split(), cwd=tmp_path)
    told = f"error: {tmp_path} is not the root of the project; it has no params.yaml; "
    fix = "run it in the folder of the project that has params.yaml and dvc.yaml\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told + fix)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_or_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, told in (
        (
            PermissionError(errno.EACCES, "Permission denied", "out"),
            "out cannot be opened or written; Permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    ):

        def refuse(error: OSError = error) -> None:
            raise error

        monkeypatch.setattr("moe_distill.cli.app", refuse)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == ResourceError.exit_code
        assert capsys.readouterr().err.startswith(f"error: {told}")


def test_commands_work_on_a_project(stage_workspace: Chain) -> None:
    student = "models/student_init"
    done = CliRunner().invoke(app, ["generate", "The", "--model", student, "--tokens", "5", "--temperature", "1"])
    assert done.exit_code == 0
    assert done.output.startswith("The")
    assert stage_workspace.folder == Path().resolve()
