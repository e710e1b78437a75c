"""Finding files by folder, pattern or name, on disk and wherever GDAL reads."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PosixPath

import pyogrio

from rsmamba.errors import DataNotFoundError, one_line
from rsmamba.samples import resolve

RASTER_SUFFIXES = frozenset({".tif", ".tiff"})
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
IMAGE_SUFFIXES = RASTER_SUFFIXES | PHOTO_SUFFIXES

#: Folder, file, glob pattern, "sample:NAME[/rest]", or several of these. The list comes first:
#: jsonargparse takes the first alternative that fits, and any list can be made a string.
Paths = Sequence[str | Path] | str | Path

#: Suffixes of what holds files: archives, products.
_FOLDERS = frozenset({".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".safe"})
#: How GDAL names what lies behind the URLs that people and catalogues write.
_VSI = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
}


class VsiPath(PosixPath):
    """A path that only GDAL opens: a member of an archive, a URL, an object in a bucket.

    pathlib makes ``/vsicurl/https:/`` of ``/vsicurl/https://``; this keeps the text as it was
    written. Name, suffix and parent are those of any path; questions to the file system
    (``exists()``, ``open()``) are answered as for a file that is not there.
    """

    def __init__(self, text: str | Path) -> None:
        super().__init__(text)
        self._text = os.fspath(text)

    def __str__(self) -> str:
        return self._text

    def __fspath__(self) -> str:
        return self._text

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:  # type: ignore[override]
        """A path that is derived from this one, such as its parent, is for comparison only."""
        return Path(*segments)

    def __reduce__(self) -> tuple[type["VsiPath"], tuple[str]]:
        return VsiPath, (self._text,)


def to_path(entry: str | os.PathLike[str]) -> Path:
    """A path of what a user names: ``sample:`` and URLs resolved, GDAL's own names kept.

    Raises:
        DataNotFoundError: If there is no such sample.
    """
    text = os.fspath(entry)
    scheme, found, rest = text.partition("://")
    if found and scheme in _VSI:
        return VsiPath(_VSI[scheme] + rest)
    if found and scheme == "file":
        return Path("/" + rest.lstrip("/"))
    if text.startswith("/vsi"):
        return entry if isinstance(entry, VsiPath) else VsiPath(text)
    return resolve(text)


def find_files(root: Paths, suffixes: frozenset[str], what: str = "images") -> list[Path]:
    """All files below folders, of glob patterns, or as listed, sorted and without repetition.

    Args:
        root: Folder (searched at any depth), file, glob pattern, ``sample:`` path, URL, ``/vsi``
            path, or several.
        suffixes: Lower-case suffixes that count in folders and patterns. A file that is named
            outright is taken whatever its suffix, and a pattern that ends in a suffix of its own
            (``*.vrt``) means that one.
        what: What is looked for, for the message.

    Raises:
        DataNotFoundError: If a path does not exist, or there is no such file in it.
    """
    return [to_path(text) for text in iter_files(root, suffixes, what)]


def iter_files(
    root: Paths,
    suffixes: frozenset[str],
    what: str = "images",
    folders: dict[str, int] | None = None,
) -> Iterator[str]:
    """Like :func:`find_files`, one name after the other, in the same order.

    A single folder is listed as it is walked, at any number of files; several entries are put
    together first.

    Args:
        root: See :func:`find_files`.
        suffixes: Likewise.
        what: Likewise.
        folders: Filled with the folders that were listed and when each was modified last (ns).

    Raises:
        DataNotFoundError: As :func:`find_files`, but in the course of the iteration.
    """
    entries = [root] if isinstance(root, str | os.PathLike) else list(root)
    if not entries:
        raise DataNotFoundError(f"no {what} given: name a folder, a pattern or files")
    stamps: dict[str, int] = {} if folders is None else folders
    if len(entries) == 1:
        yield from _expand(entries[0], suffixes, what, stamps)
        return
    found = dict.fromkeys(f for e in entries for f in _expand(e, suffixes, what, stamps))
    yield from sorted(found, key=by_parts)


def by_parts(text: str) -> list[str]:
    """Sorting key of a name: folder by folder, as pathlib compares."""
    return text.split("/")


def _expand(
    entry: str | os.PathLike[str], suffixes: frozenset[str], what: str, folders: dict[str, int]
) -> Iterator[str]:
    """The files that one entry stands for.

    Raises:
        DataNotFoundError: If there are none.
    """
    path = to_path(entry)
    text, remote = str(path), isinstance(path, VsiPath)
    # A signed URL has a question mark before its query.
    pattern = any(c in text for c in ("*" if remote else "*?["))
    if remote and not pattern and _names_file(text):
        names: Iterable[str] = [text]
    elif remote:
        names = _list_vsi(text, suffixes, what)
        if (archive := _archive(text)) is not None:
            folders[str(archive)] = archive.stat().st_mtime_ns
    elif path.is_file():
        names = [text]
    elif path.is_dir():
        names = _walk(text, suffixes, folders, set())
    elif pattern:
        names = _glob(path, suffixes, folders)
    else:
        raise DataNotFoundError(f"{entry}: no such file or folder of {what}; check the path")
    empty = True
    for name in names:
        empty = False
        yield name
    if empty:
        raise DataNotFoundError(
            f"{entry}: no {what} in there; expected files that end in "
            f"{', '.join(sorted(suffixes))}"
            + ("; few web servers list their folders, so name the files" if remote else "")
        )


def _names_file(text: str) -> bool:
    """Whether a path is that of a file by its looks: asking a server takes long, if it answers."""
    suffix = _suffix(text.partition("?")[0])
    return not text.endswith("/") and suffix[1:2].isalpha() and suffix not in _FOLDERS


def _walk(
    folder: str, suffixes: frozenset[str], folders: dict[str, int], seen: set[tuple[int, int]]
) -> Iterator[str]:
    """Files below a folder in the order of their names; hidden ones are left out.

    Links to folders are followed, but each folder is listed once.

    Raises:
        DataNotFoundError: If a folder cannot be listed.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116 - and below: millions of names, no Path for each
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        # Before the listing: a file that is added meanwhile makes the stamp an old one.
        folders[folder] = status.st_mtime_ns
        with os.scandir(folder) as entries:
            inside = sorted(
                (entry.name, entry.is_dir())
                for entry in entries
                if not entry.name.startswith(".")
                and (entry.is_dir() or (_suffix(entry.name) in suffixes and entry.is_file()))
            )
    except OSError as error:
        raise DataNotFoundError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error
    prefix = folder.rstrip("/")
    for name, is_folder in inside:
        if is_folder:
            yield from _walk(f"{prefix}/{name}", suffixes, folders, seen)
        else:
            yield f"{prefix}/{name}"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _wanted(pattern: str, suffixes: frozenset[str]) -> frozenset[str]:
    """The suffix that a pattern spells out, or else those that are looked for."""
    own = _suffix(pattern)
    return frozenset({own}) if own and not any(c in own for c in "*?[") else suffixes


