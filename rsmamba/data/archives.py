"""Unpacking the archives that data sets come in: checked, safe, complete or not at all."""

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Self

from rsmamba.errors import (
    ArchiveError,
    DataNotFoundError,
    OutputNotWritableError,
    RsmambaError,
    one_line,
)

#: What the standard library raises for an archive that is damaged, truncated or none at all.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    LZMAError,
    NotImplementedError,  # a compression that zipfile does not know
    UnicodeDecodeError,
)
_CHUNK = 1 << 20
#: Resource forks that macOS adds to zip archives; they look like images that no one can decode.
_JUNK = "__MACOSX"


def extract(archive: Path, to: Path, *, sha256: str | None = None, md5: str | None = None) -> Path:
    """Unpack a zip or tar archive (plain, gz, bz2, xz) into a folder.

    Everything is unpacked into a hidden folder beside its destination and moved when it is
    complete: a folder that the archive brings either appears whole or not at all. Folders that
    are there already are filled up, files in them replaced.

    Args:
        archive: The archive; its kind is told by its content, not by its name.
        to: Folder to unpack into, made if need be.
        sha256: What the hash of the archive must be, in hexadecimal; None to leave it unchecked.
        md5: Likewise.

    Returns:
        The folder.

    Raises:
        DataNotFoundError: If there is no such archive.
        ArchiveError: If its hash is another one, if it is damaged or truncated, or if a member
            would land outside the folder; nothing is left behind.
        OutputNotWritableError: If the folder cannot be written to.
    """
    archive, to = Path(archive), Path(to)
    if not archive.is_file():
        raise DataNotFoundError(f"no archive {archive}: download it, or check the path")
    for algorithm, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None:
            check_hash(archive, algorithm, expected)
    try:
        to.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{archive.name}.", dir=to))
    except OSError as error:
        raise _unwritable(archive, to, error) from error
    try:
        (_unzip if zipfile.is_zipfile(archive) else _untar)(archive, beside)
        for source, target in list(_moves(archive, beside, to)):
            shutil.move(source, target)
    except RsmambaError:  # some are OSErrors
        raise
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno is None:  # gzip and bz2 report damage so
            raise _damaged(archive, error) from error
        raise _unwritable(archive, to, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return to


def check_hash(path: Path, algorithm: str, expected: str) -> None:
    """Compare the hash of a file with what it must be.

    Args:
        path: The file.
        algorithm: Name that hashlib knows, such as "sha256".
        expected: The hash, in hexadecimal.

    Raises:
        ArchiveError: If it is another one.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected.lower():
        raise ArchiveError(
            f"{path}: its {algorithm} is {found}, expected {expected}: the download is incomplete "
            "or another version, download it again, or set checksum=False if you trust the file"
        )


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            # Some programs on Windows write their own separators.
            name = member.filename.replace("\\", "/")
            _check_name(archive, name)
            if name.split("/")[0] == _JUNK:
                continue
            if member.flag_bits & 1:
                raise ArchiveError(
                    f"{archive}: {name} is encrypted; unpack it by hand with its password"
                )
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _unsafe(archive, name, "is a link")
            target = folder / name
            if name.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with members.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, _CHUNK)


def _untar(archive: Path, folder: Path) -> None:
    def check(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        _check_name(archive, member.name)
        if member.issym():  # data sets need none, and they are how such checks are led astray
            raise _unsafe(archive, member.name, "is a link")
        try:
            return tarfile.data_filter(member, path)
        except tarfile.FilterError as error:
            raise _unsafe(archive, member.name, one_line(error)) from error

    with tarfile.open(archive, tarinfo=_Header) as members:
        members.extractall(folder, filter=check)  # noqa: S202
        # To the end of the compressed stream, where its checksum is.
        while members.fileobj is not None and members.fileobj.read(_CHUNK):
            pass


class _Header(tarfile.TarInfo):
    """A header of a tar archive.

    tarfile takes a header that is cut off or damaged for the end of the archive, and so a truncated
    archive for a shorter one; the true end is a block of zeros.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse one block."""
        if len(buf) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end of data")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError(one_line(error)) from error
            raise


def _check_name(archive: Path, name: str) -> None:
    """Refuse a member whose path leads, or might on another system, out of the folder."""
    if name.startswith("/") or PureWindowsPath(name).drive:
        raise _unsafe(archive, name, "has an absolute path")
    if ".." in PurePosixPath(name.replace("\\", "/")).parts:
        raise _unsafe(archive, name, "has '..' in its path")


def _moves(archive: Path, source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """What to move where so that a folder is added to another."""
    for entry in sorted(source.iterdir()):
        there = target / entry.name
        folder = entry.is_dir() and not entry.is_symlink()
        if folder and there.is_dir():
            yield from _moves(archive, entry, there)
        elif folder is not there.is_dir() and os.path.lexists(there):
            raise OutputNotWritableError(
                f"{there}: is in the way of what {archive} holds; move it, or unpack elsewhere"
            )
        else:
            yield entry, there


def _unsafe(archive: Path, member: str, what: str) -> ArchiveError:
    return ArchiveError(
        f"{archive}: refused to unpack it because its member {member!r} {what}; get the archive "
        "from its publisher again, or unpack it by hand if you trust it"
    )


def _damaged(archive: Path, error: BaseException) -> ArchiveError:
    return ArchiveError(
        f"{archive}: cannot be unpacked ({one_line(error)}); it is damaged, truncated or no zip or "
        "tar archive, download it again"
    )


def _unwritable(archive: Path, to: Path, error: OSError) -> OutputNotWritableError:
    return OutputNotWritableError(
        f"{to}: cannot unpack {archive.name} there ({error.strerror}); free space or permission is "
        "missing, or choose another folder"
    )
