"""The time of a stage is that of the run which made what lies here, or none."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from moe_distill.config.params import Params
from moe_distill.errors import DataError
from moe_distill.pipeline import stage_runner
from moe_distill.pipeline.stage_times import record_time, recorded_time
from moe_distill.utils.files import write_json
from tests.params import fixed_params, make_workspace


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path, fixed_params().profile)
    Path("metrics").mkdir()


def test_a_time_is_found_by_what_the_stage_wrote() -> None:
    figures, began = Path("metrics/models_teacher.json"), datetime.now(UTC) - timedelta(seconds=90)
    figures.write_text("1")
    assert recorded_time("models@teacher") is None
    record_time("models@teacher", began)
    figures.write_text("2")
    assert recorded_time("models@teacher") is None, "these figures came from a cache"
    record_time("models@teacher", began - timedelta(seconds=100))
    for content, seconds in (("1", 90.0), ("2", 190.0)):
        figures.write_text(content)
        found = recorded_time("models@teacher")
        assert found is not None
        assert seconds <= found.seconds < seconds + 50
    figures.unlink()
    assert recorded_time("models@teacher") is None


def test_a_stage_without_figures_has_no_time() -> None:
    record_time("check", datetime.now(UTC))
    assert recorded_time("check") is None
    assert not Path(".work").exists()


def test_experiments_in_other_folders_share_their_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("metrics/corpus.json").write_text("1")
    (tmp_path / "main").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    record_time("corpus", datetime.now(UTC))
    assert list((tmp_path / "main/.work/times/corpus").iterdir())


def test_a_stage_that_ends_well_is_recorded_and_one_that_fails_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_runner, "load_params", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    stage_runner.run("corpus", lambda _params: write_json(Path("metrics/corpus.json"), {}))
    found = recorded_time("corpus")
    assert found is not None
    assert found.seconds >= 0.0
    Path("metrics/tokenize.json").write_text("1")

    def fails(_params: Params) -> None:
        raise DataError("no text")

    with pytest.raises(SystemExit):
        stage_runner.run("tokenize", fails)
    assert recorded_time("tokenize") is None
