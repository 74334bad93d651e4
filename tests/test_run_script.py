"""`precscope run`: a program sees, prints and ends as under `python`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from precscope.cli import main
from precscope.reader import open_run
from precscope.run_names import claim_run_directory, next_run_directory

if TYPE_CHECKING:
    from pathlib import Path

PRECSCOPE = ["-c", "from precscope.cli import run; run()", "run"]
NOT_RECORDED = "precscope: no training was recorded: the program did not import Keras 3.\n"
NOR_WATCHED = NOT_RECORDED.replace(".\n", ". Processes that it starts are not watched.\n")


def python(folder: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=env, input="typed\n", capture_output=True, text=True, timeout=300, check=False
    )


SURROUNDINGS = """
import sys, os
print(__name__, __file__, __package__, __doc__, type(__loader__).__name__, __spec__ and __spec__.name, __cached__)
print(sys.argv, sys.path[:2], sys.modules["__main__"].__dict__ is globals(), sys.stdin.read())
print(sorted(name for name in globals() if name not in ("__builtins__", "__annotations__")))
print([name for name in ("numpy", "keras", "tensorflow") if name in sys.modules], sys.stdout.errors)
print(__builtins__.__name__)
"""
FAILING = """
import beside
def inner():
    raise ValueError("mine")
try:
    inner()
except ValueError as error:
    raise RuntimeError("outer") from error
"""
HOOKED = """
import sys
sys.excepthook = lambda kind, error, traceback: print("hooked", kind.__name__, traceback.tb_lineno)
1 / 0
"""
AT_EXIT = """
import atexit, sys
class Kept: ...
@atexit.register
def late():
    import beside
    print(beside.VALUE, sys.argv, sys.modules["__main__"].Kept is Kept)
