"""The frontier, heads and bias tokens against certified error, as the tables of ``docs/frontier.md``.

Every number comes from the committed table of fits. ``allheads frontier`` puts the tables into a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from allheads.errors import AllHeadsError
from allheads.gates.approximation import approximate
from allheads.gates.table import Fit, fits

GELUS = ("gelu", "gelu_tanh")
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _of(activation: str, gated: bool) -> list[Fit]:
    return [f for f in fits() if (f.gate_sum.activation.name, f.gate_sum.gated) == (activation, gated)]


def _smallest(rows: Iterable[Fit]) -> str:
    errors = [fit.gate_sum.max_error for fit in rows]
    return f"{min(errors):.2e}" if errors else "-"


def heads_table() -> str:
    """Plain GELU, one bias token per head: certified error by heads, with and without value offsets."""
    counts = range(1, 9)
    rows = []
    for name in GELUS:
        for family, label in (("symmetric, no offsets", "delta = 0"), ("symmetric", "with delta")):
            own = [fit for fit in _of(name, False) if fit.family == family]
            rows.append([name, label, *(_smallest(f for f in own if f.gate_sum.heads == n) for n in counts)])
    return _markdown(["activation", "value offsets", *map(str, counts)], rows)


def tokens_table() -> str:
    """Plain GELU: certified error by heads and by tokens per head."""
    rows = []
    for name in GELUS:
        for heads in range(1, 5):
            own = [fit for fit in _of(name, False) if fit.gate_sum.heads == heads]
            cells = [_smallest(f for f in own if max(f.gate_sum.bias_tokens) == n) for n in range(1, 5)]
            rows.append([name, str(heads), *cells])
    return _markdown(["activation", "heads", "1 token", "2 tokens", "3 tokens", "4 tokens"], rows)


def gated_table() -> str:
    """Every gated fit: domain, tokens of its heads, slots, certified error, amplification."""
    rows = [
        [
            fit.gate_sum.activation.name,
            f"{fit.gate_sum.domain:g}",
            " + ".join(map(str, fit.gate_sum.bias_tokens)),
            str(fit.slots),
            f"{fit.gate_sum.max_error:.2e}",
            f"{fit.amplification:.0f}",
        ]
        for fit in fits()
        if fit.gate_sum.gated
    ]
    return _markdown(["activation", "domain", "bias tokens", "slots", "certified error", "amplification"], rows)


def cost_table() -> str:
    """Slots of the cheapest gate sum for a tolerance, over the default domain where there is one."""
    cases = [(name, gated) for gated in (False, True) for name in ("silu", "quick_gelu", *GELUS, "relu", "linear")]
    rows = []
    for name, gated in [*cases, ("relu2", False)]:
        cells = []
        for tolerance in TOLERANCES:
            try:
                best = approximate(name, gated=gated, tolerance=tolerance)
                cells.append(str(best.heads + sum(best.bias_tokens)))
            except AllHeadsError:
                cells.append("-")
        rows.append([name, "gated" if gated else "plain", *cells])
    return _markdown(["activation", "neuron", *(f"{t:.0e}" for t in TOLERANCES)], rows)


def beaten() -> list[tuple[Fit, Fit]]:
    """Fits that a smaller fit beats, with it: there the optimiser is known not to have found the optimum.

    A smaller fit has no more heads and no more bias tokens on any of them, holds on a domain at least as large, and
    is a special case of the larger one (its other heads empty, its other tokens switched off).
    """
    pairs = []
    for fit in fits():
        rivals = [other for other in fits() if _within(other, fit)]
        best = min(rivals, key=lambda other: other.gate_sum.max_error, default=fit)
        if best.gate_sum.max_error < fit.gate_sum.max_error:
            pairs.append((fit, best))
    return pairs


def _within(small: Fit, large: Fit) -> bool:
    a, b = small.gate_sum, large.gate_sum
    if (a.activation.name, a.gated) != (b.activation.name, b.gated) or a.domain < b.domain or a.heads > b.heads:
        return False
    if large.family.endswith("no offsets") and not small.family.endswith("no offsets"):
        return False
    tokens = zip(sorted(a.bias_tokens, reverse=True), sorted(b.bias_tokens, reverse=True), strict=False)
    return all(x <= y for x, y in tokens)


def beaten_table() -> str:
    """Where the optimiser is known not to be optimal."""
    rows = [
        [
            f"{fit.gate_sum.activation.name} {'gated' if fit.gate_sum.gated else 'plain'}",
            f"{fit.gate_sum.domain:g}",
            fit.family,
            " + ".join(map(str, fit.gate_sum.bias_tokens)),
            f"{fit.gate_sum.max_error:.2e}",
            " + ".join(map(str, best.gate_sum.bias_tokens)),
            f"{best.gate_sum.max_error:.2e}",
        ]
        for fit, best in beaten()
    ]
    header = ["activation", "domain", "family", "bias tokens", "certified error", "beaten by", "with"]
    return _markdown(header, rows or [["none"] + [""] * 6])


TABLES: dict[str, Callable[[], str]] = {
    "heads": heads_table,
    "tokens": tokens_table,
    "cost": cost_table,
    "gated": gated_table,
    "beaten": beaten_table,
}
