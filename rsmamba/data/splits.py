"""Splits that are the same on every machine, and the manifest that proves it.

Names are ordered by the SHA-256 of seed and name: no random generator, whose stream may change
between versions, and a file that is added or removed does not disturb the others.
"""

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsmamba.errors import ConfigError, OutputNotWritableError

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
    leader = {name: group[0] for group in map(sorted, together) for name in group}
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        by_class[classes[name]].append(name)

    split: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, names in by_class.items():
        units: dict[str, list[str]] = defaultdict(list)
        for name in names:
            units[leader.get(name, name)].append(name)
        ordered = [units[key] for key in sorted(units, key=lambda key: rank(key, seed))]
        seen, test = _fill(ordered, round(len(names) * train_ratio))
        val, train = _fill(seen, round(sum(map(len, seen)) * val_ratio))
        if not train or not test:
            raise ConfigError(
                f"class {label!r} has {len(names)} images, too few for train_ratio={train_ratio} "
                f"and val_ratio={val_ratio}"
            )
        for part, chosen in (("train", train), ("val", val), ("test", test)):
            split[part] += [name for unit in chosen for name in unit]
    return {part: sorted(names) for part, names in split.items()}


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


def write_manifest(
    path: str | os.PathLike[str],
    *,
    dataset: str,
    root: Path,
    settings: Mapping[str, Any],
    splits: Mapping[str, Sequence[tuple[Path, Mapping[str, Any]]]],
) -> Path:
    """Record which files made up each split, with their hashes, as JSON.

    Args:
        path: File to write; replaced only when the new one is complete.
        dataset: Name of the data set or data module.
        root: Folder to which file names are relative, so that two machines agree.
        settings: Whatever determines the split (protocol, ratio, seed, ...); JSON values.
        splits: Per split, files with further facts about each (e.g. its window).

    Returns:
        The path.

    Raises:
        OutputNotWritableError: If the folder cannot be written to.
    """
    hashes: dict[Path, str] = {}

    def entry(file: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        if file not in hashes:
            hashes[file] = sha256(file)
        name = file.relative_to(root) if file.is_relative_to(root) else file
        return {"file": name.as_posix(), "sha256": hashes[file], **facts}

    content = {
        "version": MANIFEST_VERSION,
        "dataset": dataset,
        "root": str(root),
        "settings": dict(settings),
        "splits": {name: [entry(*item) for item in items] for name, items in splits.items()},
    }
    target = Path(path)
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as file:
            temporary = file.name
            json.dump(content, file, indent=1)
            file.write("\n")
        Path(temporary).chmod(0o644)  # temporary files are private, a manifest is not
        Path(temporary).replace(target)
    except OSError as error:
        raise OutputNotWritableError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return target
