"""The table of `benchmarks.proof`: what counts as repaired, and what does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.proof import read_lines, table

if TYPE_CHECKING:
    from pathlib import Path


def line(case: str, plain: float | None, policy: float | None, **changes: Any) -> dict[str, Any]:
    figures = [{"final_loss": 0.5, "off_by": off, "skipped": number} for number, off in enumerate((0.0, plain, policy))]
    found: dict[str, Any] = {"case": case, "error": None, "proven": True, "pins": ["norm"], "trials": 2}
    return found | dict(zip(("float32", "plain", "policy"), figures, strict=True)) | changes


def rows(*lines: dict[str, Any]) -> list[str]:
    return table(lines).splitlines()[2:]


def test_a_fault_is_repaired_where_the_policy_tracks_float32_and_plain_does_not() -> None:
    repaired, plain_too, still_off, _, faulty = rows(
        line("norm_variance", None, 0.02),
        line("tiny_epsilon", 0.01, 0.0),
        line("instance_norm", 0.5, 0.021),
    )
    assert repaired == "| norm_variance | `norm` | `norm` | 2 | 0.5 | not finite | 2.00% | 1, 2 | repaired |"
    assert plain_too.endswith("| tracks, and so does plain |")
    assert still_off.endswith("| **does not track float32** |")
    assert faulty == (
        "3 faulty cases that a policy file can repair: 3 proven; 2 track float32 within 2%, 1 of them where plain does "
        "not; 3 with just the truth."
    )


def test_what_is_not_proven_and_what_no_policy_file_gives_do_not_count_as_repaired() -> None:
    found = rows(
        line("norm_variance", None, 0.0, proven=False),
        {"case": "tiny_epsilon", "error": "No batch is finite.", "seconds": 1.0},
        line("low_loss_scale", 0.5, 0.0),
        line("cnn", 0.001, 0.001, pins=[]),
    )
    assert found[0].startswith("| norm_variance | `norm` | not proven |")
    assert found[0].endswith("| **not proven** |")
    assert found[1] == "| tiny_epsilon | `norm` | No batch is finite. | | | | | | **not proven** |"
    assert found[2].endswith("| raise_loss_scale: not by a policy file |")
    assert found[3].endswith("| tracks |")
    assert found[5:] == [
        "2 faulty cases that a policy file can repair: 0 proven; 0 track float32 within 2%, 0 of them where plain does "
        "not; 0 with just the truth.",
        "1 healthy controls: 1 proven; 1 track float32 within 2%, 1 with nothing in float32.",
        "1 cases need what a policy file cannot give.",
    ]


def test_results_are_read_again_and_their_absence_is_no_result(tmp_path: Path) -> None:
    file = tmp_path / "proof.jsonl"
    assert read_lines(file) == read_lines(None) == []
    file.write_text(json.dumps(line("cnn", 0.0, 0.0)) + "\n\n")
    assert [found["case"] for found in read_lines(file)] == ["cnn"]
