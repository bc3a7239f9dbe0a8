"""Contrastive losses without the matrix of logits: InfoNCE and SigLIP, on one device or many."""

from cfmvit.ops.contrastive.functional import InfoNCEStats, info_nce, siglip_loss

__all__ = ["InfoNCEStats", "info_nce", "siglip_loss"]
