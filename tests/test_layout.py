"""The house: arrows between modules, deps of stages, pins, and what is not done."""

import ast
import itertools
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

# What each module of tiny_llm may import of tiny_llm. Arrows point down only.
ARROWS = {
    "errors": set(),
    "atomic": {"errors"},
    "checks": {"errors"},
    "filekind": {"errors"},
    "layout": {"errors"},
    "corpus": {"checks", "errors", "filekind"},
    "yaml_file": {"atomic", "errors"},
    "download": {"atomic", "errors", "layout", "yaml_file"},
    "tokenizer_json": {"atomic", "corpus", "errors"},
    "engine": {"corpus", "tokenizer_json"},
    "tokenize": {
        "atomic",
        "checks",
        "corpus",
        "engine",
        "errors",
        "tokenizer_json",
        "tokens",
    },
    "manifest": {"errors"},
    "tokens": {"atomic", "errors", "manifest"},
    "parallel": {"checks", "errors"},
    "encoding": {"corpus", "errors", "parallel", "textscan", "tokenize", "tokens"},
    "stats": {"tokens"},
    "textscan": {"corpus"},
    "batching": {"atomic", "batching", "checks", "errors", "layout", "tokens"},
    "data": {
        "batching",
        "corpus",
        "download",
        "encoding",
        "errors",
        "layout",
        "tokenize",
        "tokens",
        "yaml_file",
    },
}
SOURCES = sorted((ROOT / "tiny_llm").rglob("*.py")) + sorted(
    (ROOT / "pipeline").glob("*.py")
)


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def to_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def import_closure(path: Path) -> set[str]:
    """The files of this repository that a file imports, directly or not, and itself."""
    found, ahead = set(), [path]
    while ahead:
        path = ahead.pop()
        if path not in found:
            found.add(path)
            files = map(to_file, imported(path))
            ahead += [file for file in files if file is not None]
    return {str(file.relative_to(ROOT)) for file in found}


def stages() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def stage_closure(stage: dict) -> set[str]:
    """The files that `python -m pipeline STAGE` imports."""
    command = stage["cmd"].split()
    assert command[:3] == ["python", "-m", "pipeline"]
    entry = ROOT / "pipeline" / "__main__.py"
    return import_closure(entry) | import_closure(to_file(f"pipeline.{command[3]}"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down_only(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    ours = [name.split(".") for name in imported(path)]
    if parts[0] == "tiny_llm":
        assert not {name[0] for name in ours} & {"pipeline", "dvc", "story_writer"}
        if parts[1] != "__init__":
            used = {name[1] for name in ours if name[0] == "tiny_llm"}
            assert used <= ARROWS[parts[1]]
    if "batching" not in parts:
        assert "torch" not in {name[0] for name in ours}


@pytest.mark.parametrize("name", stages())
def test_deps_of_a_stage_are_the_files_it_imports(name):
    """DVC does not follow imports: a missing dep would silently keep stale tokens."""
    stage = stages()[name]
    deps = {dep for dep in stage["deps"] if dep.endswith(".py")}
    assert deps == stage_closure(stage)


def test_stages_have_their_names():
    assert list(stages()) == ["fetch", "bpe", "encode-train", "encode-valid"]


def test_every_stage_is_listed_by_the_help_of_the_pipeline():
    names = {
        path.stem
        for path in (ROOT / "pipeline").glob("*.py")
        if "def run(" in path.read_text()
    }
    docstring = ast.get_docstring(ast.parse(to_file("pipeline").read_text()))
    assert set(re.findall(r"(?m)^    (\w+)", docstring)) == names


@pytest.mark.parametrize("package", ["pipeline", "tiny_llm"])
def test_packages_run_nothing_on_import(package):
    """So they need not stand among the deps of a stage."""
    [docstring] = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert isinstance(docstring.value, ast.Constant)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_does_none_of_what_is_banned(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), "assert is for tests"
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert name not in {"eval", "exec", "yaml.load", "os.system"}
        assert name != "print" or path.name == "data.py"
        if isinstance(node, ast.keyword):
            assert node.arg != "shell"
    assert not imported(path) & {"pickle", "marshal", "shelve"}


def test_every_python_file_is_short_enough_for_one_sitting():
    for path in ROOT.glob("*/**/*.py"):
        if ".venv" not in path.parts and "build" not in path.parts:
            assert len(path.read_text().splitlines()) <= 400, path


def test_the_lock_pins_every_dependency_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *itertools.chain(*extras)]
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), line
            pins.setdefault(pin.name, []).append(str(pin.specifier)[2:])
    for requirement in map(Requirement, asked):
        assert pins[requirement.name], requirement
        assert all(map(requirement.specifier.contains, pins[requirement.name]))
    assert pins["torch"] == ["2.13.0"]


def test_the_lock_names_no_package_index():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if line.startswith("-") or "://" in line]
