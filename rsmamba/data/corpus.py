"""The index of a large collection of images: their names, and what is known of them.

A folder of millions of files takes minutes to list, so it is listed once and the names are kept as
a Parquet file. In memory they stay in Arrow's form: no Python object for each.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsmamba.data.listing import IMAGE_SUFFIXES, Paths, iter_files, some, to_path
from rsmamba.data.many_names import names_sha256
from rsmamba.data.stac import holds_items, read_items
from rsmamba.errors import ConfigError, DataNotFoundError, OutputNotWritableError, one_line
from rsmamba.files import atomic_path

_LOG = logging.getLogger(__name__)

INDEX_VERSION = 1
#: Larger collections are kept in the user's cache folder without being asked to.
KEEP_ABOVE = 10_000
#: Folders whose times of modification tell whether an index is out of date.
MAX_STAMPS = 10_000
#: Between the files of an image whose bands are files of their own; no path holds it.
JOINED = "\n"
#: Names that are handed to Arrow at a time, and seconds between reports of a long listing.
_CHUNK, _REPORT = 1 << 16, 10.0
_KEY = b"rsmamba_index"


@dataclass
class FileIndex:
    """The files of a collection, in an order that is the same on every machine.

    Attributes:
        names: Paths relative to ``base``; absolute ones stand for themselves. An image whose bands
            are several files has their paths in one, parted by line breaks.
        base: Folder that the names are relative to.
        sizes: Height and width of each image (N, 2), int32, 0 where the file is unreadable; None
            if they have not been looked up.
        file: Parquet file that holds the index; None if it is in memory only.
        about: What the file says of itself.
    """

    names: pa.LargeStringArray
    base: str = ""
    sizes: npt.NDArray[np.int32] | None = None
    file: Path | None = None
    about: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def paths(self, item: int) -> tuple[Path, ...]:
        """The files of an image: one, or one for each group of its bands."""
        names = self.names[int(item)].as_py().split(JOINED)
        outside = not self.base
        return tuple(
            to_path(n if outside or n.startswith("/") else f"{self.base}/{n}") for n in names
        )

    def sha256(self) -> str:
        """Hash of the names in their order: the same on every machine, whatever the base."""
        return names_sha256(self.names)

    def write(self, path: Path) -> "FileIndex":
        """Write as Parquet: columns path, and height and width where known.

        Args:
            path: File to write; replaced only when the new one is complete.

        Returns:
            The same index, as that file's.

        Raises:
            OutputNotWritableError: If it cannot be written there.
        """
        columns: dict[str, Any] = {"path": self.names}
        if self.sizes is not None:
            columns |= {"height": self.sizes[:, 0], "width": self.sizes[:, 1]}
        about = {**self.about, "version": INDEX_VERSION, "base": self.base, "files": len(self)}
        about["sha256"] = self.sha256()
        table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                pq.write_table(
                    table,
                    temporary,
                    compression="zstd",
                    use_dictionary=False,
                    write_page_checksum=True,
                )
        except OSError as error:
            raise OutputNotWritableError(
                f"{path}: the index of the images cannot be written ({one_line(error)}); name "
                "another place with index=PATH"
            ) from error
        return replace(self, file=path, about=about)

    def write_again(self) -> "FileIndex":
        """Write to the file it is from, if there is one."""
        return self if self.file is None else self.write(self.file)

    @classmethod
    def read(cls, path: Path) -> "FileIndex":
        """Read an index.

        Raises:
            ConfigError: If the file is damaged or no index.
        """
        try:
            about = json.loads(pq.read_schema(path).metadata[_KEY])
            if about["version"] != INDEX_VERSION:
                raise ValueError(f"version {about['version']}")
            table = pq.read_table(path, page_checksum_verification=True)
            names = table["path"].cast(pa.large_string()).combine_chunks()
            sizes = None
            if "height" in table.column_names:
                both = [table[name].to_numpy() for name in ("height", "width")]
                sizes = np.stack(both, 1).astype(np.int32)
            del table
            pa.default_memory_pool().release_unused()  # as much again
            base = str(about["base"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ConfigError(
                f"{path}: not an index of images that can be read ({one_line(error)}); make it "
                "anew with refresh=True, or name another file"
            ) from error
        # An empty or single chunk array comes back as a chunked one from some versions of Arrow.
        names = names.chunk(0) if isinstance(names, pa.ChunkedArray) else names
        return cls(names, base, sizes, path, about)


def find_images(
    root: Paths,
    *,
    assets: Sequence[str] | None = None,
    index: str | Path | None = None,
    refresh: bool = False,
) -> FileIndex:
    """The images of a folder, pattern, list of files or STAC items, listed once.

    Above 10,000 files, and wherever ``index`` is given, the list is kept in a Parquet file, and
    read from there as long as it is up to date: the same ``root`` and ``assets``, and no folder
    (nor STAC file) that was listed has been modified since, which adding, removing or renaming an
    entry does. Of more than 10,000 folders, 10,000 are looked at. Folders of remote servers have no
    such times: their index holds until ``refresh``.

    Args:
        root: Folder (any depth), glob pattern, file, URL, ``/vsi`` path, STAC items (JSON),
            ``sample:`` path, or several.
        assets: Keys of the assets of STAC items, see :func:`~rsmamba.data.stac.read_items`.
        index: Parquet file of the list; in the user's cache folder if None.
        refresh: List the files anew.

    Raises:
        DataNotFoundError: If there are no images.
        ConfigError: If ``index`` names a file that is damaged, no index, or that of another root.
        OutputNotWritableError: If ``index`` cannot be written.
    """
    entries = [root] if isinstance(root, str | os.PathLike) else list(root)
    about = _about(entries, assets)
    path = Path(index) if index is not None else cache_folder() / f"{about['root_sha256']}.parquet"
    if path.is_file() and not refresh:
        found = _reuse(path, about, given=index is not None)
        if found is not None:
            return found
    stamps: dict[str, int] = {}
    names = _to_arrow(_names(root, entries, assets, stamps))
    base = _base(names, entries)
    about["stamps"] = _stamps(stamps, path)
    found = FileIndex(_relative(names, base), base, about=about)
    if index is not None or len(found) > KEEP_ABOVE:
        # To be read from any working folder.
        found.base = os.path.abspath(base) if base and not base.startswith("/vsi") else base  # noqa: PTH100
    if index is not None:
        return found.write(path)
    if len(found) > KEEP_ABOVE:
        try:
            found = found.write(path)
            _LOG.warning("listed %s images; the list is kept in %s", f"{len(found):,}", path)
        except OutputNotWritableError as error:
            _LOG.warning("the list of the images is not kept: %s", error)
    return found


def cache_folder() -> Path:
    """Folder of the indexes that are kept without being asked to: ``~/.cache/rsmamba/index``."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache or Path.home() / ".cache") / "rsmamba" / "index"