"""
SPAWNING = """
import multiprocessing, sys
print(__name__, sys.argv)
def double(x):
    return 2 * x
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1, 2]))
"""
FORKING = """
import os, sys
child = os.fork()
if not child:
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
OUR_ERROR = "import precscope\nprecscope.open_run('nowhere')\n"
PROGRAMS = {
    "surroundings": SURROUNDINGS,
    "failing": FAILING,
    "syntax error": "x = (\n",
    "exit code": "import sys; sys.exit(3)",
    "exit message": "import sys; sys.exit('bad data')",
    "exit without": "raise SystemExit",
    "at once": "import os; os._exit(7)",
    "interrupted": "raise KeyboardInterrupt",
    "end of file": "input(); input()",
    "broken pipe": "raise BrokenPipeError(32, 'mine')",
    "hooked": HOOKED,
    "at exit": AT_EXIT,
    "spawning": SPAWNING,
    "forking": FORKING,
    "an error of PrecScope": OUR_ERROR,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("VALUE = 42\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_script_behaves_as_without_us(name: str, folder: Path) -> None:
    (folder / "scripts").mkdir()
    (folder / "scripts" / "beside.py").write_text("VALUE = 43\n", encoding="utf-8")
    (folder / "scripts" / "train.py").write_text(PROGRAMS[name], encoding="utf-8")
    call = ["scripts/train.py", "--dir", "x", "--", "--help", "-m"]
    plain, ours = python(folder, *call), python(folder, *PRECSCOPE, "--dir", "ours", *call)
    assert (ours.stdout, ours.returncode) == (plain.stdout, plain.returncode)
    if name == "an error of PrecScope":  # its frames in our own files are hidden
        assert [ours.stderr.splitlines()[i] for i in (0, 1, -2)] == [plain.stderr.splitlines()[i] for i in (0, 1, -1)]
    else:
        told = NOR_WATCHED if name == "spawning" else NOT_RECORDED
        assert ours.stderr.replace(told, "") == plain.stderr
    assert not (folder / "ours").exists()
    if name == "interrupted":
        assert ours.returncode == -signal.SIGINT


# Python itself does not import a package's __main__ in a spawned child.
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("surroundings", "package.train"),
        ("surroundings", "package"),
        ("failing", "package.train"),
        ("at exit", "package"),
        ("spawning", "package.train"),
    ],
)
def test_a_module_behaves_as_without_us(name: str, module: str, folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("", encoding="utf-8")
    for file in ("train.py", "__main__.py"):
        (folder / "package" / file).write_text(PROGRAMS[name], encoding="utf-8")
    call = ["-m", module, "--epochs", "3"]
    python(folder, *call)  # the first one compiles
    plain, ours = python(folder, *call), python(folder, *PRECSCOPE, *call)
    assert (ours.stdout, ours.returncode) == (plain.stdout, plain.returncode)
    runpy = re.compile(r'  File "<frozen runpy>", .*\n')
    told = NOR_WATCHED if name == "spawning" else NOT_RECORDED
    assert ours.stderr.replace(told, "") == runpy.sub("", plain.stderr)


def test_signals_reach_the_script(folder: Path) -> None:
    (folder / "train.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)\n", encoding="utf-8")
    assert python(folder, *PRECSCOPE, "train.py").returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.py"], "There is no script 'nowhere.py'"),
        (["."], "A package is run with -m"),
        (["--set", "evry=3", "x.py"], "Unknown option 'evry' in the keywords. Did you mean 'every'"),
        (["--set", "every", "x.py"], "--set expects NAME=VALUE"),
        (["--set", "every=[", "x.py"], "the value is no YAML"),
        (["--options", "nowhere.yaml", "x.py"], "The options file 'nowhere.yaml' cannot be read"),
        (["--policy", "float8", "x.py"], "'float8' is not one of 'float32', 'mixed_float16', 'mixed_bfloat16'"),
        (["--dir", "s3://bucket/runs", __file__], "is a URL; expected a local path"),
        ([], "Missing argument 'SCRIPT'"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_module_that_is_not_there(folder: Path) -> None:
    done = python(folder, *PRECSCOPE, "-m", "beside.no.such")
    assert done.returncode == 2
    assert done.stderr.startswith("precscope: There is no module 'beside.no.such' to run")
    assert "Traceback" not in done.stderr


def test_a_directory_is_claimed_by_one_process_only(tmp_path: Path) -> None:
    """A sweep starts many scripts at once, and their models have the same name."""
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim_run_directory(tmp_path / "runs", "net"), range(80)))
    assert sorted(claimed) == sorted((tmp_path / "runs").iterdir())
    assert len(set(claimed)) == 80
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert claim_run_directory(tmp_path / "file" / "runs", "net") == tmp_path / "file" / "runs" / "net-1"


def test_names_are_numbered_above_those_that_are_there(tmp_path: Path) -> None:
    assert next_run_directory(tmp_path / "new", "mnist") == tmp_path / "new" / "mnist-1"
    for name in ("mnist-2", "mnist-9-old", "resnet-11"):
        (tmp_path / name).mkdir()
    assert next_run_directory(tmp_path, "mnist") == tmp_path / "mnist-3"
    assert next_run_directory(tmp_path, "../a b") == tmp_path / "a_b-1"
    assert next_run_directory(tmp_path, "/") == tmp_path / "model-1"


# Two others watch the import of Keras, each in one of the ways in which tracers do: by a finder that searches with
# everybody else and changes the loader, and by one that puts a loader around.
WATCHING_TOO = """
import importlib.util, sys

class Finder:
    searches = False
    def __init__(self, follow):
        self.follow = follow
    def find_spec(self, name, path=None, target=None):
        if name != "keras" or self.searches:
            return None
        self.searches = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searches = False
        self.follow(spec)
        return spec

class Around:
    def __init__(self, loader):
        self.loader = loader
    def create_module(self, spec):
        return self.loader.create_module(spec)
    def exec_module(self, module):
        self.loader.exec_module(module)
        print("around")

def change(spec):
    load = spec.loader.exec_module
    def exec_module(module):
        load(module)
        print("changed")
    spec.loader.exec_module = exec_module

def surround(spec):
    spec.loader = Around(spec.loader)

sys.meta_path.insert(0, Finder(change))
sys.meta_path.insert(0, Finder(surround))
"""
OTHER_KERAS = """
print("loaded")
class backend:
    backend = staticmethod(lambda: "jax")
"""


