"""Listing class folders, and reading which of their images make up a split."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from rsmamba.data.listing import IMAGE_SUFFIXES
from rsmamba.data.splits import sha256
from rsmamba.errors import ConfigError, DataNotFoundError, LabelError


@dataclass(frozen=True)
class Listing:
    """The images in a folder of class folders.

    Attributes:
        folder: The folder.
        classes: Names of the class folders by index.
        labels: Path relative to the folder, with forward slashes -> index of its class; by class,
            then by name.
    """

    folder: Path
    classes: tuple[str, ...]
    labels: Mapping[str, int]

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.labels:
            found.setdefault(PurePosixPath(name).stem, []).append(name)
        return found

    def find(self, name: str) -> str | None:
        """The image that a list means, whatever folder and file format it was written for.

        Args:
            name: ``Class/file.jpg``, ``file.jpg``, ``file`` or a longer path.

        Returns:
            Its relative path; None if there is none of that name.

        Raises:
            LabelError: If the name has the folder of another class.
            ConfigError: If several images go by that name.
        """
        if name in self.labels:
            return name
        path = PurePosixPath(name.replace("\\", "/"))
        if path.suffix and path.suffix.lower() not in IMAGE_SUFFIXES:
            return None
        found = self._by_stem.get(path.stem, [])
        # Of several, the one in that folder, then the one in that format.
        for same in (lambda p: p.parent.name == path.parent.name, lambda p: p.name == path.name):
            if len(found) > 1:
                found = [f for f in found if same(PurePosixPath(f))] or found
        if len(found) > 1:
            raise ConfigError(
                f"{name} may be {found[0]} or {found[1]} in {self.folder}: give the class folder"
            )
        if not found:
            return None
        label = self.classes[self.labels[found[0]]]
        if path.parent.name in self.classes and path.parent.name != label:
            raise LabelError(
                f"{name} is listed in class {path.parent.name}, but is in {self.folder}/{found[0]}"
            )
        return found[0]


def list_images(
    folder: Path, classes: Sequence[str] | None = None, *, known: Sequence[str] | None = None
) -> Listing:
    """List the images of a folder of class folders, in TorchGeo's order.

    Args:
        folder: Folder with one folder for each class; images may lie deeper in these.
        classes: Names of the class folders in the order of their index; sorted by name if None.
        known: All classes of a well-known set by index, instead; folders of some may be missing,
            and the others keep their index.

    Raises:
        DataNotFoundError: If there is no such folder, no class folder, or one without images.
        LabelError: If the classes given are not the folders that there are, or a folder is not a
            known class.
    """
    if not folder.is_dir():
        raise DataNotFoundError(f"no folder {folder}: check the path")
    there = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    )
    if not there:
        raise DataNotFoundError(
            f"{folder}: no class folders in there; expected one folder of images for each class"
        )
    if classes is not None and (odd := sorted(set(classes) ^ set(there))):
        fault = "is no folder" if odd[0] in set(classes) else "is not among the classes given"
        raise LabelError(f"{folder}: {odd[0]} {fault}; make the list of classes fit the folders")
    if known is not None and (odd := [name for name in there if name not in known]):
        raise LabelError(
            f"{folder / odd[0]}: is no class of this set ({known[0]}, ..., {known[-1]}); remove "
            "or rename the folder, or read such images with ImageFolderDataModule"
        )
    names = tuple(known or classes or there)
    labels: dict[str, int] = {}
    for index, name in enumerate(names):
        if name not in there:
            continue
        before = len(labels)
        for path, _, files in sorted(os.walk(folder / name, followlinks=True)):
            inner = Path(path).relative_to(folder).as_posix()
            for file in sorted(files):
                if file[0] != "." and os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                    labels[f"{inner}/{file}"] = index
        if len(labels) == before:
            raise DataNotFoundError(
                f"{folder / name}: class folder without images; fill it or remove it"
            )
    return Listing(folder, names, labels)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a list that are not blank, each with its place (``file:number``).

    Raises:
        DataNotFoundError: If the file is not there, not text, or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataNotFoundError(
            f"no split file {path}: get it with the images, or set protocol='ratio'"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataNotFoundError(f"{path}: not readable as a list of names ({error})") from error
    if not any(line.strip() for line in lines):
        raise DataNotFoundError(f"{path}: no names in there; get the file again")
    for number, line in enumerate(lines, 1):
        if text := line.strip():
            yield f"{path}:{number}", text


def read_splits(files: Mapping[str, Path], listing: Listing) -> dict[str, list[str]]:
    """Read lists of images, such as those of RoMA and its predecessors.

    A line is ``name``, ``name label`` or ``name class label``. The last is what RSP, RVSA and RoMA
    read (``train_labels_55_0.txt``, ``valid_labels_55_0.txt``; github.com/ViTAE-Transformer/RSP,
    "Scene Recognition"); they keep all images in one folder and number the classes in an order of
    their own. Here the class is that of the image's folder. Labels need not be its index, but must
    stand for the classes one to one.

    Args:
        files: List by split.
        listing: The images.

    Returns:
        Names of the images, relative to the listing's folder, by split.

    Raises:
        DataNotFoundError: If a list is not there or empty, or names an image that is not there.
        LabelError: If a label or class contradicts the image's folder, or an earlier line.
        ConfigError: If an image is listed twice.
    """
    seen: dict[str, str] = {}
    numbers: dict[str, tuple[str, str]] = {}
    splits: dict[str, list[str]] = {}
    for split, path in files.items():
        splits[split] = []
        for place, line in read_lines(path):
            name, label, number = _parse(place, line, listing)
            if name in seen:
                raise ConfigError(
                    f"{place}: {name} is listed already in {seen[name]}; an image belongs to one "
                    "split, once"
                )
            seen[name] = place
            splits[split].append(name)
            folder = listing.classes[listing.labels[name]]
            if label is not None and _plain(label) != _plain(folder):
                raise LabelError(f"{place}: {name} is called {label}, but its folder is {folder}")
            if number is None:
                continue
            # Both ways: no label for two classes, no class with two labels.
            for key, value in ((f"label {number}", folder), (f"class {folder}", f"label {number}")):
                first, there = numbers.setdefault(key, (value, place))
                if first != value:
                    raise LabelError(
                        f"{place}: {name} in folder {folder} has label {number}, which contradicts "
                        f"{there} ({key}: {first}); mend the list or move the image"
                    )
    return splits


def duplicates(
    splits: Mapping[str, Sequence[Path]],
) -> list[tuple[tuple[Path, str], tuple[Path, str]]]:
    """Pairs of byte-identical files in different splits, each with its split.

    Only files of equal size are read.
    """
    by_size: dict[int, list[tuple[Path, str]]] = defaultdict(list)
    for part, paths in splits.items():
        for path in paths:
            by_size[path.stat().st_size].append((path, part))
    pairs = []
    for group in by_size.values():
        if len({part for _, part in group}) < 2:
            continue
        first: dict[str, tuple[Path, str]] = {}
        for path, part in group:
            other = first.setdefault(sha256(path), (path, part))
            if other[1] != part:
                pairs.append((other, (path, part)))
    return pairs


def _parse(place: str, line: str, listing: Listing) -> tuple[str, str | None, int | None]:
    """Image, class and label of a line."""
    if (found := listing.find(line)) is not None:
        return found, None, None
    name, *rest = line.rsplit(maxsplit=1)
    if rest and rest[0].isdigit():
        number = int(rest[0])
        if (found := listing.find(name)) is not None:
            return found, None, number
        name, *rest = name.rsplit(maxsplit=1)
        if rest and (found := listing.find(name)) is not None:
            return found, rest[0], number
    raise DataNotFoundError(
        f"{place}: no image of {line!r} in {listing.folder}; a line is 'name', 'name label' or "
        "'name class label'"
    )


def _plain(name: str) -> str:
    """A class name as people write it: BareLand, bare_land, bare land."""
    return "".join(c for c in name.lower() if c.isalnum())
