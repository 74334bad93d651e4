from __future__ import annotations

from precscope.suggest import did_you_mean


def test_nearest_names_first_and_three_at_most():
    assert did_you_mean("dens", ["dense", "conv"]) == " Did you mean 'dense'?"
    names = [f"dense_{number}" for number in range(9)]
    assert did_you_mean("dense", names).count("'dense_") == 3


def test_case_does_not_matter():
    assert did_you_mean("DENSE", ["Dense"]) == " Did you mean 'Dense'?"


def test_the_end_of_a_path_finds_the_path():
    assert did_you_mean("wo", ["encoder/block/wo", "encoder/block/wi"]) == " Did you mean 'encoder/block/wo'?"


def test_nothing_near_says_nothing():
    assert did_you_mean("dense", ["conv", "pool"]) == ""
    assert did_you_mean("dense", []) == ""
