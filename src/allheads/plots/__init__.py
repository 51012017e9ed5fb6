"""Pictures of a twin: what its heads attend to, which gates open, how exact it is, and what an answer is made of.

>>> import allheads as ah
>>> ah.plots.attention(twin, "The cat sat on the mat.", "L3.A5").show()  # doctest: +SKIP
>>> ah.plots.write_report(twin, report, "The cat sat on the mat.", "twin.html")  # doctest: +SKIP
"""

from allheads.plots.attention_view import attention
from allheads.plots.attribution_page import write_attribution
from allheads.plots.contributions import attribution
from allheads.plots.explorer import explore
from allheads.plots.frontier_figures import frontier
from allheads.plots.gate_maps import gates
from allheads.plots.graph_view import graph
from allheads.plots.layer_errors import errors
from allheads.plots.picture import Picture
from allheads.plots.report import write_report
from allheads.plots.streams import residual

__all__ = [
    "Picture",
    "attention",
    "attribution",
    "errors",
    "explore",
    "frontier",
    "gates",
    "graph",
    "residual",
    "write_attribution",
    "write_report",
]
