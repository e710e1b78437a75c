"""What the data modules share: normalisation, seeded loaders, plots and manifests."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets.utils import Sample

from rsmamba.data.augment import Normalise, unnormalise
from rsmamba.data.normalisation import read_normalisation, rgb_positions
from rsmamba.data.options import at_least, distinct, finite, positive
from rsmamba.data.plots import plot_samples, unbind
from rsmamba.data.sampling import EpochSampler
from rsmamba.data.splits import Manifest
from rsmamba.errors import BandMismatchError, ConfigError

Split = Literal["train", "val", "test", "predict"]
#: Samples that one picture of a batch shows.
PLOTTED = 8
#: Keys of torchvision's detections -> those of a sample.
_DETECTIONS = {
    "boxes": "prediction_bbox_xyxy",
    "labels": "prediction_label",
    "scores": "prediction_score",
    "masks": "prediction_mask",
}


class DataModule(NonGeoDataModule):
    """TorchGeo's data module with what all of rsmamba's have in common.

    A subclass sets ``bands``, ``classes``, ``gsd`` and ``nodata``, calls
    :meth:`set_normalisation`, builds the datasets in :meth:`setup` and describes its splits in
    :meth:`manifest`. Batches are TorchGeo samples in pixel units; they are normalised and
    augmented on their device by ``train_aug`` and ``aug``.

    The order of the training samples depends on ``seed`` and the epoch alone, not on the number of
    workers: a resumed run goes on where it stopped. Data sets whose indices go on from epoch to
    epoch (``endless = True``) draw new windows each time.

    Args:
        dataset_class: Data set that is constructed with ``kwargs``.
        batch_size: Samples in a batch.
        num_workers: Worker processes that load samples.
        seed: Of the order of the training samples.
        drop_last: Leave an incomplete last batch out of training.
        **kwargs: Arguments of the data set.
    """

    bands: tuple[str, ...] = ("red", "green", "blue")
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    gsd: float | None = None
    nodata: float | None = None
    #: What stored values are multiplied with, if it is the same for all images; else 1.
    factor: float = 1.0
    #: Dates in a sample: 2 for pairs, whose images are (T, C, H, W).
    dates: int = 1

    def __init__(
        self,
        dataset_class: type[Any],
        batch_size: int = 1,
        num_workers: int = 0,
        *,
        seed: int = 0,
        drop_last: bool = True,
        **kwargs: Any,
    ) -> None:
        positive("batch_size", batch_size)
        at_least("num_workers", num_workers, 0)
        super().__init__(dataset_class, batch_size, num_workers, **kwargs)
        self.seed, self.drop_last = seed, drop_last

    def set_normalisation(
        self,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        spec: str | Path | None = None,
    ) -> None:
        """Set ``mean``, ``std`` and ``aug``.

        Args:
            mean: Mean per band, in pixel units.
            std: Deviation per band, in pixel units.
            spec: File that has others for these bands, see
                :func:`~rsmamba.data.normalisation.read_normalisation`.

        Raises:
            BandMismatchError: If there are not as many values as bands.
            ConfigError: If a band is named twice, a value is not finite, or a deviation is not
                positive.
        """
        distinct("bands", self.bands)
        if spec is not None:
            mean, std = read_normalisation(spec, self.bands, self.factor)
        self.mean = torch.as_tensor(mean, dtype=torch.float32)
        self.std = torch.as_tensor(std, dtype=torch.float32)
        if not len(self.mean) == len(self.std) == len(self.bands):
            raise BandMismatchError(
                f"{len(self.mean)} means and {len(self.std)} deviations for "
                f"{len(self.bands)} bands ({', '.join(self.bands)}): give one of each per band"
            )
        finite("mean", self.mean.tolist())
        finite("std", self.std.tolist())
        if not bool((self.std > 0).all()):
            raise ConfigError(f"std={self.std.tolist()}: deviations must be positive")
        self.aug: Callable[[Sample], Sample] = Normalise(self.mean, self.std)

    def _sized(self, dataset: Dataset[Sample]) -> Dataset[Sample]:
        """The training set, unless it is smaller than a batch.

        Raises:
            ConfigError: If it is.
        """
        length = len(dataset)  # type: ignore[arg-type]
        if self.drop_last and length < self.batch_size:
            raise ConfigError(
                f"the training set of {length} samples is smaller than a batch of "
                f"{self.batch_size}: lower batch_size, or lengthen the epoch where the data module "
                "takes a length"
            )
        return dataset

    def train_dataloader(self) -> DataLoader[Sample]:
        """Loader of the training samples in seeded order, another one in each epoch."""
        dataset: Any = self._sized(self._valid_attribute("train_dataset"))
        endless = getattr(dataset, "endless", False)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(len(dataset), None if endless else self.seed),
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            drop_last=self.drop_last,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        """Loader of the validation samples; an empty one where nothing is held back."""
        # Lightning runs no validation over an empty list, and complains of a missing loader.
        none: Any = []
        return super().val_dataloader() if self.val_dataset is not None else none

    def plot(
        self,
        batch: Sample,
        *,
        predictions: Tensor | Sequence[Mapping[str, Tensor]] | None = None,
        normalised: bool = False,
        limit: int = PLOTTED,
        show_titles: bool = True,
        suptitle: str | None = None,
    ) -> Figure:
        """Show a batch, or one sample, with its labels and predictions.

        Args:
            batch: Collated samples, or one sample.
            predictions: Classes (B,) or masks (B, [1,] H, W), as under the key "prediction"; or
                detections of each sample, as torchvision's detectors give them: "boxes" (N, 4),
                "labels" (N,), and perhaps "scores" (N,) and "masks" (N, [1,] H, W).
            normalised: Whether ``aug`` has been applied to the images.
            limit: Samples shown at most.
            show_titles: Whether panels have titles.
            suptitle: Title of the figure.
        """
        if predictions is not None:
            batch = {**batch, **_predicted(predictions)}
        one = isinstance(batch["image"], Tensor) and batch["image"].ndim == 3 + (self.dates > 1)
        samples = [batch] if one else unbind(batch)[:limit]
        if normalised:
            # Augmentation carries a little beyond what bytes hold.
            samples = [
                {**s, "image": unnormalise(s["image"], self.mean, self.std).clamp_min(0)}
                for s in samples
            ]
        return plot_samples(
            samples,
            classes=self.classes,
            colours=self.colours,
            rgb=rgb_positions(self.bands),
            show_titles=show_titles,
            suptitle=suptitle,
        )

    def report(self) -> str | None:
        """One line on what is in the splits, which `rsmamba fit` prints; None for nothing to say.

        Raises:
            RsmambaError: As :meth:`setup`.
        """
        return None

    def manifest(self) -> Manifest:
        """What determines the splits, and their files.

        Raises:
            RsmambaError: As :meth:`setup`.
        """
        raise NotImplementedError

    def write_manifest(self, path: str | os.PathLike[str]) -> Path:
        """Write which files with which hashes make up each split, as JSON.

        Raises:
            RsmambaError: As :meth:`setup`.
            OutputNotWritableError: If the file cannot be written.
        """
        return self.manifest().write(path)


def _predicted(predictions: Tensor | Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Predictions under the keys of a batch."""
    if isinstance(predictions, Tensor):
        return {"prediction": predictions}
    return {
        ours: [one[theirs] for one in predictions]
        for theirs, ours in _DETECTIONS.items()
        if all(theirs in one for one in predictions)
    }
