"""Which modules can change a stage's result, by the imports and by rules of whole packages."""

import ast
from pathlib import Path
from typing import Any

import grimp
import yaml

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
GRAPH = grimp.build_graph("moe_distill")
# They parse, refuse, estimate, tell or record; they cannot change a result, and an edit to them runs no stage again.
PLUMBING = {"cli", "commands", "config", "errors", "log", "pipeline", "tracking", "utils"}
OF_RESULTS = {f"moe_distill.utils.{name}" for name in ("device", "learning_rate", "processes", "tensors")}


def definition(stage: str) -> dict[str, Any]:
    found: dict[str, Any] = STAGES[stage].get("do", STAGES[stage])
    return found


def can_change_results(module: str) -> bool:
    package = module.split(".")[1:2]
    return module in OF_RESULTS or not (set(package) & PLUMBING or module.endswith("_disk_use") or not package)


def modules_of(stage: str) -> set[str]:
    """Every module that a stage's file imports, directly or through others, and that can change its result."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    open_modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    open_modules, found = (
        {each for each in open_modules if each in GRAPH.modules and can_change_results(each)},
        set[str](),
    )
    while open_modules:
        module = open_modules.pop()
        found.add(module)
        imported = GRAPH.find_modules_directly_imported_by(module)
        open_modules |= {each for each in imported if can_change_results(each)} - found
    return {module for module in found if not is_package(module)}


def is_package(module: str) -> bool:
    return (ROOT / "src" / module.replace(".", "/")).is_dir()


def file_of(module: str) -> str:
    """The path of a module's file, as dvc.yaml names it."""
    path = f"src/{module.replace('.', '/')}"
    return f"{path}/__init__.py" if is_package(module) else f"{path}.py"
