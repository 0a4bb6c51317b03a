"""A local model that cannot be used is refused by `check`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moe_distill.config.model_keys import FolderModel
from moe_distill.errors import DataError
from moe_distill.models.tokenizer_files import count_ids, load_tokenizer
from moe_distill.pipeline.local_models import check_local_model
from tests.chain import Chain
from tests.params import shipped_profile


@pytest.mark.parametrize("name", ["teacher", "student_init"])
def test_a_local_model_is_checked_where_it_is_here(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(chain.copy(tmp_path / "work").folder)
    config = Path(f"models/{name}/config.json")
    n_ids = count_ids(load_tokenizer(config.parent))
    check_local_model(FolderModel(kind="folder", path=f"models/{name}"))
    check_local_model(FolderModel(kind="folder", path="not/here"))
    with pytest.raises(DataError, match="has no token '<none>'"):
        check_local_model(FolderModel(kind="folder", path=f"models/{name}", prefix_token="<none>"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": n_ids - 1}))
    with pytest.raises(DataError, match=f"the tokenizer of models/{name} has {n_ids} ids, its model {n_ids - 1} rows"):
        check_local_model(FolderModel(kind="folder", path=f"models/{name}"))
    check_local_model(shipped_profile("test").models.teacher)


def test_check_needs_no_torch() -> None:
    code = "import sys, stages.check; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
