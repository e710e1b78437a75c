"""A confusion matrix as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rsmamba.files import atomic_path
from rsmamba.gis.scores import Evaluation

# Up to so many classes a cell holds its count and share, up to so many its share alone.
_COUNTS, _SHARES = 14, 30
# At most so large, in inches: 254 classes are still a picture that opens.
_LARGEST = 24.0
_LONGEST_NAME = 24


def confusion_picture(result: Evaluation, out: str | Path, *, title: str | None = None) -> Path:
    """Draw the confusion matrix: rows truth, columns map.

    A cell shows its pixels and their share of the row, so that the diagonal is the recall. The
    colour is that share, from white to dark blue: a scale of one hue and growing darkness, which
    colour-blind readers and black-and-white printers keep.

    Args:
        result: The comparison.
        out: PNG to write (atomically; replaces an earlier one).
        title: Heading; accuracy and kappa stand below it.

    Returns:
        ``out``.
    """
    count = len(result.classes)
    cell = 0.95 if count <= _COUNTS else 0.5 if count <= _SHARES else 0.25
    side = min(_LARGEST, max(2.6, cell * count))
    font = 9.0 if count <= _COUNTS else 7.0 if count <= _SHARES else min(7.0, 50 * side / count)
    figure = Figure(figsize=(side + 3.4, side + 2.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    rows = result.confusion.sum(axis=1, keepdims=True)
    shares = np.divide(
        result.confusion, rows, out=np.full(result.confusion.shape, np.nan), where=rows > 0
    )
    axis.set_facecolor("#eeeeee")  # classes that are not in the truth have no shares
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_short(name) for name in result.classes]
    turned = count > 4 or max(map(len, names)) > 10
    axis.set_xticks(range(count), names, rotation=90 if turned else 0, fontsize=font)
    truth = [f"{n}\n{_amount(int(total))}" for n, total in zip(names, rows[:, 0], strict=True)]
    axis.set_yticks(range(count), truth if count <= _COUNTS else names, fontsize=font)
    axis.set_xlabel("map")
    axis.set_ylabel("truth, with its pixels" if count <= _COUNTS else "truth")
    if count <= _SHARES:
        axis.set_xticks(np.arange(count - 1) + 0.5, minor=True)
        axis.set_yticks(np.arange(count - 1) + 0.5, minor=True)
        axis.grid(which="minor", color="#cccccc", linewidth=0.5)
        axis.tick_params(which="minor", length=0)
        for (row, column), pixels in np.ndenumerate(result.confusion):
            share = shares[row, column]
            text = "n/a" if np.isnan(share) else _percent(share)
            if count <= _COUNTS:
                text = f"{_amount(int(pixels))}\n{text}"
            axis.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=font,
                color="white" if share > 0.55 else "black",
            )
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the class in the truth")
    figures = (
        f"{result.pixels:,} pixels, overall accuracy {result.overall_accuracy:.3f}, "
        f"kappa {result.kappa:.3f}, mean IoU {result.mean_iou:.3f}"
    )
    axis.set_title(f"{title}\n{figures}" if title else figures, fontsize=10)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return Path(out)


def _short(name: str) -> str:
    """A name that fits beside the matrix."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _amount(pixels: int) -> str:
    """A count of at most seven characters."""
    for limit, unit in ((10**9, "G"), (10**6, "M")):
        if pixels >= limit:
            return f"{pixels / limit:.3g} {unit}"
    return f"{pixels:,}"


def _percent(share: float) -> str:
    """A share that is neither 0 nor 1 does not read as such."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "<0.1 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"
