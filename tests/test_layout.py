"""What holds the source tree together: hand-kept lists, import directions and house rules that no linter knows."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
#: Each source folder and the package it is imported as.
FOLDERS = {"precscope": "precscope", "probes": "precscope.probes", "reports": "precscope.reports"}


def folders() -> Iterator[tuple[str, Path, list[str]]]:
    """Yield each folder of the sources with its package name and files; links are not followed."""
    for top, package in FOLDERS.items():
        for base, directories, files in os.walk(ROOT / top):
            directories[:] = [name for name in directories if name != "__pycache__"]
            below = Path(base).relative_to(ROOT / top).parts
            yield ".".join([package, *below]), Path(base), files


def modules() -> dict[str, Path]:
    """Return every module's name and file."""
    found = {}
    for package, base, files in folders():
        for file in files:
            if file.endswith(".py"):
                name = package if file == "__init__.py" else f"{package}.{file.removesuffix('.py')}"
                found[name] = base / file
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in MODULES.items()}


def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def test_packages_are_listed() -> None:
    packages = [package for package, _, files in folders() if "__init__.py" in files]
    assert sorted(setuptools_table()["packages"]) == sorted(packages)


def test_package_data_are_listed() -> None:
    data: dict[str, list[str]] = {}
    for package, _, files in folders():
        if others := sorted(file for file in files if not file.endswith(".py")):
            data[package] = others
    listed = {package: sorted(files) for package, files in setuptools_table()["package-data"].items()}
    assert listed == data


@pytest.mark.parametrize("name", ["probes", "reports"])
def test_links_for_static_tools(name: str) -> None:
    link = ROOT / "precscope" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


@pytest.mark.parametrize("name", MODULES)
def test_module_follows_the_house_rules(name: str) -> None:
    tree = TREES[name]
    assert ast.get_docstring(tree), "a module says what it is for"
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in imports), "relative imports give editors two different types"
    if len(tree.body) > 1:
        assert any(node.module == "__future__" for node in imports), "from __future__ import annotations"
        assert _assigned(tree, "__all__"), "__all__ says what is public"


def _assigned(tree: ast.Module, name: str) -> bool:
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


@pytest.mark.parametrize("name", MODULES)
def test_module_has_what_it_exports(name: str) -> None:
    if name.startswith("precscope.probes"):
        pytest.importorskip("tensorflow")
    module = import_module(name)
    assert [item for item in getattr(module, "__all__", []) if not hasattr(module, item)] == []


#: Largest numbers of float16, float8_e5m2 and float8_e4m3fn, and exponents at which formats end.
LIMITS = {65504, 57344, 448}
EXPONENTS = {14, 24, 126, 133, 149}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"precscope.formats"}))
def test_limits_of_float_formats_are_data(name: str) -> None:
    literals = [ast.unparse(node) for node in ast.walk(TREES[name]) if _is_format_limit(node)]
    assert literals == [], "take it from precscope/formats.py"


