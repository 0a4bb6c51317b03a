"""Every key of params.yaml with type, range and meaning; and `load_params`, which reads params.yaml and the profile.

params.yaml holds what an experiment varies. None of its keys has a default, so that DVC sees every change of a value in
the file; unknown keys are refused, as in profile.py.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from moe_distill.config.corpus_keys import Hub
from moe_distill.config.model_keys import HubModel
from moe_distill.config.profile import Profile
from moe_distill.config.values import Count, Positive, Precision, Real, Section, Seed, Share, Weight
from moe_distill.config.wrong_keys import validated
from moe_distill.errors import ConfigError, MoeDistillError, together
from moe_distill.utils.files import outside_the_root, project_root
from moe_distill.utils.hub_commits import is_commit

KdOrder = Literal["temper_then_map", "map_then_temper"]
KdTail = Literal["sampled", "residual"]
KdPositions = Literal["auto", "aligned"]


class Losses(Section):
    """The weight of each term when its ramp is complete (training/curriculum.py); one of weight 0 is not computed."""

    feature: Weight  # cosine distance to the teacher's last captured layer, after a projection
    attention: Weight  # KL between the two models' similarities of states within a run, at that layer
    layerwise: Weight  # as `feature`, mean over the other captured layers
    contrastive: Weight  # InfoNCE at the last captured layer; negatives are the other positions of the run
    router_feature: Weight  # as `feature`, against what the replayed experts say under the student-aware gate
    router_attention: Weight  # as `attention`, against the same
    router_balance: Weight  # load-balancing loss of the gate: 0 where the experts are used evenly
    router_importance: Weight  # KL of the gate's mean use of the experts from that of the teacher's own gate

    def terms_of_states(self) -> list[str]:
        """The terms with a weight; each reads the teacher's cached states in phase 2."""
        return [name for name, weight in self if weight > 0.0]


class Curriculum(Section):
    """When the terms' ramps run."""

    phase1_share: Annotated[Real, Field(gt=0.0, lt=1.0)]  # of the curriculum: LM and KD only
    curriculum_share: Annotated[Real, Field(gt=0.0, le=1.0)]  # of max_steps, when the last ramp is complete


class Router(Section):
    """Schedules of the student-aware router over phase 2, linear from start to end (R28)."""

    temperature_start: Annotated[Real, Field(gt=0.0)]  # that the gate's logits are divided by, at the beginning
    temperature_end: Annotated[Real, Field(gt=0.0)]  # the same at the end
    experts_start: Positive  # experts mixed at the beginning of phase 2
    experts_end: Positive  # at its end; never more than the teacher has
    noise: Weight  # standard deviation of seeded exploration noise on the gate, annealed to 0


class EarlyStopping(Section):
    """When a training ends before `train.max_steps`."""

    patience: Positive  # validations without progress
    min_delta: Weight  # bits per byte that count as progress
    warmup_steps: Count  # optimizer steps before which validations without progress are not counted


class ExperimentParams(Section):
    """What an experiment varies (params.yaml)."""

    profile: str  # which file of profiles/, without .yaml
    seed: Seed  # of the order of windows, the weights of the heads, the noise of the router and dropout
    precision: Precision  # of training; auto: bf16 from compute capability 8, fp16 below, fp32 on a CPU
    temperature: Annotated[Real, Field(ge=1.0, le=4.0)]  # of both sides of the KD
    # of KD at positions that have a teacher target, where LM keeps the rest; auto: what the teacher has earned beside
    # the student on validation text, at most 0.7, and the weights of `losses` follow
    kd_weight: Share | Literal["auto"]
    kd_order: KdOrder  # whether the teacher is tempered before or after its move to the student's vocabulary
    kd_tail: KdTail  # what lies outside the kept logits: as importance samples, or as one bucket
    # where KD is: at aligned positions alone; or, auto, inside the teacher's tokens too, and targets at aligned ones
    # know that the teacher's token may have gone on; that is at temperature 1, if the student's tokenizer has merges
    kd_positions: KdPositions
    teacher_must_lead: bool  # refuse to train where the teacher knows no more of the text than the untrained student
    # adaptive: in phase 2 each term of `losses` is scaled by a clamped average of lm / term
    balance: Literal["fixed", "adaptive"]
    losses: Losses
    curriculum: Curriculum
    router: Router
    early_stopping: EarlyStopping


