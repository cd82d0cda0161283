"""The rules that keep the code easy to find one's way in and to extend, each as a test."""

import ast
import json
import re
import statistics
import subprocess
import sys

import importlinter.cli
import pytest

from scumble.adapters import ADAPTERS
from scumble.families import FAMILIES
from scumble.formats import FORMATS
from scumble.training.methods import METHODS
from source_tree import PACKAGE, ROOT, Module, calls, functions, imports, module, modules

AXES = {
    "family": {"sd", "sdxl", "sd3", "flux", *FAMILIES},
    "method": set(METHODS),
    "adapter type": {"dora", "loha", "lokr", *ADAPTERS},
    "format": {"kohya", "attn_procs", "cloneofsimo", "embedding", *FORMATS},
}
"""What the package varies along -> the values that exist or are bound to come."""

ORDINARY_WORDS = {"full"}
"""Values that are plain English as well: they may stand in a comment or docstring, not in code."""

FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "managers"}

REGISTRIES = {
    "ADAPTERS": "adapters/__init__.py",
    "FAMILIES": "families/__init__.py",
    "FORMATS": "formats/files.py",
    "METHODS": "training/methods/__init__.py",
    "METHOD_DEFAULTS": "config/method_groups.py",
    "METHOD_GROUPS": "config/method_groups.py",
    "TIMESTEP_SAMPLERS": "diffusion/timesteps.py",
}

HOMES = {
    "bitsandbytes": ("training/optimizers.py", "lean/schemes.py"),
    "gradio": ("ui/",),
    "tensorboard": ("training/trackers.py",),
    "trackio": ("training/trackers.py",),
    "wandb": ("training/trackers.py",),
    "huggingface_hub": ("hub/", "families/"),
    "datasets": ("data/",),
    "tyro": ("cli/",),
    "peft": (),
    "torchvision": (),
    "pickle": (),
}
"""Package -> the only places that may import it."""

LINE_LIMITS = {"README.md": 250, "ARCHITECTURE.md": 120, "CONTRIBUTING.md": 80, "run.py": 200}


def values_in(text: str, values: set[str]) -> set[str]:
    """Those of the values that occur in a text as whole words."""
    return {v for v in values if re.search(rf"(?<![A-Za-z0-9]){v}(?![A-Za-z0-9])", text, re.I)}


def test_imports_point_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert importlinter.cli.lint_imports(no_cache=True, no_logo=True) == 0


@pytest.mark.parametrize("axis", AXES)
def test_a_file_name_stands_on_one_axis(axis: str) -> None:
    elsewhere = set().union(*(AXES[other] for other in AXES if other != axis))
    for path in PACKAGE.rglob("*.py"):
        here = {value for value in AXES[axis] if f"_{value}_" in f"_{path.stem}_"}
        there = {value for value in elsewhere if f"_{value}_" in f"_{path.stem}_"}
        assert not (here and there), f"{path.name} is of two axes: {here | there}"


def test_no_file_is_a_drawer_for_anything() -> None:
    for path in PACKAGE.rglob("*"):
        assert not FORBIDDEN_NAMES & set(path.stem.split("_")), path


def test_files_fit_in_the_head() -> None:
    lines = {m.name: len(m.text.splitlines()) for m in modules()}
    sizes = list(lines.values())
    assert statistics.median(sizes) <= 150
    assert statistics.quantiles(sizes, n=10)[-1] <= 300
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_functions_fit_on_a_screen() -> None:
    lines = {
        f"{m.name}:{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for m in modules()
        for function in functions(m.tree)
    }
    assert statistics.quantiles(lines.values(), n=10)[-1] <= 30
    assert {name: count for name, count in lines.items() if count > 60} == {}


@pytest.mark.parametrize("name", LINE_LIMITS)
def test_pages_stay_short(name: str) -> None:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    assert len(lines) <= LINE_LIMITS[name]


def test_decision_records_stay_short() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert records
    for record in records:
        assert re.match(r"\d{4}-[a-z0-9-]+\.md$", record.name)
        assert len(record.read_text("utf-8").splitlines()) <= 30, record.name


