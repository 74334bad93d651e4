"""The command line: exit codes, one line for an error, and a start that loads nothing heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest

import precscope
from precscope import cli
from precscope.cli import COMMANDS, main
from tests.synthetic_runs import SyntheticRun, healthy


@pytest.fixture
def run_dir(tmp_path):
    return SyntheticRun(steps=[healthy()]).write(tmp_path / "run")


def start(*words, **options):
    """Start the program in a process of its own."""
    code = "from precscope.cli import run; run()"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], **{**pipes, **options})


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "lose precision" in text
    assert "report   Print what the run in RUN_DIR shows." in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"precscope {precscope.__version__}\n"


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from precscope.cli import main; main(['--help']); "
        "print(sorted({'numpy', 'rich', 'tensorflow', 'keras', 'yaml', 'sqlite3', 'pynvml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_report(run_dir, capsys):
    assert main(["report", str(run_dir)]) == 0
    assert "No further layer was seen to need float32 ('head' is in it already); what" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_of_its_own(name, capsys):
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: precscope {name}")


def test_an_error_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["report", str(tmp_path / "no\nwhere\x1b[31m")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("precscope: There is no run directory")
    assert captured.err.count("\n") == 1
    assert "\x1b" not in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reprot"], "There is no command 'reprot'. Did you mean 'report'"),
        (["report"], "Missing argument 'RUN_DIR'"),
        (["report", "x", "--al"], "No such option"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "--layer '(' is not a regular expression: missing ), unterminated subpattern at position 0."),
        ("firts", "None of the run's 4 layers matches --layer 'firts'. Did you mean 'first'?"),
        ("zzz", "None of the run's 4 layers matches --layer 'zzz'. The first are: 'input', 'first'"),
    ],
)
def test_a_pattern_that_matches_nothing(run_dir, pattern, message, capsys):
    assert main(["report", str(run_dir), "--layer", pattern]) == 2
    assert message in capsys.readouterr().err


def test_a_command_whose_module_is_missing_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(cli, "COMMANDS", ("report", "absent"))
    assert main(["--help"]) == 0
    assert "absent" not in capsys.readouterr().out
    assert main(["absent"]) == 2


def test_a_module_missing_inside_a_command_is_a_bug_and_shows(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'rich'", name="rich")

    monkeypatch.setattr(cli, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="rich"):
        main(["report", "--help"])


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (click.Abort(), 130), (BrokenPipeError(), 141)]
)
def test_interruptions_are_quiet(monkeypatch, capfd, error, code):
    @click.command()
    def report():
        raise error

    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(report=report))
    assert main(["report"]) == code
    assert "Traceback" not in capfd.readouterr().err


def test_ctrl_c_in_a_real_process(tmp_path):
    fifo = tmp_path / "run.yaml"
    os.mkfifo(fifo)  # reading it blocks until someone writes
    process = start("report", tmp_path, start_new_session=True)
    with fifo.open("w"):  # returns when the process reads
        os.kill(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in error


def test_a_reader_that_goes_away_is_no_error(run_dir):
    process = start("report", run_dir)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert error == ""


def test_characters_that_the_encoding_lacks_become_question_marks(run_dir):
    process = start("report", run_dir, env=os.environ | {"PYTHONIOENCODING": "ascii"}, text=False)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"")
    assert b"? No further layer was seen to need float32 " in out
