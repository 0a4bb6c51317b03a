"""The store moves with its project."""

import shutil
import subprocess
from pathlib import Path

from mlflow import MlflowClient

from moe_distill.tracking.mlflow_runs import track
from tests.tracking.experiments import ALL, Store, make_params, start, write_everything


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def log_new_report_in(folder: Path) -> None:
    code = f"os.chdir({str(folder)!r}); write_everything(2.0); track(make_params(), ALL)"
    output, errors = (process := start("import os\n" + code)).communicate(timeout=120)
    assert (process.returncode, output, errors) == (0, "", "")


def test_a_copy_logs_into_itself(root: Path) -> None:
    write_everything(1.0)
    track(make_params(), ALL)
    copy = root.with_name("a copy")
    subprocess.run(["cp", "-a", root, copy], check=True)
    before = files(root)
    log_new_report_in(copy)
    assert files(root) == before, "nothing lands in the original"
    parent = Store(copy).parents()["tiny"]
    for run in Store(copy).runs():
        assert run.info.artifact_uri == (copy / "mlartifacts" / run.info.run_id / "artifacts").as_uri()
    artifact = copy / "mlartifacts" / parent.info.run_id / "artifacts/reports/report.md"
    assert artifact.read_text() == "bits per byte 2.0"


def test_a_moved_project_finds_its_artifacts(root: Path) -> None:
    write_everything(1.0)
    track(make_params(), ALL)
    moved = root.with_name("elsewhere")
    shutil.move(root, moved)
    output = start(f"import os; os.chdir({str(moved)!r}); track(make_params(), ALL)").communicate(timeout=120)
    assert output == ("", "")
    client = MlflowClient(f"sqlite:///{moved / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("moe-distill")
    assert experiment is not None
    assert experiment.artifact_location == (moved / "mlartifacts").as_uri()
    run = Store(moved).only_parent()
    assert Path(client.download_artifacts(run.info.run_id, "reports/report.md")).read_text() == "bits per byte 1.0"
    assert not root.exists()
