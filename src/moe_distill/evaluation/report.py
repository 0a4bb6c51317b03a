"""Write the report: parameters, metrics, plots, and sample texts by the student."""

from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from moe_distill.config.params import Params
from moe_distill.evaluation.plots import plot_bits_per_byte, plot_experts, read_curve
from moe_distill.models.prefix_token import prefix_token_id
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer

PROMPTS = ("The", "Return the", "If the argument is")


def write_report(params: Params, metrics: dict[str, float], curves: Path, student: Path, folder: Path) -> None:
    """Write `report.md` and the plots to `folder`.

    Args:
        metrics: of metrics/evaluate.json.
        curves: folder of the curves' TSV files.
        student: folder of the final student.
    """
    plot_bits_per_byte(curves, metrics["teacher_bits_per_byte"], folder / "bits_per_byte.png")
    values = {
        "metrics": metrics,
        "params": params,
        "kd_weight": kd_weight_told(params, curves),
        "has_router": plot_experts(curves, folder / "experts.png"),
        "samples": sample_texts(
            student,
            params.profile.evaluate.samples,
            params.profile.evaluate.sample_tokens,
            params.profile.windows.student_max_length,
        ),
    }
    environment = Environment(
        loader=PackageLoader("moe_distill.evaluation", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    text = environment.get_template("report.md.jinja").render(values)
    (folder / "report.md").write_text(text, encoding="utf-8")


def kd_weight_told(params: Params, curves: Path) -> str:
    """The KD weight that was set; where it was auto, with what the teacher had earned at the end."""
    if params.experiment.kd_weight != "auto":
        return str(params.experiment.kd_weight)
    validations = read_curve(curves / "train_router_validation.tsv")
    return f"auto ({validations['kd_weight'][-1]:.3f} at the end)"


@torch.inference_mode()
def sample_texts(student: Path, n_samples: int, n_tokens: int, max_length: int) -> list[tuple[str, str]]:
    """Sample texts by the student: pairs of a prompt and its greedy continuation of `n_tokens` tokens.

    Args:
        max_length: tokens of the longest window that it was trained on; a continuation ends there.
    """
    model = load_causal_lm(student, torch.float32, torch.device("cpu"))
    tokenizer = load_tokenizer(student)
    prefix = prefix_token_id(student, tokenizer)  # every training window began with it
    result = []
    for prompt in PROMPTS[:n_samples]:
        ids = torch.tensor([[prefix, *tokenizer.encode(prompt, add_special_tokens=False).ids]])
        n_prompt = ids.shape[1]
        for _ in range(
            min(n_tokens, max_length - n_prompt)
        ):  # not by `generate`, which would use the model's sampling settings
            logits = model(input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        result.append((prompt, tokenizer.decode(ids[0, n_prompt:].tolist())))
    return result
