import pytest
import torch

from rsmamba.models import RoMAForPretraining
from rsmamba.tasks.baselines import TrivialAnswers

PATCH, CLUSTER, BANDS = 4, 2, 3


@pytest.fixture(scope="module")
def layout():
    """Only its patch arithmetic is used."""
    return RoMAForPretraining(
        "roma_tiny_patch16", img_size=16, patch_size=PATCH, cluster_size=CLUSTER,
        decoder_dim=16, decoder_depth=1, decoder_heads=2, embed_dim=16, depth=4,
    )  # fmt: skip


def patches(layout, image):
    normalised, mean, deviation = layout.normalised_patches(image)
    grid = (image.shape[-2] // PATCH, image.shape[-1] // PATCH)
    raw = layout.to_clusters(normalised * deviation + mean, grid)
    return raw, layout.to_clusters(normalised, grid)


def images(count, seed):
    """A colour per image and a fixed texture: what a ridge can learn."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.randn(count, BANDS, 1, 1, generator=generator)
    texture = torch.linspace(-1, 1, PATCH).repeat(16 // PATCH).view(1, 1, 1, 16)
    noise = torch.randn(count, BANDS, 16, 16, generator=generator)
    return colour + texture + 0.2 * noise


def answers(layout):
    return TrivialAnswers(PATCH**2 * BANDS, BANDS, CLUSTER**2)


def test_zeros_is_the_power_of_the_predicted_patches(layout):
    raw, normalised = patches(layout, images(3, 0))
    result = answers(layout)
    result.update(raw, normalised)
    expected = normalised[:, CLUSTER**2 :].double().square().mean()
    torch.testing.assert_close(result.losses(raw, normalised)["zeros"], expected)


def test_global_mean_is_the_best_constant_patch_of_the_training_data(layout):
    raw, normalised = patches(layout, images(8, 0))
    result = answers(layout)
    result.update(raw[:4], normalised[:4])
    result.update(raw[4:], normalised[4:])
    target = normalised[:, CLUSTER**2 :].double()
    best = (target - target.mean(dim=(0, 1))).square().mean()
    torch.testing.assert_close(result.losses(raw, normalised)["global_mean"], best)


def test_ridge_equals_penalised_least_squares_written_out(layout):
    raw, normalised = patches(layout, images(40, 0))
    result = answers(layout)
    result.update(raw, normalised)
    x = result.features(raw, normalised).repeat_interleave(CLUSTER**2, dim=1).flatten(0, 1)
    y = normalised[:, CLUSTER**2 :].double().flatten(0, 1)
    weight = result.penalty * x.square().sum(0).mean()
    penalty = weight.sqrt() * torch.eye(x.shape[1], dtype=torch.float64)
    augmented = torch.cat([x, penalty]), torch.cat([y, y.new_zeros(len(penalty), y.shape[1])])
    expected = (y - x @ torch.linalg.lstsq(*augmented).solution).square().mean()
    torch.testing.assert_close(result.losses(raw, normalised)["ridge"], expected)


def test_answers_improve_from_zeros_to_ridge_on_unseen_images(layout):
    result = answers(layout)
    for seed in range(8):
        result.update(*patches(layout, images(32, seed)))
    losses = result.losses(*patches(layout, images(64, 99)))
    assert losses["ridge"] < losses["global_mean"] < losses["zeros"]


def test_the_ridge_sees_only_earlier_clusters(layout):
    image = images(2, 0)
    raw, normalised = patches(layout, image)
    changed = image.clone()
    changed[:, :, 8:, 8:] += 5  # the last cluster
    raw_changed, normalised_changed = patches(layout, changed)
    features = answers(layout).features(raw, normalised)
    torch.testing.assert_close(features, answers(layout).features(raw_changed, normalised_changed))
    changed[:, :, :8, :8] += 5  # the first one is visible to all
    assert not torch.allclose(features, answers(layout).features(*patches(layout, changed)))
