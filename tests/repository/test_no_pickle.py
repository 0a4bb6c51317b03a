"""What is shared is never pickled, and no code of a model folder is ever run: read from the source itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("src", "stages", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Calls that pickle, or unpickle, by themselves.
CALLS = {"torch.save", "np.save", "numpy.save", "np.savez", "numpy.savez", "pd.read_pickle", "torch.jit.load"}


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """(dotted name, keyword arguments) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg or "**": keyword.value for keyword in node.keywords}


def faults(source: str) -> list[str]:
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {name}" for name in names if name.split(".")[0] in PICKLES]
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"hides torch.{alias.name}" for alias in node.names if alias.name in ("save", "load")]
    for name, keywords in calls(tree):
        if name in CALLS or name.endswith(".log_model"):
            found.append(f"calls {name}")
        if name == "torch.load" and not is_constant(keywords.get("weights_only"), True):
            found.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and "allow_pickle" in keywords:
            found.append(f"{name} with allow_pickle")
        if "trust_remote_code" in keywords and not is_constant(keywords["trust_remote_code"], False):
            found.append(f"{name} with trust_remote_code")
        if name.endswith("Model.from_pretrained") or name.endswith("LM.from_pretrained"):
            found += [
                f"{name} without {key}" for key, value in SAFE.items() if not is_constant(keywords.get(key), value)
            ]
        if name.endswith("save_pretrained") and "safe_serialization" in keywords:
            found.append(f"{name} chooses its serialisation")
    return found


SAFE = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_pickles_or_runs_remote_code(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "from torch import load",
        "torch.save(x, p)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=flag)",
        "np.load(p, allow_pickle=True)",
        "mlflow.pytorch.log_model(m, 'm')",
        "AutoModelForCausalLM.from_pretrained(p, use_safetensors=True, local_files_only=True)",
        "AutoModelForCausalLM.from_pretrained(p, trust_remote_code=True, use_safetensors=True, local_files_only=True)",
        "AutoModelForCausalLM.from_pretrained(p, trust_remote_code=False, local_files_only=True)",
        "load_dataset(name, trust_remote_code=True)",
        "model.save_pretrained(p, safe_serialization=False)",
    ],
)
def test_the_search_finds_each_of_them(source: str) -> None:
    assert faults(source)


def test_the_search_allows_what_is_safe() -> None:
    assert faults("torch.load(p, weights_only=True)\nmodel.save_pretrained(p)\nimport json") == []
