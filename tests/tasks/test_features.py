import pytest
import torch

from rsmamba.errors import ConfigError, UnknownModelError
from rsmamba.tasks.features import BackboneFeatures, ColourHistogram, LinearProbe, select_l2

SMALL = {"img_size": 32, "depth": 4, "embed_dim": 32}


def blobs(count, seed, noise=0.3):
    """Three classes around the corners of a triangle in five dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.eye(3, 5) * 10 + 100
    return centres[labels] + noise * torch.randn(count, 5, generator=generator), labels


def test_mean_and_deviation_are_those_of_the_last_layers_tokens():
    extractor = BackboneFeatures(
        "roma_tiny_patch16", readout="mean_std", layers=2, model_kwargs=SMALL
    )
    image = torch.randn(3, 3, 32, 32)
    maps = extractor.backbone.forward_intermediates(
        image, indices=2, norm=True, intermediates_only=True
    )
    flat = [m.flatten(2) for m in maps]
    deviations = [f.var(2, correction=0).sqrt() for f in flat]
    expected = torch.cat([*(f.mean(2) for f in flat), *deviations], 1)
    features = extractor(image)
    assert features.shape == (3, extractor.num_features) == (3, 128)
    torch.testing.assert_close(features, expected)


def test_the_token_read_out_is_the_class_token():
    extractor = BackboneFeatures("roma_tiny_patch16", readout="token", model_kwargs=SMALL)
    image = torch.randn(2, 3, 32, 32)
    ((_, prefix),) = extractor.backbone.forward_intermediates(
        image, indices=1, norm=True, intermediates_only=True, return_prefix_tokens=True
    )
    torch.testing.assert_close(extractor(image), prefix[:, 0])
    with pytest.raises(ConfigError, match="no class token"):
        BackboneFeatures(
            "roma_tiny_patch16",
            readout="token",
            model_kwargs=SMALL | {"class_token": False, "global_pool": "avg"},
        )


def test_a_frozen_backbone_neither_learns_nor_drops_out():
    extractor = BackboneFeatures(
        "roma_tiny_patch16", model_kwargs=SMALL | {"drop_path_rate": 0.9}
    ).train()
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(extractor(image), extractor(image))
    assert not extractor(image).requires_grad


def test_an_unknown_backbone_suggests_the_nearest():
    with pytest.raises(UnknownModelError, match="roma_tiny_patch16"):
        BackboneFeatures("roma_tiny_patch_16")


def test_a_histogram_counts_pixels_per_band():
    image = torch.stack([torch.full((4, 4), -9.0), torch.zeros(4, 4), torch.full((4, 4), 2.99)])
    image[1, :2] = 2.9
    histogram = ColourHistogram(bins=6)(image[None]).view(3, 6)
    expected = torch.zeros(3, 6)
    expected[0, 0] = expected[2, 5] = 1
    expected[1, 3] = expected[1, 5] = 0.5
    torch.testing.assert_close(histogram, expected)


def test_the_probe_separates_what_is_separable_whatever_the_offset():
    features, labels = blobs(90, 0)
    probe = LinearProbe(5, 3)
    probe.fit(features, labels, 1e-3, probe.lbfgs())
    unseen, truth = blobs(90, 1)
    assert (probe(unseen).argmax(1) == truth).all()


def test_the_probe_is_at_the_minimum_of_its_objective():
    features, labels = blobs(60, 0, noise=8)
    probe = LinearProbe(5, 3)
    probe.fit(features, labels, 1e-2, probe.lbfgs())
    probe.zero_grad()
    loss = torch.nn.functional.cross_entropy(probe(features), labels)
    (loss + 0.005 * probe.linear.weight.square().sum()).backward()
    assert probe.linear.weight.grad.abs().max() < 1e-3


def test_a_feature_without_spread_does_no_harm():
    features, labels = blobs(60, 0)
    features[:, 4] = 7
    probe = LinearProbe(5, 3)
    probe.fit(features, labels, 1e-3, probe.lbfgs())
    assert probe(features).isfinite().all()


def test_the_penalty_is_chosen_by_accuracy_on_what_was_left_out():
    features, labels = blobs(60, 0, noise=7)
    chosen = select_l2(features, labels, 3, (1e-5, 1.0), folds=3)
    hits = {}
    for l2 in (1e-5, 1.0):
        hits[l2] = 0
        for k in range(3):
            out = torch.arange(60) // 3 % 3 == k  # labels are 0, 1, 2, 0, ...: stratified
            probe = LinearProbe(5, 3)
            probe.fit(features[~out], labels[~out], l2, probe.lbfgs())
            hits[l2] += int((probe(features[out]).argmax(1) == labels[out]).sum())
    assert hits[chosen] == max(hits.values())
    assert hits[1e-5] != hits[1.0], "the planted data must tell the penalties apart"


def test_of_equally_good_penalties_the_largest_is_chosen():
    assert select_l2(*blobs(30, 0), 3, (1e-3, 1e-1, 1e-2)) == 1e-1
