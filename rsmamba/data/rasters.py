"""Reading rasters with GDAL: options, a few files kept open, errors of one kind."""

import atexit
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from rsmamba.data.listing import PHOTO_SUFFIXES, VsiPath
from rsmamba.errors import BandMismatchError, ImageReadError, one_line
from rsmamba.gis.raster import GDAL_ERRORS

__all__ = (
    "GDAL_ERRORS",
    "check_colours",
    "inks",
    "opened",
    "quiet",
    "undecodable",
    "unreadable",
)

#: Files that a thread keeps open: opening a GeoTIFF takes longer than reading a window of it.
OPEN_FILES = 16
#: What GDAL is told, unless the environment says otherwise.
_OPTIONS: dict[str, Any] = {
    # Of decoded blocks, in each process; GDAL's own default is 5 % of the memory for each worker.
    "GDAL_CACHEMAX": 128 * 2**20,
    # A VRT may carry Python code: it is never run.
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    # Else a truncated JPEG is grey below the cut, and a truncated PNG holds whatever was in memory.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
}
_REMOTE: dict[str, Any] = {
    # Not to ask for a list of the folder and for a dozen files that may lie beside an image.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # A server that is busy for a moment must not make a file a bad one, nor a dead one hang.
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": 60,
}


#: Colour spaces that GDAL converts without a word.
_INKS = ("CMYK", "YCbCrK")


class _Files(threading.local):
    """The open files of a thread, most recently used last."""

    def __init__(self) -> None:
        self.files: OrderedDict[tuple[Any, ...], rasterio.DatasetReader] = OrderedDict()
        self.process = os.getpid()
        self.inherited: list[Any] = []


_FILES = _Files()


def _close() -> None:
    """Close the files of the main thread while GDAL is still whole."""
    if _FILES.process == os.getpid():
        while _FILES.files:
            _FILES.files.popitem()[1].close()


atexit.register(_close)


@contextmanager
def opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """An open raster, which stays open for the next time.

    Raises:
        rasterio.errors.RasterioError: Or another of ``GDAL_ERRORS``, if it cannot be opened.
    """
    if _FILES.process != os.getpid():
        # After a fork: parent and child share the position in each file. Never read them again.
        _FILES.inherited.append(_FILES.files)
        _FILES.files, _FILES.process = OrderedDict(), os.getpid()
    remote = isinstance(path, VsiPath)
    wanted = _OPTIONS | _REMOTE if remote else _OPTIONS
    options = {name: value for name, value in wanted.items() if not _is_set(name)}
    with rasterio.Env(**options), quiet():
        key = _key(path, remote)
        if key in _FILES.files:
            _FILES.files.move_to_end(key)
        else:
            _FILES.files[key] = rasterio.open(path)
            while len(_FILES.files) > OPEN_FILES:
                _FILES.files.popitem(last=False)[1].close()
        try:
            yield _FILES.files[key]
        except GDAL_ERRORS:
            # GDAL may remember the failure, and the file may be replaced.
            if (bad := _FILES.files.pop(key, None)) is not None:
                bad.close()
            raise


def _key(path: Path, remote: bool) -> tuple[Any, ...]:
    """What tells a file from another of the same name that has replaced it."""
    if remote:
        return (str(path),)
    try:
        status = path.stat()
    except OSError:  # GDAL says what is wrong with it
        return (str(path),)
    return str(path), status.st_ino, status.st_mtime_ns, status.st_size


def _is_set(option: str) -> bool:
    """Whether the user has chosen a GDAL option, by the environment or around this."""
    return option in os.environ or (rasterio.env.hasenv() and option in rasterio.env.getenv())


def quiet() -> "warnings.catch_warnings[None]":
    """A file without georeferencing is a normal case here, not worth a warning for each read."""
    return warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning)


def check_colours(path: Path, src: rasterio.DatasetReader, convert: bool) -> None:
    """Refuse an open image whose bands are not what they seem.

    Raises:
        BandMismatchError: If GDAL made them of printing inks, unless ``convert``, or if those of a
            JPEG or PNG are numbers of a palette.
    """
    if not convert and src.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") in _INKS:
        raise inks(path, "CMYK")
    photo = path.suffix.lower() in PHOTO_SUFFIXES
    if photo and src.colorinterp[0] == ColorInterp.palette:
        raise BandMismatchError(
            f"{path}: has a palette, which is not looked up behind /vsi paths: unpack or convert it"
        )


def inks(path: Path, mode: str) -> BandMismatchError:
    """The error for printing inks and other colour spaces."""
    return BandMismatchError(
        f"{path}: is {mode}, not grey or red, green and blue: convert the file, or set "
        "convert=True to convert such images on reading"
    )


def unreadable(path: str | Path, error: BaseException) -> ImageReadError:
    """The error for a file whose header cannot be read, or that has gone."""
    if isinstance(error, FileNotFoundError):
        return ImageReadError(
            f"{path}: there is no such file (any more); restore it, or list the files anew "
            "(refresh=True)"
        )
    if isinstance(error, Image.DecompressionBombError):
        return ImageReadError(
            f"{path}: is too large to be decoded as a whole ({one_line(error)}); convert it to a "
            "GeoTIFF with `gdal_translate -of COG`, of which windows are read"
        )
    return ImageReadError(
        f"{path}: not a readable image ({one_line(error)}); copy or download it again, or leave it "
        "out"
    )


def undecodable(path: str | Path, error: BaseException) -> ImageReadError:
    """The error for a file whose header can be read and whose pixels cannot."""
    return ImageReadError(
        f"{path}: cannot be decoded ({one_line(error)}); the file looks damaged or truncated, copy "
        "or download it again"
    )
