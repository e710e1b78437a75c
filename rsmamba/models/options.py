"""Checks of model options that the families share."""

from collections.abc import Sequence

from rsmamba.errors import ConfigError


def check_positive(**numbers: int) -> None:
    """Refuse numbers below 1 by name.

    Raises:
        ConfigError: If one is.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name}={number}: give a whole number from 1 on")


def image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of an image size given as one number or as two.

    Raises:
        ConfigError: If the numbers are not two, or one is below 1.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ConfigError(f"img_size={size}: give one positive number, or height and width")
    return sides[0], sides[1]


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth by block: linear from 0 to ``rate``, which the last block always has.

    Raises:
        ConfigError: If ``rate`` is outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"drop_path_rate={rate}: give a rate from 0 to below 1")
    if depth == 1:
        return [rate]
    return [rate * block / (depth - 1) for block in range(depth)]
