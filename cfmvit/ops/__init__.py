"""The ops: four families, each declared once, on native kernels where they are built and in plain PyTorch elsewhere.

Importing this needs torch and numpy alone.
"""

from cfmvit.ops.contrastive import InfoNCEStats, info_nce, siglip_loss
from cfmvit.ops.masking import (
    Masking,
    gather_patches,
    gather_tokens,
    random_masking,
    restore_tokens,
    split_tokens,
)
from cfmvit.ops.reconstruction import linear_masked_cosine_loss, masked_cosine_loss, masked_pixel_loss
from cfmvit.ops.regions import multilevel_roi_align, pool_regions, roi_align, score_regions
from cfmvit.ops.shared.index_checking import check_indices

__all__ = [
    "InfoNCEStats",
    "Masking",
    "check_indices",
    "gather_patches",
    "gather_tokens",
    "info_nce",
    "linear_masked_cosine_loss",
    "masked_cosine_loss",
    "masked_pixel_loss",
    "multilevel_roi_align",
    "pool_regions",
    "random_masking",
    "restore_tokens",
    "roi_align",
    "score_regions",
    "siglip_loss",
    "split_tokens",
]
