"""Models filled with the golden weights."""

import pytest
import timm
import torch

import rsmamba.models  # noqa: F401  (registers the models with timm)
from rsmamba.models import RoMAForPretraining
from rsmamba.models.checkpoints import convert
from tests.golden import fill_state_dict, fixture

#: Widths of the published downstream files; those of "tiny" and "small" differ from pretraining's.
DOWNSTREAM_WIDTH = {"tiny": 384, "small": 512, "base": 768, "large": 1024}


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def golden_roma(name, dtype=torch.float64, **options):
    """A downstream RoMA (``roma_cls_*``, ``roma_seg_*``, ``roma_cd_*``) as the fixture has it."""
    size = name.rsplit("_", 1)[1]
    suffix = "" if "cls" in name else "_pyramid"
    model = timm.create_model(
        f"roma_{size}_patch16{suffix}", embed_dim=DOWNSTREAM_WIDTH[size], **options
    )
    weights = fill_state_dict(fixture(name).meta["state_dict"])
    model.load_state_dict(convert(weights, source="roma"), strict=True)
    return model.to(dtype).eval()


def golden_pretraining(size, dtype=torch.float64):
    """A pretraining model as the fixture has it; its position table is the constructor's."""
    model = RoMAForPretraining(f"roma_{size}_patch16")
    entries = fixture(f"roma_pretrain_{size}").meta["state_dict"]
    weights = fill_state_dict(entries, keep=("pos_embed", "dec_pos_embed", "mask"))
    weights["pos_embed"] = model.encoder.pos_embed.detach().clone()
    model.load_state_dict(convert(weights, source="roma-pretrain"), strict=True)
    return model.to(dtype).eval()
