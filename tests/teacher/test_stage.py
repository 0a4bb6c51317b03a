"""The stage as DVC runs it: in a workspace, from the parameters to published shards."""

import hashlib
import json
import shutil
from collections import Counter
from io import BufferedReader
from pathlib import Path

import pytest

from moe_distill.config.params import Params
from moe_distill.config.profile import Profile
from moe_distill.errors import ConfigError
from moe_distill.shards.teacher_store import open_targets
from moe_distill.utils.files import folder_fingerprint
from stages.teacher import main
from tests.chain import Chain
from tests.params import ROOT, make_workspace


def test_weights_are_hashed_once(stage_workspace: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are gigabytes, and the stage names its work, its shards and its head by them."""
    digest, hashed = hashlib.file_digest, Counter[Path]()

    def counting(file: BufferedReader, name: str) -> object:
        hashed[Path(file.name).resolve()] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    main(stage_workspace.params)
    assert hashed[stage_workspace.folder / "models/teacher/model.safetensors"] == 1


def test_two_processes_publish_the_bytes_of_one(stage_workspace: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    before = [folder_fingerprint(folder) for folder in (stage_workspace.targets, stage_workspace.head)]
    main(stage_workspace.params)
    alone = json.loads(Path("metrics/teacher.json").read_text())
    launch = {"processes": 2}
    profile = Profile.model_validate(stage_workspace.params.profile.model_dump() | {"launch": launch})
    Path("dvc.yaml").unlink()
    make_workspace(stage_workspace.folder, profile)
    shutil.rmtree(".work")
    monkeypatch.setattr(
        "stages.teacher.compute", lambda *_, **__: pytest.fail("computed by the process that starts them")
    )
    main(stage_workspace.params.model_copy(update={"profile": profile}))
    assert [folder_fingerprint(folder) for folder in (stage_workspace.targets, stage_workspace.head)] == before
    together = json.loads(Path("metrics/teacher.json").read_text())
    assert alone.pop("positions_per_second") > 0
    assert together.pop("positions_per_second") > 0
    assert together == alone


def with_states(params: Params, hidden_fraction: float, **weights: float) -> Params:
    """The weights of losses that are not given are 0."""
    values = params.model_dump()
    values["profile"]["teacher"]["hidden_fraction"] = hidden_fraction
    values["experiment"]["losses"] = dict.fromkeys(values["experiment"]["losses"], 0.0) | weights
    return Params.model_validate(values)


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_few_states_of_a_moe_teacher_do_for_kd_alone(stage_workspace: Chain, share: float) -> None:
    main(with_states(stage_workspace.params, share))
    for split in ("train", "validation"):
        targets = open_targets(stage_workspace.targets / split)
        targets.verify()
        assert "router_logits" in targets.index.fields
        assert targets.rows("hidden") < targets.rows("positions") * 0.05
    assert share or json.loads(Path("metrics/teacher.json").read_text())["hidden_positions"] == 0.0


@pytest.mark.parametrize("term", ["feature", "router_balance"])
def test_few_states_are_refused_where_a_term_reads_them(stage_workspace: Chain, term: str) -> None:
    before = stage_workspace.targets.stat()
    with pytest.raises(ConfigError, match=r"needs 256; raise `teacher.hidden_fraction`"):
        main(with_states(stage_workspace.params, 0.01, **{term: 0.1}))
    assert stage_workspace.targets.stat() == before


def test_probability_on_ids_without_text_is_told(
    stage_workspace: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small teacher has hardly been trained, and 240 rows without a token."""
    main(stage_workspace.params)
    share = 1 - json.loads(Path("metrics/teacher.json").read_text())["text_token_probability"]
    assert share > 0.1
    said = capsys.readouterr().out
    assert f"warning: {share:.1%} of its probability lies on ids that stand for no text" in said
    assert "240 rows without a token" in said
    monkeypatch.setattr("moe_distill.teacher.run.SPARE_SHARE", share)
    main(with_states(stage_workspace.params, 0.0))
    assert "warning" not in capsys.readouterr().out
