"""The configuration of teacher and student as far as it is known: from a folder, the hub's cache, or the profile."""

from pathlib import Path

from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.config.profile import Profile
from moe_distill.errors import ConfigError
from moe_distill.models.tiny_models import decoder_settings
from moe_distill.models.tiny_teacher import output_rows
from moe_distill.pipeline.dvc_lock import made_as_asked
from moe_distill.pipeline.parameter_checks import model_folder
from moe_distill.planning.model_work import count_work

TEACHER, STUDENT = Path("models/teacher"), Path("models/student_init")
CORRECTED = Path("models/teacher_corrected")
WINDOWS, TARGETS = Path("data/windows"), Path("data/teacher_shards")
MADE_BY = {TEACHER: ["corpus", "models@teacher"], STUDENT: ["corpus", "models@student"]}
MADE_BY[WINDOWS] = [*MADE_BY[TEACHER], *MADE_BY[STUDENT], "tokenize"]
MADE_BY[TARGETS] = [*MADE_BY[WINDOWS], "teacher_correction", "teacher"]


def is_current(folder: Path) -> bool:
    """Whether what is in a folder of the workspace, if anything, was made with the present parameters."""
    return made_as_asked(*MADE_BY[folder])


def find_folder(made: Path, model: TinyTeacher | TinyStudent | HubModel | FolderModel) -> Path | None:
    """A folder that has the model's config.json: in the workspace, the user's, or in the hub's cache.

    What a stage has made of other parameters does not count.
    """
    if (made / "config.json").is_file() and is_current(made):
        return made
    return None if isinstance(model, TinyTeacher | TinyStudent) else model_folder(model)


def find_config(made: Path, model: TinyTeacher | TinyStudent | HubModel | FolderModel) -> PreTrainedConfig | None:
    """The configuration of a model; None for one that is not here and not described.

    Args:
        made: where the stage `models` puts it.

    Raises:
        ConfigError: `config` in the profile describes no model of transformers.
    """
    folder = find_folder(made, model)
    if folder is not None:
        read: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return read
    if isinstance(model, TinyTeacher):
        return _tiny_teacher(model)
    if isinstance(model, TinyStudent):
        settings = decoder_settings(model, 0)
        tokens = model.tokenizer.vocabulary_size
        return LlamaConfig(vocab_size=tokens, intermediate_size=model.intermediate_size, **settings)
    return _described(model) if isinstance(model, HubModel) and model.config is not None else None


def find_configs(profile: Profile) -> tuple[PreTrainedConfig | None, PreTrainedConfig | None]:
    """Of teacher and student."""
    return find_config(TEACHER, profile.models.teacher), find_config(STUDENT, profile.models.student)


def _described(model: HubModel) -> PreTrainedConfig:
    assert model.config is not None
    keys = dict(model.config)
    try:
        config: PreTrainedConfig = AutoConfig.for_model(str(keys.pop("model_type")), **keys)
        count_work(config)  # sizes of which no model can be made are seen here
        return config
    except Exception as error:  # whatever stands there, and whatever its class says of that
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"`config` of {model.repository} describes no model", why, "correct it, or leave it out"
        ) from error


def _tiny_teacher(model: TinyTeacher) -> PreTrainedConfig:
    return Qwen3MoeConfig(
        vocab_size=output_rows(model.tokenizer.vocabulary_size),
        intermediate_size=model.expert_size,
        num_experts=model.num_experts,
        num_experts_per_tok=model.experts_per_token,
        moe_intermediate_size=model.expert_size,
        norm_topk_prob=True,
        **decoder_settings(model, 0),
    )