def _about(entries: Sequence[Any], assets: Sequence[str] | None) -> dict[str, Any]:
    """What an index must agree with to be used for a root."""
    paths = [to_path(entry) for entry in entries]
    texts = [str(p) if str(p).startswith("/vsi") else os.path.abspath(p) for p in paths]  # noqa: PTH100
    content = json.dumps([texts, assets and list(assets)])
    return {
        "root": some(texts, 3),
        "root_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _reuse(path: Path, about: dict[str, Any], given: bool) -> FileIndex | None:
    """The index in a file if it is that of the root and up to date.

    Raises:
        ConfigError: If the user named the file and it is damaged, no index or of another root.
    """
    try:
        found = FileIndex.read(path)
    except ConfigError as error:
        if given:
            raise
        _LOG.warning("listing the images again: %s", error)
        return None
    if found.about.get("root_sha256") != about["root_sha256"]:
        raise ConfigError(
            f"{path}: is the index of {found.about.get('root')}, not of {about['root']}; name "
            "another file, or replace it with refresh=True"
        )
    for folder, then in found.about.get("stamps", {}).items():
        if then != (_content(folder) if isinstance(then, str) else _modified(folder)):
            _LOG.warning("%s has changed since %s: listing anew", folder, found.about.get("made"))
            return None
    return found


def _stamps(found: Mapping[str, int], index: Path) -> dict[str, int | str]:
    """What to compare later of the folders that were listed, by their absolute paths."""
    stamps: dict[str, int | str] = {
        (f if f.startswith("/vsi") else os.path.abspath(f)): then  # noqa: PTH100
        for f, then in _spread(sorted(found.items()), MAX_STAMPS)
    }
    own = os.path.abspath(index.parent)  # noqa: PTH100
    if own in stamps:  # writing the index there modifies the folder
        stamps[own] = _content(own)
    return stamps


def _content(folder: str) -> str:
    """Hash of the names of the images and folders in a folder."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                e.name
                for e in entries
                if not e.name.startswith(".")
                and (e.is_dir() or os.path.splitext(e.name)[1].lower() in IMAGE_SUFFIXES)  # noqa: PTH122
            )
    except OSError:
        return ""
    return hashlib.sha256("/".join(names).encode(errors="surrogateescape")).hexdigest()


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def _names(
    root: Paths, entries: Sequence[Any], assets: Sequence[str] | None, stamps: dict[str, int]
) -> Iterator[str]:
    """Names of all images, STAC items included."""
    if not any(holds_items(entry) for entry in entries):
        yield from iter_files(root, IMAGE_SUFFIXES, folders=stamps)
        return
    seen: dict[str, None] = {}
    for entry in entries:
        if holds_items(entry):
            path = to_path(entry)
            stamps[str(path)] = _modified(str(path))
            seen.update(dict.fromkeys(JOINED.join(files) for files in read_items(path, assets)))
        else:
            seen.update(dict.fromkeys(iter_files(entry, IMAGE_SUFFIXES, folders=stamps)))
    yield from seen


def _to_arrow(names: Iterable[str]) -> pa.LargeStringArray:
    """One array of many strings, with a report now and then.

    Raises:
        DataNotFoundError: If a name is not UTF-8.
    """
    chunks: list[pa.Array] = []
    count, then, every = 0, time.monotonic(), iter(names)
    while chunk := list(islice(every, _CHUNK)):
        try:
            chunks.append(pa.array(chunk, pa.large_string()))
        except UnicodeEncodeError as error:
            raise DataNotFoundError(
                f"{error.object!r}: this name is not UTF-8; rename the file or its folder"
            ) from error
        count += len(chunk)
        if time.monotonic() - then > _REPORT:
            _LOG.warning("listing the images: %s so far", f"{count:,}")
            then = time.monotonic()
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())


def _base(names: pa.LargeStringArray, entries: Sequence[Any]) -> str:
    """Folder that names are given relative to."""
    first = to_path(entries[0])
    if len(entries) == 1 and first.is_dir():
        return str(first)
    folders = {os.path.dirname(part) for name in names.to_pylist() for part in name.split(JOINED)}  # noqa: PTH120
    if any("://" in folder for folder in folders) or len({f[:1] for f in folders}) > 1:
        return ""
    return os.path.commonpath(folders)


def _relative(names: pa.LargeStringArray, base: str) -> pa.LargeStringArray:
    """Names without their base, where that is at the start of all of them."""
    prefix = base.rstrip("/") + "/"
    joined = pc.any(pc.match_substring(names, JOINED)).as_py()
    if not base or joined or not pc.all(pc.starts_with(names, prefix)).as_py():
        return names
    return pc.utf8_slice_codeunits(names, len(prefix))


def _spread(items: Sequence[Any], most: int) -> Sequence[Any]:
    """At most so many of a list, evenly chosen."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]
