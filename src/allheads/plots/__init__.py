"""Pictures of a twin: what its heads attend to, which gates open, how exact it is, and what an answer is made of.

>>> import allheads as ah
>>> ah.plots.attention(twin, "The cat sat on the mat.").save("attention.html").name
'attention.html'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allheads._lazy import importer

if TYPE_CHECKING:
    from allheads.plots.attention_view import attention as attention
    from allheads.plots.attribution_page import write_attribution as write_attribution
    from allheads.plots.contributions import attribution as attribution
    from allheads.plots.explorer import explore as explore
    from allheads.plots.frontier_figures import frontier as frontier
    from allheads.plots.gate_maps import gates as gates
    from allheads.plots.graph_view import graph as graph
    from allheads.plots.layer_errors import errors as errors
    from allheads.plots.picture import Picture as Picture
    from allheads.plots.report_page import write_report as write_report
    from allheads.plots.streams import residual as residual

_HOME = {
    "Picture": "picture",
    "attention": "attention_view",
    "attribution": "contributions",
    "errors": "layer_errors",
    "explore": "explorer",
    "frontier": "frontier_figures",
    "gates": "gate_maps",
    "graph": "graph_view",
    "residual": "streams",
    "write_attribution": "attribution_page",
    "write_report": "report_page",
}
__all__ = list(_HOME)
__getattr__ = importer(__name__, _HOME)
