"""Pictures of a twin: what its heads attend to, which gates open, how exact it is, and what an answer is made of.

>>> import allheads as ah
>>> ah.plots.attention(twin, "The cat sat on the mat.", "L3.A5").show()  # doctest: +SKIP
>>> ah.plots.write_report(twin, report, "The cat sat on the mat.", "twin.html")  # doctest: +SKIP
"""

from allheads.plots.attribution_page import write_attribution
from allheads.plots.contributions import heads, layers, tokens
from allheads.plots.gate_maps import gates, neurons
from allheads.plots.graphs import graph
from allheads.plots.layer_errors import errors
from allheads.plots.paths import steps, trajectories
from allheads.plots.patterns import attention
from allheads.plots.report import write_report

__all__ = [
    "attention",
    "errors",
    "gates",
    "graph",
    "heads",
    "layers",
    "neurons",
    "steps",
    "tokens",
    "trajectories",
    "write_attribution",
    "write_report",
]
