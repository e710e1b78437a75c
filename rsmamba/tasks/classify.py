"""Scene classification: a linear probe on frozen features, or full fine-tuning."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import timm
import torch
from torch import Tensor, nn
from torchgeo.tasks import BaseTask

from rsmamba.errors import ConfigError
from rsmamba.models.checkpoints import load_backbone
from rsmamba.spec import TaskName
from rsmamba.tasks.checks import check_backbone_name, check_band_names, check_classes
from rsmamba.tasks.features import (
    COLOUR_HISTOGRAM,
    BackboneFeatures,
    ColourHistogram,
    LinearProbe,
    Readout,
    select_l2,
)
from rsmamba.tasks.metrics import EpochMetrics, multiclass_metrics
from rsmamba.tasks.optim import adamw_warmup_cosine


class SceneClassification(EpochMetrics, BaseTask):
    """One class per image.

    ``mode="probe"`` reads every training image once through the frozen backbone, chooses an L2
    weight by cross-validation and fits a standardised linear layer by L-BFGS: train it with
    ``max_epochs: 1``. ``mode="finetune"`` trains everything.

    Args:
        model: timm name of the backbone, or ``"colour_histogram"``: the same probe on features
            without a network, the baseline that a pretrained backbone has to beat.
        weights: Checkpoint for the backbone (see
            :func:`rsmamba.models.checkpoints.load_backbone`); None for random weights.
        mode: ``"probe"`` or ``"finetune"``.
        readout: Probe only: ``"mean"``, ``"mean_std"`` or ``"token"``.
        layers: Probe only: how many of the last layers are read.
        l2_grid: Probe only: L2 weights to choose from.
        in_channels: Number of input bands.
        bands: Names of the input bands in order (see :mod:`rsmamba.sensors`), ``in_channels`` many:
            the stem's weights are fitted to them, and data with others are refused. None for those
            that the weights were trained on.
        num_classes: Number of classes.
        labels: Class names by index.
        model_kwargs: Further arguments of the timm model.
        label_smoothing: Fine-tuning only.
        lr: Peak learning rate of fine-tuning.
        weight_decay: Decoupled weight decay of fine-tuning.
        warmup: Share of the steps spent warming up.
        layer_decay: Learning-rate factor per layer group, from the head down.
    """

    task_name: ClassVar[TaskName] = "classification"
    ignore = "weights"
    monitor = "val_OverallAccuracy"
    mode = "max"

    def __init__(
        self,
        model: str = "roma_tiny_patch16",
        weights: str | None = None,
        mode: Literal["probe", "finetune"] = "finetune",
        readout: Readout = "mean",
        layers: int = 1,
        l2_grid: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        in_channels: int = 3,
        bands: list[str] | None = None,
        num_classes: int = 21,
        labels: Sequence[str] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        layer_decay: float | None = None,
    ) -> None:
        self.weights = weights
        self._train_features: list[tuple[Tensor, Tensor]] = []
        super().__init__()
        # A probe reads every image once and solves afterwards; Lightning's loop takes no steps.
        self.automatic_optimization = not self.probing

    @property
    def probing(self) -> bool:
        """Whether the backbone is frozen."""
        return bool(self.hparams["mode"] == "probe")

    @property
    def architecture(self) -> str:
        """timm name of the backbone."""
        return str(self.hparams["model"])

    def configure_models(self) -> None:
        """Build backbone and head; load the backbone's weights.

        Raises:
            UnknownModelError: If timm does not know the backbone.
            ConfigError: If options contradict each other.
            CheckpointError: If the weights do not fit the backbone.
            BandMismatchError: If the weights' bands cannot be related to the task's.
        """
        h = self.hparams
        check_band_names(h["bands"], h["in_channels"])
        if h["model"] == COLOUR_HISTOGRAM:
            if not self.probing or self.weights is not None:
                raise ConfigError(f"model {COLOUR_HISTOGRAM} takes mode: probe and no weights")
            self.features: nn.Module = ColourHistogram(h["in_channels"])
        elif self.probing:
            self.features = BackboneFeatures(
                h["model"],
                readout=h["readout"],
                layers=h["layers"],
                weights=self.weights,
                in_channels=h["in_channels"],
                bands=h["bands"],
                model_kwargs=h["model_kwargs"],
            )
        else:
            check_backbone_name(h["model"])
            self.model = timm.create_model(
                h["model"],
                num_classes=h["num_classes"],
                in_chans=h["in_channels"],
                **(h["model_kwargs"] or {}),
            )
            if self.weights is not None:
                self.load_report = load_backbone(self.model, self.weights, bands=h["bands"])
            return
        self.head = LinearProbe(cast(int, self.features.num_features), h["num_classes"])
        self.model = nn.Sequential(self.features, self.head)

    def configure_losses(self) -> None:
        """Cross-entropy."""
        self.criterion = nn.CrossEntropyLoss(label_smoothing=self.hparams["label_smoothing"])

    def configure_metrics(self) -> None:
        """Overall and per-class accuracy on validation and test data."""
        self.set_metrics(
            multiclass_metrics(self.hparams["num_classes"], labels=self.hparams["labels"])
        )

    def setup(self, stage: str) -> None:
        """Refuse data whose classes are not the head's, before the first step."""
        check_classes(self, self.hparams["num_classes"], self.hparams["labels"])

    def on_train_epoch_start(self) -> None:
        """Forget the features of an interrupted or earlier epoch."""
        self._train_features.clear()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        """Fine-tuning: the loss. Probe: keep the features; after the last batch, solve."""
        if self.probing:
            self._train_features.append((self.features(batch["image"]).float(), batch["label"]))
            if self.trainer.is_last_batch:
                self._solve_probe()
            return None
        loss: Tensor = self.criterion(self(batch["image"]), batch["label"])
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def _solve_probe(self) -> None:
        """Choose the L2 weight, then fit the head on all training features: one optimizer step."""
        features, labels = (torch.cat(part) for part in zip(*self._train_features, strict=True))
        l2 = select_l2(features, labels, self.hparams["num_classes"], self.hparams["l2_grid"])
        self.head.fit(features, labels, l2, cast(torch.optim.Optimizer, self.optimizers()))
        self.log("probe_l2", l2)
        self._train_features.clear()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and metrics of one validation batch."""
        logits = self(batch["image"]).float()
        self.log("val_loss", self.criterion(logits, batch["label"]), batch_size=len(logits))
        self.val_metrics.update(logits, batch["label"])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Metrics of one test batch."""
        self.test_metrics.update(self(batch["image"]).float(), batch["label"])

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (B, K)."""
        return self(batch["image"]).float().softmax(dim=1)

    def configure_optimizers(self) -> Any:
        """L-BFGS on the probe's layer, or AdamW with warm-up and cosine decay."""
        h = self.hparams
        if self.probing:
            return self.head.lbfgs()
        return adamw_warmup_cosine(
            self,
            self.model,
            lr=h["lr"],
            weight_decay=h["weight_decay"],
            warmup=h["warmup"],
            layer_decay=h["layer_decay"],
        )
