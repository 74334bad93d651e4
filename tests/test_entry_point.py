"""`MODULE:FUNCTION` and `FILE.py:FUNCTION`: what is found, and what is said where nothing is."""

from __future__ import annotations

import sys

import pytest

from precscope.entry_point import EntryPointError, load_entry_point, split_entry_point
from precscope.error_text import where_it_failed

CODE = """
from dataclasses import dataclass
import helper_of_training

@dataclass
class Trainer:
    size: int = helper_of_training.SIZE

    @classmethod
    def make(cls):
        return cls()

def build():
    return Trainer()

number = 7
"""


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch):
    """What a test imports or puts on the path is gone after it."""
    known = set(sys.modules)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    for name in set(sys.modules) - known:
        if name.startswith(("precscope_file_", "my_", "helper_of")):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a package and a file beside it that both import a neighbour."""
    (tmp_path / "helper_of_training.py").write_text("SIZE = 3")
    (tmp_path / "my_training.py").write_text(CODE)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "inner.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["my_training:build", "my_package.inner:build", "my_training.py:build", "./my_package/inner.py:build",
     "my_training:Trainer.make"],
)  # fmt: skip
def test_a_function_is_found_in_a_module_and_in_a_file(folder, name):
    assert load_entry_point(name)().size == 3


def test_a_file_is_found_from_elsewhere_and_hides_no_module(folder, monkeypatch, tmp_path_factory):
    (folder / "json.py").write_text("def build():\n    return 'mine'")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    import json

    assert load_entry_point(f"{folder}/json.py:build")() == "mine"
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    "name", ["", "train", ":", "train:", ":build", "train:build()", "train:1", "a b:build", "a..b:c"]
)
def test_another_form_is_refused(name):
    with pytest.raises(EntryPointError, match=r"Expected MODULE:FUNCTION .* got "):
        split_entry_point(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_trainig:build", r"There is no module 'my_trainig'"),
        ("my_package.iner:build", r"There is no module 'my_package.iner'"),
        ("nowhere.py:build", r"There is no file 'nowhere.py' \(from 'nowhere.py:build'\), seen from '"),
        ("my_training:biuld", r"'my_training' has no function 'biuld'. Did you mean 'build'\?"),
        ("my_training:number", r"'my_training:number' is no function but of type int"),
    ],
)
def test_what_is_not_there(folder, name, words):
    with pytest.raises(EntryPointError, match=words):
        load_entry_point(name)


@pytest.mark.parametrize("form", ["my_broken:build", "my_broken.py:build"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import kears", r"failed: ModuleNotFoundError: No module named 'kears' \(my_broken.py:1\)"),
        ("x = 1\nraise ValueError('no\\ndata')", r"failed: ValueError: no data \(my_broken.py:2\)"),
        ("def build(:", r"failed: .*SyntaxError"),
        ("import sys; sys.exit(3)", r"failed: SystemExit: 3"),
    ],
)
def test_a_module_that_fails_to_import_says_why(folder, form, code, words):
    (folder / "my_broken.py").write_text(code)
    with pytest.raises(EntryPointError, match=rf"Importing 'my_broken(\.py)?' {words}"):
        load_entry_point(form)
    assert "precscope_file_my_broken" not in sys.modules


def test_where_it_failed_names_the_line():
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("first\n  second")
    line = caught.tb.tb_lineno
    assert where_it_failed(caught.value) == f"RuntimeError: first second (test_entry_point.py:{line})"
    assert where_it_failed(KeyError("x")) == "KeyError: 'x'"
