"""How timm builds our models, and where ``pretrained=True`` finds weights.

No weights are hosted, so none are downloaded: :func:`serve_weights` gives a local file a timm tag,
and everything that asks timm for a pretrained model can then have it by that name: TorchGeo's
``weights: true``, segmentation_models_pytorch's ``tu-`` encoders, terratorch.
"""

import inspect
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg
from torch import nn

from rsmamba.errors import CheckpointError, ConfigError, RsmambaError, UnknownModelError

__all__ = ["create", "default_cfg", "serve_weights"]

_LOG = logging.getLogger(__name__)

_Served = tuple[str, tuple[str, ...] | None]
#: ``architecture.tag`` -> file and the names of the bands that models are built for.
_SERVED: dict[str, _Served] = {}


def default_cfg(first_conv: str, **kwargs: Any) -> dict[str, Any]:
    """timm's description of a model without hosted weights.

    Args:
        first_conv: Name of the convolution that takes the image.
        **kwargs: What differs.
    """
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": False,
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": "head",
        **kwargs,
    }


def serve_weights(
    name: str, path: str | os.PathLike[str], *, bands: Sequence[str] | None = None
) -> None:
    """Give a file of weights a timm tag: ``timm.create_model(name, pretrained=True)`` loads it.

    Args:
        name: Architecture and tag, such as ``"roma_base_patch16.aerial"``.
        path: Anything that :func:`rsmamba.models.checkpoints.load_backbone` takes; it is read when
            a model is built.
        bands: Names of the bands that models will be built for, where they are not those of the
            file; see :mod:`rsmamba.models.bands`.

    Raises:
        UnknownModelError: If the architecture is not one of ours.
        ConfigError: If the name has no tag.
    """
    architecture, _, tag = name.partition(".")
    ours = timm.is_model(architecture) and timm.model_entrypoint(architecture).__module__
    if not ours or not ours.startswith("rsmamba.models."):
        raise UnknownModelError(f"{architecture!r} is no model of rsmamba: `rsmamba models`")
    if not tag:
        raise ConfigError(f"{name!r} has no tag: choose one, such as '{architecture}.mine'")
    _SERVED[name] = (os.fspath(path), None if bands is None else tuple(bands))


def create(
    model_cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    *,
    levels: int | tuple[int, ...],
    filter_fn: Callable[..., dict[str, Any]],
    **kwargs: Any,
) -> Any:
    """Build a registered variant, with the weights that its tag stands for.

    Args:
        model_cls: Its class.
        variant: Its name without a tag.
        pretrained: Whether to load weights.
        levels: Levels that ``features_only=True`` returns by default, or their number.
        filter_fn: Fits what timm itself fetches (``url`` or ``hf_hub_id`` in its
            ``pretrained_cfg_overlay``) to a model; a ``file`` there is read as a served one is.
        **kwargs: Options of the model, and timm's.

    Raises:
        ConfigError: If an output stride is asked for, as DeepLabV3+ does.
        CheckpointError: If nobody serves weights under that name, or they do not fit.
    """
    if (stride := kwargs.pop("output_stride", 32)) != 32:
        raise ConfigError(
            f"{variant} has no dilated form (output_stride={stride}): choose a decoder that needs "
            "none, such as unet or upernet"
        )
    tag, overlay = kwargs.get("pretrained_cfg"), dict(kwargs.get("pretrained_cfg_overlay") or {})
    file = overlay.pop("file", None)
    served: _Served | None = (file, None) if file else None
    if isinstance(tag, str):
        served = _SERVED.get(f"{variant}.{tag}", served)
        del kwargs["pretrained_cfg"]
    if pretrained and served is None and not overlay and not isinstance(tag, dict):
        raise CheckpointError(
            f"no weights are known as {'.'.join(filter(None, (variant, tag)))!r}: name a file with "
            f"rsmamba.models.serve_weights('{variant}.{tag or 'mine'}', FILE)"
        )
    kwargs["pretrained_cfg_overlay"] = overlay or None
    local = served if pretrained else None
    if local is not None:
        kwargs = _options_of(model_cls, local[0]) | kwargs
    model = build_model_with_cfg(
        model_cls,
        variant,
        pretrained and local is None,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"out_indices": levels, "feature_cls": "getter"},
        **kwargs,
    )
    if local is not None:
        _load(model.get_submodule("model") if kwargs.get("features_only") else model, *local)
    return model


def _options_of(model_cls: type[nn.Module], path: str) -> dict[str, Any]:
    """What a file's spec says of the model, and its tensors do not."""
    name = "fusion_padding"
    if name not in inspect.signature(model_cls).parameters:
        return {}
    from rsmamba.models.checkpoints.hub import locate
    from rsmamba.models.checkpoints.loading import spec_option
    from rsmamba.weights_file import read_spec

    try:
        value = spec_option(read_spec(locate(path)), name)
    except RsmambaError:  # no spec, or a file of which load_backbone will say what is wrong
        return {}
    return {} if value is None else {name: value}


def _load(backbone: Any, path: str, bands: tuple[str, ...] | None) -> None:
    """Load, say what was loaded, and leave the report with the model for later checks."""
    from rsmamba.models.checkpoints import load_backbone

    wanted = backbone.in_chans
    if bands and wanted % len(bands) == 0:
        bands *= wanted // len(bands)  # several dates side by side
    backbone.load_report = load_backbone(backbone, path, bands=bands)
    _LOG.warning("weights: %s", backbone.load_report)
