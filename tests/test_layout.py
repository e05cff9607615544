"""The layout: imports between modules, deps of stages, dependencies, banned code."""

import ast
import importlib.metadata
import itertools
import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

# Which modules of tiny_llm each module may import. Arrows point down only.
ARROWS = {
    "errors": set(),
    "atomic": {"errors"},
    "checks": {"errors"},
    "filekind": {"errors"},
    "layout": {"errors"},
    "corpus": {"checks", "errors", "filekind"},
    "yaml_file": {"atomic", "errors"},
    "pins": {"errors", "filekind", "layout", "yaml_file"},
    "transport": {"errors", "pins"},
    "part_file": {"atomic"},
    "download": {"atomic", "errors", "part_file", "pins", "transport"},
    "source_files": {"errors", "filekind", "layout"},
    "sources": {"checks", "corpus", "errors", "filekind", "source_files"},
    "splitting": {
        "atomic",
        "corpus",
        "errors",
        "filekind",
        "layout",
        "source_files",
        "sources",
    },
    "tokenizer_json": {"atomic", "corpus", "errors"},
    "anytext": {"corpus"},
    "engine_gigatoken": {"corpus", "errors", "tokenizer_json"},
    "engine_tokenizers": {"corpus", "tokenizer_json"},
    "engine": {
        "anytext",
        "engine_gigatoken",
        "engine_tokenizers",
        "errors",
        "tokenizer_json",
    },
    "sample": {"anytext", "atomic", "corpus", "engine"},
    "tokenize": {
        "atomic",
        "checks",
        "corpus",
        "engine",
        "errors",
        "sample",
        "tokenizer_json",
        "tokens",
    },
    "training": {"corpus", "parallel", "sample", "tokenize"},
    "manifest": {"atomic", "errors"},
    "tokens": {"atomic", "errors", "manifest"},
    "worker": {"errors"},
    "cluster": {"errors", "worker"},
    "parallel": {"checks", "cluster", "errors", "worker"},
    "parts": {"atomic", "errors"},
    "verify": {"errors", "manifest", "parallel", "tokens"},
    "exit_status": {"errors"},
    "excerpts": {"checks", "errors", "tokenize", "tokens"},
    "export": {"atomic", "errors", "manifest", "tokens"},
    "card": {"atomic", "errors", "layout", "manifest", "yaml_file"},
    "commands": {
        "batching",
        "card",
        "errors",
        "excerpts",
        "export",
        "layout",
        "manifest",
        "tokenize",
        "tokens",
        "verify",
    },
    "cli": {"commands", "exit_status"},
    "encode_range": {
        "anytext",
        "corpus",
        "engine",
        "errors",
        "manifest",
        "parts",
        "textscan",
        "tokenizer_json",
    },
    "encoding": {
        "checks",
        "corpus",
        "encode_range",
        "errors",
        "parallel",
        "parts",
        "stats",
        "textscan",
        "tokenize",
        "tokens",
    },
    "report": {"errors", "report", "tokenizer_json", "tokens"},
    "stats": set(),
    "overlap": set(),
    "duplicates": {"overlap", "tokenize", "tokens"},
    "leakage": {"checks", "duplicates", "overlap", "parallel", "tokenize"},
    "leakage_files": {
        "duplicates",
        "errors",
        "leakage",
        "overlap",
        "tokenize",
        "tokens",
    },
    "textscan": {"corpus"},
    "batching": {"atomic", "batching", "checks", "errors", "layout", "tokens"},
    "data": {
        "batching",
        "corpus",
        "download",
        "encoding",
        "errors",
        "layout",
        "pins",
        "tokenize",
        "tokens",
        "training",
        "yaml_file",
    },
}
SOURCES = [
    path
    for package in ("tiny_llm", "pipeline", "tools")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def imported(path: Path) -> set[str]:
    """Return the full names of the modules that a file imports."""
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
    """Return the files of this repository that a script imports, even indirectly."""
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
    names = [name.split(".") for name in imported(path)]
    packages = {name[0] for name in names}
    if parts[0] == "tiny_llm":
        assert not packages & {"pipeline", "dvc", "tools"}
        if parts[1] != "__init__":
            used = {name[1] for name in names if name[0] == "tiny_llm" and name[1:]}
            assert used <= ARROWS[parts[1]]
    if parts[0] == "pipeline":
        assert not packages & {"dvc", "tools"}
    if "batching" not in parts:
        assert "torch" not in packages


@pytest.mark.parametrize("name", stages())
def test_deps_of_a_stage_are_the_files_it_imports(name):
    """DVC does not follow imports: a missing dep would silently keep stale tokens."""
    stage = stages()[name]
    deps = {dep for dep in stage["deps"] if dep.endswith(".py")}
    assert deps == stage_closure(stage)


def test_stages_have_their_names():
    assert list(stages()) == [
        "fetch",
        "bpe",
        "encode-train",
        "encode-valid",
        "leakage",
        "report",
    ]


def test_every_stage_is_listed_by_the_help_of_the_pipeline():
    names = {
        path.stem
        for path in (ROOT / "pipeline").glob("*.py")
        if "def run(" in path.read_text()
    }
    docstring = ast.get_docstring(ast.parse(to_file("pipeline").read_text()))
    assert set(re.findall(r"(?m)^    (\w+)", docstring)) == names


@pytest.mark.parametrize("package", ["pipeline", "tiny_llm", "tools"])
def test_packages_run_nothing_on_import(package):
    """A docstring and constants only, so no stage needs to list them in its deps."""
    for node in ast.parse((ROOT / package / "__init__.py").read_text()).body:
        assert isinstance(node, ast.Expr | ast.Assign)
        assert isinstance(node.value, ast.Constant)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_uses_nothing_banned(path):
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


def dependencies() -> dict[str, list[Requirement]]:
    """Return the requirements in pyproject.toml by extra; "" is the library itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [*map(Requirement, lines)] for extra, lines in asked.items()}


def packages_imported(*folders: str) -> set[str]:
    """Return the packages that files in `folders` import, as named on the index."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    modules = {name.split(".")[0] for path in paths for name in imported(path)}
    ours = {path.name for path in ROOT.iterdir() if path.is_dir()}
    newer = {"tomllib", "compression"}  # Python 3.11, 3.14
    modules -= ours | sys.stdlib_module_names | newer
    on_index = importlib.metadata.packages_distributions()
    return {on_index.get(module, [module])[0].lower() for module in modules}


# What tiny_llm imports only to read a kind of file, and says so when it is missing.
OPTIONAL = {"orjson": "pipeline", "pyarrow": "parquet", "backports.zstd": "zstd"}


def test_the_library_depends_on_exactly_what_it_imports():
    """And the packages that only some users need, each in an extra."""
    extras = ("", "cluster", "tokenizers")
    asked = {need.name for extra in extras for need in dependencies()[extra]}
    assert asked | OPTIONAL.keys() == packages_imported("tiny_llm")
    for name, extra in OPTIONAL.items():
        assert name in {requirement.name for requirement in dependencies()[extra]}


@pytest.mark.parametrize(
    ("extras", "folders"),
    [
        (["pipeline"], ["pipeline"]),
        (["pipeline", "dev"], ["tools", "tests", "examples"]),
    ],
)
def test_extras_bring_what_is_imported(extras, folders):
    asked = [*dependencies()[""]]
    for extra in extras:
        asked += dependencies()[extra]
    assert packages_imported(*folders) <= {requirement.name for requirement in asked}


def test_the_lock_pins_every_dependency_within_its_bounds():
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), line
            name = canonicalize_name(pin.name)
            pins.setdefault(name, []).append(str(pin.specifier)[2:])
    for requirement in itertools.chain(*dependencies().values()):
        found = pins[canonicalize_name(requirement.name)]
        assert all(map(requirement.specifier.contains, found)), requirement
    assert pins["torch"] == ["2.13.0"]


def test_the_lock_names_no_package_index():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if line.startswith("-") or "://" in line]
