import os
from unittest import mock

import pytest
import timm
import torch
from torch import nn

import rsmamba.models  # noqa: F401  (registers the models)
from rsmamba.errors import ConfigError
from rsmamba.models.cost import cost, counter, multiply_adds
from rsmamba_kernels import dispatch

#: The smallest models with every part.
ROMA = {"embed_dim": 32, "depth": 1, "num_classes": 5, "img_size": 32}
SPATIAL = {"embed_dim": 16, "depths": (1, 1), "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "parameters"),
    {
        "roma_small_patch16": 22_167_400,
        "roma_base_patch16": 85_031_656,
        "roma_large_patch16": 297_035_720,
        "roma_small_patch16_pyramid": 23_938_792,
        "roma_base_patch16_pyramid": 92_113_384,
        "roma_large_patch16_pyramid": 309_623_752,
        "spatial_mamba_tiny": 26_748_862,
        "spatial_mamba_small": 43_074_280,
        "spatial_mamba_base": 95_745_592,
    }.items(),
)
def test_parameters_are_those_of_the_published_models(name, parameters):
    assert cost(name, 32).parameters == parameters


@pytest.mark.parametrize(
    ("name", "paper"),
    [("spatial_mamba_tiny", 4.5), ("spatial_mamba_small", 7.1), ("spatial_mamba_base", 15.8)],
)
def test_multiply_adds_are_those_of_the_papers_table(name, paper):
    ours = cost(name, 224).multiply_adds / 1e9
    assert round(ours, 1) == paper


def test_roma_is_counted_as_by_hand():
    patches, tokens, dim, states, taps, rank, directions = 4, 5, 32, 16, 4, 2, 4
    per_direction = taps + (rank + 2 * states) + rank + (4 * states + 2)
    expected = (
        patches * 3 * 16**2 * dim
        + tokens * dim * 2 * dim
        + directions * tokens * dim * per_direction
        + tokens * dim * dim
        + 3 * tokens * dim * (8 * dim // 3)
        + 3 * 5 * tokens * dim  # LayerNorms
        + dim * 5
    )
    model = timm.create_model("roma_tiny_patch16", **ROMA)
    assert multiply_adds(model, 32) == expected


def test_spatial_mamba_is_counted_as_by_hand():
    model = timm.create_model("spatial_mamba_tiny", **SPATIAL | {"in_chans": 4})
    half, dim = 8, 16
    stem = 16**2 * (9 * 4 * half + 2 * 9 * half * half)
    stem += 8**2 * (9 * half * 4 * dim + 4 * dim * dim)
    down = 8**2 * dim * 128 + 4**2 * (128 * 9 + 128 * 2 * dim)

    def block(pixels, dim):
        inner, rank = 2 * dim, -(-dim // 16)
        mixer = dim * 2 * inner + 9 * inner + inner * (rank + 2) + rank * inner + inner * dim
        scan, fusion = 4 * inner, (27 + 2) * inner
        norms = 5 * (2 * dim + inner)
        return pixels * (2 * 9 * dim + mixer + scan + fusion + norms + 2 * dim * 4 * dim)

    expected = stem + block(8**2, dim) + down + block(4**2, 2 * dim) + 4**2 * 2 * dim * 5
    expected += 2 * dim * 5  # the head
    assert multiply_adds(model, 32, in_chans=4) == expected


def test_a_pyramid_is_counted_with_its_neck_and_without_its_head():
    plain, pyramid = cost("roma_tiny_patch16", 64), cost("roma_tiny_patch16_pyramid", 64)
    transposed = 192 * 192 * 4
    neck = 4**2 * transposed + 8**2 * 192 * 5 + 8**2 * transposed + 4**2 * transposed
    assert pyramid.multiply_adds == plain.multiply_adds - 192 * 1000 + neck
    assert (plain.strides, pyramid.strides) == ((16,), (4, 8, 16, 32))
    assert (plain.channels, pyramid.channels) == ((192,), (192,) * 4)


MODELS = {"roma_tiny_patch16": ROMA, "spatial_mamba_tiny": SPATIAL}


@pytest.mark.parametrize("name", MODELS)
def test_the_count_is_the_same_on_every_backend(name):
    model = timm.create_model(name, **MODELS[name])
    counts = set()
    for backend in ("auto", *dispatch.entry("state_scan").backends):
        with mock.patch.dict(os.environ, {dispatch.ENVIRONMENT: backend}):
            counts.add(multiply_adds(model, (32, 48)))
    assert len(counts) == 1 and min(counts) > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_real_forward_on_kernels_is_counted_alike(name):
    if any(s.backend == "reference" for s in dispatch.status("cpu") if s.operator != "gate"):
        pytest.skip("the C++ kernels are not here")
    model, image = timm.create_model(name, **MODELS[name]).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad(), counter() as counts:
        model(image)
    counted = counts.get_flop_counts()["Global"]
    assert {str(op) for op in counted} > {"rsmamba.state_scan" if "sp" in name else
                                         "rsmamba.selective_scan"}  # fmt: skip
    assert counts.get_total_flops() == 2 * multiply_adds(model, 32)


def test_cost_is_linear_in_the_number_of_pixels():
    model = timm.create_model("spatial_mamba_tiny", **SPATIAL | {"num_classes": 0})
    assert multiply_adds(model, (128, 64)) == 8 * multiply_adds(model, 32)


def test_counting_leaves_the_model_as_it_was():
    model = timm.create_model("spatial_mamba_tiny", **SPATIAL).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    multiply_adds(model, 4096)  # no memory, no time
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.training and all(p.requires_grad for p in parameters)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("size", [0, (64, -1), 10**11])
def test_a_size_must_be_positive(size):
    with pytest.raises(ConfigError, match="positive number of pixels"):
        multiply_adds(nn.Identity(), size)
