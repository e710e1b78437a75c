"""Pictures of samples and batches: image, label and prediction side by side."""

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from torch import Tensor
from torchgeo.datasets.utils import Sample

from rsmamba.data.images import IGNORE, to_display
from rsmamba.gis.style import palette

#: Classes that a legend names at most.
LEGEND = 40
#: Scores below this are not drawn.
LEAST_SCORE = 0.5
#: What a sample may be judged by: key of the truth -> title of its panel.
_MASKS = {"mask": "label", "prediction": "prediction"}


def plot_samples(
    samples: Sequence[Sample],
    *,
    classes: Sequence[str] = (),
    colours: Sequence[str] = (),
    rgb: Sequence[int] = (0, 1, 2),
    show_titles: bool = True,
    suptitle: str | None = None,
) -> Figure:
    """Draw samples with whatever they hold of labels and predictions.

    Samples with masks get a row each: image (one panel per date), label, prediction. Others are
    set in a grid, with their class in words, or their boxes drawn; predicted boxes have a panel of
    their own.

    Args:
        samples: TorchGeo samples: "image" (C, H, W) or (T, C, H, W) in any units; "mask" and
            "prediction" ([1,] H, W) with 255 for unlabelled; "label" and "prediction" (), or (K,)
            of several labels; "bbox_xyxy" (N, 4) with "label" (N,) and perhaps "mask" (N, H, W),
            and the same as "prediction_bbox_xyxy", "prediction_label", "prediction_score",
            "prediction_mask".
        classes: Names by index.
        colours: ``#rrggbb`` by index; a palette safe for colour-blind readers if empty.
        rgb: Positions of the bands shown as red, green and blue; one for grey.
        show_titles: Whether panels have titles.
        suptitle: Title of the figure.
    """
    rows = [
        _panels(sample, classes, tuple(colours) or _colours(sample, classes), rgb)
        for sample in samples
    ]
    wide = max(map(len, rows))
    if wide == 1:  # a grid reads better than a column
        wide = min(4, math.ceil(math.sqrt(len(rows))))
        flat = [row[0] for row in rows]
        rows = [flat[i : i + wide] for i in range(0, len(flat), wide)]
    width = max(3 * wide, 5)  # narrower, legends and titles are cut off
    figure = Figure(figsize=(width, 3.25 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), wide, squeeze=False)
    for row, cells in zip(axes, rows, strict=True):
        for axis in row:
            axis.axis("off")
        for axis, panel in zip(row, cells, strict=False):
            panel.draw(axis, show_titles)
    if classes and any(_has_masks(sample) for sample in samples):
        chosen = tuple(colours) or tuple(palette(len(classes)))
        handles = [Patch(color=c, label=n) for c, n in zip(chosen, classes, strict=False)]
        longest = max(map(len, classes))
        columns = max(1, min(len(handles), int(width * 10 / (longest + 6))))
        figure.legend(
            handles=handles[:LEGEND], loc="outside lower center", ncols=columns, fontsize="small"
        )
    if suptitle is not None:
        figure.suptitle("\n".join(wrap(suptitle, int(width * 11))))
    return figure


def unbind(batch: Sample) -> list[Sample]:
    """The samples of a batch, on the CPU."""
    count = len(batch["image"])
    return [
        {key: _cpu(value[i]) for key, value in batch.items() if _len(value) == count}
        for i in range(count)
    ]


def _cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _len(value: Any) -> int:
    return (
        len(value)
        if isinstance(value, Sequence) or (isinstance(value, Tensor) and value.ndim)
        else -1
    )


class _Panel:
    """One picture with its title and boxes."""

    def __init__(
        self,
        picture: NDArray[Any],
        title: str = "",
        boxes: Sequence[tuple[Sequence[float], str, str]] = (),
    ) -> None:
        self.picture, self.title, self.boxes = picture, title, boxes

    def draw(self, axis: Axes, show_title: bool) -> None:
        axis.imshow(self.picture, interpolation="nearest")
        for (left, top, right, bottom), colour, text in self.boxes:
            axis.add_patch(
                Rectangle(
                    (left, top), right - left, bottom - top, fill=False, edgecolor=colour, lw=1.5
                )
            )
            axis.text(
                left,
                top - 2,
                text,
                color="white",
                fontsize=7,
                va="bottom",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
            )
        if show_title and self.title:
            axis.set_title(self.title, fontsize=9)


