"""The order in which a scan visits the tokens of a grid: rows or columns, there or back.

Tokens are stored in raster order; a class token may stand among them. Kernels compute the position
of each step from ``(order, height, width, slot)``, so nothing is flipped or transposed in memory.
"""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

ClassToken = Literal["none", "middle", "first"]
Order = Literal[0, 1, 2, 3]

_ORDERS = (0, 1, 2, 3)


def scan_path(
    operator: str,
    length: int,
    orders: Sequence[int],
    grid: tuple[int, int] | None = None,
    cls: ClassToken = "none",
) -> tuple[list[int], int, int, int]:
    """Check a path and put it into the form that kernels take.

    Args:
        operator: Whose path it is, for the messages.
        length: Number of tokens, with the class token.
        orders: Of every direction: 0 along rows, 1 rows reversed, 2 columns, 3 columns reversed.
        grid: (H, W) of the patches; orders 0 and 1 do not need it.
        cls: Where the class token stands; it keeps its slot when the patches are transposed.

    Returns:
        Orders, height, width and the slot of the class token (-1 without one).

    Raises:
        TypeError: If an order or a side of the grid is no integer.
        ValueError: If an order is unknown, or the length does not fit the grid.
    """
    if cls not in ("none", "middle", "first"):
        raise ValueError(f"{operator}: cls={cls!r}: choose 'none', 'middle' or 'first'")
    for order in orders:
        if not _is_integer(order):
            raise TypeError(f"{operator}: order={order!r} must be an integer: 0, 1, 2 or 3")
        if order not in _ORDERS:
            raise ValueError(f"{operator}: order={order}: choose 0, 1 (rows) or 2, 3 (columns)")
        if order >= 2 and grid is None:
            raise ValueError(f"{operator}: order={order} runs along columns: give grid=(H, W)")
    extra = 0 if cls == "none" else 1
    height, width = (1, length - extra) if grid is None else _sides(operator, grid)
    if length != height * width + extra:
        raise ValueError(
            f"{operator}: {length} tokens on a grid of {height} x {width} with cls={cls!r}: "
            f"expected {height * width + extra}"
        )
    slot = {"none": -1, "middle": (length - 1) // 2, "first": 0}[cls]
    return list(orders), height, width, slot


def _is_integer(number: object) -> bool:
    """Also while a tracer follows sizes as symbols."""
    return isinstance(number, Integral | torch.SymInt) and not isinstance(number, bool)


def _sides(operator: str, grid: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the grid."""
    sides = tuple(grid) if isinstance(grid, Iterable) else ()
    if len(sides) != 2 or not all(map(_is_integer, sides)):
        raise TypeError(f"{operator}: grid={grid!r} must be two integers (H, W)")
    if sides[0] < 0 or sides[1] < 0:
        raise ValueError(f"{operator}: grid={sides} has a negative side")
    return sides


def path_index(
    order: int, height: int, width: int, slot: int, device: torch.device | None = None
) -> Tensor:
    """Positions of the tokens in the sequence that an order visits, first to last.

    Args:
        order: 0 along rows, 1 rows reversed, 2 along columns, 3 columns reversed.
        height: Rows of the grid.
        width: Columns of the grid.
        slot: Position of the class token, -1 without one.
        device: Device of the index.

    Returns:
        (L,) int64 permutation.
    """
    length = height * width + (1 if slot >= 0 else 0)
    index = torch.arange(length, device=device)
    if order >= 2:
        at = slot if slot >= 0 else length
        patches = torch.cat([index[:at], index[at + 1 :]]).view(height, width).t().reshape(-1)
        index = torch.cat([patches[:at], index[at : at + 1], patches[at:]])
    return index.flip(0) if order % 2 else index


def scan_index(
    length: int,
    order: int,
    grid: tuple[int, int] | None = None,
    cls: ClassToken = "none",
    device: torch.device | None = None,
) -> Tensor:
    """:func:`path_index` of checked arguments; see :func:`scan_path` for them and the errors."""
    _, height, width, slot = scan_path("scan_index", length, [order], grid, cls)
    return path_index(order, height, width, slot, device)
