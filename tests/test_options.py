from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from precscope.errors import OptionsError
from precscope.options import Options, resolve_options

if TYPE_CHECKING:
    from pathlib import Path


def test_defaults_record_everything_within_two_percent():
    options = resolve_options()
    assert options == Options()
    assert (options.overhead_budget, options.every, options.start, options.stop) == (0.02, None, 0, None)
    assert options.activations
    assert options.gradients
    assert options.weights
    assert options.selects("any/layer", "AnyType")


def test_every_option_is_checked():
    assert all("check" in item.metadata for item in fields(Options))


def test_options_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Options().every = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("overhead_budget", 0, "a number above 0 and below 1"),
        ("overhead_budget", 1, "a number above 0 and below 1"),
        ("overhead_budget", float("nan"), "a number above 0 and below 1"),
        ("overhead_budget", True, "received True (bool)"),
        ("overhead_budget", "2%", "received '2%' (str)"),
        ("overhead_budget", None, "received None"),
        ("every", 0, "an integer of at least 1, or nothing"),
        ("every", 10.0, "received 10.0 (float)"),
        ("every", True, "an integer of at least 1"),
        ("every", "10", "received '10' (str)"),
        ("start", -1, "an integer of at least 0"),
        ("start", None, "an integer of at least 0"),
        ("start", False, "received False (bool)"),
        ("stop", 0, "an integer of at least 1"),
        ("layers", 3, "a string or a list of strings"),
        ("layers", [], "a string or a list of strings"),
        ("layers", ["dense", 3], "a string or a list of strings"),
        ("layers", [""], "none of them empty"),
        ("layers", ["dense", "conv("], "'conv(' is none"),
        ("layer_types", {"Dense": True}, "a string or a list of strings"),
        ("activations", 1, "true or false"),
        ("gradients", "yes", "true or false"),
        ("weights", None, "true or false"),
    ],
)
def test_a_wrong_value_names_the_option_the_expected_and_the_received(name: str, value: Any, words: str):
    with pytest.raises(OptionsError) as caught:
        resolve_options({name: value})
    message = str(caught.value)
    assert message.startswith(f"Option {name!r}: expected ")
    assert words in message
    assert f"received {value!r} ({type(value).__name__})" in message


def test_a_window_that_is_empty_is_refused():
    with pytest.raises(OptionsError, match=r"Option 'stop': expected a step above start=100, received 100"):
        resolve_options(start=100, stop=100)


def test_numpy_numbers_become_python_numbers():
    options = Options(every=np.int64(5), overhead_budget=np.float32(0.5))  # type: ignore[arg-type]
    assert type(options.every) is int
    assert type(options.overhead_budget) is float


def test_a_string_alone_becomes_a_tuple():
    assert resolve_options(layers="dense", layer_types="Conv2D") == Options(layers=("dense",), layer_types=("Conv2D",))


@pytest.mark.parametrize(
    ("options", "selected"),
    [
        ({}, {"encoder/dense", "encoder/conv", "head/dense_1"}),
        ({"layers": "encoder"}, {"encoder/dense", "encoder/conv"}),
        ({"layers": ["^head", "conv$"]}, {"encoder/conv", "head/dense_1"}),
        ({"layer_types": "Dense"}, {"encoder/dense", "head/dense_1"}),
        ({"layers": "encoder", "layer_types": ["Dense", "LSTM"]}, {"encoder/dense"}),
        ({"layers": "^dense"}, set()),
    ],
)
def test_layers_are_selected_by_expression_and_type(options: dict[str, Any], selected: set[str]):
    layers = {"encoder/dense": "Dense", "encoder/conv": "Conv2D", "head/dense_1": "Dense"}
    resolved = resolve_options(options)
    assert {id for id, type_ in layers.items() if resolved.selects(id, type_)} == selected


def test_yaml_file_then_keywords(tmp_path: Path):
    file = tmp_path / "options.yaml"
    file.write_text("every: 20\nstart: 100\nlayers: [conv, dense]\nweights: false\n")
    expected = Options(every=5, start=100, layers=("conv", "dense"), weights=False)
    assert resolve_options(file, every=5) == expected
    assert resolve_options(str(file), every=5) == expected


def test_keywords_win_over_options_and_may_reset_them():
    assert resolve_options(Options(every=20, start=3), every=None) == Options(start=3)


def test_an_empty_yaml_file_gives_the_defaults(tmp_path: Path):
    file = tmp_path / "options.yaml"
    file.write_text("# nothing yet\n")
    assert resolve_options(file) == Options()


def test_as_dict_survives_yaml(tmp_path: Path):
    options = Options(every=7, layers=("a", "b"), gradients=False)
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump(options.as_dict()))
    assert resolve_options(file) == options
    assert list(options.as_dict()) == [item.name for item in fields(Options)]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("evry", "every"), ("overhead-budget", "overhead_budget"), ("Stop", "stop"), ("layer_type", "layer_types")],
)
def test_an_unknown_option_names_its_neighbours(wrong: str, meant: str):
    with pytest.raises(OptionsError, match=rf"Unknown option '{wrong}' in the keywords\. Did you mean .*'{meant}'"):
        resolve_options(**{wrong: 1})
    with pytest.raises(OptionsError, match=rf"Unknown option '{wrong}' in the mapping\. Did you mean .*'{meant}'"):
        resolve_options({wrong: 1})


def test_an_unknown_option_far_from_all_lists_them(tmp_path: Path):
    file = tmp_path / "my options.yaml"
    file.write_text("qqq: 1\n")
    with pytest.raises(
        OptionsError, match=r"Unknown option 'qqq' in '.*my options.yaml'\. The options are: overhead_b"
    ):
        resolve_options(file)


def test_options_given_as_source_check_keywords_too():
    with pytest.raises(OptionsError, match="Did you mean 'every'"):
        resolve_options(Options(), evry=1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("every: [1\n", "is not valid YAML"),
        ("- every\n", "top level is a list"),
        ("just words\n", "top level is a str"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_options(tmp_path: Path, content: str | bytes, words: str):
    file = tmp_path / "options.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(OptionsError, match=words) as caught:
        resolve_options(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing(tmp_path: Path):
    with pytest.raises(OptionsError, match=r"cannot be read: .*No such file"):
        resolve_options(tmp_path / "none.yaml")


def test_a_source_that_is_none():
    with pytest.raises(OptionsError, match=r"a YAML file, a mapping or Options; received 3 \(int\)"):
        resolve_options(3)  # type: ignore[arg-type]


def test_yaml_numbers_without_a_dot_are_explained(tmp_path: Path):
    file = tmp_path / "options.yaml"
    file.write_text("overhead_budget: 1e-2\n")  # YAML 1.1 reads this as a string
    with pytest.raises(OptionsError, match=r"in YAML write 0\.01 or 1\.0e-2.*received '1e-2' \(str\)"):
        resolve_options(file)
