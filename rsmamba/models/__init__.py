"""Backbones, registered with timm: ``timm.create_model("roma_base_patch16")`` after this import."""

from rsmamba.models.pyramid import (
    RoMAPyramid,
    roma_base_patch16_pyramid,
    roma_large_patch16_pyramid,
    roma_small_patch16_pyramid,
    roma_tiny_patch16_pyramid,
)
from rsmamba.models.registry import serve_weights
from rsmamba.models.roma import (
    RoMA,
    roma_base_patch16,
    roma_large_patch16,
    roma_small_patch16,
    roma_tiny_patch16,
)
from rsmamba.models.roma_pretrain import PretrainingOutput, RoMAForPretraining
from rsmamba.models.spatial_mamba import (
    SpatialMamba,
    spatial_mamba_base,
    spatial_mamba_small,
    spatial_mamba_tiny,
)

__all__ = [
    "PretrainingOutput",
    "RoMA",
    "RoMAForPretraining",
    "RoMAPyramid",
    "SpatialMamba",
    "roma_base_patch16",
    "roma_base_patch16_pyramid",
    "roma_large_patch16",
    "roma_large_patch16_pyramid",
    "roma_small_patch16",
    "roma_small_patch16_pyramid",
    "roma_tiny_patch16",
    "roma_tiny_patch16_pyramid",
    "serve_weights",
    "spatial_mamba_base",
    "spatial_mamba_small",
    "spatial_mamba_tiny",
]
