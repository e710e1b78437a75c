"""Position embeddings between grids, with and without a class token: no row lands elsewhere."""

import math

import pytest
import timm
import torch

from rsmamba.errors import CheckpointError
from rsmamba.models.checkpoints import load_backbone
from rsmamba.models.position import adapt_state_dict

PATCH = 16
#: What the class token's row holds; patches hold their row and column.
MARK = -50.0


def roma(grid, class_token, **options):
    size = (grid[0] * PATCH, grid[1] * PATCH)
    pool = "token" if class_token else "avg"
    options = {"embed_dim": 8, "depth": 1, "num_classes": 0, "img_size": size} | options
    return timm.create_model(
        "roma_tiny_patch16", class_token=class_token, global_pool=pool, **options
    )


def marked(grid, class_token):
    """(1, M [+ 1], 8): channel 0 is the patch's row, channel 1 its column."""
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
    table = torch.zeros(1, math.prod(grid), 8)
    table[0, :, 0], table[0, :, 1] = rows.flatten(), columns.flatten()
    if class_token:
        slot = math.prod(grid) // 2
        row = torch.full((1, 1, 8), MARK)
        table = torch.cat([table[:, :slot], row, table[:, slot:]], dim=1)
    return table


def weights(grid, class_token):
    state = roma(grid, class_token).state_dict()
    return state | {"pos_embed": marked(grid, class_token)}


def assert_placed(table, source, model, had_class):
    """The class row is where it belongs, and rows and columns still grow along their axes."""
    grid = model.grid_size
    slot = math.prod(grid) // 2
    if model.num_prefix_tokens:
        expected = MARK if had_class else 0.0
        assert table[0, slot].tolist() == [expected] * 8
        table = torch.cat([table[:, :slot], table[:, slot + 1 :]], dim=1)
    plane = table[0].unflatten(0, grid)
    if grid == source:
        assert torch.equal(table, marked(grid, class_token=False))
    assert plane[..., :2].amin() > -1 and plane[..., 0].amax() < source[0]
    assert plane[..., 1].amax() < source[1]
    assert torch.allclose(plane[..., 0], plane[:, :1, 0].expand(grid), atol=1e-4)
    assert torch.allclose(plane[..., 1], plane[:1, :, 1].expand(grid), atol=1e-4)
    if source[0] > 1:
        assert (plane[:, 0, 0].diff() > 0).all()
    if source[1] > 1:
        assert (plane[0, :, 1].diff() > 0).all()


GRIDS = [(4, 4), (1, 1), (3, 5), (12, 12), (11, 13), (2, 8)]


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("wants", [True, False])
@pytest.mark.parametrize("source", GRIDS)
@pytest.mark.parametrize("target", GRIDS)
def test_a_known_grid_is_taken_at_its_word(source, target, has, wants):
    model = roma(target, wants)
    adapted = adapt_state_dict(weights(source, has), model, source)
    assert adapted["pos_embed"].shape == model.pos_embed.shape
    assert_placed(adapted["pos_embed"], source, model, has)


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("wants", [True, False])
@pytest.mark.parametrize("source", [(4, 4), (1, 1), (12, 12), (11, 11)])
@pytest.mark.parametrize("target", [(4, 4), (1, 1), (3, 5), (12, 12), (11, 13), (2, 4)])
def test_without_a_grid_a_square_is_found_by_the_class_token(source, target, has, wants):
    model = roma(target, wants)
    adapted = adapt_state_dict(weights(source, has), model)
    assert_placed(adapted["pos_embed"], source, model, has)


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("wants", [True, False])
@pytest.mark.parametrize("grid", [(2, 8), (3, 5), (1, 4)])
def test_without_a_grid_the_models_own_rectangle_comes_before_a_square(grid, has, wants):
    model = roma(grid, wants)
    adapted = adapt_state_dict(weights(grid, has), model)
    assert_placed(adapted["pos_embed"], grid, model, has)


def test_as_many_rows_are_not_the_same_grid(tmp_path):
    """12 x 12 without a class token are 144 rows, 11 x 13 with one too."""
    state = {k: v for k, v in weights((12, 12), class_token=False).items()}
    torch.save(state, tmp_path / "w.pth")
    model = roma((11, 13), class_token=True)
    report = load_backbone(model, tmp_path / "w.pth", minimum=0.9)
    assert "resized from 144 to 144 rows" in report.adapted[0]
    assert_placed(model.pos_embed.detach(), (12, 12), model, had_class=False)


def test_a_rectangle_with_a_class_token_is_not_read_as_a_square(tmp_path):
    """3 x 5 patches and the class token are 16 rows, and no 4 x 4 patches."""
    torch.save(weights((3, 5), class_token=True), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"pos_embed \[1, 16, 8\], not \[1, 61, 8\]"):
        load_backbone(roma((6, 10), class_token=True), tmp_path / "w.pth")


@pytest.mark.parametrize(("grid", "has"), [((3, 5), False), ((3, 5), True)])
def test_a_grid_that_nothing_tells_is_not_copied_for_its_number_of_rows(grid, has, tmp_path):
    """15 patches without a class token are as many rows as 14 with one, and the reverse."""
    torch.save(weights(grid, has), tmp_path / "w.pth")
    model = roma((2, 7) if not has else (1, 16), class_token=not has)
    assert model.pos_embed.shape == marked(grid, has).shape
    before = model.pos_embed.detach().clone()
    with pytest.raises(CheckpointError, match=r"15 patches, .*no square.*img_size"):
        load_backbone(model, tmp_path / "w.pth", minimum=0.5)
    assert torch.equal(model.pos_embed, before)


def test_a_given_grid_that_does_not_fit_is_not_used():
    model = roma((4, 4), class_token=True)
    for grid in ((5, 5), (1, 17), (0, 0)):
        adapted = adapt_state_dict(weights((4, 4), class_token=True), model, grid)
        assert torch.equal(adapted["pos_embed"], marked((4, 4), class_token=True))


def test_a_table_of_nothing_is_left_to_the_loader():
    state = weights((4, 4), class_token=True) | {"pos_embed": torch.zeros(1, 1, 8)}
    adapted = adapt_state_dict(state, roma((4, 4), class_token=True))
    assert adapted["pos_embed"].shape == (1, 1, 8)
