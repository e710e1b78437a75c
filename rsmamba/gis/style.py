"""Colours of classes: a palette safe for colour-blind readers, GDAL colour tables, QGIS styles."""

import colorsys
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from rsmamba.errors import SpecError
from rsmamba.files import check_output, write_text

#: Value of a pixel without a class, in every class map that rsmamba writes.
CLASS_NODATA = 255

# Okabe & Ito, "Color Universal Design" (2008), https://jfly.uni-koeln.de/color/; grey leads,
# because class 0 is the background more often than not.
_OKABE_ITO = (
    "#999999",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#56b4e9",
    "#cc79a7",
    "#f0e442",
)
_GOLDEN_RATIO = 0.618033988749895
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
# what XML 1.0 cannot hold, not even escaped: https://www.w3.org/TR/xml/#charsets
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def palette(count: int) -> list[str]:
    """Distinct colours, the same ones for the same count and every longer palette.

    Args:
        count: Number of classes.

    Returns:
        One ``#rrggbb`` per class: Okabe and Ito's eight, then hues by the golden ratio.
    """
    colours = list(_OKABE_ITO[:count])
    for i in range(len(colours), count):
        hue = (i * _GOLDEN_RATIO) % 1.0
        rgb = colorsys.hls_to_rgb(hue, (0.35, 0.5, 0.65)[i % 3], 0.7)
        colours.append("#" + "".join(f"{round(255 * c):02x}" for c in rgb))
    return colours


def parse_colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of ``#rrggbb``.

    Raises:
        SpecError: If the text is not such a colour.
    """
    if not _HEX.fullmatch(text):
        raise SpecError(f"{text!r} is not a colour: write it as #rrggbb")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def colour_table(
    count: int, colours: Sequence[str] = ()
) -> Mapping[int, tuple[int, int, int, int]]:
    """GDAL colour table of a class map.

    Args:
        count: Number of classes, at most 255.
        colours: One ``#rrggbb`` per class; empty for :func:`palette`.

    Returns:
        Pixel value to (red, green, blue, alpha); nodata is transparent.

    Raises:
        SpecError: If a colour cannot be parsed.
    """
    table = {
        value: (*parse_colour(text), 255)
        for value, text in enumerate(list(colours) or palette(count))
    }
    return table | {CLASS_NODATA: (0, 0, 0, 0)}


def write_qml(
    path: str | Path,
    classes: Sequence[str],
    colours: Sequence[str] = (),
    *,
    overwrite: bool = False,
) -> Path:
    """Write the QGIS style of a class map: colour and name per class, no entry for nodata.

    QGIS applies ``map.qml`` by itself to the ``map.tif`` beside it. The elements are those that its
    reader looks for (``QgsMapLayer::importNamedStyle``, ``QgsRasterLayer::readSymbology``,
    ``QgsPalettedRasterRenderer::create`` in https://github.com/qgis/QGIS, src/core); the file sets
    the symbology alone.

    Args:
        path: ``.qml`` file.
        classes: Class names by pixel value.
        colours: ``#rrggbb`` per class; empty for :func:`palette`.
        overwrite: Replace an existing file.

    Returns:
        The path.

    Raises:
        SpecError: If a colour cannot be parsed, or there are not as many as classes.
        OutputExistsError: If the file exists.
        OutputNotWritableError: If its folder is missing or cannot be written.
    """
    path = check_output(path, overwrite=overwrite)
    colours = list(colours) or palette(len(classes))
    if len(colours) != len(classes):
        raise SpecError(f"{len(classes)} classes but {len(colours)} colours: give one per class")
    root = Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = SubElement(
        SubElement(root, "pipe"),
        "rasterrenderer",
        {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""},
    )
    SubElement(renderer, "rasterTransparency")
    entries = SubElement(renderer, "colorPalette")
    for value, (name, colour) in enumerate(zip(classes, colours, strict=True)):
        parse_colour(colour)
        label = _NO_XML.sub("\N{REPLACEMENT CHARACTER}", name)
        entry = {"value": str(value), "color": colour.lower(), "alpha": "255", "label": label}
        SubElement(entries, "paletteEntry", entry)
    indent(root)
    doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
    write_text(path, f"{doctype}\n{tostring(root, encoding='unicode')}\n")
    return path
