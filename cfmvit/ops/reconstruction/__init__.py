"""Reconstruction losses over masked tokens: cosine in the joint space, and the pixel loss it is compared with."""

from cfmvit.ops.reconstruction.functional import (
    linear_masked_cosine_loss,
    masked_cosine_loss,
    masked_pixel_loss,
)

__all__ = ["linear_masked_cosine_loss", "masked_cosine_loss", "masked_pixel_loss"]
