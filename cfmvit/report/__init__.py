"""What people look at: overlays, similarity maps, curves, bars, and the HTML report that holds them."""

from cfmvit.report.against_cost import against_cost
from cfmvit.report.charts import bars
from cfmvit.report.curves import curves
from cfmvit.report.html import Card, Report
from cfmvit.report.overlay import gallery, overlay
from cfmvit.report.rates import precision_recall, reliability
from cfmvit.report.similarity import cosine_map, similarity_map

__all__ = [
    "Card",
    "Report",
    "against_cost",
    "bars",
    "cosine_map",
    "curves",
    "gallery",
    "overlay",
    "precision_recall",
    "reliability",
    "similarity_map",
]
