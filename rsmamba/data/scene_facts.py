"""What the scenes of a set have in common: bands, nodata, factor, resolution."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

from rsmamba.data.images import Scene
from rsmamba.data.listing import some
from rsmamba.errors import BandMismatchError
from rsmamba.sensors import check_bands, labels_of


def same_bands(scenes: Sequence[Scene]) -> int:
    """Number of bands that all scenes have.

    Raises:
        BandMismatchError: If they differ, naming files of each kind.
    """
    counts = Counter(len(s.indexes) for s in scenes)
    if len(counts) > 1:
        kinds = [
            f"{count} bands in {some([s.path.name for s in scenes if len(s.indexes) == count])}"
            for count in counts
        ]
        raise BandMismatchError(
            f"images differ in bands: {'; '.join(kinds)}: choose common ones with indexes=[...]"
        )
    return next(iter(counts))


def band_names(bands: Sequence[str] | None, scenes: Sequence[Scene]) -> tuple[str, ...]:
    """Names of the bands that are read: as given, or as the files have them.

    Args:
        bands: Names; None for those in the files (descriptions, or red, green and blue by colour
            interpretation). Three bands of which nothing is told are red, green and blue, others
            band_1, band_2, ... by their number in the file.
        scenes: The images.

    Raises:
        BandMismatchError: If there are not as many names as bands, a file describes its bands
            otherwise than given, or files differ.
    """
    count = same_bands(scenes)
    if bands is not None:
        if len(bands) != count:
            names = ", ".join(bands)
            raise BandMismatchError(f"{len(bands)} band names ({names}) for {count} bands")
        for scene in (s for s in scenes if s.described):
            remedy = "order them with indexes=[...], or correct bands or the file's descriptions"
            check_bands(scene.described, bands, str(scene.path), remedy=remedy, described=True)
        return tuple(bands)
    found: list[tuple[str, Scene] | None] = [None] * count
    for scene in scenes:
        for i, label in enumerate(labels_of(scene.names)):
            if label is None:
                continue
            name, first = found[i] or (label, scene)
            if name != label:
                raise BandMismatchError(
                    f"{scene.path}: band {scene.indexes[i]} is {label}, in {first.path} it is "
                    f"{name}: leave out one kind, order them alike, or name them with bands=[...] "
                    "if the files are wrong"
                )
            found[i] = (name, first)
    indexes = scenes[0].indexes
    if not any(found) and indexes == (1, 2, 3):
        return ("red", "green", "blue")
    told = [entry[0] if entry else None for entry in found]
    return tuple(
        name if name and told.count(name) == 1 else f"band_{index}"
        for name, index in zip(told, indexes, strict=True)
    )


def common_nodata(scenes: Sequence[Scene]) -> float | None:
    """The nodata value if all scenes declare the same one."""
    values = {s.nodata for s in scenes}
    return values.pop() if len(values) == 1 else None


def common_factor(scenes: Sequence[Scene]) -> float:
    """What the stored values of all scenes are multiplied by on reading; 1 if they differ."""
    factors = {s.factor for s in scenes}
    return factors.pop() if len(factors) == 1 else 1.0


def median_gsd(scenes: Sequence[Scene]) -> float | None:
    """Median ground sampling distance in metres of the georeferenced scenes."""
    known = [s.gsd for s in scenes if s.gsd is not None]
    return median(known) if known else None
