"""Model folders: safetensors and plain files come along, all else stays or is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoModelForCausalLM

from moe_distill.errors import DataError
from moe_distill.models.model_folder import check_model_folder, copy_model_folder
from moe_distill.models.model_weights import count_parameters

from .conftest import files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least a model folder must have; the weights are two tensors of 6 and 4 numbers."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama", "vocab_size": 7, "bos_token_id": 1}')
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "<s>": 1, "b": 2}, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.save(str(source / "tokenizer.json"))
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, source / "model.safetensors")
    return source


def test_model_files_are_copied_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    wanted = files(folder) | {"merges.txt": b"1", "tokenizer.model": b"2", "generation_config.json": b"{}"}
    unwanted = {"pytorch_model.bin": b"3", "consolidated.pth": b"4", "modeling_own.py": b"5", "README.md": b"6"}
    for name, content in (wanted | unwanted).items():
        (folder / name).write_bytes(content)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "logs.txt").mkdir()
    copy_model_folder(folder, "the model", tmp_path / "copy")
    assert files(tmp_path / "copy") == wanted


def test_links_into_a_cache_become_files(folder: Path, tmp_path: Path) -> None:
    blob = folder / "model.safetensors"
    blob.rename(tmp_path / "blob")
    blob.symlink_to(tmp_path / "blob")
    copy_model_folder(folder, "the model", tmp_path / "copy")
    assert not (tmp_path / "copy" / "model.safetensors").is_symlink()
    assert count_parameters(tmp_path / "copy") == 10


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"the model has no {name}"):
        copy_model_folder(folder, "the model", tmp_path / "copy")


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_a_clone_without_git_lfs_is_told(folder: Path, file: str) -> None:
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    with pytest.raises(DataError, match=rf"{file} of the model is the pointer .*; run: cd {folder} && git lfs install"):
        check_model_folder(folder, "the model")


def test_a_folder_or_a_dead_link_that_is_called_as_a_file_stops_nothing(folder: Path) -> None:
    (folder / "logs.json").mkdir()
    (folder / "trace.json").symlink_to("nowhere")
    (folder / "adapter_model.safetensors").symlink_to("nowhere")
    check_model_folder(folder, "the model")


def test_pickled_weights_alone_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"the model has no \*.safetensors.*pickles"):
        copy_model_folder(folder, "the model", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_code_of_a_model_that_transformers_does_not_have_is_refused(folder: Path, tmp_path: Path) -> None:
    change(folder / "config.json", model_type="unheard", auto_map={"AutoModelForCausalLM": "own.Model"})
    with pytest.raises(DataError, match=r"the model needs Python code of its own.*`model_type` unheard.*auto_map"):
        copy_model_folder(folder, "the model", tmp_path / "copy")
    change(folder / "config.json", model_type="bert_of_mine", auto_map={})
    assert not (tmp_path / "copy").exists()


def test_code_of_a_model_that_transformers_has_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Slow", null]}, "bos": 1}')
    (folder / "own.py").write_text("raise SystemExit")
    copy_model_folder(folder, "the model", tmp_path / "copy")
    assert json.loads((tmp_path / "copy/config.json").read_text()) == before
    assert json.loads((tmp_path / "copy/tokenizer_config.json").read_text()) == {"bos": 1}
    said = capsys.readouterr().out
    assert "`auto_map` in the config.json of the model is left out" in said
    assert "4 files of the model are taken, 1 are left out: own.py" in said


def test_a_multimodal_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "both", "text_config": {"vocab_size": 7}}))
    with pytest.raises(DataError, match=r"the model is no language model of text alone.*vocab_size"):
        copy_model_folder(folder, "the model", tmp_path / "copy")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "is not an object but a list"),
        (b"[" * 99999, "is not JSON"),
    ],
)
def test_settings_that_are_no_object_are_named(
    folder: Path, tmp_path: Path, file: str, content: bytes, what: str
) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=f"the {file} of the model {what}"):
        copy_model_folder(folder, "the model", tmp_path / "copy")


def test_only_a_models_own_weights_are_counted_and_copied(
    folder: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = files(folder)
    for name in ("adapter_model.safetensors", "consolidated.safetensors", "model-00002.safetensors"):
        save_file({"c": torch.zeros(5, 5)}, folder / name)
    (folder / "adapter_config.json").write_text("{}")
    assert count_parameters(folder) == 10
    copy_model_folder(folder, "the model", tmp_path / "copy")
    assert files(tmp_path / "copy") == wanted
    said = capsys.readouterr().out
    assert "the model has an adapter beside the model, adapter_config.json, adapter_model.safetensors" in said
    assert "consolidated.safetensors, model-00002.safetensors is left out: no file of the weights" in said
    model = AutoModelForCausalLM.from_pretrained(student)
    assert count_parameters(student) == sum(parameter.numel() for parameter in model.parameters())


def test_weights_in_several_files_are_those_of_the_index(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    save_file({"c": torch.zeros(5, 5)}, folder / "model-00002-of-00002.safetensors")
    save_file({"d": torch.zeros(5, 5)}, folder / "model-00002-of-00003.safetensors")
    with pytest.raises(DataError, match=r"neither model.safetensors nor model.safetensors.index.json.*it has model-0"):
        copy_model_folder(folder, "the model", tmp_path / "copy")
    weight_map = {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert count_parameters(folder) == 35
    copy_model_folder(folder, "the model", tmp_path / "copy")
    assert files(tmp_path / "copy").keys() == files(folder).keys() - {"model-00002-of-00003.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map | {"b": "model-3.safetensors"}}))
    with pytest.raises(DataError, match=r"names model-3.safetensors, which is not there"):
        count_parameters(folder)
    for content in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        with pytest.raises(DataError, match="is no index of weights"):
            count_parameters(folder)


def test_an_adapter_alone_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(DataError, match="an adapter alone is no model; merge"):
        copy_model_folder(folder, "the model", tmp_path / "copy")


@pytest.mark.parametrize(
    ("config", "weights", "what"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, {}, "`quantization_config`, method gptq"),
        ({}, {"a.weight": torch.zeros(2, 2, dtype=torch.int8)}, "a.weight is I8"),
        ({}, {"a.weight": torch.zeros(4, 1, dtype=torch.uint8)}, "a.weight is U8"),
        ({}, {"a.qweight": torch.zeros(4, 1, dtype=torch.int32)}, "a.qweight is I32"),
        ({}, {"a.weight_packed": torch.zeros(4, 1, dtype=torch.int32)}, "a.weight_packed is I32"),
        ({}, {"a_proj_blocks": torch.zeros(4, 1, dtype=torch.uint8)}, "a_proj_blocks is U8"),
        ({}, {"a.weight": torch.zeros(4, dtype=torch.float8_e4m3fn)}, "a.weight is F8_E4M3"),
    ],
)
def test_quantised_weights_are_refused(
    folder: Path, tmp_path: Path, config: dict[str, object], weights: dict[str, torch.Tensor], what: str
) -> None:
    change(folder / "config.json", **config)
    save_file(weights | {"b": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(DataError, match=f"the weights of the model are quantised; .*{what}"):
        copy_model_folder(folder, "the model", tmp_path / "copy")


def test_whole_numbers_of_buffers_are_not_quantised(folder: Path, tmp_path: Path) -> None:
    buffers = {"attn.bias": torch.ones(1, 4, dtype=torch.uint8), "position_ids": torch.zeros(1, 4, dtype=torch.int64)}
    save_file(buffers | {"a.weight": torch.zeros(2, dtype=torch.bfloat16)}, folder / "model.safetensors")
    copy_model_folder(folder, "the model", tmp_path / "copy")
    assert (tmp_path / "copy/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_more_ids_than_rows_are_refused_with_both_numbers(folder: Path) -> None:
    change(folder / "config.json", vocab_size=3)
    check_model_folder(folder, "the model")
    change(folder / "config.json", vocab_size=2)
    with pytest.raises(DataError, match="the tokenizer of the model has 3 ids, its model 2 rows"):
        check_model_folder(folder, "the model")


def test_the_profiles_prefix_token_becomes_bos(folder: Path, tmp_path: Path) -> None:
    change(folder / "config.json", bos_token_id=0)
    with pytest.raises(DataError, match=r"begin every window with 'a' \(id 0\), a token of text.*'<s>'"):
        copy_model_folder(folder, "the model", tmp_path / "copy")
    copy_model_folder(folder, "the model", tmp_path / "copy", "<s>")
    assert json.loads((tmp_path / "copy/config.json").read_text())["bos_token_id"] == 1
    copy_model_folder(folder, "the model", tmp_path / "copy", 2)  # a token of text, but on purpose
    assert json.loads((tmp_path / "copy/config.json").read_text())["bos_token_id"] == 2
    for unknown in ("<t>", 7):
        with pytest.raises(DataError, match=f"the tokenizer of the model has no token {unknown!r}"):
            copy_model_folder(folder, "the model", tmp_path / "copy", unknown)


def test_broken_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(DataError, match=r"model\.safetensors is not a readable safetensors file"):
        count_parameters(folder)


def test_weights_under_a_name_of_their_own_are_refused(folder: Path, tmp_path: Path) -> None:
    change(folder / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(DataError, match=r"names a file of weights, other.safetensors; rename"):
        copy_model_folder(folder, "the model", tmp_path / "copy")
