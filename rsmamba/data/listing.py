"""Finding files by folder, pattern or name."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsmamba.errors import DataNotFoundError
from rsmamba.samples import resolve

RASTER_SUFFIXES = frozenset({".tif", ".tiff"})
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
IMAGE_SUFFIXES = RASTER_SUFFIXES | PHOTO_SUFFIXES

#: Folder, file, glob pattern, "sample:NAME[/rest]", or several of these. The list comes first:
#: jsonargparse takes the first alternative that fits, and any list can be made a string.
Paths = Sequence[str | Path] | str | Path


def find_files(root: Paths, suffixes: frozenset[str], what: str = "images") -> list[Path]:
    """All files below folders, of glob patterns, or as listed, sorted and without repetition.

    Args:
        root: Folder (searched at any depth), file, glob pattern, ``sample:`` path, or several.
        suffixes: Lower-case suffixes that count in folders and patterns. A file that is named
            outright is taken whatever its suffix.
        what: What is looked for, for the message.

    Raises:
        DataNotFoundError: If a path does not exist, or there is no such file in it.
    """
    found: dict[Path, None] = {}
    for entry in [root] if isinstance(root, str | os.PathLike) else root:
        path = resolve(entry)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = _with_suffix(path.rglob("*"), suffixes)
        elif any(c in str(path) for c in "*?["):
            matches = _with_suffix(_glob(path), suffixes)
        else:
            raise DataNotFoundError(f"{entry}: no such file or folder of {what}; check the path")
        if not matches:
            raise DataNotFoundError(
                f"{entry}: no {what} in there; expected files that end in "
                f"{', '.join(sorted(suffixes))}"
            )
        found.update(dict.fromkeys(matches))
    if not found:
        raise DataNotFoundError(f"no {what} given: name a folder, a pattern or files")
    return sorted(found)


def _with_suffix(paths: Any, suffixes: frozenset[str]) -> list[Path]:
    return [
        p
        for p in sorted(paths)
        if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()
    ]


def _glob(pattern: Path) -> list[Path]:
    """Path.glob takes relative patterns only: split off the part without wildcards."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    return list(Path(*parts[:first]).glob(str(Path(*parts[first:]))))


def some(names: Sequence[str], limit: int = 5) -> str:
    """A few of many names, for a message of one line."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def common_root(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all files: names relative to it are alike on every machine."""
    return Path(os.path.commonpath([p.parent for p in paths]))
