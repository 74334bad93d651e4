"""A thinned series keeps its ends and an even selection in between."""

from __future__ import annotations

import pytest

from precscope.thinned import Thinned


@pytest.mark.parametrize("number", [0, 1, 7, 8, 9, 16, 17, 1000])
def test_it_never_grows_and_keeps_both_ends(number):
    series: Thinned[int] = Thinned(8)
    series.extend(range(number))
    items = series.items()
    assert series.seen == number
    assert len(items) <= 9  # the last one comes on top
    assert list(items[:1] + items[-1:]) == [n for n in (0, number - 1) if number] or number == 1
    assert list(items) == sorted(set(items))


def test_the_selection_is_even():
    series: Thinned[int] = Thinned(4)
    series.extend(range(10))
    assert series.items() == (0, 4, 8, 9)


def test_equal_items_are_not_lost():
    series: Thinned[float] = Thinned(4)
    series.extend([0.5, 0.5, 0.25])
    assert series.items() == (0.5, 0.5, 0.25)


@pytest.mark.parametrize("most", [0, 1, 7, -2])
def test_a_wrong_length_is_refused(most):
    with pytest.raises(ValueError, match="an even number of items, 2 or more; received"):
        Thinned(most)
