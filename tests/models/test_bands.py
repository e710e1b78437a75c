"""The stem's weights under other bands."""

import pytest
import timm
import torch
from timm.models._manipulate import adapt_input_conv
from torch.nn.functional import conv2d

import rsmamba.models  # noqa: F401  (registers the backbones)
from rsmamba.errors import BandMismatchError
from rsmamba.models.bands import adapt_stem, match_bands
from rsmamba.sensors import Band, bands_of

RGB = ("red", "green", "blue")


def stem(bands, filters=6, patch=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters, bands, patch, patch, generator=generator, dtype=torch.float64)
    return weight.to(dtype)


def variance(weight):
    """Variance per filter of the response to independent pixels of unit variance."""
    return weight.double().square().sum(dim=(1, 2, 3))


def found(source, target):
    return [(m.source.label if m.source else None, m.by) for m in match_bands(source, target)]


def test_a_permutation_is_exact():
    weight = stem(3)
    adapted, sentence = adapt_stem(weight, RGB, ("B02", "B04", "B03"))
    assert torch.equal(adapted, weight[:, [2, 0, 1]])
    assert sentence == "stem: blue, red, green taken by name"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_subset_is_exact(dtype):
    weight = stem(13, dtype=dtype)
    adapted, sentence = adapt_stem(weight, bands_of("sentinel-2"), RGB)
    assert adapted.dtype == dtype
    assert torch.equal(adapted, weight[:, [3, 2, 1]])
    assert "red, green, blue taken by name" in sentence
    assert sentence.endswith("swir16, swir22 of the weights not used")


@pytest.mark.parametrize("names", [RGB, ("band_1", "band_2", "band_3"), ("B4", "B4", "VV")])
def test_the_same_list_changes_nothing_whatever_it_says(names):
    weight = stem(3)
    adapted, sentence = adapt_stem(weight, names, list(names))
    assert torch.equal(adapted, weight)
    assert adapted.data_ptr() != weight.data_ptr()
    assert sentence == f"stem: {', '.join(names)} as they are"


def test_the_response_keeps_its_variance_with_new_bands():
    weight = stem(3)
    target = bands_of("sentinel-2")
    adapted, _ = adapt_stem(weight, RGB, target)
    assert adapted.shape == (6, 13, 4, 4)
    torch.testing.assert_close(variance(adapted), variance(weight), rtol=1e-6, atol=0)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 13, 256, 256, generator=generator)
    response = conv2d(pixels, adapted, stride=4).var(dim=(0, 2, 3))
    torch.testing.assert_close(response.double(), variance(weight), rtol=0.1, atol=0)
    # the measure would notice: without the factor the response is much larger
    plain = torch.cat([weight, weight.mean(1, keepdim=True).expand(-1, 10, -1, -1)], dim=1)
    assert (variance(plain) > 1.5 * variance(weight)).all()


def test_matched_bands_keep_their_filters_and_new_ones_get_the_mean():
    weight = stem(3)
    adapted, sentence = adapt_stem(weight, RGB, ("swir16", "blue", "green", "VV@", "red"))
    gain = adapted[:, 4] / weight[:, 0]
    torch.testing.assert_close(gain, gain[:, :1, :1].expand_as(gain))  # one factor per filter
    gain = gain[:, :1, :1]
    assert (gain > (3 / 5) ** 0.5).all() and (gain < 1).all()
    torch.testing.assert_close(adapted[:, 1], gain * weight[:, 2])
    torch.testing.assert_close(adapted[:, 2], gain * weight[:, 1])
    for new in (0, 3):
        torch.testing.assert_close(adapted[:, new], gain * weight.mean(dim=1))
    assert sentence == (
        "stem: blue, green, red taken by name; swir16, vv new (mean of the others, scaled)"
    )


def test_new_bands_do_not_drown_matched_ones():
    weight = stem(13)
    weight[:, 3] *= 1e-3  # red, the only band that stays, is faint
    adapted, _ = adapt_stem(weight, bands_of("sentinel-2"), ("red", "elevation@"))
    torch.testing.assert_close(variance(adapted), variance(weight[:, 3:4]), rtol=1e-6, atol=0)
    assert (variance(adapted[:, :1]) >= 0.5 * (1 - 1e-6) * variance(weight[:, 3:4])).all()
    # and the new one is the mean of all thirteen, not red again
    mean = weight.mean(dim=1).flatten(1)
    cosine = torch.cosine_similarity(adapted[:, 1].flatten(1), mean)
    torch.testing.assert_close(cosine, torch.ones(6))


def test_silent_filters_stay_finite():
    weight = stem(3)
    weight[0] = 0  # of all bands
    weight[1, 0] = 0  # of the only band that stays
    adapted, _ = adapt_stem(weight, RGB, ("red", "VV@"))
    assert adapted.isfinite().all()
    torch.testing.assert_close(variance(adapted), variance(weight[:, :1]), rtol=1e-6, atol=0)


def test_wavelength_decides_where_names_differ():
    assert found(["red", "green", "blue", "nir@845/74"], ["naip:NIR", "blue"]) == [
        ("nir", "name"),
        ("blue", "name"),
    ]
    assert found(["a@842/115", "red"], ["landsat-8:B5"]) == [("a", "wavelength")]
    weight = stem(2)
    adapted, sentence = adapt_stem(weight, ["a@842/115", "red"], ["landsat-8:B5", "red"])
    assert torch.equal(adapted, weight)
    assert sentence == "stem: red taken by name; nir08 from a by wavelength"


