"""Colours: distinct, stable, parsed strictly."""

import pytest

from rsmamba.errors import SpecError
from rsmamba.gis.style import colour_table, palette, parse_colour


def test_palettes_are_distinct_and_longer_ones_continue_shorter_ones():
    longest = palette(255)
    assert len(set(longest)) == 255
    for count in (0, 1, 2, 8, 9, 100):
        assert palette(count) == longest[:count]


def test_every_colour_of_the_palette_can_be_parsed():
    assert all(0 <= channel <= 255 for text in palette(60) for channel in parse_colour(text))


def test_a_table_holds_the_classes_and_a_transparent_nodata():
    table = colour_table(2, ("#ff8000", "#0000FF"))
    assert table == {0: (255, 128, 0, 255), 1: (0, 0, 255, 255), 255: (0, 0, 0, 0)}
    assert len(colour_table(255)) == 256


@pytest.mark.parametrize("text", ["red", "#fff", "#12345g", "#1234567", ""])
def test_other_notations_are_refused(text):
    with pytest.raises(SpecError, match="#rrggbb"):
        parse_colour(text)