def _panels(
    sample: Sample, classes: Sequence[str], colours: Sequence[str], rgb: Sequence[int]
) -> list[_Panel]:
    """The panels of one sample, left to right."""
    image = sample["image"]
    dates = image[None] if image.ndim == 3 else image
    pictures = [to_display(date[list(rgb)] if len(date) > max(rgb) else date) for date in dates]
    if "bbox_xyxy" in sample or "prediction_bbox_xyxy" in sample:
        keys = [k for k in ("", "prediction_") if f"{k}bbox_xyxy" in sample]
        return [_boxes(sample, k, pictures[0], classes, colours) for k in keys]
    titles = [f"date {i + 1}" for i in range(len(pictures))] if len(pictures) > 1 else ["image"]
    masks = [(title, sample[key]) for key, title in _MASKS.items() if _is_mask(sample.get(key))]
    if not masks:
        titles = [_in_words(sample, classes), *titles[1:]]
    panels = [_Panel(p, t) for p, t in zip(pictures, titles, strict=True)]
    return panels + [_Panel(coloured(mask, colours), title) for title, mask in masks]


def _has_masks(sample: Sample) -> bool:
    """Whether colours stand for classes; boxes have their names on them."""
    boxes = "bbox_xyxy" in sample or "prediction_bbox_xyxy" in sample
    return not boxes and any(_is_mask(sample.get(key)) for key in _MASKS)


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2


def _in_words(sample: Sample, classes: Sequence[str]) -> str:
    """Names of the label and the prediction of an image."""
    lines = []
    for key in ("label", "prediction"):
        if isinstance(value := sample.get(key), Tensor):
            names = [_name(int(v), classes) for v in value.reshape(-1)]
            lines.append(f"{key}: {', '.join(names)}")
    return "\n".join(lines)


def _name(index: int, classes: Sequence[str]) -> str:
    return classes[index] if 0 <= index < len(classes) else str(index)


def _boxes(
    sample: Mapping[str, Any],
    prefix: str,
    picture: NDArray[Any],
    classes: Sequence[str],
    colours: Sequence[str],
) -> _Panel:
    """Objects of a sample, or those predicted."""
    boxes, labels = sample[f"{prefix}bbox_xyxy"], sample[f"{prefix}label"]
    scores = sample.get(f"{prefix}score")
    masks = sample.get(f"{prefix}mask")
    picture, drawn = picture.copy(), []
    for i, box in enumerate(boxes.tolist()):
        if scores is not None and scores[i] < LEAST_SCORE:
            continue
        index = int(labels[i])
        colour = colours[index % len(colours)]
        score = "" if scores is None else f" {float(scores[i]):.2f}"
        drawn.append((box, colour, _name(index, classes) + score))
        if masks is not None:
            inside = masks[i].squeeze().numpy() > 0.5
            picture[inside] = 0.5 * picture[inside] + 0.5 * np.asarray(to_rgb(colour))
    return _Panel(picture, "prediction" if prefix else "label", drawn)


def _colours(sample: Sample, classes: Sequence[str]) -> tuple[str, ...]:
    """Enough colours for the classes, named or not."""
    highest = 0
    for key in ("mask", "prediction", "label", "prediction_label"):
        if isinstance(value := sample.get(key), Tensor) and value.numel():
            highest = max(
                highest, int(value[value != IGNORE].max()) if (value != IGNORE).any() else 0
            )
    return tuple(palette(max(len(classes), highest + 1)))


def coloured(mask: Tensor, colours: Sequence[str]) -> NDArray[np.float32]:
    """RGB (H, W, 3) of a mask ([1,] H, W); unlabelled pixels are white."""
    table = np.ones((IGNORE + 1, 3), np.float32)
    table[: len(colours)] = [to_rgb(colour) for colour in colours[:IGNORE]]
    return table[mask.squeeze().cpu().numpy().astype(np.uint8)]