def _is_format_limit(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value in LIMITS
        case ast.BinOp(
            left=ast.Constant(value=2 | 2.0), op=ast.Pow(), right=ast.UnaryOp(operand=ast.Constant(value=exponent))
        ):
            return exponent in EXPONENTS
    return False


def test_the_search_for_limits_finds_them() -> None:
    code = "headroom(65504.0); x < 2.0**-24; y > 448; ok(2**15, 1024)"
    found = [ast.unparse(node) for node in ast.walk(ast.parse(code)) if _is_format_limit(node)]
    assert sorted(found) == ["2.0 ** (-24)", "448", "65504.0"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/migrating_from_tf_keras.md"])
def test_files_that_the_documentation_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+[\w.]*)`|\]\(([\w/.]+)\)", text)
    missing = [name for pair in named for name in pair if name and not (ROOT / name).exists()]
    assert missing == []


#: What Keras and TensorFlow do not promise to keep.
PRIVATE_MODULES = ("keras.src", "tensorflow.compiler", "tensorflow.python")


#: What may import a framework, without the door itself.
_OUTSIDE = [
    name
    for name in MODULES
    if name.startswith(("precscope.probes", "precscope.commands")) and not name.startswith("precscope.probes.internals")
]


@pytest.mark.parametrize("name", _OUTSIDE)
def test_one_door_leads_behind_the_public_api(name: str) -> None:
    assert sorted(_private_uses(TREES[name])) == [], "it belongs into a module of probes/internals"


def _private_uses(tree: ast.AST) -> Iterator[str]:
    """Yield what reaches into others' private modules and attributes; an object's own attributes are its own matter."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
                yield from (module for module in modules if module.startswith(PRIVATE_MODULES))
            case ast.ImportFrom(module=str(module), names=names):
                modules = [f"{module}.{alias.name}" for alias in names]
                yield from (module for module in modules if module.startswith(PRIVATE_MODULES))
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=attribute) if _is_private(attribute):
                yield ast.unparse(node)
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                if _is_private(name):
                    yield ast.unparse(node)


def _is_private(name: str) -> bool:
    return name == "__internal__" or (name.startswith("_") and not name.startswith("__"))


def test_the_search_for_private_uses_finds_them() -> None:
    code = (
        "import keras.src.ops, json; from keras import src, ops; from tensorflow.python import util; self._own; "
        "cls._own; layer._dtype; tf.__internal__.x; getattr(x, '_y', 0); x.__name__; setattr(x, 'y', 0)"
    )
    found = ["getattr(x, '_y', 0)", "keras.src", "keras.src.ops", "layer._dtype", "tensorflow.python.util"]
    assert sorted(_private_uses(ast.parse(code))) == [*found, "tf.__internal__"]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([script, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_import_contracts_hold(copied_tree: Path) -> None:
    done = lint_imports(copied_tree)
    assert done.returncode == 0, done.stdout + done.stderr


#: A file, a line that is added to it, and what the tool must say.
BREACHES = {
    "core imports a framework": ("precscope/formats.py", "import tensorflow", "formats -> tensorflow"),
    "core imports NVML in a function": ("precscope/records.py", "def f():\n    import pynvml", "records -> pynvml"),
    "core imports a probe": (
        "precscope/rundir.py",
        "from precscope.probes import legacy",
        "rundir -> precscope.probes",
    ),
    "core imports a report": (
        "precscope/statistics.py",
        "from precscope import reports",
        "statistics -> precscope.rep",
    ),
    "core imports a command": (
        "precscope/options.py",
        "from precscope.commands import demo",
        "options -> precscope.com",
    ),
    "core draws": ("precscope/reader.py", "import rich.table", "reader -> rich"),
    "probe imports a report": ("probes/legacy.py", "import precscope.reports", "legacy -> precscope.reports"),
    "probe draws": ("probes/demos/digits.py", "from rich import print", "digits -> rich"),
    "report imports a probe": (
        "reports/__init__.py",
        "from precscope.probes import demos",
        "reports -> precscope.prob",
    ),
    "report imports a framework": ("reports/__init__.py", "from keras import ops", "reports -> keras"),
    "new module of the core": ("precscope/new_module.py", "import keras", "new_module -> keras"),
}


@pytest.mark.parametrize(("file", "line", "words"), BREACHES.values(), ids=BREACHES.keys())
def test_import_contracts_fail_when_broken(copied_tree: Path, file: str, line: str, words: str) -> None:
    with (copied_tree / file).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    done = lint_imports(copied_tree)
    assert done.returncode == 1
    assert words in done.stdout.partition("Broken contracts")[2]


@pytest.mark.parametrize("python", ["", "/bin/false"])
def test_make_says_which_python_it_needs(tmp_path: Path, python: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    command = ["make", "demo", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 with the venv module" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_help_names_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "browser", "gpu-test", "format", "lint", "types", "imports", "check"):
        assert f"\n{target} " in f"\n{done.stdout}"
