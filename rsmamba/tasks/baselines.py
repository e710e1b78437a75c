"""Trivial answers to the pretraining question, so that a falling loss can be judged.

A patch is normalised over all its bands together, which leaves hue in the target: much of the loss
falls by learning colour alone. A model that does not beat the ridge has learnt nothing but colour.
"""

import torch
from torch import Tensor, nn


class TrivialAnswers(nn.Module):
    """Loss of three answers that need no network, fitted on training batches as they pass.

    * ``zeros``: every normalised patch is grey;
    * ``global_mean``: every patch is the mean normalised patch of the training data;
    * ``ridge``: linear regression from what the clusters before show: their mean colour and its
      deviation, the previous cluster's mean colour, and their mean normalised patch.

    Sums are float64 buffers, so they travel in checkpoints and a resumed run continues them.

    Args:
        patch_values: Values of a patch, P = patch area x bands.
        bands: Number of bands.
        group: Patches per cluster.
        penalty: Ridge weight, relative to the mean diagonal of the normal matrix.
    """

    normal: Tensor
    moment: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, patch_values: int, bands: int, group: int, penalty: float = 1e-3) -> None:
        super().__init__()
        self.bands, self.group, self.penalty = bands, group, penalty
        features = 3 * bands + patch_values + 1
        shapes = {
            "normal": (features, features),
            "moment": (features, patch_values),
            "total": (patch_values,),
            "count": (),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def features(self, patches: Tensor, normalised: Tensor) -> Tensor:
        """What is visible before each predicted cluster.

        Args:
            patches: (B, N, P) patches of the whole image in cluster order, band last.
            normalised: (B, N, P) the same patches, normalised.

        Returns:
            (B, G - 1, F) float64 for G clusters.
        """
        batch, _, values = patches.shape
        pixels = self.group * values // self.bands
        clusters = patches.double().reshape(batch, -1, pixels, self.bands)
        colour = clusters.mean(dim=2)
        square = clusters.square().mean(dim=2)
        template = normalised.double().reshape(batch, -1, self.group, values).mean(dim=2)
        seen = torch.arange(1, colour.shape[1], device=patches.device).view(1, -1, 1)
        mean = colour.cumsum(1)[:, :-1] / seen
        deviation = (square.cumsum(1)[:, :-1] / seen - mean.square()).clamp_min(0).sqrt()
        parts = [mean, deviation, colour[:, :-1], template.cumsum(1)[:, :-1] / seen]
        return torch.cat([*parts, torch.ones_like(mean[..., :1])], dim=-1)

    @torch.no_grad()
    def update(self, patches: Tensor, normalised: Tensor) -> None:
        """Add one training batch (arguments as :meth:`features`)."""
        x = self.features(patches, normalised).flatten(0, 1)
        y = self._targets(normalised)
        self.normal += self.group * (x.T @ x)
        self.moment += x.T @ y.sum(dim=2).flatten(0, 1)
        self.total += y.sum(dim=(0, 1, 2))
        self.count += y.shape[0] * y.shape[1] * y.shape[2]

    @torch.no_grad()
    def losses(self, patches: Tensor, normalised: Tensor) -> dict[str, Tensor]:
        """Mean squared error of each answer on a held-out batch."""
        y = self._targets(normalised)
        x = self.features(patches, normalised)
        mean = self.total / self.count.clamp_min(1)
        return {
            "zeros": y.square().mean(),
            "global_mean": (y - mean).square().mean(),
            "ridge": (y - (x @ self.solve()).unsqueeze(2)).square().mean(),
        }

    def solve(self) -> Tensor:
        """(F, P) ridge coefficients."""
        weight = self.penalty * self.normal.diagonal().mean().clamp_min(1e-12)
        identity = torch.eye(len(self.normal), dtype=torch.float64, device=self.normal.device)
        return torch.linalg.solve(self.normal + weight * identity, self.moment)

    def _targets(self, normalised: Tensor) -> Tensor:
        """(B, G - 1, group, P) float64: the patches of every cluster but the first."""
        batch, _, values = normalised.shape
        return normalised.double().reshape(batch, -1, self.group, values)[:, 1:]
