"""What a model is worth: detection AP (LVIS, COCO; base and novel), retrieval, zero-shot classification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfmvit._lazy import hand_on

__all__ = [
    "class_embeddings",
    "classify_images",
    "classify_regions",
    "dense_tokens",
    "evaluate",
    "evaluate_results",
    "evaluate_retrieval",
    "format_table",
    "imagined_tokens",
    "locality",
    "pointing_accuracy",
    "region_embeddings",
    "retrieval_recall",
    "topk_accuracy",
    "value_tokens",
]

if TYPE_CHECKING:
    from cfmvit.evaluation.command import evaluate
    from cfmvit.evaluation.detection import evaluate_results
    from cfmvit.evaluation.pointing import imagined_tokens, pointing_accuracy, value_tokens
    from cfmvit.evaluation.retrieval import evaluate_retrieval, retrieval_recall
    from cfmvit.evaluation.tables import format_table
    from cfmvit.evaluation.token_variance import locality
    from cfmvit.evaluation.zero_shot import (
        class_embeddings,
        classify_images,
        classify_regions,
        dense_tokens,
        region_embeddings,
        topk_accuracy,
    )
else:
    # So that evaluating a file needs no torch.
    __getattr__, __dir__ = hand_on(
        __name__,
        {
            "cfmvit.evaluation.command": ("evaluate",),
            "cfmvit.evaluation.detection": ("evaluate_results",),
            "cfmvit.evaluation.pointing": ("imagined_tokens", "pointing_accuracy", "value_tokens"),
            "cfmvit.evaluation.retrieval": ("evaluate_retrieval", "retrieval_recall"),
            "cfmvit.evaluation.tables": ("format_table",),
            "cfmvit.evaluation.token_variance": ("locality",),
            "cfmvit.evaluation.zero_shot": (
                "class_embeddings",
                "classify_images",
                "classify_regions",
                "dense_tokens",
                "region_embeddings",
                "topk_accuracy",
            ),
        },
    )