@pytest.mark.parametrize("first", ["they", "we"])
def test_others_may_watch_the_import_of_keras_too(first: str, folder: Path) -> None:
    (folder / "keras.py").write_text(OTHER_KERAS, encoding="utf-8")
    (folder / "sitecustomize.py").write_text(WATCHING_TOO, encoding="utf-8")
    they_first = "for f in [f for f in sys.meta_path if type(f).__name__ == '_KerasImport']:\n"
    they_first += "    sys.meta_path.remove(f); sys.meta_path.insert(2, f)\n"
    text = "import importlib.util, sys\n" + they_first * (first == "they")
    text += "print(importlib.util.find_spec('keras').name)\nimport keras\n"
    (folder / "train.py").write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    plain, ours = (python(folder, *words, "train.py", env=environment) for words in ([], PRECSCOPE))
    assert sorted(plain.stdout.split()) == ["around", "changed", "keras", "loaded"]
    assert (ours.stdout, ours.returncode) == (plain.stdout, 0)
    assert ours.stderr.count("Keras runs on 'jax' here") == 1


def test_what_we_say_stands_below_the_traceback(folder: Path) -> None:
    (folder / "train.py").write_text(FAILING, encoding="utf-8")
    lines = python(folder, *PRECSCOPE, "train.py").stderr.splitlines()
    assert lines[-2:] == ["RuntimeError: outer", NOT_RECORDED.strip()]


TRAINING = """
import os, signal, sys
os.environ["KERAS_BACKEND"] = "tensorflow"
import numpy as np
import keras

class Cut(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.params["epochs"] == 2 and batch == 30:
            os.kill(os.getpid(), signal.SIGINT) if sys.argv[1:] == ["interrupted"] else os._exit(9)

keras.utils.set_random_seed(1)
x = np.random.default_rng(0).normal(size=(512, 6)).astype("float32")
y = (x.sum(1) > 0).astype("int32")
def build(name):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, "softmax")], name=name)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    return model
first, second = build("first"), build("second")
first.fit(x, y, batch_size=32, verbose=0)
for _ in range(12):
    first.train_on_batch(x[:32], y[:32])
if sys.argv[1:]:
    second.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[Cut()])
print("fit" in vars(keras.Model), keras.config.dtype_policy().name)
"""


def test_trainings_are_recorded_and_a_script_that_is_cut_off_leaves_runs(folder: Path) -> None:
    pytest.importorskip("tensorflow")
    (folder / "train.py").write_text(TRAINING, encoding="utf-8")
    ours = ["--set", "every=3", "--set", "profile_steps=0", "train.py"]
    done = python(folder, *PRECSCOPE, *ours)
    assert done.returncode == 0, done.stderr
    assert "1 run was recorded. Read it:\n  precscope report runs/first-1\n    model 'first', 28 steps: " in done.stderr
    run = open_run(folder / "runs" / "first-1")
    assert run.record.status == "finished"
    assert {sample.step for sample in run.samples} >= {3, 6, 15, 18, 27}  # 16 steps by fit, 12 by train_on_batch
    assert done.stdout == "True float32\n"

    cut = python(folder, *PRECSCOPE, "--policy", "mixed_bfloat16", *ours, "cut")
    assert (cut.returncode, cut.stdout) == (9, "")
    run = open_run(folder / "runs" / "second-1")
    assert {layer.policy for layer in run.layers if layer.type == "Dense"} == {"mixed_bfloat16"}
    assert run.status == "killed"
    assert [sample.step for sample in run.samples][:3] == [1, 3, 6]

    interrupted = python(folder, *PRECSCOPE, *ours, "interrupted")
    assert interrupted.returncode == -signal.SIGINT
    assert "\nKeyboardInterrupt\nprecscope: 2 runs were recorded. Read them:\n" in interrupted.stderr
    assert open_run(folder / "runs" / "second-2").status == "interrupted"
