"""Collections of images: opened up front where they are few, when they are drawn otherwise."""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rsmamba.data.change import BandFiles
from rsmamba.data.corpus import KEEP_ABOVE, FileIndex, find_images
from rsmamba.data.images import Scene, quiet
from rsmamba.data.listing import Paths, VsiPath, common_root
from rsmamba.data.opening import (
    BAD,
    BadFiles,
    Cache,
    Reading,
    alike,
    odd_bands,
    odd_type,
    open_scenes,
    warn_of_alpha,
)
from rsmamba.errors import DataNotFoundError

_LOG = logging.getLogger(__name__)

#: Collections of more images than this, on disk and on servers, are opened image by image.
HEADERS, REMOTE_HEADERS = KEEP_ABOVE, 200
#: Images of a large collection that tell what the others must be like.
PROBED = 64
#: Headers of a large collection that a process remembers.
RECENT = 1024
#: Files whose sizes are looked up at the same time: on a network disk most of it is waiting.
_THREADS, _REPORT = 8, 100_000


class SceneCollection(Sequence[Scene]):
    """The images of a root, in a fixed order.

    Up to 10,000 images (200 on servers) are opened at once: unreadable ones are left out, sizes
    are known, and small sets are decoded into memory. In larger collections an image is opened
    when it is asked for, which raises one of ``BAD`` if that fails; 64 of them are opened to tell
    what bands and type the others must have. 1024 headers are remembered.

    Args:
        files: The files.
        reading: How to read them.
        bad: Where bad files are counted.
        scenes: The images, if they are open.
        positions: Where in the index each image is; everywhere if None.
    """

    def __init__(
        self,
        files: FileIndex,
        reading: Reading,
        bad: BadFiles,
        scenes: Sequence[Scene] | None = None,
        positions: npt.NDArray[Any] | None = None,
    ) -> None:
        self.files, self.reading, self.bad = files, reading, bad
        self.scenes, self.positions = scenes, positions
        self.probed: list[Scene] = []
        self._recent: OrderedDict[int, Scene] = OrderedDict()

    @classmethod
    def find(
        cls,
        root: Paths,
        reading: Reading,
        bad: BadFiles,
        *,
        assets: Sequence[str] | None = None,
        index: str | Path | None = None,
        refresh: bool = False,
        cache: Cache = "auto",
        up_front: bool = True,
    ) -> "SceneCollection":
        """The images of a root; see :func:`~rsmamba.data.corpus.find_images`.

        Args:
            root: Folder, pattern, file, STAC items, or several.
            reading: How to read the images.
            bad: Where bad files are counted.
            assets: See :func:`~rsmamba.data.corpus.find_images`.
            index: Likewise.
            refresh: Likewise.
            cache: Whether to keep pixels in memory, see :func:`open_scenes`.
            up_front: Whether to open a small collection at once.

        Raises:
            DataNotFoundError: If there are no images, or none can be read.
            ImageReadError: If more files are unreadable than tolerated.
            BandMismatchError: If images differ in bands or stored type.
            ConfigError: If ``index`` cannot be used.
        """
        files = find_images(root, assets=assets, index=index, refresh=refresh)
        remote = isinstance(files.paths(0)[0], VsiPath)
        if not up_front or len(files) > (REMOTE_HEADERS if remote else HEADERS):
            large = cls(files, reading, bad)
            large._probe()
            return large
        paths = [files.paths(i) for i in range(len(files))]
        opened = open_scenes(paths, bad, reading, cache)
        return cls(files, reading, bad, opened)

    @classmethod
    def of(cls, scenes: Sequence[Scene], bad: BadFiles) -> "SceneCollection":
        """A collection of scenes that are open already."""
        return cls(FileIndex(pa.array([], pa.large_string())), Reading(), bad, list(scenes))

    @property
    def large(self) -> bool:
        """Whether images are opened when they are asked for."""
        return self.scenes is None

    def __len__(self) -> int:
        """Number of images."""
        if self.scenes is not None:
            return len(self.scenes)
        return len(self.files) if self.positions is None else len(self.positions)

    def __getitem__(self, item: int) -> Scene:  # type: ignore[override]
        """Open an image.

        Raises:
            IndexError: If there is no such image.
            ImageReadError: Or another of ``BAD``, if it cannot be opened or is unlike the others.
        """
        if self.scenes is not None:
            return self.scenes[item]
        if not 0 <= item < len(self):
            raise IndexError(item)
        if item in self._recent:
            self._recent.move_to_end(item)
            return self._recent[item]
        scene = self.reading.open(self.paths(item))
        if self.probed:
            first = self.probed[0]
            if len(scene.indexes) != len(first.indexes):
                raise odd_bands(scene, len(first.indexes))
            if self.reading.scales is None and scene.dtype != first.dtype:
                raise odd_type(scene, first.dtype)
        self._recent[item] = scene
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        return scene

    def paths(self, item: int) -> tuple[Path, ...]:
        """The files of an image."""
        if self.scenes is not None:
            scene = self.scenes[item]
            parts = scene.files if isinstance(scene, BandFiles) else (scene,)
            return tuple(part.path for part in parts)
        return self.files.paths(item if self.positions is None else self.positions[item])

    def readable(self, items: Sequence[int] | range) -> Iterator[tuple[int, Scene]]:
        """Images that can be opened among some; the others are counted as bad files.

        Raises:
            ImageReadError: Or another of ``BAD``, if these are more than tolerated.
        """
        for item in items:
            try:
                yield item, self[item]
            except BAD as error:
                self.bad.add(self.paths(item)[0], error)

    def spread(self, most: int) -> list[Scene]:
        """At most so many readable images, evenly chosen.

        Raises:
            ImageReadError: Or another of ``BAD``, if more are bad than tolerated.
        """
        count = min(most, len(self))
        return [s for _, s in self.readable([i * len(self) // count for i in range(count)])]

    def subset(self, items: npt.NDArray[Any]) -> "SceneCollection":
        """Some of the images.

        Args:
            items: Their positions, ascending.
        """
        if self.scenes is not None:
            scenes = [self.scenes[i] for i in items]
            return SceneCollection(self.files, self.reading, self.bad, scenes)
        positions = items if self.positions is None else self.positions[items]
        part = SceneCollection(self.files, self.reading, self.bad, None, positions)
        part.probed = self.probed
        return part

    def examples(self) -> list[Scene]:
        """Images to tell what all are like: those that are open, or a few of many."""
        return list(self.scenes) if self.scenes is not None else self.probed

    def names(self) -> list[str]:
        """Names of open images relative to their common folder, the same on every machine."""
        paths = [s.path for s in self.examples()]
        try:
            base = common_root(paths)
        except ValueError:  # on disk and on servers
            return [str(path) for path in paths]
        return [path.relative_to(base).as_posix() for path in paths]

    def sizes(self) -> npt.NDArray[np.int32]:
        """Height and width of each image (N, 2).

        In a large collection they are looked up once and kept in its index; 0 for bad files.

        Raises:
            ImageReadError: If more files are unreadable than tolerated.
        """
        if self.scenes is not None:
            return np.array([(s.height, s.width) for s in self.scenes], np.int32)
        if self.files.sizes is None:
            self.files = replace(self.files, sizes=_look_up(self.files, self.reading, self.bad))
            self.files = self.files.write_again()
        sizes = self.files.sizes
        assert sizes is not None  # noqa: S101 - looked up above
        return sizes if self.positions is None else sizes[self.positions]

    def _probe(self) -> None:
        """Open a few images of many, and expect the others to be like most of them.

        Raises:
            BandMismatchError: If more than tolerated differ in bands or stored type.
            DataNotFoundError: If none can be read.
        """
        found = alike(self.spread(PROBED), self.bad, self.reading.scales is None)
        if not found:
            raise DataNotFoundError(
                f"none of {min(PROBED, len(self))} of the {len(self):,} images can be read, e.g. "
                f"{self.paths(0)[0]}"
            )
        warn_of_alpha(found)
        self.probed = found
        self._recent.clear()  # those that turned out to be unlike the others


def _look_up(index: FileIndex, reading: Reading, bad: BadFiles) -> npt.NDArray[np.int32]:
    """Height and width of each image of an index; 0 for bad files."""

    def size(item: int) -> tuple[int, int]:
        try:
            scene = reading.open(index.paths(item))
        except BAD as error:
            bad.add(index.paths(item)[0], error)
            return 0, 0
        return scene.height, scene.width

    _LOG.warning("looking up the sizes of %s images, once", f"{len(index):,}")
    found = np.zeros((len(index), 2), np.int32)
    with quiet(), ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(index), _REPORT):
            stop = min(start + _REPORT, len(index))
            flat = chain.from_iterable(pool.map(size, range(start, stop), chunksize=256))
            found[start:stop] = np.fromiter(flat, np.int32, 2 * (stop - start)).reshape(-1, 2)
            if stop < len(index):
                _LOG.warning("%s sizes so far", f"{stop:,}")
    return found
