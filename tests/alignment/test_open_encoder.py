"""What `tokenize` says of both tokenizers, and the ids of the prefix tokens in its metrics."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken

from moe_distill.alignment.corpus_windows import open_encoder, write_windows
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from tests.chain import Chain

from .toy import byte_level


def test_prefix_and_differences_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_level(400)
    tokenizer.add_tokens([AddedToken("<t>", special=False, lstrip=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "pad_token_id": 0}))
    assert open_encoder(tmp_path, "student").prefix_id == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "tokenize: every window of the student begins with '<|endoftext|>' (id 0)"
    assert "warning: prefix token '<|endoftext|>' (id 0) of the student: it is the padding token too" in said[1]
    assert "tokenizer of the student: its added tokens '<t>' take the blanks beside them" in said[2]
    assert len(said) == 3


def test_prefix_ids_are_in_the_metrics_and_in_the_windows(chain: Chain, tmp_path: Path) -> None:
    work = chain.copy(tmp_path / "work").folder
    config = work / "models/student_init/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token_id": 7}))
    models = work / "models/teacher", work / "models/student_init"
    metrics = write_windows(chain.params.profile.windows, work / "data/corpus", *models, tmp_path / "windows")
    for side, kind in (("teacher", TEACHER_WINDOWS), ("student", STUDENT_WINDOWS)):
        assert WindowStore(tmp_path / "windows" / side / "train", kind).prefix_id == metrics[f"{side}_prefix_id"]
    assert metrics["student_prefix_id"] == 7
