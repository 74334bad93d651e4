"""The built package: what it holds, that it works where it is installed, and what its import costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

HEAVY = ("tensorflow", "keras", "pynvml", "plotly", "jinja2", "pandas")


def run_python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    """Run `code` in a fresh interpreter in `cwd`, `path` first on its import path, and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an sdist or a wheel as pip does, with the setuptools that is installed: no network is needed."""
    out.mkdir()
    run_python(f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})", cwd=source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist built from a copy of the sources: what a release would be."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("precscope", "probes", "reports"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / name, folder / "source" / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, folder / "source" / name)
    sdist = build("sdist", folder / "source", folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the wheel, away from the sources."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    return target


def test_wheel_holds_every_source_file_once_and_nothing_else(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packaged = [name for name in names if ".dist-info/" not in name]
    expected = []
    for folder, prefix in (("precscope", ""), ("probes", "precscope/"), ("reports", "precscope/")):
        for base, _, files in os.walk(repository / folder):  # does not follow the links
            relative = Path(base).relative_to(repository).as_posix()
            expected += [f"{prefix}{relative}/{file}" for file in files if "__pycache__" not in base]
    assert sorted(packaged) == sorted(expected)
    assert {name.split("/")[0] for name in packaged} == {"precscope"}  # no top-level `probes` or `reports`
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_installed_package_works_away_from_its_sources(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "probes").mkdir()  # users have folders of this name beside their scripts
    (tmp_path / "probes" / "__init__.py").write_text("OWNER = 'user'\n")
    code = """
import precscope, probes, precscope.reports
from importlib.resources import files
from precscope.probes.demos.digits import load_digits
print(precscope.__file__, probes.OWNER, files("precscope").joinpath("py.typed").is_file(), load_digits()[0].shape)
"""
    expected = f"{installed / 'precscope' / '__init__.py'} user True (1797, 28, 28)\n"
    assert run_python(code, cwd=tmp_path, path=installed) == expected


def test_version_is_the_same_everywhere(repository: Path, wheel: Path) -> None:
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    assert wheel.name == f"precscope-{version}-py3-none-any.whl"
    assert run_python("import precscope; print(precscope.__version__)", cwd=repository) == f"{version}\n"


@pytest.mark.parametrize(
    "code",
    [
        "import precscope",
        "import precscope; precscope.open_run; precscope.PrecScopeError; precscope.Options",
        "import precscope.reports.terminal",
        "import precscope.probes.demos, precscope.probes.legacy",
        "run('--help')",
        "run('demo', '--help')",
        "run('report', '--help')",
    ],
)
def test_what_stays_light_loads_no_framework(code: str, tmp_path: Path) -> None:
    script = f"""
import sys
from importlib.metadata import entry_points

def run(*arguments):
    sys.argv = ["precscope", *arguments]
    (script,) = entry_points(group="console_scripts", name="precscope")
    try:
        script.load()()
    except SystemExit as exit:
        assert not exit.code, exit.code

{code}
print("loaded:", [name for name in {HEAVY} if name in sys.modules])
"""
    assert run_python(script, cwd=tmp_path).endswith("loaded: []\n")


def test_front_door_offers_what_it_lists(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    code = "import precscope; print([n for n in precscope.__all__ if not hasattr(precscope, n)])"
    assert run_python(code, cwd=tmp_path) == "[]\n"
