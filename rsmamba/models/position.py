"""RoMA's position embedding on other grids, and weights of one RoMA fitted to another."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from rsmamba.errors import CheckpointError

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
        state_dict: Keys of :class:`RoMA`. Whether the position embedding has a row of the class
            token is told by ``cls_token`` among them, not by the number of rows: 144 are 12 x 12
            patches, or 11 x 13 and the token.
        model: The model that shall load them.
        grid: Rows and columns of the position embedding; by default, or if they do not fit, the
            model's own if it has as many patches, else a square.

    Returns:
        A new mapping; tensors that need no change are shared.

    Raises:
        CheckpointError: If the position embedding has as many rows as the model's, but not of this
            grid.
    """
    adapted = dict(state_dict)
    table = adapted.get("pos_embed")
    if table is not None and table.shape[-1] == model.embed_dim:
        adapted["pos_embed"] = _adapt_position(table, "cls_token" in state_dict, model, grid)
    orders = {int(key.split(".scans.")[1].split(".")[0]) for key in adapted if ".scans." in key}
    if orders == {0}:
        for order in range(1, model.directions):
            for key, value in state_dict.items():
                if ".scans.0." in key:
                    adapted[key.replace(".scans.0.", f".scans.{order}.")] = value
    return adapted


def _adapt_position(
    table: Tensor, has_class: bool, model: "RoMA", grid: tuple[int, int] | None
) -> Tensor:
    """Position embedding of another grid or class-token setting, as ``model`` needs it."""
    patches = table.shape[1] - has_class
    grid = _source_grid(patches, model, grid)
    if grid is None:
        if table.shape == model.pos_embed.shape:  # by chance: one has a class token, one has none
            rows, columns = model.grid_size
            raise CheckpointError(
                f"pos_embed is for {patches} patches, which make no square, and this model has "
                f"{rows} x {columns}: create it with the img_size that the weights are for"
            )
        return table  # A rectangle of unknown shape: the loader reports the mismatch.
    slot = patches // 2
    if has_class and not model.num_prefix_tokens:
        table = torch.cat([table[:, :slot], table[:, slot + 1 :]], dim=1)
    elif model.num_prefix_tokens and not has_class:
        table = torch.cat([table[:, :slot], torch.zeros_like(table[:, :1]), table[:, slot:]], 1)
    return table if grid == model.grid_size else resize_position(table, grid, model.grid_size)


def _source_grid(
    patches: int, model: "RoMA", given: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Grid of so many patches: the given one, the model's own, or a square; None if none fits."""
    side = math.isqrt(max(patches, 0))
    for grid in (given, model.grid_size, (side, side)):
        if grid is not None and patches > 0 and math.prod(grid) == patches:
            return grid
    return None
