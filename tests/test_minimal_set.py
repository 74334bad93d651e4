"""The search for the smallest passing set, on made-up landscapes."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import pytest

from precscope.minimal_set import smallest_set

NAMES = [f"layer{number}" for number in range(64)]


@dataclass(frozen=True)
class Result:
    passed: bool


class Landscape:
    """Passes where one of the needed sets is contained; counts the tests and remembers what was announced."""

    def __init__(self, *needed, spoilers=()):
        self.needed = [frozenset(names) for names in needed]
        self.spoilers = [frozenset(names) for names in spoilers]
        self.tested = []
        self.announced = []

    def __call__(self, names):
        self.tested.append(names)
        good = any(needed <= names for needed in self.needed)
        return Result(good and not any(names == spoiled for spoiled in self.spoilers))

    def report(self, done, left):
        self.announced.append((done, left))

    def search(self, suspects, others=(), **options):
        return smallest_set(self, suspects, others, report=self.report, **options)


def test_nothing_is_needed_where_the_empty_set_passes():
    landscape = Landscape(())
    result = landscape.search(["a", "b"], ["c"])
    assert result.names == ()
    assert result.is_minimal
    assert landscape.tested == [frozenset()]


def test_a_single_suspect_takes_two_tests():
    landscape = Landscape({"a"})
    assert landscape.search(["a"], NAMES).names == ("a",)
    assert landscape.tested == [frozenset(), frozenset({"a"})]


def test_a_pair_that_is_only_good_together_is_found():
    landscape = Landscape({"norm", "head"})
    result = landscape.search(["head", "other", "norm"])
    assert result.names == ("head", "norm")
    assert result.is_minimal
    for name in result.names:
        assert result.measured(set(result.names) - {name}) == Result(False)


def test_a_pair_of_which_only_one_is_suspected_is_grown():
    landscape = Landscape({"head", NAMES[5]})
    assert landscape.search(["head"], NAMES).names == ("head", NAMES[5])
    assert len(landscape.tested) < 14


def test_no_suspects_at_all_still_finds_what_is_needed():
    assert Landscape({NAMES[40], NAMES[3]}).search([], NAMES).names == (NAMES[3], NAMES[40])


def test_where_nothing_passes_that_is_the_answer():
    landscape = Landscape({"elsewhere"})
    result = landscape.search(["a"], NAMES)
    assert result.names is None
    assert not result.is_minimal
    assert landscape.tested[-1] == frozenset(["a", *NAMES])
    assert len(landscape.tested) <= 2 + math.log2(64) + 1  # grown by doubling, never shrunk


def test_of_two_ways_the_more_suspected_layers_stay():
    landscape = Landscape({"a", "b"}, {"c", "d"})
    assert landscape.search(["a", "b", "c", "d"]).names == ("a", "b")
    assert Landscape({"c"}, {"a"}).search(["a", "b", "c"]).names == ("a",)


def test_no_set_is_tested_twice():
    landscape = Landscape({NAMES[1], NAMES[17], NAMES[60]})
    landscape.search(NAMES[:4], NAMES[4:])
    assert len(landscape.tested) == len(set(landscape.tested))


@pytest.mark.parametrize("seed", range(40))
def test_the_set_is_the_needed_one_and_the_tests_stay_within_the_bound(seed):
    chance = random.Random(seed)
    needed = chance.sample(NAMES, chance.randint(1, 4))
    suspects = chance.sample(NAMES, chance.randint(1, 8))
    landscape = Landscape(needed)
    result = landscape.search(suspects, NAMES)
    assert set(result.names or ()) == set(needed)
    assert result.is_minimal
    k, n = len(needed), len(NAMES)
    assert len(landscape.tested) <= 2 + math.log2(n) + 1 + 2 * k * math.log2(n / k) + 2 * k + k + 1


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_is_never_more_than_was_announced(seed):
    chance = random.Random(seed)
    landscape = Landscape(chance.sample(NAMES[:16], chance.randint(0, 3)))
    landscape.search(chance.sample(NAMES[:16], 5), NAMES[:16])
    assert [done for done, _ in landscape.announced] == list(range(len(landscape.tested)))
    for done, left in landscape.announced:
        assert done + left >= len(landscape.tested)
    assert landscape.announced[-1][1] >= 1


def test_a_landscape_where_more_is_not_always_better_still_ends_minimal():
    names = ("a", "b", "c", "d")
    for size in range(5):
        for spoiled in itertools.combinations(names, size):
            landscape = Landscape({"a"}, spoilers=[spoiled])
            result = landscape.search(names)
            assert result.names is None or Landscape({"a"}, spoilers=[spoiled])(frozenset(result.names)).passed
            if result.is_minimal:
                for name in result.names:
                    assert result.measured(set(result.names) - {name}) == Result(False)


def test_out_of_tests_the_smallest_set_that_passed_is_given_and_said_not_to_be_minimal():
    landscape = Landscape({"a"})
    result = landscape.search(["d", "c", "b", "a"], most_tests=2)
    assert result.names == ("d", "c", "b", "a")
    assert not result.is_minimal
    assert len(landscape.tested) == 2
    assert landscape.search(["a"], most_tests=1).names is None


def test_the_search_ends_when_its_time_is_over():
    landscape = Landscape({"a", "c"})
    result = landscape.search(["a", "b", "c"], is_over=lambda: len(landscape.tested) == 3)
    assert len(landscape.tested) == 3
    assert set(result.names) == {"a", "b", "c"}
    assert not result.is_minimal
    late = Landscape({"a"})
    assert late.search(["a"], is_over=lambda: True).names is None
    assert late.tested == []


def test_where_most_of_many_are_needed_the_search_ends_after_twelve_tests_in_vain():
    landscape = Landscape(NAMES[4:])
    result = landscape.search([], NAMES)
    assert result.names == tuple(NAMES)
    assert not result.is_minimal
    passed = next(number for number, trial in enumerate(result.trials) if trial.measured.passed)
    assert len(landscape.tested) == passed + 1 + 12


@pytest.mark.parametrize("names", [NAMES[:32], NAMES], ids=["few", "many"])
def test_few_needed_of_many_or_many_needed_of_few_are_searched_to_the_end(names):
    needed = names[:28] if len(names) == 32 else names[::21]
    result = Landscape(needed).search([], names, most_tests=200)
    assert result.names == tuple(needed)
    assert result.is_minimal
