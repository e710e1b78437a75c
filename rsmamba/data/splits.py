"""Splits that are the same on every machine, and the manifest that proves it.

Names are ordered by the SHA-256 of seed and name: no random generator, whose stream may change
between versions, and a file that is added or removed does not disturb the others.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsmamba.errors import ConfigError, OutputNotWritableError
from rsmamba.files import write_text

MANIFEST_VERSION = 1


def rank(name: str, seed: int) -> str:
    """Sorting key that shuffles names, the same everywhere for the same seed."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def stratified_split(
    classes: Mapping[str, str],
    *,
    train_ratio: float,
    val_ratio: float,
    seed: int,
    together: Iterable[Sequence[str]] = (),
) -> dict[str, list[str]]:
    """Split names class by class into train, val and test.

    Each class of n gives ``round(n * train_ratio)`` names for training, of which
    ``round(... * val_ratio)`` become validation; the rest of the class is the test set. This is
    the field's "training ratio" protocol (TR = 50 %: half of each class trains).

    Args:
        classes: Name -> class.
        train_ratio: Share of each class that may be trained on, validation included; (0, 1).
        val_ratio: Share of those that is held back for validation; [0, 1).
        seed: Number of the split.
        together: Groups of names, each within one class, that must not be separated.

    Returns:
        Sorted names under "train", "val" and "test".

    Raises:
        ConfigError: If a ratio is out of range or leaves a class without training or test names.
    """
    if not 0 < train_ratio < 1 or not 0 <= val_ratio < 1:
        raise ConfigError(
            f"train_ratio={train_ratio} must lie between 0 and 1, val_ratio={val_ratio} in [0, 1)"
        )
    together = list(together)
    seen, test = divide(classes, train_ratio, seed, together)
    val, train = divide({name: classes[name] for name in seen}, val_ratio, seed, together)
    have = [{classes[name] for name in part} for part in (train, test)]
    if poor := sorted(set(classes.values()) - (have[0] & have[1])):
        count = sum(label == poor[0] for label in classes.values())
        raise ConfigError(
            f"class {poor[0]!r} has {count} images, too few for train_ratio={train_ratio} "
            f"and val_ratio={val_ratio}"
        )
    return {"train": train, "val": val, "test": test}


def divide(
    classes: Mapping[str, str], share: float, seed: int, together: Iterable[Sequence[str]] = ()
) -> tuple[list[str], list[str]]:
    """Take ``round(n * share)`` names of each class of n, and leave the others.

    Args:
        classes: Name -> class.
        share: In [0, 1].
        seed: Number of the order in which they are taken.
        together: Groups of names, each within one class, that must not be separated; a group that
            does not fit into the share is left whole.

    Returns:
        Sorted names taken, sorted names left.
    """
    groups = [sorted(name for name in group if name in classes) for group in together]
    leader = {name: group[0] for group in groups for name in group}
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        by_class[classes[name]].append(name)
    taken: list[str] = []
    left: list[str] = []
    for names in by_class.values():
        units: dict[str, list[str]] = defaultdict(list)
        for name in names:
            units[leader.get(name, name)].append(name)
        ordered = [units[key] for key in sorted(units, key=lambda key: rank(key, seed))]
        for part, chosen in zip(
            (taken, left), _fill(ordered, round(len(names) * share)), strict=True
        ):
            part += [name for unit in chosen for name in unit]
    return sorted(taken), sorted(left)


def _fill(units: list[list[str]], capacity: int) -> tuple[list[list[str]], list[list[str]]]:
    """Take units in order as long as they fit whole; return (taken, left)."""
    taken: list[list[str]] = []
    left: list[list[str]] = []
    for unit in units:
        if len(unit) <= capacity:
            taken.append(unit)
            capacity -= len(unit)
        else:
            left.append(unit)
    return taken, left


def take_share(sizes: Mapping[str, float], share: float, seed: int) -> set[str]:
    """Choose names in seeded order until their sizes come nearest to a share of the total.

    At least one name is chosen, and at least one is left.

    Raises:
        ConfigError: If the share is not in (0, 1) or there are fewer than two names.
    """
    if not 0 < share < 1:
        raise ConfigError(
            f"a fraction of {share} leaves nothing to train on or nothing to judge by"
        )
    if len(sizes) < 2:
        raise ConfigError("one file or block cannot be divided; add more, or set the fraction to 0")
    names = sorted(sizes, key=lambda name: rank(name, seed))
    wanted = share * sum(sizes.values())
    chosen, total = {names[0]}, sizes[names[0]]
    for name in names[1:-1]:
        if total + sizes[name] / 2 > wanted:
            break
        chosen.add(name)
        total += sizes[name]
    return chosen


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What determines the splits of a run, and the files in each.

    Attributes:
        dataset: Name of the data set.
        root: Folder to which the files are relative, so that two machines agree.
        settings: Protocol, ratios, seeds, ... (JSON values).
        splits: Files with further facts about each (e.g. its window), by split.
        hashed: Whether the SHA-256 of each file is written; reading millions takes hours.
    """

    dataset: str
    root: Path
    settings: Mapping[str, Any]
    splits: Mapping[str, Sequence[tuple[Path, Mapping[str, Any]]]]
    hashed: bool = True

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write as JSON: version, dataset, root, settings, and per split the files.

        Args:
            path: File to write; replaced only when the new one is complete.

        Returns:
            The path.

        Raises:
            OutputNotWritableError: If the folder cannot be written to.
        """
        hashes: dict[Path, dict[str, str]] = {}

        def entry(file: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
            if file not in hashes:
                hashes[file] = {"sha256": sha256(file)} if self.hashed else {}
            name = file.relative_to(self.root) if file.is_relative_to(self.root) else file
            return {"file": name.as_posix(), **hashes[file], **facts}

        content = {
            "version": MANIFEST_VERSION,
            "dataset": self.dataset,
            "root": str(self.root),
            "settings": dict(self.settings),
            "splits": {
                name: [entry(*item) for item in items] for name, items in self.splits.items()
            },
        }
        target = Path(path)
        try:
            write_text(target, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise OutputNotWritableError(
                f"{target}: cannot be written ({error.strerror})"
            ) from error
        return target
