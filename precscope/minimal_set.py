"""The smallest set of layers in float32 that passes a test, found in few tests.

The search knows nothing of layers or of float32: it is given names in the order of suspicion and a test that tells
whether a set of them passes. A test costs a compilation, so none is made twice.

1. The empty set: where it passes, nothing is needed.
2. All suspects together, for there are sets of which no member helps alone.
3. Where that fails, more names in the order of suspicion, twice as many each time.
4. Where a set passes, the smallest part of it that still does, by QuickXplain (Junker, "QuickXplain: preferred
   explanations and relaxations for over-constrained problems", AAAI 2004): for k needed of n, about 2k log2(n/k) + 2k
   tests. Where two parts would do, the more suspected names stay.
5. Each name alone is left out once more. QuickXplain takes for granted that what passes still does with more names in
   it; where rounding makes an exception, this finds what can still go.

Where most of many names are needed, each of them takes a test or two, and which few are not is of little use: the
search ends when so large a set has not become smaller for some tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["Measured", "SearchResult", "Trial", "smallest_set"]


class Measured(Protocol):
    """What a test measured; all that the search asks is whether it passed."""

    @property
    def passed(self) -> bool:
        """Whether the set passed."""
        ...


M = TypeVar("M", bound=Measured)

#: A set of more names than this that is more than half of all is given up when so many tests in a row failed.
_MANY, _IN_VAIN = 32, 12


@dataclass(frozen=True)
class Trial(Generic[M]):
    """One set that was tested, and what was measured."""

    names: frozenset[str]
    measured: M


@dataclass(frozen=True)
class SearchResult(Generic[M]):
    """What the search came to.

    Attributes:
        names: The smallest set found that passes, most suspected first; None where no set passes.
        is_minimal: Whether each set with one name less was tested and failed; False where the search ended before.
        trials: Every test, in the order in which they were made; the first is that of the empty set.
    """

    names: tuple[str, ...] | None
    is_minimal: bool
    trials: tuple[Trial[M], ...]

    def measured(self, names: Iterable[str]) -> M | None:
        """Return what was measured of a set, or None where it was not tested."""
        wanted = frozenset(names)
        return next((trial.measured for trial in self.trials if trial.names == wanted), None)


class _OutOfTestsError(Exception):
    """No further test may be made."""


@dataclass
class _Tester(Generic[M]):
    """Makes each test once, and says how many are left at most."""

    test: Callable[[frozenset[str]], M]
    most_tests: int
    report: Callable[[int, int], None]
    is_over: Callable[[], bool]
    total: int
    trials: dict[frozenset[str], M] = field(default_factory=dict)

    def passes(self, names: Iterable[str], left: int = 0) -> bool:
        """Test a set; `left` is how many tests may follow at most."""
        wanted = frozenset(names)
        if wanted not in self.trials:
            if len(self.trials) >= self.most_tests or self.is_over():
                raise _OutOfTestsError
            done = len(self.trials)
            self.report(done, min(1 + left, self.most_tests - done))
            self.trials[wanted] = self.test(wanted)
            self._give_up_in_vain()
        return self.trials[wanted].passed

    def _give_up_in_vain(self) -> None:
        smallest = self.smallest_passing()
        if smallest is None or len(smallest) <= max(_MANY, self.total // 2):
            return
        last = [measured.passed for measured in self.trials.values()][-_IN_VAIN:]
        if len(last) == _IN_VAIN and not any(last):
            raise _OutOfTestsError

    def smallest_passing(self) -> frozenset[str] | None:
        """Return the smallest set that passed so far."""
        passing = [names for names, measured in self.trials.items() if measured.passed]
        return min(passing, key=len, default=None)


def smallest_set(
    test: Callable[[frozenset[str]], M],
    suspects: Sequence[str],
    others: Sequence[str] = (),
    *,
    most_tests: int = 60,
    report: Callable[[int, int], None] = lambda done, left: None,
    is_over: Callable[[], bool] = lambda: False,
) -> SearchResult[M]:
    """Return the smallest set that passes `test`.

    Args:
        test: Measures a set of names; what it returns tells whether the set passed.
        suspects: Names that are tried together first, most suspected first.
        others: Further names to grow the set with, in that order.
        most_tests: After so many tests the smallest set that has passed by then is returned.
        report: Called before each test with the number of tests made, and of those left at most, this one included.
        is_over: Asked before each test whether the time for it has run out; then as after `most_tests`.
    """
    names = tuple(dict.fromkeys((*suspects, *others)))
    tester = _Tester(test, most_tests, report, is_over, len(names))
    is_minimal = False
    try:
        passing = _first_passing(tester, names, len(dict.fromkeys(suspects)))
        if passing is not None:
            kept = _shrink(tester, passing)
            _drop_singles(tester, kept)
            is_minimal = True
    except _OutOfTestsError:
        pass
    found = tester.smallest_passing()
    trials = tuple(Trial(tried, measured) for tried, measured in tester.trials.items())
    ordered = None if found is None else tuple(name for name in names if name in found)
    return SearchResult(ordered, is_minimal, trials)


def _first_passing(tester: _Tester[M], names: Sequence[str], suspects: int) -> tuple[str, ...] | None:
    """Return the first of the growing sets that passes, or None where not even all names together do."""
    sizes = list(_growing_sizes(suspects, len(names)))
    for position, size in enumerate(sizes):
        after_it = len(sizes) - position - 1 + _most_to_shrink(len(names))
        if tester.passes(names[:size], after_it):
            return tuple(names[:size])
    return None


def _growing_sizes(suspects: int, total: int) -> Iterator[int]:
    """Yield 0, the number of suspects, and then twice as many added each time: 1, 2, 4, ..., at last the total."""
    yield 0
    if suspects:
        yield suspects
    added = 1
    size = suspects
    while size < total:
        size = min(size + added, total)
        added *= 2
        yield size


def _most_to_shrink(size: int) -> int:
    """Return how many tests QuickXplain and the last round make of a set of this size, at most."""
    return max(2 * size - 2, 0) + (size if size > 1 else 0)


def _shrink(tester: _Tester[M], passing: tuple[str, ...]) -> tuple[str, ...]:
    """Return a part of `passing` that passes and of which nothing can go, as far as more names never do harm."""
    if not passing:
        return ()
    left = max(2 * len(passing) - 2, 0)

    def explain(kept: tuple[str, ...], just_added: bool, candidates: tuple[str, ...]) -> tuple[str, ...]:
        nonlocal left
        if just_added:
            left -= 1
            if tester.passes(kept, left + len(passing)):
                left -= 2 * len(candidates) - 2
                return ()
        if len(candidates) == 1:
            return candidates
        half = (len(candidates) + 1) // 2
        first, second = candidates[:half], candidates[half:]
        from_second = explain(kept + first, True, second)
        from_first = explain(kept + from_second, bool(from_second), first)
        if not from_second:
            left -= 1  # the test that was not needed
        return from_first + from_second

    return explain((), False, passing)


def _drop_singles(tester: _Tester[M], kept: tuple[str, ...]) -> None:
    """Leave out each name once, the least suspected first, and go on from whatever passes."""
    names = list(kept)
    tester.passes(names)
    for name in reversed(kept):
        without = [other for other in names if other != name]
        if tester.passes(without, len(names) - 1):
            names = without
