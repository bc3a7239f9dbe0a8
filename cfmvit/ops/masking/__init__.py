"""Masked-token ops: drawing the mask, gathering, splitting and restoring tokens, cutting patches."""

from cfmvit.ops.masking.functional import (
    Masking,
    gather_patches,
    gather_tokens,
    random_masking,
    restore_tokens,
    split_tokens,
)

__all__ = [
    "Masking",
    "gather_patches",
    "gather_tokens",
    "random_masking",
    "restore_tokens",
    "split_tokens",
]