def _glob(pattern: Path, suffixes: frozenset[str], folders: dict[str, int]) -> list[str]:
    """Files of a pattern. Path.glob takes relative ones: split off the part without wildcards."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    base, wanted = Path(*parts[:first]), _wanted(pattern.name, suffixes)
    found = [
        p
        for p in sorted(base.glob(str(Path(*parts[first:]))))
        if p.suffix.lower() in wanted
        and not any(part.startswith(".") for part in p.relative_to(base).parts)
        and p.is_file()
    ]
    inside = {parent for p in found for parent in p.parents if parent.is_relative_to(base)}
    folders.update({str(f): f.stat().st_mtime_ns for f in inside | {base} if f.is_dir()})
    return [str(p) for p in found]


def _list_vsi(text: str, suffixes: frozenset[str], what: str) -> list[str]:
    """Files below a folder of GDAL's virtual file systems, or of a pattern in one.

    Raises:
        DataNotFoundError: If there is no such folder, or it cannot be reached.
    """
    base, star, _ = text.partition("*")
    if star:
        base = base.rpartition("/")[0]
        suffixes = _wanted(text.rpartition("/")[2], suffixes)
    try:
        found = pyogrio.vsi_listtree(base.rstrip("/"))
    except (OSError, RuntimeError, pyogrio.errors.DataSourceError) as error:
        raise DataNotFoundError(
            f"{text}: no such file or folder of {what} ({one_line(error)}); check path, network "
            "and credentials"
        ) from error
    matches = re.compile(_regex(text)).fullmatch if star else bool
    return sorted(
        {
            name
            for name in found
            if _suffix(name) in suffixes
            and not name.rpartition("/")[2].startswith(".")
            and matches(name)
        },
        key=by_parts,
    )


def _archive(text: str) -> Path | None:
    """The archive on disk that a ``/vsizip/`` or ``/vsitar/`` path leads into, if there is one."""
    inner = Path(re.sub(r"^(/vsi[a-z0-9]+/)+", "", text))
    return next((p for p in (inner, *inner.parents) if p.is_file()), None)


def _regex(pattern: str) -> str:
    """Regular expression of a pattern of ``*`` (within a folder) and ``**`` (any folders)."""
    pieces = re.split(r"(\*\*/|\*+)", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(meaning.get(piece, re.escape(piece)) for piece in pieces)


def some(names: Sequence[str], limit: int = 5) -> str:
    """A few of many names, for a message of one line."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def common_root(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all files: names relative to it are alike on every machine."""
    return Path(os.path.commonpath([p.parent for p in paths]))
