"""Small real imagery that ships with the package.

Everything that reads a path also reads ``"sample:NAME"`` and ``"sample:NAME/some/file.tif"``, so
recipes, notebooks and the demo run without a download. Sources, licences and what was changed are
in ``README.md`` beside this file. A leaf module: standard library and :mod:`rsmamba.errors` only.
"""

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from rsmamba.errors import DataNotFoundError

__all__ = ("Sample", "list", "path", "resolve")

PREFIX = "sample:"

_USGS = "U.S. Geological Survey"


@dataclass(frozen=True, slots=True)
class Sample:
    """One shipped sample.

    Attributes:
        name: What follows ``sample:``.
        path: Folder that holds its files.
        description: One line.
        source: Where the data come from (URL).
        licence: Licence of the data, per part where parts differ.
        attribution: What to print beside a published figure or map.
        bytes: Size of all its files.
    """

    name: str
    path: Path
    description: str
    source: str
    licence: str
    attribution: str
    bytes: int


_SAMPLES: dict[str, dict[str, str]] = {
    "ucmerced": {
        "description": "UC Merced Land Use: 21 classes x 30 images of 128 px, TorchGeo's layout",
        "source": "http://weegee.vision.ucmerced.edu/datasets/landuse.html",
        "licence": "public domain (USGS National Map Urban Area Imagery)",
        "attribution": f"{_USGS}; UC Merced Land Use Dataset (Yang and Newsam, 2010)",
    },
    "aerial_unlabelled": {
        "description": "1000 other UC Merced images of 128 px, without classes, for pretraining",
        "source": "http://weegee.vision.ucmerced.edu/datasets/landuse.html",
        "licence": "public domain (USGS National Map Urban Area Imagery)",
        "attribution": f"{_USGS}; UC Merced Land Use Dataset (Yang and Newsam, 2010)",
    },
    "buildings": {
        "description": "64 georeferenced chips with building polygons; one held-out 1024 px scene",
        "source": "https://openaerialmap.org",
        "licence": "imagery CC BY 4.0, polygons ODbL 1.0",
        "attribution": "Imagery: OpenAerialMap contributors. Buildings: OpenStreetMap contributors",
    },
    "landsat": {
        "description": "Landsat 7 scene of the Bahamas, 791 x 718 px, with a slanted nodata collar",
        "source": "https://github.com/rasterio/rasterio/blob/main/tests/data/RGB.byte.tif",
        "licence": "public domain (USGS Landsat)",
        "attribution": f"Landsat 7 courtesy of the {_USGS}",
    },
}


def path(name: str) -> Path:
    """Folder of a shipped sample.

    Args:
        name: Name of the sample, without ``sample:``.

    Raises:
        DataNotFoundError: If there is no sample of that name, or this installation lacks its files.
    """
    return _folder(name)


def _folder(name: str) -> Path:
    # Apart from path(), whose name resolve() needs for its argument.
    if name not in _SAMPLES:
        known = ", ".join(_SAMPLES)
        raise DataNotFoundError(f"no shipped sample is named {name!r}; there are: {known}")
    folder = Path(str(files(__name__))) / name
    if not folder.is_dir():
        raise DataNotFoundError(
            f"sample {name!r} is not at {folder}: install rsmamba from its wheel or repository"
        )
    return folder


def list() -> tuple[Sample, ...]:
    """All shipped samples, with their licences and sizes.

    Raises:
        DataNotFoundError: If this installation lacks the files of one.
    """
    return tuple(
        Sample(name, path(name), **facts, bytes=_size(path(name)))
        for name, facts in _SAMPLES.items()
    )


def resolve(path: str | os.PathLike[str]) -> Path:
    """Turn ``sample:NAME[/rest]`` into a path; anything else passes through.

    The rest need not exist: whoever opens it reports that in its own words.

    Raises:
        DataNotFoundError: If the sample is unknown.
    """
    text = os.fspath(path)
    if not text.startswith(PREFIX):
        return Path(text)
    name, _, rest = text.removeprefix(PREFIX).partition("/")
    folder = _folder(name)
    return folder / rest if rest else folder


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())
