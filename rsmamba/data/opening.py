"""Opening images: how they are read, whether they are alike, and which are bad."""

import json
import os
import tempfile
import uuid
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsmamba.data.change import BandFiles
from rsmamba.data.images import Scene
from rsmamba.data.listing import some, to_path
from rsmamba.data.scene_facts import same_bands
from rsmamba.errors import (
    BandMismatchError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
)

#: Sets that decode to less than this are kept in memory with ``cache="auto"``.
CACHE_BYTES = 512 * 2**20
#: What makes a file a bad one.
BAD = (ImageReadError, BandMismatchError, GridMismatchError)
BadFile = ImageReadError | BandMismatchError | GridMismatchError

Cache = bool | Literal["auto"]


class BadFiles:
    """Files that could not be read: named, counted, and tolerated up to a number.

    All processes that have a copy, such as the workers of a loader, add to one list (a temporary
    file that is made with the first bad file), so that the count is that of all of them. Processes
    that are started apart, such as the ranks of a distributed run, count on their own.

    Args:
        limit: How many to tolerate; None for none, where there is no option that says so.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit, self._option = limit or 0, limit is not None
        self._own: dict[Path, str] = {}  # in case that there is no place for temporary files
        self._list = Path(tempfile.gettempdir()) / f"rsmamba-bad-files-{uuid.uuid4().hex}.jsonl"
        weakref.finalize(self, _remove, self._list, os.getpid())

    @property
    def reasons(self) -> dict[Path, str]:
        """The bad files so far, and why."""
        found = dict(self._own)
        with suppress(OSError), self._list.open(encoding="utf-8") as file:
            for line in file:
                path, reason = json.loads(line)
                found[to_path(path)] = reason
        return found

    @property
    def left(self) -> int:
        """How many more are tolerated."""
        return self.limit - len(self.reasons)

    def add(self, path: Path, error: BadFile) -> None:
        """Count a bad file and warn of it.

        Raises:
            ImageReadError: Or whatever the error is, if it is one more than tolerated.
        """
        if path in self.reasons:
            return
        self._own[path] = str(error)
        with suppress(OSError), self._list.open("a", encoding="utf-8") as file:
            file.write(json.dumps([str(path), str(error)]) + "\n")  # short: never torn
        count = len(self.reasons)
        if count > self.limit:
            if not self._option:
                raise error
            raise type(error)(
                f"{error}; {count} bad file(s), max_bad_files={self.limit}"
            ) from error
        warnings.warn(f"left out: {error}", stacklevel=3)


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Reading:
    """How images are to be read.

    Attributes:
        indexes: 1-based bands; all but alpha if None.
        scales: Factor of the values of each stored type; None for one type only, as it is.
        convert: Whether grey and CMYK JPEGs and PNGs are converted to red, green and blue.
        nodata: Stored value that means "no observation" where all bands of an image that declares
            nothing of the kind have it.
    """

    indexes: tuple[int, ...] | None = None
    scales: Mapping[str, float] | None = None
    convert: bool = False
    nodata: float | None = None

    def open(self, paths: Sequence[Path]) -> Scene:
        """Read the header of an image of one file, or of several with a band each.

        Raises:
            ImageReadError: If a file is not a readable image.
            BandMismatchError: If it lacks one of the bands, or has no factor.
            GridMismatchError: If bands differ in size.
        """
        if len(paths) == 1:
            scene = Scene.open(paths[0], self.indexes, convert=self.convert)
            scene.factor = self._factor(scene)
            if self.nodata is not None:
                scene.assume(self.nodata)
            return scene
        chosen = range(1, len(paths) + 1) if self.indexes is None else self.indexes
        if missing := [i for i in chosen if not 1 <= i <= len(paths)]:
            raise BandMismatchError(
                f"{paths[0]}: band {missing[0]} was asked for, the item has {len(paths)} assets"
            )
        stack = BandFiles.of(paths[0], [paths[i - 1] for i in chosen])
        for file in stack.files:
            if (file.crs, file.transform) != (stack.crs, stack.transform):
                raise GridMismatchError(
                    f"{file.path} is not on the grid of {stack.files[0].path}: warp the bands of "
                    "an item to one grid"
                )
            file.factor = self._factor(file)
            if self.nodata is not None:
                file.assume(self.nodata)
        nodata = {file.nodata for file in stack.files}
        stack.nodata = nodata.pop() if len(nodata) == 1 else None
        return stack

    def _factor(self, scene: Scene) -> float:
        if self.scales is None:
            return 1.0
        if scene.dtype not in self.scales:
            raise BandMismatchError(
                f"{scene.path}: stores {scene.dtype}, scales has a factor for "
                f"{', '.join(self.scales)} only: add one"
            )
        return float(self.scales[scene.dtype])


def open_scenes(
    paths: Sequence[Path | Sequence[Path]],
    bad: BadFiles,
    reading: Reading,
    cache: Cache = "auto",
) -> list[Scene]:
    """Read all headers, and all pixels of a set that is small enough to be kept in memory.

    Args:
        paths: The files of each image.
        bad: Where bad files are counted.
        reading: How to read them. All images must store the same type, unless it has ``scales``.
        cache: Whether to keep the pixels in memory; "auto" below 512 MiB.

    Raises:
        ImageReadError: If more files are unreadable than tolerated.
        BandMismatchError: If more images than tolerated differ in bands, or in the stored type.
        DataNotFoundError: If no readable image is left.
    """
    scenes: list[Scene] = []
    for entry in paths:
        files = [entry] if isinstance(entry, Path) else entry
        try:
            scenes.append(reading.open(files))
        except BAD as error:
            bad.add(files[0], error)
    scenes = alike(scenes, bad, reading.scales is None)
    if cache is True or (cache == "auto" and sum(s.nbytes for s in scenes) <= CACHE_BYTES):
        kept = []
        for scene in scenes:
            try:
                scene.keep()
                kept.append(scene)
            except ImageReadError as error:
                bad.add(scene.path, error)
        scenes = kept
    if not scenes:
        raise DataNotFoundError(f"none of the {len(paths)} images can be read, e.g. {paths[0]}")
    warn_of_alpha(scenes)
    return scenes


def warn_of_alpha(scenes: Sequence[Scene]) -> None:
    """Warn if what is declared as alpha looks like a band of its own."""
    with_alpha = next((s for s in scenes if s.alpha is not None), None)
    with suppress(ImageReadError):  # counted when it is drawn
        if with_alpha is not None and with_alpha.alpha_looks_like_data():
            warnings.warn(
                f"{with_alpha.path}: band {with_alpha.alpha} is declared as alpha and used as a "
                "mask, but looks like data; to read it, list it in indexes",
                stacklevel=4,
            )


def alike(scenes: list[Scene], bad: BadFiles, one_type: bool) -> list[Scene]:
    """The scenes with as many bands, and of the type, as most have; others are bad files.

    Raises:
        BandMismatchError: If these are more than tolerated, naming files of each kind.
    """
    counts = Counter(len(s.indexes) for s in scenes).most_common()
    odd = [s for s in scenes if len(s.indexes) != counts[0][0]]
    if len(odd) > bad.left:
        same_bands(scenes)
    for scene in odd:
        bad.add(scene.path, odd_bands(scene, counts[0][0]))
    scenes = [s for s in scenes if len(s.indexes) == counts[0][0]]
    if not one_type or not scenes:
        return scenes
    types = Counter(s.dtype for s in scenes).most_common()
    odd = [s for s in scenes if s.dtype != types[0][0]]
    if len(odd) > bad.left:
        kinds = [
            f"{dtype} in {some([s.path.name for s in scenes if s.dtype == dtype])}"
            for dtype, _ in types
        ]
        example = ", ".join(f"{dtype}: 1.0" for dtype, _ in types)
        raise BandMismatchError(
            f"images differ in stored type: {'; '.join(kinds)}: say what to multiply each with, as "
            f"scales={{{example}}} does, or leave files out"
        )
    for scene in odd:
        bad.add(scene.path, odd_type(scene, types[0][0]))
    return [s for s in scenes if s.dtype == types[0][0]]


def odd_bands(scene: Scene, expected: int) -> BandMismatchError:
    """The error for an image with more or fewer bands than others."""
    return BandMismatchError(
        f"{scene.path}: has {len(scene.indexes)} bands, others have {expected}: choose common ones "
        "with indexes=[...]"
    )


def odd_type(scene: Scene, expected: str) -> BandMismatchError:
    """The error for an image that stores another type than others."""
    return BandMismatchError(
        f"{scene.path}: stores {scene.dtype}, others {expected}: say what to multiply each with, "
        f"as scales={{{expected}: 1.0, {scene.dtype}: 1.0}} does"
    )