def without_prose(text: str) -> str:
    """The code of a file, its comments and docstrings left out."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def axis_values_in(text: str) -> set[str]:
    """What a file names of the axes and the classes on them."""
    classes = {type(family).__name__ for family in FAMILIES.values()}
    classes |= {adapter.__name__ for adapter in ADAPTERS.values()}
    values = set().union(*AXES.values(), classes)
    anywhere = values_in(text, values - ORDINARY_WORDS)
    return anywhere | values_in(without_prose(text), ORDINARY_WORDS)


def test_the_loop_names_no_family_adapter_method_or_format() -> None:
    assert axis_values_in(module("training/loop.py").text) == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1  # as in SDXL", {"sdxl"}),
        ("def f():\n    'Like dreambooth.'", {"dreambooth"}),
        ("class A:\n    'A full step.'\n    b = 1  # the full size", set()),
        ("if phase.name == 'full': pass", {"full"}),
        ("from scumble.training.methods import full", {"full"}),
    ],
)
def test_a_name_of_an_axis_would_be_found(text: str, found: set[str]) -> None:
    assert axis_values_in(text) == found


def family_branches(tree: ast.AST) -> list[str]:
    """Places that decide by the family: comparisons with its names, isinstance of its classes."""
    names = {value for f in FAMILIES.values() for value in (f.name, *f.pipeline_classes)}
    classes = {type(family).__name__ for family in FAMILIES.values()}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            constants = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            if names & {value for value in constants if isinstance(value, str)}:
                found.append(ast.unparse(node))
    for name, call in calls(tree):
        if name in ("isinstance", "issubclass") and values_in(ast.unparse(call), classes):
            found.append(ast.unparse(call))
    return found


def test_only_families_know_families() -> None:
    own = {type(family).__module__ for family in FAMILIES.values()}
    for m in modules():
        if m.name.startswith("families/"):
            continue
        assert family_branches(m.tree) == [], m.name
        assert not [i for i in imports(m.tree) if i.rpartition(".")[0] in own], m.name


def test_a_family_branch_would_be_found() -> None:
    branches = """
if family.name == "stable_diffusion": pass
if kind in ("StableDiffusionPipeline", "other"): pass
if isinstance(family, StableDiffusion): pass
match name:
    case "stable_diffusion": pass
"""
    assert len(family_branches(ast.parse(branches))) == 4


def siblings(module_names: set[str], m: Module) -> set[str]:
    """Which of these modules a file imports, itself left out."""
    itself = "scumble." + m.name.removesuffix(".py").replace("/", ".")
    imported = set(imports(m.tree))
    imported |= {name.rpartition(".")[0] for name in imported}
    return (module_names - {itself}) & imported


def test_families_formats_methods_and_adapter_types_do_not_know_each_other() -> None:
    groups = [
        {type(family).__module__ for family in FAMILIES.values()},
        {adapter.__module__ for adapter in ADAPTERS.values()},
        {entry.read.__module__ for entry in FORMATS.values()},
        {phases.__module__ for phases in METHODS.values()},
    ]
    for group in groups:
        for name in group:
            path = name.removeprefix("scumble.").replace(".", "/") + ".py"
            assert siblings(group, module(path)) == set(), name


def test_models_are_built_without_knowing_of_adapters() -> None:
    for m in modules():
        if m.name.startswith("families/"):
            assert not [name for name in imports(m.tree) if name.startswith("scumble.adapters")]


@pytest.mark.parametrize("package", HOMES)
def test_a_package_stays_in_its_place(package: str) -> None:
    for m in modules():
        if any(name.split(".")[0] == package for name in imports(m.tree)):
            assert m.name.startswith(HOMES[package]), f"{m.name} imports {package}"


@pytest.mark.parametrize("registry", REGISTRIES)
def test_a_registry_is_a_literal(registry: str) -> None:
    for node in module(REGISTRIES[registry]).tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == registry:
            assert isinstance(node.value, ast.Dict)
            assert all(isinstance(key, ast.Constant) for key in node.value.keys)
            return
    pytest.fail(f"{registry} is not defined in {REGISTRIES[registry]}")


@pytest.mark.parametrize(
    "statement",
    [
        "import scumble",
        "from scumble.cli.main import run; run(['--help'])",
        "from scumble.cli.main import run; run(['train', '--help'])",
        "import scumble; scumble.TrainConfig",
    ],
)
def test_starting_up_loads_no_heavy_library(statement: str) -> None:
    script = f"import sys, json; {statement}; print(); print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = json.loads(run.stdout.splitlines()[-1])
    heavy = {"torch", "numpy", "diffusers", "transformers", "accelerate", "gradio", "datasets"}
    assert heavy & set(loaded) == set()
