"""The tile grid: weights add up to one, blocks change nothing, mirrors are numpy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsmamba.errors import ConfigError
from rsmamba.infer.grid import Box, TileGrid, reflect

sizes = st.integers(1, 48)
few = settings(max_examples=40, deadline=None)


@st.composite
def grids(draw):
    halo = draw(st.integers(0, 10))
    tile = draw(st.integers(2 * halo + 2, 2 * halo + 32))
    blend = draw(st.sampled_from(["linear", "crop"]))
    return TileGrid(draw(sizes), draw(sizes), tile, halo, blend)


noise = np.random.default_rng(0).random((400, 400), dtype=np.float32)


def blended(grid, block, predict):
    """Weighted sum over all tiles, block by block, of what `predict` gives for a window."""
    result = np.full((grid.height, grid.width), np.nan)
    for box in grid.blocks(block):
        total = np.zeros((box.height, box.width), dtype=np.float32)
        for tiles in grid.tile_rows(box):
            for tile in tiles:
                part = tile.support.intersect(box)
                values = predict(tile.window)[part.within(tile.window)]
                total[part.within(box)] += grid.weights(tile, part) * values
        result[box.within(grid.scene)] = total
    return result


@few
@given(grids(), st.integers(1, 100))
def test_a_constant_comes_out_constant_at_every_pixel(grid, block):
    ones = np.ones((grid.tile, grid.tile), dtype=np.float32)
    np.testing.assert_allclose(blended(grid, block, lambda _: ones), 1.0, atol=1e-6, rtol=0)


@few
@given(grids(), st.integers(1, 100), st.integers(1, 100))
def test_the_cut_into_blocks_changes_no_bit(grid, first, second):
    def predict(window):  # differs from tile to tile, so that a missing tile shows
        return noise[window.top + 99 :, window.left + 99 :] * np.float32(1 + window.top % 7)

    np.testing.assert_array_equal(blended(grid, first, predict), blended(grid, second, predict))


@few
@given(grids())
def test_supports_lie_inside_windows_with_the_promised_context(grid):
    context = grid.halo // 2 if grid.blend == "linear" else grid.halo
    for tiles in grid.tile_rows(grid.scene):
        for tile in tiles:
            for low, high, first, last in (
                (tile.window.top, tile.window.bottom, tile.support.top, tile.support.bottom),
                (tile.window.left, tile.window.right, tile.support.left, tile.support.right),
            ):
                assert low + context <= first < last <= high - context


@few
@given(grids(), st.integers(1, 100))
def test_blocks_partition_the_scene(grid, block):
    covered = np.zeros((grid.height, grid.width), dtype=int)
    for box in grid.blocks(block):
        assert box.height <= max(block, grid.tile) and box.width <= max(block, grid.tile)
        covered[box.within(grid.scene)] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("blend", ["linear", "crop"])
def test_a_core_of_one_pixel_still_blends_to_one(blend):
    grid = TileGrid(9, 5, 7, 3, blend)  # stride 1: up to five tiles overlap on each axis
    ones = np.ones((7, 7), dtype=np.float32)
    np.testing.assert_allclose(blended(grid, 4, lambda _: ones), 1.0, atol=1e-6, rtol=0)


def test_cropped_blocks_share_no_tile():
    grid = TileGrid(10_000, 7_000, 512, 64, "crop")
    forwards = sum(len(row) for box in grid.blocks(4096) for row in grid.tile_rows(box))
    assert forwards == len(grid) == 27 * 19


def test_the_last_tile_sees_no_more_than_its_halo_beyond_the_scene():
    grid = TileGrid(1000, 1000, 512, 64)
    assert grid[2, 2].window == Box(552, 552, 1064, 1064)


@few
@given(st.integers(-200, 50), st.integers(1, 200), st.integers(1, 40))
def test_reflection_is_numpys(start, length, size):
    stop = start + length
    before, after = max(0, -start), max(0, stop - size)
    padded = np.pad(np.arange(size), (before, after), mode="reflect")
    expected = padded[start + before : stop + before]
    np.testing.assert_array_equal(reflect(start, stop, size), expected)


@pytest.mark.parametrize(
    "arguments",
    [(0, 5), (5, 0), (5, 5, 8, 4), (5, 5, 8, -1), (5, 5, 8, 2, "cosine")],
)
def test_a_grid_without_tiles_is_refused(arguments):
    with pytest.raises(ConfigError):
        TileGrid(*arguments)


def test_an_empty_block_is_refused():
    with pytest.raises(ConfigError, match="block"):
        TileGrid(5, 5, 8, 2).blocks(0)
