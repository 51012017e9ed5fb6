"""Which of a neuron's heads says how far it is open."""

from __future__ import annotations

import torch

from allheads.gates.gates import GateSum


def gate_part(gates: GateSum) -> int:
    """Which head of a neuron is its gate: one that opens with t, has few bias tokens, and is half open near 0.

    >>> from allheads.gates.approximation import approximate
    >>> gate_part(approximate("silu"))
    0
    """
    opening = [part for part, gate in enumerate(gates.gates) if min(gate.slopes, default=0.0) > 0]
    distance = [abs(float(gate(torch.zeros(()))) - 0.5) for gate in gates.gates]
    return min(opening or range(gates.heads), key=lambda part: (gates.bias_tokens[part], distance[part]))
