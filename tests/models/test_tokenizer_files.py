"""The tokenizer of a model folder."""

from pathlib import Path

from tokenizers import Tokenizer, processors

from moe_distill.models.prefix_token import prefix_warnings
from moe_distill.models.tokenizer_files import load_tokenizer

from .test_auto_tokenizer import END, small, write


def padding(folder: Path) -> Path:
    """A folder as a fine-tuning leaves it that padded and cut its texts: `save_pretrained` writes both down."""
    tokenizer = small()
    tokenizer.post_processor = processors.TemplateProcessing(f"{END} {END} $A", None, [(END, 0)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(pad_id=0, pad_token=END, length=64)
    return write(folder, tokenizer, "llama")


def test_texts_are_neither_cut_nor_padded_whatever_the_file_says(tmp_path: Path) -> None:
    text = "The 1234567 foxes"
    loaded, saved = load_tokenizer(padding(tmp_path)), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(saved.encode(text).ids) == 64
    assert loaded.encode(text, add_special_tokens=False).ids == small().encode(text, add_special_tokens=False).ids
    assert loaded.decode(loaded.encode(text).ids) == text


def test_what_stands_before_a_text_is_told_where_the_file_pads(tmp_path: Path) -> None:
    folder = padding(tmp_path)
    (said,) = prefix_warnings(folder, load_tokenizer(folder))
    assert said == f"its post-processor puts '{END}' (id 0), '{END}' (id 0) before a text"
