"""RoMA's position embedding on other grids, and weights of one RoMA fitted to another."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from rsmamba.models.roma import RoMA


def resize_position(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Interpolate a position embedding bicubically from one grid to another.

    Args:
        table: (1, M or M + 1, D) with the class token's row, if any, at M // 2.
        old: Rows and columns of the table.
        new: Rows and columns wanted.

    Returns:
        (1, M' or M' + 1, D), in the table's dtype.
    """
    patches = math.prod(old)
    has_class = table.shape[1] == patches + 1
    slot = patches // 2
    token = table[:, slot : slot + 1] if has_class else table[:, :0]
    rest = torch.cat([table[:, :slot], table[:, slot + 1 :]], dim=1) if has_class else table
    plane = rest.transpose(1, 2).unflatten(2, old)
    # The interpolation has no 16-bit CPU kernel and would lose digits there.
    exact = plane.to(torch.promote_types(plane.dtype, torch.float32))
    plane = F.interpolate(exact, size=new, mode="bicubic", align_corners=False)
    rest = plane.to(table.dtype).flatten(2).transpose(1, 2)
    slot = rest.shape[1] // 2
    return torch.cat([rest[:, :slot], token, rest[:, slot:]], dim=1)


def adapt_state_dict(
    state_dict: dict[str, Tensor], model: "RoMA", grid: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """Fit weights of one RoMA to another that differs in image size, class token or directions.

    The position embedding is interpolated (a zero row enters for a class token that the source
    lacks), and the one direction of a pretrained encoder is copied to all four.

    Args:
        state_dict: Keys of :class:`RoMA`.
        model: The model that shall load them.
        grid: Rows and columns of the position embedding; by default square, or else the model's.

    Returns:
        A new mapping; tensors that need no change are shared.
    """
    adapted = dict(state_dict)
    table = adapted.get("pos_embed")
    if table is not None and table.shape[-1] == model.embed_dim:
        adapted["pos_embed"] = _adapt_position(table, model, grid)
    orders = {int(key.split(".scans.")[1].split(".")[0]) for key in adapted if ".scans." in key}
    if orders == {0}:
        for order in range(1, model.directions):
            for key, value in state_dict.items():
                if ".scans.0." in key:
                    adapted[key.replace(".scans.0.", f".scans.{order}.")] = value
    return adapted


def _adapt_position(table: Tensor, model: "RoMA", grid: tuple[int, int] | None) -> Tensor:
    """Position embedding of another grid or class-token setting, as ``model`` needs it."""
    count = table.shape[1]
    if grid is None or count - math.prod(grid) not in (0, 1):
        if table.shape == model.pos_embed.shape:
            return table
        grid = _likely_grid(count, model)
        if grid is None:
            return table  # A rectangle of unknown shape: the loader reports the mismatch.
    has_class = count > math.prod(grid)
    slot = math.prod(grid) // 2
    if has_class and not model.num_prefix_tokens:
        table = torch.cat([table[:, :slot], table[:, slot + 1 :]], dim=1)
    elif model.num_prefix_tokens and not has_class:
        table = torch.cat([table[:, :slot], torch.zeros_like(table[:, :1]), table[:, slot:]], 1)
    return table if grid == model.grid_size else resize_position(table, grid, model.grid_size)


def _likely_grid(count: int, model: "RoMA") -> tuple[int, int] | None:
    """Grid of a table with or without a class token: square, or else the model's own."""
    for patches in (count, count - 1):
        side = math.isqrt(patches)
        if side**2 == patches:
            return side, side
    return model.grid_size if count - math.prod(model.grid_size) in (0, 1) else None
