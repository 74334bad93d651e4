"""Exponent pictures, series over time, and names and numbers as text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rich.cells import cell_len

from precscope.formats import FORMATS
from precscope.reports.exponent_picture import axis_names, axis_ticks, draw, picture_width
from precscope.reports.text import bits, byte_size, compact, duration, percent, printable, shorten, significant
from precscope.reports.training_view import Series, marks, spark
from precscope.statistics import describe


def picture(values, name="float16", octaves=1, infinities=0):
    histogram = describe(np.array(values, np.float32)).histogram.tolist()
    return draw(histogram, FORMATS[name], octaves, infinities)


def drawn(*arguments, **options):
    return "".join(cell.glyph for cell in picture(*arguments, **options))


@pytest.mark.parametrize("octaves", [1, 2])
def test_all_lines_of_a_picture_are_equally_wide(octaves):
    width = picture_width(octaves)
    assert len(drawn([1.0], octaves=octaves)) == width
    assert len(axis_names(octaves)) == width
    assert len(axis_ticks(octaves, in_float16=True)) == width
    assert len(axis_ticks(octaves, in_float16=False)) == width


@pytest.mark.parametrize("octaves", [1, 2])
def test_every_value_lies_in_the_band_of_its_format(octaves):
    float16 = FORMATS["float16"]
    for value, band in (
        (float16.smallest_subnormal / 2, "flushed"),
        (float16.smallest_subnormal, "subnormal"),
        (float16.smallest_normal * 0.99, "subnormal"),
        (float16.smallest_normal, "normal"),
        (float16.max, "normal"),
        (float16.max * 1.01, "overflow"),
        (1e-30, "flushed"),
        (1e30, "overflow"),
    ):
        marked = [cell for cell in picture([value], octaves=octaves) if cell.glyph not in " │"]
        assert [(cell.glyph, cell.band) for cell in marked] == [("█", band)], value


@pytest.mark.parametrize("octaves", [1, 2])
def test_ticks_stand_where_the_values_are_drawn(octaves):
    ticks = axis_ticks(octaves, in_float16=True)
    assert drawn([1.0], octaves=octaves).index("█") == ticks.index(" 1 ") + 1
    powers = axis_ticks(octaves, in_float16=False)
    for value, label in ((2.0**-20, "1e-6"), (2.0**-10, "1e-3"), (2.0**10, "1e3")):
        assert drawn([value], "float32", octaves).index("█") == powers.index(label)


def test_borders_are_the_limits_of_float16_and_of_no_other_format():
    assert drawn([1.0]).count("│") == 3
    assert drawn([1.0]).index("│") == axis_ticks(1, in_float16=True).index("6e-8") + 2
    for name in ("bfloat16", "float32"):
        assert "│" not in drawn([1.0], name)


def test_heights_are_logarithmic_and_a_single_value_still_shows():
    heights = drawn([1.0] * 10_000 + [4.0] * 100 + [16.0])
    column = heights.index(max(heights))
    assert heights[column : column + 5 : 2] == "█▄▁"


def test_infinities_stand_at_the_right_edge():
    cells = picture([1.0], infinities=3)
    assert (cells[-1].glyph, cells[-1].band) == ("∞", "overflow")


def test_a_series_is_drawn_over_time_not_over_looks():
    crowded = Series((0, 1, 2, 3, 100), (1.0, 1.0, 1.0, 1.0, 2.0))
    assert spark(crowded, (0, 100), 10) == "▁▁▁▁▁▁▁▁▁▆"


def test_a_series_with_gaps_nan_and_nothing():
    assert spark(Series((0, 10), (None, 5.0)), (0, 10), 4) == "   ▄"
    assert spark(Series((0, 1, 2), (1.0, math.nan, 2.0)), (0, 2), 2) == "×▆"
    assert spark(Series((), ()), (0, 9), 3) == "   "
    assert spark(Series((7,), (1.0,)), (7, 7), 3) == "▄▄▄"
    assert spark(Series((0, 1), (4.0, 0.0)), (0, 1), 2, logarithmic=True) == "▄×"


def test_a_series_is_blank_outside_its_steps():
    assert spark(Series((4, 6), (1.0, 2.0)), (0, 10), 10) == "   ▁▁▆▆   "


def test_a_logarithmic_series_steps_evenly():
    scale = Series(tuple(range(6)), tuple(2.0**bits for bits in range(6)))
    assert spark(scale, (0, 5), 5, logarithmic=True) == "▂▃▄▅▆"


def test_marks_stand_where_a_counter_grew():
    assert marks(Series((0, 5, 10), (0, 2, 2)), (0, 10), 10) == "    ×     "
    assert marks(Series((), ()), (0, 10), 3) == "   "


def test_printable_spells_out_what_could_act():
    assert printable("a\x1b[31m\n\u202e\x9b") == "a\\x1b[31m\\n\\u202e\\x9b"
    assert printable("[red] 日本 é") == "[red] 日本 é"


@pytest.mark.parametrize("name", ["short", "encoder/block_1/attention/dense", "日本語の層の名前", "e\u0301" * 20])
@pytest.mark.parametrize("room", [5, 8, 16])
def test_shorten_keeps_the_end_within_the_room(name, room):
    result = shorten(name, room)
    assert cell_len(result) <= room
    assert result == name or (result[0] == "…" and name.endswith(result[1:]))


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (percent(None), "–"),
        (percent(0.0), "0%"),
        (percent(1e-9), "<0.1%"),
        (percent(0.0049), "0.5%"),
        (percent(0.0994), "9.9%"),
        (percent(0.0996), "10%"),
        (percent(0.9999), ">99%"),
        (percent(1.0), "100%"),
        (bits(None), "–"),
        (bits(0.42), "0.4 bit"),
        (bits(-1.25), "-1.2 bit"),
        (bits(126.3), "126 bit"),
        (significant(None), "–"),
        (significant(math.nan), "nan"),
        (significant(32768.0), "32,768"),
        (significant(2.0**-30), "9.31e-10"),
        (significant(0.25), "0.25"),
        (compact(12_345), "12,345"),
        (compact(1_234_567), "1.2e6"),
        (compact(12_345_678_901_234), "1.2e13"),
        (duration(None), "–"),
        (duration(0.0004), "0 ms"),
        (duration(0.9996), "1.0 s"),
        (duration(59.7), "1 min 0 s"),
        (duration(134), "2 min 14 s"),
        (duration(11_100), "3 h 5 min"),
        (byte_size(None), "–"),
        (byte_size(1023), "1,023 B"),
        (byte_size(85_520_809_984), "79.6 GiB"),
        (byte_size(2**50), "1,024 TiB"),
    ],
)
def test_numbers(result, expected):
    assert result == expected
