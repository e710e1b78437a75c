"""What the tasks measure: multiclass metrics under TorchGeo's names, and those of change."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric, MetricCollection
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


class ChangeMetrics(Metric):
    """Precision, recall, F1 and intersection over union of one class, in all and by scene.

    Counts of pixels are added up over batches, scenes and processes, and divided at the end: the
    "micro" figures of the change detection literature, in which a large scene weighs more than a
    small one. A quotient of nothing by nothing is 0.

    Args:
        scenes: Names of the scenes that are scored one by one; none if empty.
        positive: Class that counts.
        ignore_index: Mask value that does not.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(
        self, scenes: Sequence[str] = (), positive: int = 1, ignore_index: int = 255
    ) -> None:
        super().__init__()
        self.scenes, self.positive, self.ignore_index = tuple(scenes), positive, ignore_index
        # true positives, false positives, false negatives of each scene
        empty = torch.zeros(max(1, len(self.scenes)), 3, dtype=torch.long)
        self.add_state("counts", default=empty, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, mask: Tensor, scene: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            prediction: Classes (B, H, W), or scores of classes (B, K, H, W).
            mask: Truth (B, [1,] H, W).
            scene: Number of the scene of each sample (B,); None where no scenes are named.
        """
        truth = mask.flatten(1)
        if prediction.is_floating_point():
            prediction = prediction.argmax(dim=1)
        counted = truth != self.ignore_index
        said = (prediction.flatten(1) == self.positive) & counted
        true = (truth == self.positive) & counted
        kinds = (said & true, said & ~true, ~said & true)
        batch = torch.stack([kind.sum(dim=1) for kind in kinds], dim=1)
        if not self.scenes or scene is None:
            self.counts[0] += batch.sum(0)
        else:
            self.counts.index_add_(0, scene, batch)

    def compute(self) -> dict[str, Tensor]:
        """``F1Change``, ``PrecisionChange``, ``RecallChange``, ``IoUChange``, ``F1Change_<scene>``.

        Scenes without a pixel of the class, in truth and prediction, have no figure of their own.
        """
        tp, fp, fn = self.counts.sum(0).unbind()
        scores = {
            "F1Change": _quotient(2 * tp, 2 * tp + fp + fn),
            "PrecisionChange": _quotient(tp, tp + fp),
            "RecallChange": _quotient(tp, tp + fn),
            "IoUChange": _quotient(tp, tp + fp + fn),
        }
        for name, (tp, fp, fn) in zip(self.scenes, self.counts, strict=False):
            if total := 2 * tp + fp + fn:
                scores[f"F1Change_{name}"] = _quotient(2 * tp, total)
        return scores


def _quotient(part: Tensor, whole: Tensor) -> Tensor:
    """A share, 0 of nothing."""
    return part.float() / whole.clamp(min=1)


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
