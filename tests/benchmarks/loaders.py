"""Loaders timed in turn: what the scripts beside this share."""

import os
import statistics
import time
from typing import Any

import torch


def epoch(module: Any, loader: Any, augment: bool, limit: int | None) -> float:
    """Milliseconds per sample of one pass, or of so many batches."""
    start, seen = time.perf_counter(), 0
    for number, batch in enumerate(loader, 1):
        assert batch["image"].dtype == torch.float32
        if augment:
            batch = (module.train_aug or module.aug)(batch)
        seen += len(batch["image"])
        if number == limit:
            break
    return 1e3 * (time.perf_counter() - start) / seen


def compare(
    name: str,
    modules: dict[str, Any],
    repeats: int,
    *,
    augment: bool = False,
    limit: int | None = None,
) -> None:
    """Time TorchGeo's loader ("torchgeo") and ours ("rsmamba") in turn and print a line.

    Args:
        name: What is loaded.
        modules: Data modules by who made them.
        repeats: Passes of each.
        augment: Whether the augmentation of the batch is part of it.
        limit: Batches in a pass; all if None.
    """
    loaders = {}
    for who, module in modules.items():
        module.setup("fit")
        loaders[who] = module.train_dataloader()
        epoch(module, loaders[who], augment, limit)  # starts workers, fills the page cache
    times: dict[str, list[float]] = {who: [] for who in loaders}
    load = [os.getloadavg()[0]]
    for _ in range(repeats):
        for who, loader in loaders.items():
            times[who].append(epoch(modules[who], loader, augment, limit))
    load.append(os.getloadavg()[0])
    least = {who: min(ms) for who, ms in times.items()}
    middle = {who: statistics.median(ms) for who, ms in times.items()}
    print(
        f"{name:<46} "
        + "  ".join(f"{who} min {least[who]:7.3f} median {middle[who]:7.3f} ms" for who in times)
        + f"  ratio {least['torchgeo'] / least['rsmamba']:.2f} of minima, "
        + f"{middle['torchgeo'] / middle['rsmamba']:.2f} of medians"
        + f"  load {load[0]:.1f}-{load[1]:.1f}"
    )
