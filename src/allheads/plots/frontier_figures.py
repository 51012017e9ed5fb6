"""The frontier as pictures: certified error against slots as SVG without any script, against heads and bias tokens."""

from __future__ import annotations

import math
from collections import defaultdict
from html import escape

import plotly.graph_objects as go

from allheads.errors import AllHeadsError
from allheads.gates.table import fits
from allheads.plots.picture import Picture
from allheads.plots.style import figure

WIDTH, HEIGHT, MARGIN = 460, 340, 54
#: Chosen to be told apart by people who do not see all colours, on white and on black.
COLOURS = ("#3b7dd8", "#d9772b", "#2f9e6e", "#b35bb0", "#9a8f2f")
SLOTS, DECADES = (0, 36), (-9, -1)


def frontier(activation: str = "gelu", *, gated: bool = False) -> Picture:
    """Certified error of every committed fit of an activation against its bias tokens, a line for each number of heads.

    Of gated activations, which are fitted up to some |g|, the smallest domain is drawn. Errors of gated activations are
    relative to ``0.3 + |f|``.

    Raises `AllHeadsError` for an activation without fits: those that are exact with one head have none.

    >>> frontier("gelu").data[0].name
    '1 head'
    """
    rows = [fit for fit in fits() if (fit.gate_sum.activation.name, fit.gate_sum.gated) == (activation, gated)]
    if not rows:
        known = sorted({f"{fit.gate_sum.activation.name}{' gated' * fit.gate_sum.gated}" for fit in fits()})
        raise AllHeadsError(f"an activation with fits: {', '.join(known)}", activation, "See docs/frontier.md.")
    domain = min(fit.gate_sum.domain for fit in rows)
    lines = []
    for heads in sorted({fit.gate_sum.heads for fit in rows}):
        sums = [fit.gate_sum for fit in rows if (fit.gate_sum.heads, fit.gate_sum.domain) == (heads, domain)]
        x, y = zip(*sorted((sum(gates.bias_tokens), gates.max_error) for gates in sums), strict=True)
        lines.append(go.Scatter(x=x, y=y, name=f"{heads} head{'s' * (heads > 1)}", mode="lines+markers"))
    title = f"{activation}: what heads and bias tokens buy" + (f", |g| up to {domain:g}" if gated else "")
    drawn = figure(lines, title, height=420, x="bias tokens of all heads", y="certified error")
    return drawn.update_yaxes(type="log", exponentformat="power", dtick=1)


def frontier_svg() -> str:
    """Two panels: plain activations on the whole line, gated ones on ``|g| <= 64``.

    >>> frontier_svg().startswith("<svg")
    True
    """
    panels = [("plain, whole line", _cheapest(math.inf)), ("gated, |g| up to 64", _cheapest(64.0))]
    drawn = "".join(f'<g transform="translate({i * WIDTH} 0)">{_panel(*panel)}</g>' for i, panel in enumerate(panels))
    style = (
        "text{font:13px system-ui,sans-serif;fill:#59636e}.t{font-weight:600}.r{stroke:#818b98;stroke-opacity:.25}"
        "polyline{fill:none;stroke-width:2}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" role="img">'
        f"<title>Certified error against slots</title><style>{style}</style>{drawn}</svg>\n"
    )


def _cheapest(domain: float) -> dict[str, list[tuple[int, float]]]:
    """For every activation the slots and errors of the fits that nothing cheaper beats."""
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    rows = [fit for fit in fits() if fit.gate_sum.domain == domain]
    for fit in sorted(rows, key=lambda fit: (fit.gate_sum.activation.name, fit.slots, fit.gate_sum.max_error)):
        line = lines[fit.gate_sum.activation.name]
        if not line or fit.gate_sum.max_error < line[-1][1]:
            line.append((fit.slots, fit.gate_sum.max_error))
    return lines


def _x(slots: float) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * (slots - SLOTS[0]) / (SLOTS[1] - SLOTS[0])


def _y(error: float) -> float:
    low, high = DECADES
    return MARGIN + (HEIGHT - 2 * MARGIN) * (high - math.log10(error)) / (high - low)


def _panel(title: str, lines: dict[str, list[tuple[int, float]]]) -> str:
    """One panel of the SVG: axes, and a line with dots and a name for every activation."""
    parts = [f'<text class="t" x="{MARGIN}" y="{MARGIN - 24}">{escape(title)}</text>']
    for decade in range(DECADES[0], DECADES[1] + 1, 2):
        y = _y(10.0**decade)
        parts.append(f'<line class="r" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{MARGIN - 8}" y="{y + 4:.1f}" text-anchor="end">1e{decade}</text>')
    for slots in range(0, SLOTS[1] + 1, 6):
        parts.append(f'<text x="{_x(slots):.1f}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">{slots}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">slots of a neuron</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour, path = COLOURS[number % len(COLOURS)], " ".join(f"{_x(s):.1f},{_y(e):.1f}" for s, e in points)
        dots = "".join(f'<circle cx="{_x(s):.1f}" cy="{_y(e):.1f}" r="2.5" fill="{colour}"/>' for s, e in points)
        parts.append(f'<polyline points="{path}" stroke="{colour}"/>{dots}')
        y = MARGIN + 4 + 17 * number
        parts.append(
            f'<text x="{WIDTH - MARGIN}" y="{y}" text-anchor="end" style="fill:{colour}">{escape(name)}</text>'
        )
    return "".join(parts)
