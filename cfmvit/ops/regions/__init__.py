"""Region ops: RoIAlign on token maps and pyramids, pooled region embeddings, open-vocabulary scores."""

from cfmvit.ops.regions.functional import multilevel_roi_align, pool_regions, roi_align, score_regions

__all__ = ["multilevel_roi_align", "pool_regions", "roi_align", "score_regions"]
