"""Lines through means, with bars for their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from allheads_labs.kit.statistics import Interval


def line(points: Mapping[Any, Interval], **style: Any) -> go.Scatter:
    """Means by x, with their intervals; ``style`` is that of a plotly scatter."""
    return go.Scatter(
        x=list(points),
        y=[point.mean for point in points.values()],
        error_y={"type": "data", "array": [point.half or 0.0 for point in points.values()]},
        mode="lines+markers",
        **style,
    )
