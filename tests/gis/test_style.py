"""Colours: distinct, stable, parsed strictly; QGIS styles."""

from xml.etree import ElementTree

import pytest

from rsmamba.errors import OutputExistsError, SpecError
from rsmamba.gis.style import colour_table, palette, parse_colour, write_qml


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


def read_as_qgis_does(path):
    """The steps of QgsMapLayer::importNamedStyle and QgsPalettedRasterRenderer::create."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "qgis"
    assert tuple(int(part) for part in root.get("version").split(".")) >= (3, 0, 0)
    renderer = root.find("pipe").find("rasterrenderer")
    assert (renderer.get("type"), int(renderer.get("band"))) == ("paletted", 1)
    assert float(renderer.get("opacity")) == 1
    assert int(renderer.get("alphaBand")) == -1
    return {
        float(entry.get("value")): (entry.get("color"), int(entry.get("alpha")), entry.get("label"))
        for entry in renderer.find("colorPalette").iter("paletteEntry")
    }


def test_a_qgis_style_holds_value_colour_and_name_of_every_class_and_no_nodata(tmp_path):
    path = write_qml(tmp_path / "map.qml", ["water", "wood"], ["#0000FF", "#00aa00"])
    assert read_as_qgis_does(path) == {0: ("#0000ff", 255, "water"), 1: ("#00aa00", 255, "wood")}
    assert path.read_text().startswith("<!DOCTYPE qgis PUBLIC")
    assert [p.name for p in tmp_path.iterdir()] == ["map.qml"]


def test_a_style_without_colours_has_those_of_the_colour_table(tmp_path):
    names = [f"class {i}" for i in range(255)]
    found = read_as_qgis_does(write_qml(tmp_path / "map.qml", names))
    table = colour_table(255)
    assert {v: parse_colour(colour) for v, (colour, _, _) in found.items()} == {
        value: rgba[:3] for value, rgba in table.items() if value != 255
    }


def test_names_with_markup_quotes_and_control_characters_are_kept_or_replaced(tmp_path):
    names = ['<b>"A" & B\'s</b>', "Straße\n水", "bell \x07 and \ud800", ""]
    labels = [
        label for _, _, label in read_as_qgis_does(write_qml(tmp_path / "m.qml", names)).values()
    ]
    assert labels == [names[0], names[1], "bell \ufffd and \ufffd", ""]


def test_a_style_is_not_written_over_another_nor_with_colours_that_do_not_fit(tmp_path):
    path = tmp_path / "map.qml"
    with pytest.raises(SpecError, match="2 classes but 1 colours"):
        write_qml(path, ["a", "b"], ["#000000"])
    with pytest.raises(SpecError, match="#rrggbb"):
        write_qml(path, ["a"], ["red"])
    assert list(tmp_path.iterdir()) == []
    write_qml(path, ["mine"])
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_qml(path, ["other"])
    assert read_as_qgis_does(path)[0][2] == "mine"
    write_qml(path, ["other"], overwrite=True)
    assert read_as_qgis_does(path)[0][2] == "other"
