"""The published change detector: RoMA's pyramid, differences per level, and smp's U-Net decoder."""

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import nn

from tests.golden import fill_state_dict, fixture, tensor
from tests.models.conftest import golden_roma


class Head(nn.Module):
    """The published head under its published names; nothing of it needs code of ours."""

    def __init__(self, encoder_channels, decoder_channels, channels, num_classes):
        super().__init__()
        decoder = UnetDecoder((0, *encoder_channels), decoder_channels, len(decoder_channels))
        self.decoder, self.blocks = (decoder,), decoder.blocks
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, levels, size):
        # The decoder ends at half the image: one more step than there are levels.
        half = levels[0].new_empty(1, 1, *(2 * n for n in levels[0].shape[-2:]))
        x = self.decoder[0]([half, *levels])
        return F.interpolate(self.conv_seg(x), size, mode="bilinear", align_corners=False)


def check(name, dtype, run):
    golden = fixture(name)
    head = Head(**golden.meta["head"]["config"]).to(dtype).eval()
    assert sum(p.numel() for p in head.parameters()) == golden.meta["head"]["n_params"]
    prefix = golden.meta["head"]["key_prefix_for_fill"]
    head.load_state_dict(fill_state_dict(golden.meta["head"]["state_dict"], prefix=prefix))
    model = golden_roma(name, dtype, neck_norm=False).eval()
    with torch.no_grad():
        before, after = (
            model.forward_intermediates(
                tensor(golden.meta[key], (1, 3, 224, 224), dtype), intermediates_only=True
            )
            for key in ("input", "input_b")
        )
        differences = [(a - b).abs() for a, b in zip(before, after, strict=True)]
        golden.assert_close(f"{run}.unet_logits", head(differences, (224, 224)))
        if run == "f64":
            golden.assert_close(f"{run}.unet_logits_from_A", head(before, (224, 224)))


def test_the_tiny_change_detector_equals_the_golden_values():
    check("roma_cd_tiny", torch.float64, "f64")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "run"),
    [("roma_cd_tiny", torch.float32, "f32"), ("roma_cd_base", torch.float64, "f64")],
)
def test_change_detectors_equal_the_golden_values(name, dtype, run):
    check(name, dtype, run)
