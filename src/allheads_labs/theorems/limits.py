r"""**What no heads can do.**

*One head is never a gated unit.* A head whose value is ``delta u`` writes ``delta P(g) u`` with ``P >= 0``: its
coefficient of u has one sign. That of SiLU has two: ``SiLU(1) > 0`` and ``SiLU(-1.278...) = -0.27846...``. So a head
with ``delta >= 0`` is off by 0.278 |u| at the minimum of SiLU, and one with ``delta < 0`` is off by ``SiLU(g) |u|``
for every g > 0. Two heads are the least.

*No finite sum is exact everywhere.* Patterns lie in [0, 1] and values are linear in the stream. With
``D = sum_h |delta_h|`` the heads write at most ``D |u|``, the gated unit writes ``SiLU(g) |u| >= (g - 0.279) |u|`` for
g > 0. So at ``g = 2 D + 1`` they are apart by more than ``D |u|``: whatever the heads, the error grows without end, and
every statement about them needs a domain. (If values read the whole stream: along a ray ``x = r y`` heads grow
linearly in r, and ``SiLU(g) u`` like r^2.) Nor is a sum exact on any interval: both sides are analytic in g, and
would then agree everywhere.

*Source.* Ours.
"""

from __future__ import annotations

import torch

from allheads.gates import Gate, GateSum

#: The least value of SiLU, ``-W(1/e)``.
SILU_MINIMUM = -0.27846454276107380


def one_head_error(gate: Gate, delta: float, *, reach: float = 40.0) -> float:
    """``max |delta P(g) - SiLU(g)|`` on a grid: never below 0.278, whatever the head.

    >>> one_head_error(Gate((0.0,), (1.0,)), 1.0) > 0.278
    True
    """
    g = torch.linspace(-reach, reach, 2001, dtype=torch.float64)
    return float((delta * gate(g) - torch.nn.functional.silu(g)).abs().max())


def witness(gates: GateSum) -> tuple[float, float]:
    """A g at which a gated sum is off, and a proved lower bound of how far: ``D = sum |delta|``.

    >>> from allheads.gates.approximation import approximate
    >>> g, apart = witness(approximate("silu", gated=True))
    >>> t = torch.tensor(g, dtype=torch.float64)
    >>> bool((approximate("silu", gated=True)(t) - torch.nn.functional.silu(t)).abs() > apart > 10)
    True
    """
    most = sum(abs(delta) for delta in gates.delta)
    return 2 * most + 1, most
