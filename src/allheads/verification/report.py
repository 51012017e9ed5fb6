"""The verdict: figures, the thresholds they were held against, and what failed."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from allheads.gates.approximation import DEFAULT_TOLERANCE
from allheads.result import Result, finite
from allheads.verification.layers import LayerProof

if TYPE_CHECKING:
    import pandas

#: How many failures a printed report lists.
_SHOWN = 20


@dataclass(frozen=True)
class Thresholds:
    """What a twin may differ by, beside the bound that every layer has to keep.

    ``max_logit_error`` in logits, ``mean_kl`` in nats; both hold for `closed` too, and ``max_logit_error_closed`` where
    it is given. Top-1 agreement needs no threshold: where logits differ by e, the twin's choice costs the source at
    most 2 e.
    """

    max_logit_error: float
    mean_kl: float
    max_logit_error_closed: float | None = None

    @classmethod
    def default(cls, dtype: torch.dtype, tolerance: float) -> Thresholds:
        """5e-4 and 1e-8 in float32 at the default tolerance, which is that of the certificates.

        Logits move in proportion to the tolerance and to the roundoff, divergences with the square, up to half a
        logit and 1e-3 nats, beyond which a twin is not worth the name.

        >>> Thresholds.default(torch.float32, DEFAULT_TOLERANCE).mean_kl
        1e-08
        """
        coarse = max(1.0, tolerance / DEFAULT_TOLERANCE, torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)
        return cls(min(0.5, 5e-4 * coarse), min(1e-3, 1e-8 * coarse * coarse))


@dataclass(frozen=True, repr=False)
class Report(Result):
    """What `verify` measured. Figures without a suffix are those of the evaluation named in ``evaluation``.

    ``output`` says what was compared: the logits, or, of a network without a head, its last hidden state. Of hidden
    states there is no divergence and no top-1: these figures are NaN, and ``max_logit_error`` is theirs.

    ``tolerance`` is the largest certified error of the gates. ``differences`` are the parameters, buffers and settings
    outside the banks that are not the source's, ``unreached`` what the texts did not reach, so that only its weights
    were compared.
    """

    model: str
    texts: int
    tokens: int
    dtype: str
    evaluation: str
    pattern_dtype: str
    tolerance: float
    output: str
    max_logit_error: float
    max_logit_error_closed: float
    mean_kl: float
    max_kl: float
    mean_kl_closed: float
    loss_source: float
    loss_twin: float
    top1_agreement: float
    noise_floor: float | None
    thresholds: Thresholds
    layers: list[LayerProof]
    differences: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)

    def against(self, thresholds: Thresholds) -> Report:
        """The same figures, with other thresholds."""
        return replace(self, thresholds=thresholds)

    @property
    def domain_violations(self) -> int:
        """Activations outside the certified domain."""
        return sum(layer.violations for layer in self.layers)

    @property
    def edited(self) -> list[str]:
        """The layers whose heads were edited."""
        return [layer.location for layer in self.layers if layer.edited]

    @property
    def failures(self) -> list[str]:
        """Everything that is wrong, the layers first."""
        found = [f"{p.location}: {fault}" for p in self.layers for fault in p.faults]
        for p in self.layers:
            if p.violations:
                found.append(f"{p.location}: {p.violations} activations outside the certified domain {p.domain:g}")
            elif (not p.passed and not p.faults) or p.tightness > 1:
                found.append(f"{p.location}: error {p.error:.2e} is {p.tightness:.1f} times its bound")
        found += self.differences
        compared = ("max_logit_error", "mean_kl") if self.output == "logits" else ("max_logit_error",)
        for figure in (f"{name}{suffix}" for name in compared for suffix in ("", "_closed")):
            limit = self._limit(figure)
            if not getattr(self, figure) <= limit:
                found.append(f"{figure} is {getattr(self, figure):.2e}, threshold {limit:.2e}")
        return found

    def _limit(self, figure: str) -> float:
        """The threshold of a figure; `closed` has the others' where it has none of its own."""
        own = getattr(self.thresholds, figure, None)
        return float(getattr(self.thresholds, figure.removesuffix("_closed")) if own is None else own)

    @property
    def passed(self) -> bool:
        """Every layer within its bound, every figure within its threshold, and nothing else than in the source."""
        return not self.failures

    @property
    def columns(self) -> list[str]:
        """What the columns of `rows` behind the first say."""
        return [f"{self.evaluation}, patterns in {self.pattern_dtype}", "closed", "threshold"]

    def rows(self) -> list[list[str]]:
        """The table as text: figure, its value, the same by `closed`, its threshold."""
        logits, limits = self.output == "logits", self.thresholds
        largest = "largest logit difference" if logits else f"largest difference in the {self.output}"
        figures: list[tuple[str, float | None, float | None, float | None]] = [
            (largest, self.max_logit_error, self.max_logit_error_closed, limits.max_logit_error)
        ]
        if logits:
            figures.append(("mean KL divergence, nats", self.mean_kl, self.mean_kl_closed, limits.mean_kl))
            figures.append(("largest KL divergence, nats", self.max_kl, None, None))
        figures.append(
            ("largest difference of closed", None, self.max_logit_error_closed, self._limit("max_logit_error_closed"))
        )
        figures.append(("the source's own rounding noise", self.noise_floor, None, None))
        rows = [[name, *("" if value is None else f"{value:.1e}" for value in values)] for name, *values in figures]
        if not math.isnan(self.loss_source):
            rows.append(["loss of source, of twin", f"{self.loss_source:.6f}, {self.loss_twin:.6f}", "", ""])
        if logits:
            rows.append(["top-1 agreement", f"{self.top1_agreement:.2%}", "", ""])
        return [*rows, ["activations outside the certified domain", str(self.domain_violations), "", "0"]]

    def facts(self) -> dict[str, Any]:
        """The verdict, and the figures that it rests on."""
        return {
            "model": self.model,
            "passed": self.passed,
            "texts": self.texts,
            "tokens": self.tokens,
            "dtype": self.dtype,
            "evaluation": self.evaluation,
            "max_logit_error": self.max_logit_error,
            "mean_kl": self.mean_kl,
            "failures": self.failures,
        }

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each layer's proof, those closest to their bounds first."""
        import pandas

        ordered = sorted(self.layers, key=lambda layer: (layer.passed, -layer.tightness))
        columns = [field.name for field in fields(LayerProof)]
        return pandas.DataFrame([[getattr(layer, name) for name in columns] for layer in ordered], columns=columns)

    def preview(self) -> pandas.DataFrame:
        """Of these, what fits a line."""
        return self.to_dataframe()[["location", "error", "bound", "tightness", "passed"]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; infinities and NaN become None."""
        return finite(
            vars(self)
            | {
                "domain_violations": self.domain_violations,
                "edited": self.edited,
                "thresholds": asdict(self.thresholds),
                "layers": [vars(layer) for layer in self.layers],
                "failures": self.failures,
                "passed": self.passed,
            }
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A short table: one line a figure, then the layers that come closest to their bounds."""
        yield _summary(self)
        yield _closest(self)
        if self.edited:
            yield f"Edited heads in {', '.join(self.edited)}."
        for what in self.unreached:
            yield f"Not reached by these texts: {what}."
        failures = self.failures
        for failure in failures[:_SHOWN]:
            yield Text(failure, style="red")
        if len(failures) > _SHOWN:
            yield Text(f"and {len(failures) - _SHOWN} more failures", style="red")

    def __str__(self) -> str:
        """The table as text."""
        console = Console(
            width=100,
            record=True,
            file=io.StringIO(),
            markup=False,
            emoji=False,
            force_jupyter=False,  # else a notebook shows the table beside the text that is asked for
        )
        console.print(self)
        return console.export_text()


def _summary(report: Report) -> Table:
    verdict, style = ("the same", "green") if report.passed else ("NOT the same", "red")
    table = Table(title=f"{report.model}: source and twin are {verdict}", title_style=style)
    table.add_column(f"{report.texts} texts, {report.tokens} tokens, {report.dtype}")
    for name in report.columns:
        table.add_column(name, justify="right")
    for row in report.rows():
        table.add_row(*row)
    return table


def _closest(report: Report) -> Table:
    table = Table(title="Layers closest to their certified bounds, float64")
    for name in ("layer", "error", "bound", "error / (bound + rounding)", "accumulated in the twin", "domain"):
        table.add_column(name, justify="right")
    for p in sorted(report.layers, key=lambda p: (p.passed, -p.tightness))[:5]:
        theorem = " by theorem" if p.by_theorem else " measured"
        domain = "all" if math.isinf(p.domain) else f"{p.domain:g}{theorem}"
        figures = f"{p.error:.1e}", f"{p.bound:.1e}", f"{p.tightness:.2f}", f"{p.accumulated:.1e}"
        table.add_row(p.location, *figures, domain)
    return table
