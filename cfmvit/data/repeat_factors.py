"""Repeat-factor sampling: images with rare categories come more often (Gupta et al., LVIS, 2019, section 5.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def repeat_factors(categories: Sequence[set[int]], threshold: float) -> NDArray[np.float64]:
    """Return how often each image comes in an epoch.

    A category that a share f of the images has is repeated r = max(1, sqrt(threshold / f)) times; an image as often as the
    category of it that is repeated most.

    Args:
        categories: of each image.
        threshold: share of the images below which a category is repeated, in (0, 1]; 0.001 for LVIS.

    Returns:
        (images,) float64, at least 1.
    """
    count = Counter(category for found in categories for category in found)
    factor = {category: max(1.0, (threshold * len(categories) / n) ** 0.5) for category, n in count.items()}
    return np.array([max((factor[category] for category in found), default=1.0) for found in categories])
