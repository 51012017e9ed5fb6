"""Pictures of a twin: what its heads attend to, which gates open, and how far it is from its source.

>>> import allheads as ah
>>> ah.plots.attention(twin, "The cat sat on the mat.", "L3.A5").show()  # doctest: +SKIP
>>> ah.plots.write_report(twin, report, "The cat sat on the mat.", "twin.html")  # doctest: +SKIP
"""

from allheads.plots.gate_maps import gates, neurons
from allheads.plots.layer_errors import errors
from allheads.plots.patterns import attention
from allheads.plots.report import write_report

__all__ = ["attention", "errors", "gates", "neurons", "write_report"]
