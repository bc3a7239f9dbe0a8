"""Open-vocabulary detection: the finetuned half of CFM-ViT."""

from cfmvit.detection.config import (
    DetectorConfig,
    HeadConfig,
    ProposalConfig,
    PyramidConfig,
    ScoreConfig,
    tiny_config,
)
from cfmvit.detection.detector import Detector
from cfmvit.detection.encoded import Encoded
from cfmvit.detection.engine import FinetuneConfig, FinetuneOptim, finetune
from cfmvit.detection.explanation import similarity_maps
from cfmvit.detection.inference import predict_dataset
from cfmvit.detection.region_classification import classify_regions
from cfmvit.detection.result import Detections
from cfmvit.detection.vocabulary import Vocabulary
from cfmvit.detection.zero_shot_pipeline import pipeline

__all__ = [
    "Detections",
    "Detector",
    "DetectorConfig",
    "Encoded",
    "FinetuneConfig",
    "FinetuneOptim",
    "HeadConfig",
    "ProposalConfig",
    "PyramidConfig",
    "ScoreConfig",
    "Vocabulary",
    "classify_regions",
    "finetune",
    "pipeline",
    "predict_dataset",
    "similarity_maps",
    "tiny_config",
]
