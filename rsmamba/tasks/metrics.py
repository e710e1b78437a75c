"""Multiclass metrics under TorchGeo's names, shared by classification and segmentation."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)
from torchmetrics.wrappers import ClasswiseWrapper


def multiclass_metrics(
    num_classes: int, *, labels: Sequence[str] | None = None, ignore_index: int | None = None
) -> MetricCollection:
    """Overall accuracy, mean and per-class F1 and intersection over union.

    Args:
        num_classes: Number of classes.
        labels: Class names for the per-class values; indices if None.
        ignore_index: Label that does not count.

    Returns:
        Metrics named as in :mod:`torchgeo.tasks`: ``OverallAccuracy``, ``AverageAccuracy``,
        ``AverageF1Score``, ``AverageJaccardIndex``, ``ClasswiseF1Score_<label>``,
        ``ClasswiseJaccardIndex_<label>``.
    """
    common: dict[str, Any] = {"num_classes": num_classes, "ignore_index": ignore_index}
    names = None if labels is None else list(labels)
    return MetricCollection(
        {
            "OverallAccuracy": MulticlassAccuracy(average="micro", **common),
            "AverageAccuracy": MulticlassAccuracy(average="macro", **common),
            "AverageF1Score": MulticlassF1Score(average="macro", **common),
            "AverageJaccardIndex": MulticlassJaccardIndex(average="macro", **common),
            "ClasswiseF1Score": ClasswiseWrapper(
                MulticlassF1Score(average="none", **common),
                labels=names,
                prefix="ClasswiseF1Score_",
            ),
            "ClasswiseJaccardIndex": ClasswiseWrapper(
                MulticlassJaccardIndex(average="none", **common),
                labels=names,
                prefix="ClasswiseJaccardIndex_",
            ),
        }
    )


class EpochMetrics(LightningModule):
    """Mix-in: ``val_metrics`` and ``test_metrics`` are logged and reset after their epoch."""

    val_metrics: MetricCollection
    test_metrics: MetricCollection

    def set_metrics(self, metrics: MetricCollection) -> None:
        """Give validation and test a copy each."""
        self.val_metrics = metrics.clone(prefix="val_")
        self.test_metrics = metrics.clone(prefix="test_")

    def on_validation_epoch_end(self) -> None:
        """Log what the validation epoch gave."""
        self._log_and_reset(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log what the test epoch gave."""
        self._log_and_reset(self.test_metrics)

    def _log_and_reset(self, metrics: MetricCollection) -> None:
        self.log_dict(metrics.compute())
        metrics.reset()
