"""Change detection: a Siamese backbone, absolute differences, one of smp's decoders."""

from typing import Any, ClassVar, Literal

from torch import Tensor
from torchmetrics import MetricCollection

from rsmamba.errors import ConfigError
from rsmamba.spec import TaskName
from rsmamba.tasks.metrics import ChangeMetrics
from rsmamba.tasks.segment import SemanticSegmentation

ChangeDecoder = Literal["unet", "upernet", "segformer", "fpn"]


class ChangeDetection(SemanticSegmentation):
    """What changed between two images of a place.

    One backbone sees both dates; the decoder reads the absolute difference of its features, level
    by level (as FC-Siam-diff, https://doi.org/10.1109/ICIP.2018.8451652, and RoMA,
    https://arxiv.org/abs/2503.10392). The order of the dates makes no difference.

    Validation and test give precision, recall, F1 and intersection over union of class 1 over all
    pixels of all scenes (:class:`~rsmamba.tasks.metrics.ChangeMetrics`), and the F1 of each scene
    where the data module names its ``scenes``.

    Args:
        model: Decoder.
        **kwargs: As :class:`~rsmamba.tasks.segment.SemanticSegmentation`; ``in_channels`` and
            ``bands`` are those of one date.

    Raises:
        ConfigError: If the decoder cannot read differences (dpt), or options contradict each other.
    """

    task_name: ClassVar[TaskName] = "change"
    monitor = "val_F1Change"

    def __init__(self, model: ChangeDecoder = "unet", **kwargs: Any) -> None:
        if model not in ("unet", "upernet", "segformer", "fpn"):
            raise ConfigError(
                f"model={model!r}: change detection takes unet, upernet, segformer, fpn"
            )
        super().__init__(model=model, **kwargs)

    def configure_metrics(self) -> None:
        """Scores of change; :meth:`setup` learns which scenes there are."""
        self._score_scenes(())

    def _score_scenes(self, scenes: tuple[str, ...]) -> None:
        score = ChangeMetrics(scenes, ignore_index=self.hparams["ignore_index"])
        self.set_metrics(MetricCollection({"change": score}))

    def setup(self, stage: str) -> None:
        """Refuse data whose classes are not the head's; learn the names of the scenes."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        self._score_scenes(tuple(getattr(data, "scenes", ())))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of normalised pairs (B, 2, C, H, W) of any size.

        Raises:
            ConfigError: If the images are not pairs.
        """
        if image.ndim != 5 or image.shape[1] != 2:
            raise ConfigError(
                f"images of shape {tuple(image.shape)} are not pairs (B, 2, C, H, W): take a data "
                "module of pairs, such as OSCDDataModule"
            )
        return super().forward(image.flatten(0, 1))

    def _logits(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of both dates in turn (2B, C, H, W)."""
        levels = self.model.encoder(image)
        differences = [(level[0::2] - level[1::2]).abs() for level in levels]
        logits: Tensor = self.model.segmentation_head(self.model.decoder(differences))
        return logits

    def loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Training loss of (B, K, H, W) logits against a (B, [1,] H, W) mask.

        Raises:
            LabelError: If no pixel of the batch is labelled, or a label is out of range.
        """
        return super().loss(logits, mask.view(len(mask), *mask.shape[-2:]))

    def _count(self, metrics: MetricCollection, logits: Tensor, batch: dict[str, Tensor]) -> None:
        """Add a batch to the counts of its scenes."""
        metrics.update(logits, batch["mask"], batch.get("scene"))
