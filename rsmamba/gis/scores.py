"""Counts of a comparison and the figures that follow from them."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LeftOut:
    """Pixels that were not compared.

    Attributes:
        map_nodata: Without class in the map only.
        truth_unknown: Without truth only: nodata, an ignored value, outside all polygons.
        both: Without either.
    """

    map_nodata: int = 0
    truth_unknown: int = 0
    both: int = 0

    def __add__(self, other: "LeftOut") -> "LeftOut":
        return LeftOut(
            self.map_nodata + other.map_nodata,
            self.truth_unknown + other.truth_unknown,
            self.both + other.both,
        )

    @property
    def total(self) -> int:
        """All of them."""
        return self.map_nodata + self.truth_unknown + self.both


@dataclass(frozen=True)
class Evaluation:
    """A class map beside the truth.

    A figure without a meaning is NaN, and null in JSON: the IoU of a class that is in neither, the
    recall of a class that is not in the truth, kappa where both have one and the same class only.

    Attributes:
        classes: Class names by index.
        confusion: (K, K) pixel counts, rows truth, columns prediction.
        left_out: Pixels that were not compared.
        areas: The same for each area of interest, by name.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    left_out: LeftOut = LeftOut()
    areas: Mapping[str, "Evaluation"] = field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """Number of compared pixels."""
        return int(self.confusion.sum())

    @property
    def overall_accuracy(self) -> float:
        """Share of pixels with the right class."""
        return float(np.trace(self.confusion) / self.pixels) if self.pixels else math.nan

    @property
    def precision(self) -> NDArray[np.float64]:
        """(K,) share of the class in the map that is right (user's accuracy)."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) share of the class in the truth that is found (producer's accuracy)."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(1))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union."""
        hit = np.diag(self.confusion)
        return _ratio(hit, self.confusion.sum(0) + self.confusion.sum(1) - hit)

    @property
    def f1(self) -> NDArray[np.float64]:
        """(K,) harmonic mean of precision and recall."""
        return _ratio(2 * np.diag(self.confusion), self.confusion.sum(0) + self.confusion.sum(1))

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the classes that are in the map or in the truth."""
        return _mean(self.iou)

    @property
    def mean_f1(self) -> float:
        """Mean F1 of the classes that are in the map or in the truth."""
        return _mean(self.f1)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance."""
        total = float(self.pixels)
        if not total:
            return math.nan
        shares = self.confusion.sum(0) / total, self.confusion.sum(1) / total
        chance = float(shares[0] @ shares[1])
        return (self.overall_accuracy - chance) / (1 - chance) if chance < 1 else math.nan

    def constant(self, index: int) -> "Evaluation":
        """The same truth against an answer of one class everywhere: a baseline to beat."""
        confusion = np.zeros_like(self.confusion)
        confusion[:, index] = self.confusion.sum(axis=1)
        return Evaluation(self.classes, confusion)

    @property
    def majority(self) -> int:
        """Index of the truth's most frequent class."""
        return int(self.confusion.sum(axis=1).argmax())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready report, baselines and areas included."""
        constant = {n: self.constant(i)._figures() for i, n in enumerate(self.classes)}
        return {
            **self._counts(),
            **self._figures(),
            "majority_class": self.classes[self.majority],
            "constant_answers": constant,
            "areas": {n: a._counts() | a._figures() for n, a in self.areas.items()},
        }

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def _counts(self) -> dict[str, Any]:
        left_out = self.left_out
        return {
            "pixels": self.pixels,
            "pixels_left_out": {
                "map_nodata": left_out.map_nodata,
                "truth_unknown": left_out.truth_unknown,
                "both": left_out.both,
            },
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }

    def _figures(self) -> dict[str, Any]:
        def named(values: NDArray[np.float64]) -> dict[str, float | None]:
            return {n: _null(v) for n, v in zip(self.classes, values.tolist(), strict=True)}

        return {
            "overall_accuracy": _null(self.overall_accuracy),
            "kappa": _null(self.kappa),
            "mean_iou": _null(self.mean_iou),
            "mean_f1": _null(self.mean_f1),
            "iou": named(self.iou),
            "f1": named(self.f1),
            "precision": named(self.precision),
            "recall": named(self.recall),
        }


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares; NaN of nothing."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what has a value."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _null(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
