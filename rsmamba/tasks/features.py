"""Fixed-length image features: read-outs of a frozen backbone, and a baseline without one."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import timm
import torch
from torch import Tensor, nn

from rsmamba.errors import ConfigError
from rsmamba.models.checkpoints import load_backbone
from rsmamba.tasks.checks import check_backbone_name

Readout = Literal["token", "mean", "mean_std"]

#: Name of the feature extractor that uses no network.
COLOUR_HISTOGRAM = "colour_histogram"


class FeatureExtractor(Protocol):
    """Maps images (B, C, H, W) to features (B, ``num_features``)."""

    num_features: int

    def __call__(self, image: Tensor) -> Tensor:
        """Features of a batch."""


class BackboneFeatures(nn.Module):
    """Frozen timm backbone with a read-out over its last layers.

    Args:
        architecture: timm name.
        readout: ``"mean"`` over positions, ``"mean_std"`` (mean and standard deviation over
            positions, concatenated) or ``"token"`` (the class token).
        layers: How many of the last layers are concatenated.
        weights: Checkpoint for the backbone; None for random weights.
        in_channels: Number of input bands.
        bands: Their names; None for those that the weights were trained on.
        model_kwargs: Further arguments of the timm model.

    Raises:
        UnknownModelError: If timm does not know ``architecture``.
        ConfigError: If the class token is asked of a backbone that has none.
        CheckpointError: If the weights do not fit the backbone.
        BandMismatchError: If the weights' bands cannot be related to ``bands``.
    """

    def __init__(
        self,
        architecture: str,
        *,
        readout: Readout = "mean",
        layers: int = 1,
        weights: str | None = None,
        in_channels: int = 3,
        bands: Sequence[str] | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_backbone_name(architecture)
        self.backbone: Any = timm.create_model(
            architecture, num_classes=0, in_chans=in_channels, **(model_kwargs or {})
        )
        if readout == "token" and not getattr(self.backbone, "num_prefix_tokens", 0):
            raise ConfigError(
                f"{architecture} has no class token here: use readout mean or mean_std"
            )
        self.readout, self.layers = readout, layers
        if weights is not None:
            self.load_report = load_backbone(self.backbone, weights, bands=bands)
        self.requires_grad_(False)
        stages: Any = self.backbone.feature_info
        channels = [stage["num_chs"] for stage in stages][-layers:]
        self.num_features = sum(channels) * (2 if readout == "mean_std" else 1)

    def train(self, mode: bool = True) -> "BackboneFeatures":
        """A frozen backbone stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Features (B, ``num_features``) of images (B, C, H, W)."""
        token = self.readout == "token"
        outputs = self.backbone.forward_intermediates(
            image,
            indices=self.layers,
            norm=True,
            intermediates_only=True,
            **({"return_prefix_tokens": True} if token else {}),
        )
        if token:
            return torch.cat([prefix[:, 0] for _, prefix in outputs], dim=1)
        flat = [feature.flatten(2) for feature in outputs]
        parts = [feature.mean(dim=2) for feature in flat]
        if self.readout == "mean_std":
            parts += [feature.std(dim=2, correction=0) for feature in flat]
        return torch.cat(parts, dim=1)


class ColourHistogram(nn.Module):
    """Share of pixels per value bin and band, of normalised images: features without a network.

    Args:
        in_channels: Number of bands.
        bins: Bins per band, over three standard deviations to either side.
    """

    def __init__(self, in_channels: int = 3, bins: int = 32) -> None:
        super().__init__()
        self.bins = bins
        self.num_features = in_channels * bins

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Histogram (B, C * bins) of images (B, C, H, W)."""
        index = ((image.clamp(-3, 3) + 3) / 6 * self.bins).long().clamp(max=self.bins - 1)
        counts = torch.zeros(*image.shape[:2], self.bins, device=image.device)
        counts.scatter_add_(2, index.flatten(2), torch.ones_like(image.flatten(2)))
        return (counts / index[0, 0].numel()).flatten(1)


class LinearProbe(nn.Module):
    """Standardise features (BatchNorm with fixed statistics), then one linear layer.

    Args:
        num_features: Length of a feature vector.
        num_classes: Number of classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, F)."""
        return self.linear((features - self.mean) / self.std)

    def standardise(self, features: Tensor) -> None:
        """Take mean and deviation from the training features (N, F); restart the layer at zero."""
        self.mean.copy_(features.mean(dim=0))
        self.std.copy_(features.std(dim=0, correction=0).clamp_min(1e-6))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def fit(
        self, features: Tensor, labels: Tensor, l2: float, optimizer: torch.optim.Optimizer
    ) -> None:
        """Multinomial logistic regression with L2 penalty, by one call of an L-BFGS optimizer.

        Args:
            features: (N, F) training features.
            labels: (N,) classes.
            l2: Weight of ``||W||^2 / 2`` per sample.
            optimizer: L-BFGS over this module's parameters.
        """

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self(features), labels)
            loss = loss + 0.5 * l2 * self.linear.weight.square().sum()
            loss.backward()
            return loss

        self.standardise(features)
        optimizer.step(closure)  # type: ignore[arg-type]

    def lbfgs(self, iterations: int = 100) -> torch.optim.LBFGS:
        """An optimizer for :meth:`fit`."""
        return torch.optim.LBFGS(
            self.parameters(), max_iter=iterations, line_search_fn="strong_wolfe"
        )


def select_l2(
    features: Tensor, labels: Tensor, num_classes: int, grid: Sequence[float], folds: int = 5
) -> float:
    """The L2 weight with the best accuracy in stratified cross-validation (ties: the largest).

    Args:
        features: (N, F) training features.
        labels: (N,) classes.
        num_classes: Number of classes.
        grid: L2 weights to try.
        folds: Parts; the i-th sample of each class is in part ``i % folds``.

    Returns:
        One value of ``grid``.
    """
    rank = torch.empty_like(labels)
    for label in labels.unique():
        members = labels == label
        rank[members] = torch.arange(int(members.sum()), device=labels.device)
    fold = rank % folds
    best, best_hits = grid[0], -1
    for l2 in sorted(grid, reverse=True):
        hits = 0
        for k in range(folds):
            train, held_out = fold != k, fold == k
            probe = LinearProbe(features.shape[1], num_classes).to(features.device)
            probe.fit(features[train], labels[train], l2, probe.lbfgs())
            hits += int((probe(features[held_out]).argmax(dim=1) == labels[held_out]).sum())
        if hits > best_hits:
            best, best_hits = l2, hits
    return best
