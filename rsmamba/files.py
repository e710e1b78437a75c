"""Outputs that are complete or absent: checks before the work, atomic rename after it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsmamba.errors import OutputExistsError, OutputNotWritableError


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse an output that cannot be written, before any work is done for it.

    Args:
        path: File that is to be written.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        OutputExistsError: If it exists and may not be replaced.
        OutputNotWritableError: If its folder is missing or not writable, or it is a folder.
    """
    path = Path(path)
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise OutputNotWritableError(f"cannot write {path}: {folder} is a file, not a folder")
    if not folder.is_dir():
        raise OutputNotWritableError(f"cannot write {path}: create its folder {folder} first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputNotWritableError(f"cannot write {path}: no permission to write in {folder}")
    if path.is_dir():
        raise OutputNotWritableError(f"cannot write {path}: it is a folder, name a file")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists: pass --overwrite to replace it")
    return path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it on success and removed on failure.

    The suffix is kept, because GDAL picks its driver by it.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.unlink()  # the writer creates it; GDAL refuses to replace an empty GeoPackage
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file by atomic rename."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    """The process's umask: mkstemp and many writers make private files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
