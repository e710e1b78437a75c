"""AdamW with weight-decay groups, layer-wise decay and a warm-up + cosine schedule."""

import math
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from rsmamba.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float = 0.01) -> float:
    """Factor on the learning rate: linear over ``warmup`` steps, then cosine to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(
    module: nn.Module, *, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups with no decay on vectors and on what a backbone exempts itself.

    timm backbones name state matrices, embeddings and fusion kernels in ``no_weight_decay()``;
    a backbone may stand anywhere inside ``module`` (an encoder in a segmentation model), so the
    names are collected from every submodule.

    Args:
        module: The module to train.
        weight_decay: Decoupled weight decay of AdamW.
        layer_decay: Factor per layer group from the head down (timm's ``group_matcher``), for
            fine-tuning a plain timm model; None for one rate everywhere.

    Returns:
        Groups for :class:`torch.optim.AdamW`.

    Raises:
        ConfigError: If ``layer_decay`` is asked for a module without layer groups.
    """
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, child in module.named_modules()
        if callable(rule := getattr(child, "no_weight_decay", None))
        for name in rule()
    }
    if layer_decay is None:
        return param_groups_weight_decay(module, weight_decay, no_weight_decay_list=tuple(exempt))
    if not hasattr(module, "group_matcher"):
        raise ConfigError(
            f"layer_decay needs a timm model with layer groups, {type(module).__name__} has none: "
            "leave layer_decay out"
        )
    return param_groups_layer_decay(
        module, weight_decay, no_weight_decay_list=tuple(exempt), layer_decay=layer_decay
    )


def adamw_warmup_cosine(
    task: "LightningModule",
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    warmup: float,
    betas: tuple[float, float] = (0.9, 0.999),
    layer_decay: float | None = None,
) -> dict[str, Any]:
    """What ``configure_optimizers`` returns: AdamW and a per-step warm-up + cosine schedule.

    Args:
        task: The task, whose trainer knows the number of optimizer steps.
        module: The module to train.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        warmup: Share of all steps spent warming up, in [0, 1).
        betas: AdamW's moment decay rates.
        layer_decay: See :func:`parameter_groups`.

    Returns:
        Lightning's optimizer configuration.
    """
    groups = parameter_groups(module, weight_decay=weight_decay, layer_decay=layer_decay)
    for group in groups:
        # param_groups_layer_decay stores the factor, not the rate
        group["lr"] = lr * group.pop("lr_scale", 1.0)
    total = int(task.trainer.estimated_stepping_batches)
    optimizer: torch.optim.Optimizer = AdamW(groups, lr=lr, betas=betas)
    schedule = LambdaLR(
        optimizer,
        lambda step: warmup_cosine(step, warmup=max(1, round(warmup * total)), total=total),
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
    }
