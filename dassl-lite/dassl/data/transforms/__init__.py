"""Image transforms from the config."""

from .transforms import INTERPOLATION_MODES, build_plain_transform, build_transform

__all__ = ["INTERPOLATION_MODES", "build_plain_transform", "build_transform"]
