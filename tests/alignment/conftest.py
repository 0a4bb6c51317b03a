"""The real pair, prepared once a session: building its byte tables takes seconds."""

import pytest

from moe_distill.alignment.encode import Encoder, make_encoder
from tests.assets import real_model_tokenizer, real_tokenizer


@pytest.fixture(scope="session")
def qwen3() -> Encoder:
    return make_encoder(real_tokenizer("qwen3"), 151643, "qwen3")


@pytest.fixture(scope="session")
def smollm2() -> Encoder:
    return make_encoder(real_tokenizer("smollm2"), 0, "smollm2")


@pytest.fixture(scope="session")
def stories() -> Encoder:
    return make_encoder(real_model_tokenizer("stories260k"), 1, "stories260k")
