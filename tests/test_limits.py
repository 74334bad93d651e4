"""The limits of the gate: from options and YAML, each checked, wrong names told with their neighbours."""

from __future__ import annotations

from dataclasses import fields

import pytest

from precscope.commands.check import check
from precscope.errors import OptionsError
from precscope.limits import Limits, resolve_limits


def test_defaults_refuse_errors_and_bad_endings_only():
    assert resolve_limits() == Limits()
    assert {item.name: getattr(Limits(), item.name) for item in fields(Limits)} == {
        "max_severity": "warning",
        "any_ending": False,
        **dict.fromkeys(
            ["max_flushed_share", "max_subnormal_share", "max_skipped_steps", "max_skipped_share", "min_loss_scale"]
        ),
        "min_headroom_bits": None,
        "policy": None,
    }


def test_a_file_and_options_that_win(tmp_path):
    file = tmp_path / "limits.yaml"
    file.write_text("max_severity: none\nmax_skipped_share: 0.01\nmin_headroom_bits: 2\npolicy: kept/policy.yaml\n")
    limits = resolve_limits(file, max_skipped_share=0.5, min_loss_scale=None)
    assert (limits.max_severity, limits.max_skipped_share, limits.min_headroom_bits) == ("none", 0.5, 2.0)
    assert limits.min_loss_scale is None
    assert limits.policy == str(tmp_path / "kept" / "policy.yaml")
    assert resolve_limits(file, policy="mine.yaml").policy == "mine.yaml"


def test_null_switches_a_limit_off(tmp_path):
    file = tmp_path / "limits.yaml"
    file.write_text("max_severity: null\n")
    assert resolve_limits(file).max_severity is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_flush_share: 0.1", "Unknown limit 'max_flush_share' in '.*'. Did you mean 'max_flushed_share'"),
        ("min-headroom-bits: 1", "Unknown limit 'min-headroom-bits' in '.*'. Did you mean 'min_headroom_bits'"),
        ("max_severity: error", "Limit 'max_severity': expected one of none, info, warning: .* received 'error'"),
        ("max_flushed_share: 1%", "expected a share from 0 to 1 .*received '1%'"),
        ("max_flushed_share: 2", "expected a share from 0 to 1 .*received 2 "),
        ("max_skipped_share: yes", r"expected a share from 0 to 1 .*received True \(bool\)"),
        ("max_skipped_steps: -1", "expected an integer of at least 0, received -1"),
        ("max_skipped_steps: 1.5", "expected an integer of at least 0, received 1.5"),
        ("min_headroom_bits: .nan", "expected a finite number, received nan"),
        ("min_loss_scale: many", "expected a finite number, received 'many'"),
        ("policy: ''", "expected the path of a policy file, received ''"),
        ("any_ending: null", "expected true or false, received None"),
        ("- 1", "must hold 'name: value' lines; its top level is a list"),
        ("a: [", "The limits file '.*' is not valid YAML"),
        ("a: 2024-13-45", "The limits file '.*' is not valid YAML"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "limits.yaml"
    file.write_text(text)
    with pytest.raises(OptionsError, match=message):
        resolve_limits(file)


def test_a_missing_file(tmp_path):
    with pytest.raises(OptionsError, match=r"The limits file '.*nowhere\.yaml' cannot be read"):
        resolve_limits(tmp_path / "nowhere.yaml")


def test_the_command_has_an_option_for_each_limit():
    options = {parameter.name for parameter in check.params}
    assert {item.name for item in fields(Limits)} <= options


def test_every_limit_is_documented(repository):
    page = (repository / "docs" / "check.md").read_text(encoding="utf-8")
    assert all(f"`{item.name}`" in page for item in fields(Limits))
