"""What a raster says of its bands."""

from typing import Any

from rasterio.enums import ColorInterp

_COLOURS = {ColorInterp.red: "red", ColorInterp.green: "green", ColorInterp.blue: "blue"}


def stored_names(source: Any) -> tuple[str | None, ...]:
    """A name for each band of an open raster: its description, or its colour.

    Args:
        source: rasterio dataset.

    Returns:
        One name per band; None for a band of which the file says nothing.
    """
    both = zip(source.descriptions, source.colorinterp, strict=True)
    return tuple(text or _COLOURS.get(colour) for text, colour in both)
