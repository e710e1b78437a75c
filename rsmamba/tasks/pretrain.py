"""RoMA's self-supervised pretraining: autoregressive clusters with adaptive rotation."""

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchgeo.tasks import BaseTask

from rsmamba.data.rotation import AdaptiveRotation
from rsmamba.models import RoMAForPretraining
from rsmamba.spec import TaskName
from rsmamba.tasks.baselines import TrivialAnswers
from rsmamba.tasks.checks import check_backbone_name, check_bands
from rsmamba.tasks.optim import adamw_warmup_cosine


class RoMAPretraining(BaseTask):
    """Predict each cluster of patches from the clusters before it (RoMA, arXiv 2503.10392).

    In every training image the most informative window is rotated; the encoder is told which
    tokens those are, and the target is the image as it was. The validation loss is logged beside
    three answers that need no network (:class:`rsmamba.tasks.baselines.TrivialAnswers`).

    Args:
        architecture: A plain RoMA, ``roma_{tiny,small,base,large}_patch16``.
        img_size: Side of the training images, pixels; a multiple of ``patch_size * cluster_size``.
        patch_size: Side of a patch, pixels.
        cluster_size: Side of a cluster, patches.
        in_channels: Number of bands.
        decoder_dim: Channels of the decoder.
        decoder_depth: Decoder blocks.
        decoder_heads: Attention heads of the decoder.
        rotation_windows: Sides in pixels that the rotated window may have; empty for no rotation.
        max_angle: Largest rotation, degrees.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        warmup: Share of the steps spent warming up.
        betas: AdamW's moment decay rates.
        baseline_batches: Training batches that the trivial answers are fitted on.
    """

    task_name: ClassVar[TaskName] = "pretraining"
    ignore = None

    def __init__(
        self,
        architecture: str = "roma_tiny_patch16",
        img_size: int = 192,
        patch_size: int = 16,
        cluster_size: int = 4,
        in_channels: int = 3,
        decoder_dim: int = 512,
        decoder_depth: int = 4,
        decoder_heads: int = 16,
        rotation_windows: Sequence[int] = (96, 64, 32),
        max_angle: float = 45.0,
        lr: float = 1.5e-4,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        baseline_batches: int = 100,
    ) -> None:
        super().__init__()
        self._clock = time.perf_counter()
        self._images = 0

    def configure_models(self) -> None:
        """Build encoder, decoder, rotation and the trivial answers.

        Raises:
            UnknownModelError: If timm does not know the architecture.
            ConfigError: If the sizes do not fit each other.
        """
        h = self.hparams
        check_backbone_name(h["architecture"])
        self.model = RoMAForPretraining(
            h["architecture"],
            img_size=h["img_size"],
            patch_size=h["patch_size"],
            cluster_size=h["cluster_size"],
            in_chans=h["in_channels"],
            decoder_dim=h["decoder_dim"],
            decoder_depth=h["decoder_depth"],
            decoder_heads=h["decoder_heads"],
        )
        self.rotation = (
            AdaptiveRotation(h["patch_size"], tuple(h["rotation_windows"]), h["max_angle"])
            if h["rotation_windows"]
            else None
        )
        self.trivial = TrivialAnswers(
            h["patch_size"] ** 2 * h["in_channels"], h["in_channels"], h["cluster_size"] ** 2
        )

    @property
    def architecture(self) -> str:
        """timm name of the backbone."""
        return str(self.hparams["architecture"])

    def setup(self, stage: str) -> None:
        """Refuse data with other bands, before the first step."""
        check_bands(self)

    def _patches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Raw and normalised patches (B, N, P) in cluster order."""
        p = self.hparams["patch_size"]
        grid = (image.shape[-2] // p, image.shape[-1] // p)
        normalised, mean, deviation = self.model.normalised_patches(image)
        return (
            self.model.to_clusters(normalised * deviation + mean, grid),
            self.model.to_clusters(normalised, grid),
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch of normalised images (B, C, H, W)."""
        image = batch["image"]
        target, mask = image, None
        if self.rotation is not None:
            rotated = self.rotation(image)
            image, target, mask = rotated.image, rotated.target, rotated.mask
        if self.global_step < self.hparams["baseline_batches"]:
            self.trivial.update(*self._patches(target))
        output = self.model(image, target, mask)
        size = len(image)
        self._images += size
        self.log("train_loss", output.loss_fine, prog_bar=True, batch_size=size)
        self.log("train_loss_total", output.loss, batch_size=size)
        for scale, value in output.loss_scales.items():
            self.log(f"train_loss_scale{scale}", value, batch_size=size)
        loss: Tensor = output.loss
        return loss

    def on_train_epoch_start(self) -> None:
        """Start the clock of the epoch."""
        self._clock, self._images = time.perf_counter(), 0

    def on_train_epoch_end(self) -> None:
        """Log throughput and memory of the epoch."""
        elapsed = time.perf_counter() - self._clock
        self.log("images_per_second", self._images / max(elapsed, 1e-9))
        if torch.cuda.is_available():
            self.log("gpu_memory_gb", torch.cuda.max_memory_allocated() / 1e9)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss on images as they are, beside the trivial answers."""
        image = batch["image"]
        size = len(image)
        output = self.model(image)
        self.log("val_loss", output.loss_fine, prog_bar=True, batch_size=size)
        for scale, value in output.loss_scales.items():
            self.log(f"val_loss_scale{scale}", value, batch_size=size)
        if not self.trainer.sanity_checking:
            with torch.autocast(self.device.type, enabled=False):
                answers = self.trivial.losses(*self._patches(image.float()))
            for name, value in answers.items():
                self.log(f"val_loss_{name}", value, batch_size=size)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss on held-out images."""
        output = self.model(batch["image"])
        self.log("test_loss", output.loss_fine, batch_size=len(batch["image"]))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Pictures (B, C, H, W) of what the model predicts."""
        picture, _ = self.model.reconstruct(batch["image"])
        return picture

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """AdamW with warm-up and cosine decay over the planned steps."""
        h = self.hparams
        return adamw_warmup_cosine(
            self,
            self.model,
            lr=h["lr"],
            weight_decay=h["weight_decay"],
            warmup=h["warmup"],
            betas=tuple(h["betas"]),
        )
