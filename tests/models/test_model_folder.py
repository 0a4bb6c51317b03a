"""Model folders: safetensors and plain files come along, all else stays or is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from moe_distill.errors import DataError
from moe_distill.models.model_folder import copy_model_folder, count_parameters

from .conftest import files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least a model folder must have; the weights are two tensors of 6 and 4 numbers."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama", "vocab_size": 7}')
    (source / "tokenizer.json").write_text("{}")
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


def test_pickled_weights_alone_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"the model has no \*.safetensors.*pickles"):
        copy_model_folder(folder, "the model", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_remote_code_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    with pytest.raises(DataError, match=r"the model needs Python code of its own.*auto_map"):
        copy_model_folder(folder, "the model", tmp_path / "copy")


def test_a_multimodal_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "both", "text_config": {"vocab_size": 7}}))
    with pytest.raises(DataError, match=r"the model is no language model of text alone.*vocab_size"):
        copy_model_folder(folder, "the model", tmp_path / "copy")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_unreadable_config_is_named(folder: Path, tmp_path: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(DataError, match=r"config.json of the model is not JSON"):
        copy_model_folder(folder, "the model", tmp_path / "copy")


def test_parameters_are_counted_over_all_files(folder: Path, student: Path) -> None:
    save_file({"c": torch.zeros(5, 5)}, folder / "model-00002.safetensors")
    assert count_parameters(folder) == 35
    model = AutoModelForCausalLM.from_pretrained(student)
    assert count_parameters(student) == sum(parameter.numel() for parameter in model.parameters())


def test_broken_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(DataError, match=r"model\.safetensors is not a readable safetensors file"):
        count_parameters(folder)