class Params(Section):
    """All parameters of a run."""

    experiment: ExperimentParams
    profile: Profile


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, as DVC does; PyYAML takes the last of both."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """See `yaml.composer.Composer`; what `<<` brings in is not there yet."""
        node = super().compose_mapping_node(anchor)
        found = set[tuple[str, str]]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in found:
                raise yaml.composer.ComposerError(None, None, f"the key `{key.value}` stands twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                found.add((key.tag, key.value))
        return node


def _read_yaml(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise _missing(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8; no such day; 5,000 digits
        raise ConfigError(f"{path} is not YAML", why=" ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values")
    return content


def _missing(path: Path) -> ConfigError:
    """The error for a file that is not here: a profile of that name, or the current folder is not the project's."""
    if path.name == "params.yaml":
        return ConfigError(*outside_the_root(path.parent))
    temporary = project_root() / "profiles" / path.name
    if temporary.is_file() and temporary.resolve() != path.resolve():
        fix = f"run: git add profiles/{path.name} && git commit -m {path.stem}"
        return ConfigError(f"{path} is not here", "`--temp` and `--queue` see only files that git has", fix)
    known = project_root() / "profiles"
    others = ", ".join(sorted(each.stem for each in known.glob("*.yaml")))
    near = get_close_matches(path.stem.removesuffix(".yaml"), others.split(", "), 1)
    meant = f", such as `{near[0]}`" if near else ""
    return ConfigError(f"{path} does not exist", f"there are {others}", f"set `profile` in params.yaml{meant}")


def unpinned_revisions(profile: Profile) -> dict[str, Hub | HubModel]:
    """Models and datasets of the hub whose `revision` is no commit, by key: it can change between two runs."""
    named = {f"corpus.sources[{number}]": source for number, source in enumerate(profile.corpus.sources)}
    every = named | {"models.teacher": profile.models.teacher, "models.student": profile.models.student}
    return {
        key: each for key, each in every.items() if isinstance(each, Hub | HubModel) and not is_commit(each.revision)
    }


def load_params(root: Path = Path()) -> Params:
    """Read and validate `root/params.yaml` and the profile it names.

    Raises:
        ConfigError: naming every wrong key of both files; or keys of both that do not fit each other.
    """
    found: list[MoeDistillError] = []
    content = _read_yaml(root / "params.yaml")
    experiment = validated(ExperimentParams, content, root / "params.yaml", {"the profile": Profile}, found)
    profile = None
    if isinstance(name := content.get("profile"), str):
        path = root / "profiles" / f"{name}.yaml"
        try:
            profile = validated(Profile, _read_yaml(path), path, {"params.yaml": ExperimentParams}, found)
        except ConfigError as error:
            found.append(error)
    if found or experiment is None or profile is None:
        raise together(found)
    _check_states(experiment, profile)
    return Params(experiment=experiment, profile=profile)


def _check_states(experiment: ExperimentParams, profile: Profile) -> None:
    """Refuse terms of phase 2 beside a cache that is to hold no states."""
    terms = [f"`losses.{name}`" for name in experiment.losses.terms_of_states()]
    if terms and profile.teacher.hidden_fraction == 0.0:
        raise ConfigError(
            f"profiles/{experiment.profile}.yaml: `teacher.hidden_fraction` is 0, so that the cache holds no states",
            f"params.yaml: {', '.join(terms)} need them",
            "raise `teacher.hidden_fraction`, or set these weights to 0: KD alone needs no states",
        )