@pytest.mark.parametrize(
    ("source", "target", "taken"),
    [
        (Band("a", 600, 60), Band("b", 630, 10), True),
        (Band("a", 600, 60), Band("b", 631, 10), False),
        (Band("a", 600, 10), Band("b", 630, 60), True),
        (Band("a", 600), Band("b", 610), True),  # widths that are not known count as 20 nm
        (Band("a", 600), Band("b", 611), False),
        (Band("a", 600), Band("b"), False),
    ],
)
def test_the_tolerance_is_half_the_wider_band(source, target, taken):
    (match,) = match_bands([source], [target])
    assert (match.source is source) == taken
    assert match.index == (0 if taken else None)


def test_a_source_band_serves_its_nearest_target_only():
    red = Band("mine", 660, 60)
    assert found([red], ["x@640", "y@655", "z@680"]) == [
        (None, None),
        ("mine", "wavelength"),
        (None, None),
    ]
    # a name comes before a nearer wavelength, and a band that is taken is not taken again
    assert found(RGB, ["x@655", "red"]) == [(None, None), ("red", "name")]
    # the nearest pair first, whatever the order
    assert found(["a@600/80", "b@620/80"], ["x@615", "y@630"]) == [
        ("b", "wavelength"),
        ("a", "wavelength"),
    ]


def test_no_filter_is_repeated_as_in_tiling():
    weight = stem(3)
    target = bands_of("sentinel-2")
    tiled = adapt_input_conv(13, weight)
    ours, _ = adapt_stem(weight, RGB, target)

    def nearest(adapted):
        """For each target band the source filter that it is, if any."""
        cosine = torch.cosine_similarity(
            adapted.transpose(0, 1).flatten(1)[:, None], weight.transpose(0, 1).flatten(1), dim=2
        )
        return [int(c.argmax()) if c.max() > 0.98 else None for c in cosine]

    assert nearest(tiled)[:6] == [0, 1, 2, 0, 1, 2]  # coastal gets red, red gets red by chance
    assert nearest(ours) == [None, 2, 1, 0] + 9 * [None]


def test_landsat_from_sentinel():
    taken = found(bands_of("sentinel-2"), bands_of("landsat-8"))
    assert [label for label, by in taken if by == "name"] == [
        "coastal",
        "blue",
        "green",
        "red",
        "nir08",
        "swir16",
        "swir22",
        "cirrus",
    ]
    assert taken[7] == taken[9] == taken[10] == (None, None)  # panchromatic and thermal


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (("VV@", "VH@"), RGB, r"no band of the data \(red, green, blue\) .* weights \(VV@, VH@\)"),
        (RGB[:2], ("lwir11", "lwir12"), r"\(lwir11, lwir12\).*\(red, green\)"),
        (RGB, RGB, r"weights are for 2 bands, but 3 are named \(red, green, blue\)"),
        (("red", "green"), ("red", "gren"), "unknown band 'gren', .* green"),
        (("red", "green"), ("red", "sentinel-2:B4"), "red occurs more than once"),
        (("B4", "B3"), ("B4", "B3", "B8A"), "B4 differs between sensors"),
    ],
)
def test_what_cannot_be_adapted_is_refused(source, target, message):
    with pytest.raises(BandMismatchError, match=message) as caught:
        adapt_stem(stem(2), source, target)
    assert "\n" not in str(caught.value)


def test_names_without_meaning_match_themselves():
    weight = stem(3)
    adapted, sentence = adapt_stem(weight, ("VV", "VH", "red"), ("red", "vh", "VV"))
    assert torch.equal(adapted, weight[:, [2, 1, 0]])
    assert sentence == "stem: red, vh, vv taken by name"
    adapted, sentence = adapt_stem(weight, ("VV", "VH", "red"), ("red", "VV@"))
    assert torch.equal(adapted, weight[:, [2, 0]])
    assert sentence == "stem: red, vv taken by name; VH of the weights not used"
    with pytest.raises(BandMismatchError, match="unknown band 'HH'"):
        adapt_stem(weight, ("VV", "VH", "red"), ("VV", "HH"))


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("roma_tiny_patch16", {"img_size": 32, "depth": 1}, "patch_embed.proj.weight"),
        ("spatial_mamba_tiny", {"depths": (1, 1, 1, 1)}, "stem.conv1.conv.weight"),
    ],
)
def test_a_backbone_gives_the_same_features_for_the_same_bands_in_another_order(name, options, key):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **options).eval()
    other = timm.create_model(name, num_classes=0, **options).eval()
    state = model.state_dict()
    assert key.removesuffix(".weight") == model.default_cfg["first_conv"]
    state[key], _ = adapt_stem(state[key], RGB, ("blue", "green", "red"))
    other.load_state_dict(state)
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    features = model(image)
    flipped = other(image.flip(1))
    torch.testing.assert_close(flipped, features, rtol=1e-4, atol=1e-5)
    (one,) = torch.autograd.grad(features.square().sum(), image)
    (two,) = torch.autograd.grad(flipped.square().sum(), image)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(other(image), features, rtol=1e-4, atol=1e-5)
