"""Images of STAC items: which files they are."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pystac
from pystac.utils import make_absolute_href

from rsmamba.data.listing import IMAGE_SUFFIXES, VsiPath, some, to_path
from rsmamba.errors import DataNotFoundError, ImageReadError, one_line

JSON_SUFFIXES = (".json", ".geojson")
_ERRORS = (pystac.STACError, pystac.STACTypeError)
#: Roles of assets that show or describe an image rather than being it.
_BESIDE = frozenset({"thumbnail", "overview", "metadata", "visual-preview", "data-mask"})


def holds_items(entry: str | os.PathLike[str]) -> bool:
    """Whether what a user names is a file of STAC items, by its suffix."""
    return os.fspath(entry).partition("?")[0].lower().endswith(JSON_SUFFIXES)


def read_items(path: Path, assets: Sequence[str] | None = None) -> Iterator[tuple[str, ...]]:
    """The images of STAC items.

    Args:
        path: JSON of an item, an item collection, or a list of items (https://stacspec.org).
            Relative paths in it are taken from its own place.
        assets: Keys of the assets that make up one image per item, in the order of its bands. If
            None each asset is an image that is an image by its media type (or suffix, without one)
            and no thumbnail, overview or metadata by its role.

    Yields:
        The files of each image: paths, or GDAL's ``/vsi`` names for what is on a server.

    Raises:
        DataNotFoundError: If there is no such file, or an item lacks one of the assets.
        ImageReadError: If it is not STAC.
    """
    text = _read_text(path)
    try:
        content = json.loads(text)
        found = content
        if isinstance(content, dict):
            found = content["features"] if "features" in content else [content]
        items = [pystac.Item.from_dict(entry) for entry in found]
    except (ValueError, KeyError, TypeError, AttributeError, *_ERRORS) as error:
        raise ImageReadError(
            f"{path}: not a STAC item, item collection or list of items ({one_line(error)}); a "
            "catalogue must be searched for its items first"
        ) from error
    for item in items:
        yield from _images(path, item, assets)


def _read_text(path: Path) -> str:
    if not isinstance(path, VsiPath):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataNotFoundError(
                f"{path}: STAC items cannot be read ({one_line(error)}); check the path"
            ) from error
    href = str(path).removeprefix("/vsicurl/")
    try:
        return str(pystac.StacIO.default().read_text(href))
    except Exception as error:  # whatever the network brings
        raise DataNotFoundError(
            f"{href}: STAC items cannot be fetched ({one_line(error)}); download the file"
        ) from error


def _images(
    path: Path, item: pystac.Item, assets: Sequence[str] | None
) -> Iterator[tuple[str, ...]]:
    if assets is None:
        chosen = [key for key, asset in item.assets.items() if _is_image(asset)]
        if not chosen:
            raise DataNotFoundError(
                f"{path}: item {item.id} has no image among its assets "
                f"({some(list(item.assets)) or 'none'}); choose one with assets=[...]"
            )
        yield from ((_resolve(path, item.assets[key].href),) for key in chosen)
        return
    if missing := [key for key in assets if key not in item.assets]:
        raise DataNotFoundError(
            f"{path}: item {item.id} has no asset {missing[0]!r}, it has "
            f"{some(list(item.assets), 20) or 'none'}; choose others with assets=[...]"
        )
    yield tuple(_resolve(path, item.assets[key].href) for key in assets)


def _is_image(asset: pystac.Asset) -> bool:
    if _BESIDE & set(asset.roles or ()):
        return False
    if asset.media_type:
        return asset.media_type.startswith("image/")
    return Path(asset.href.partition("?")[0]).suffix.lower() in IMAGE_SUFFIXES


def _resolve(path: Path, href: str) -> str:
    """Where an asset is, for GDAL or as a path."""
    if href.startswith("/vsi"):
        return href
    here = str(path).removeprefix("/vsicurl/")
    here = here if isinstance(path, VsiPath) else os.path.abspath(here)  # noqa: PTH100
    absolute: Any = make_absolute_href(href, here, start_is_dir=False)
    return str(to_path(absolute))
