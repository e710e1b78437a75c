"""Semantic segmentation with any timm backbone and smp's decoders."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torchgeo.tasks import BaseTask
from torchmetrics import MetricCollection

from rsmamba.errors import ConfigError, LabelError
from rsmamba.models.checkpoints import load_backbone
from rsmamba.spec import TaskName
from rsmamba.tasks.checks import check_backbone_name, check_band_names, check_classes
from rsmamba.tasks.metrics import EpochMetrics, multiclass_metrics
from rsmamba.tasks.optim import adamw_warmup_cosine

Decoder = Literal["unet", "upernet", "segformer", "fpn", "dpt"]

#: Coarsest level of the pyramids that smp's decoders read.
_STRIDE = 32

_DECODERS: dict[str, type[nn.Module]] = {
    "unet": smp.Unet,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
    "fpn": smp.FPN,
    "dpt": smp.DPT,
}


class SemanticSegmentation(EpochMetrics, BaseTask):
    """Per-pixel classes from a timm backbone and a decoder of segmentation_models_pytorch.

    Differs from :class:`torchgeo.tasks.SemanticSegmentation` in what remote-sensing fine-tuning
    needs: rsmamba checkpoints as backbone weights with a coverage check, cross-entropy plus Dice,
    GroupNorm for small batches, AdamW with warm-up and cosine decay, and a ``ModelSpec``.

    Args:
        model: Decoder.
        backbone: timm name of a backbone that gives a feature pyramid.
        weights: Checkpoint for the backbone (see
            :func:`rsmamba.models.checkpoints.load_backbone`); None for random weights.
        in_channels: Number of input bands.
        bands: Names of the input bands in order (see :mod:`rsmamba.sensors`), ``in_channels`` many:
            the stem's weights are fitted to them, and data with others are refused. None for those
            that the weights were trained on.
        num_classes: Number of classes, background included.
        labels: Class names by index.
        ignore_index: Mask value that counts nowhere.
        loss: ``"ce"`` or ``"ce+dice"`` (their sum).
        class_weights: Weight per class in the cross-entropy.
        norm: Normalisation in the decoder; ``"groupnorm"`` suits small batches.
        backbone_kwargs: Further arguments of the timm model.
        decoder_kwargs: Further arguments of the smp decoder.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        warmup: Share of the steps spent warming up.
        freeze_backbone: Train the decoder only.
    """

    task_name: ClassVar[TaskName] = "segmentation"
    ignore = "weights"
    monitor = "val_AverageJaccardIndex"
    mode = "max"

    def __init__(
        self,
        model: Decoder = "upernet",
        backbone: str = "spatial_mamba_tiny",
        weights: str | None = None,
        in_channels: int = 3,
        bands: list[str] | None = None,
        num_classes: int = 2,
        labels: Sequence[str] | None = None,
        ignore_index: int = 255,
        loss: Literal["ce", "ce+dice"] = "ce+dice",
        class_weights: Sequence[float] | None = None,
        norm: Literal["batchnorm", "groupnorm"] = "batchnorm",
        backbone_kwargs: dict[str, Any] | None = None,
        decoder_kwargs: dict[str, Any] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        freeze_backbone: bool = False,
    ) -> None:
        self.weights = weights
        super().__init__()

    @property
    def architecture(self) -> str:
        """timm name of the backbone."""
        return str(self.hparams["backbone"])

    def configure_models(self) -> None:
        """Build decoder and backbone; load the backbone's weights.

        Raises:
            UnknownModelError: If timm does not know the backbone.
            ConfigError: If names of classes or bands and their number disagree.
            CheckpointError: If the weights do not fit the backbone.
            BandMismatchError: If the weights' bands cannot be related to the task's.
        """
        h = self.hparams
        check_band_names(h["bands"], h["in_channels"])
        check_backbone_name(h["backbone"])
        if h["labels"] is not None and len(h["labels"]) != h["num_classes"]:
            raise ConfigError(
                f"num_classes is {h['num_classes']} but labels has {len(h['labels'])} names "
                f"({', '.join(h['labels'])}): make them agree"
            )
        self.model = _DECODERS[h["model"]](
            encoder_name=f"tu-{h['backbone']}",
            encoder_weights=None,
            in_channels=h["in_channels"],
            classes=h["num_classes"],
            **(h["decoder_kwargs"] or {}),
            **(h["backbone_kwargs"] or {}),
        )
        if h["norm"] == "groupnorm":
            batch_to_group_norm(self.model.decoder)
        if self.weights is not None:
            # TimmUniversalEncoder.model is timm's feature wrapper, whose .model is the backbone
            self.load_report = load_backbone(
                self.model.encoder.model.model, self.weights, bands=h["bands"]
            )
        if h["freeze_backbone"]:
            self.model.encoder.requires_grad_(False)

    def configure_losses(self) -> None:
        """Cross-entropy, and Dice if asked for."""
        h = self.hparams
        weights = None if h["class_weights"] is None else torch.tensor(h["class_weights"])

        self.cross_entropy = nn.CrossEntropyLoss(weights, ignore_index=h["ignore_index"])
        self.dice = smp.losses.DiceLoss("multiclass", ignore_index=h["ignore_index"])

    def configure_metrics(self) -> None:
        """Overall accuracy, F1 and IoU on validation and test data."""
        h = self.hparams
        self.set_metrics(
            multiclass_metrics(h["num_classes"], labels=h["labels"], ignore_index=h["ignore_index"])
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of normalised images (B, C, H, W) of any size.

        smp's decoders take whole multiples of the encoder's stride: the image is padded at the
        bottom and right by its border values, the logits are cut back.
        """
        height, width = image.shape[-2:]
        padding = (-width % _STRIDE, -height % _STRIDE)
        padded = nn.functional.pad(image, (0, padding[0], 0, padding[1]), mode="replicate")
        return self._logits(padded if any(padding) else image)[..., :height, :width]

    def _logits(self, image: Tensor) -> Tensor:
        """Logits of images whose sides are whole multiples of the stride."""
        logits: Tensor = self.model(image)
        return logits

    def setup(self, stage: str) -> None:
        """Refuse data whose classes are not the head's, before the first step."""
        check_classes(self, self.hparams["num_classes"], self.hparams["labels"])

    def loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Training loss of (B, K, H, W) logits against a (B, H, W) mask.

        Raises:
            LabelError: If no pixel of the batch is labelled, or a label is out of range.
        """
        labelled = mask[mask != self.hparams["ignore_index"]]
        if labelled.numel() == 0:
            raise LabelError("a whole batch has no labelled pixel: check the masks and areas")
        if int(labelled.max()) >= self.hparams["num_classes"] or int(labelled.min()) < 0:
            raise LabelError(
                f"mask values {int(labelled.min())}..{int(labelled.max())} do not fit "
                f"{self.hparams['num_classes']} classes: check the mask or num_classes"
            )
        loss: Tensor = self.cross_entropy(logits, mask)
        if self.hparams["loss"] == "ce+dice":
            loss = loss + self.dice(logits, mask)
        return loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch of ``image`` (B, C, H, W) and ``mask`` (B, H, W)."""
        loss = self.loss(self(batch["image"]).float(), batch["mask"])
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and metrics; a batch without labels (a border) has no loss."""
        logits = self(batch["image"]).float()
        if (batch["mask"] != self.hparams["ignore_index"]).any():
            self.log("val_loss", self.loss(logits, batch["mask"]), batch_size=len(logits))
        self._count(self.val_metrics, logits, batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Metrics of one test batch."""
        self._count(self.test_metrics, self(batch["image"]).float(), batch)

    def _count(self, metrics: MetricCollection, logits: Tensor, batch: dict[str, Tensor]) -> None:
        """Add a batch to the metrics of an epoch."""
        metrics.update(logits, batch["mask"])

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (B, K, H, W)."""
        return self(batch["image"]).float().softmax(dim=1)

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """AdamW with warm-up and cosine decay over the planned steps."""
        h = self.hparams
        return adamw_warmup_cosine(
            self, self.model, lr=h["lr"], weight_decay=h["weight_decay"], warmup=h["warmup"]
        )


def batch_to_group_norm(module: nn.Module, groups: int = 8) -> None:
    """Replace every BatchNorm2d inside ``module`` by GroupNorm, in place.

    smp's decoders offer no GroupNorm, and batch statistics are poor at the batch sizes of
    segmentation.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            count = groups if child.num_features % groups == 0 else 1
            setattr(module, name, nn.GroupNorm(count, child.num_features))
        else:
            batch_to_group_norm(child, groups)
