"""Rectangles of pixels."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of pixels: first row, first column, height, width."""

    row: int
    col: int
    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width


def grid(region: Region, size: int) -> list[Region]:
    """Squares of ``size`` that cover a region once, row by row; the last ones stick out."""
    return [
        Region(row, col, size, size)
        for row in range(region.row, region.row + region.height, size)
        for col in range(region.col, region.col + region.width, size)
    ]


def clip(window: Region, region: Region) -> Region:
    """The part of a window that lies in a region that contains its first pixel."""
    return Region(
        window.row,
        window.col,
        min(window.height, region.row + region.height - window.row),
        min(window.width, region.col + region.width - window.col),
    )
