r"""What the twin of a model costs, from its configuration alone: the "dramatic increase in heads" as numbers.

A multiply and an add are two operations; a softmax entry counts four (scale, shift, exponential, division). With
d = d_model, H heads of K bias tokens in all per neuron and n positions,

    MLP, per token        2 d d_mlp (2, or 3 if gated)
    slots, per token      the same, and ``d_mlp (6 (H + K) + 2 H)`` for the patterns and their sums
    literal, per token    ``d_mlp H (6 d + 8 (n + K / H))``: every head by itself, over every position
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from allheads.errors import AllHeadsError
from allheads.gates.approximation import DEFAULT_TOLERANCE, approximate
from allheads.models.shapes import Shape, shape_of
from allheads.result import Result, finite

if TYPE_CHECKING:
    import pandas

#: Bytes of a float32.
FLOAT32 = 4


@dataclass(frozen=True, repr=False)
class Cost(Result):
    """Counts for one model at one context length; operations are per token, memory is for one sequence in float32."""

    model: str
    n_ctx: int
    attention_heads: int
    neurons: int
    neuron_heads: int
    bias_tokens: tuple[int, ...]
    certified_error: float
    parameters: int
    parameters_as_heads: int
    flops_source: float
    flops_slots: float
    flops_literal: float
    pattern_bytes_self: int
    pattern_bytes_slots: int
    pattern_bytes_dense: int

    def facts(self) -> dict[str, Any]:
        """All counts by name."""
        return asdict(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row."""
        import pandas

        return pandas.DataFrame([self.facts()])

    def to_dict(self) -> dict[str, Any]:
        """All counts by name, for JSON."""
        return finite(self.facts())

    def preview(self) -> None:
        """The facts are all there is."""


def cost(model: Any, *, tolerance: float = DEFAULT_TOLERANCE, n_ctx: int | None = None) -> Cost:
    """Heads, parameters, operations and pattern memory of a model's twin.

    Args:
        model: a name such as ``"gpt3-175b"``, a loaded model or a configuration; no weights are needed.
        tolerance: as in `convert`; the domain of gated neurons is the default one.
        n_ctx: context length; the model's own unless given.

    Raises:
        AllHeadsError: an unknown model, an activation or tolerance out of reach, a context length below 1.

    >>> twin = cost("gpt3-175b")
    >>> twin.attention_heads, twin.neurons
    (9216, 4718592)
    """
    shape = shape_of(model)
    length = shape.n_ctx if n_ctx is None else n_ctx
    if length < 1:
        raise AllHeadsError("a context of at least one token", str(n_ctx), "Leave n_ctx out for the model's own.")
    gates = approximate(shape.activation, gated=shape.gated, tolerance=tolerance)
    neurons, tokens = shape.n_layers * shape.d_mlp, sum(gates.bias_tokens)
    heads, slots = neurons * gates.heads, neurons * (gates.heads + tokens)
    matrices = 3 if shape.gated else 2
    rest = _flops_without_mlps(shape, length)
    mlps = rest + 2.0 * shape.d_model * neurons * matrices
    # Written out, every head has W_Q, W_V and W_O, b_Q and b_V, and a key and an offset for each bias token.
    written = heads * (3 * shape.d_model + 2) + 2 * neurons * tokens
    return Cost(
        model=shape.name,
        n_ctx=length,
        attention_heads=shape.n_layers * shape.n_heads,
        neurons=neurons,
        neuron_heads=heads,
        bias_tokens=gates.bias_tokens,
        certified_error=gates.max_error,
        parameters=shape.n_params,
        parameters_as_heads=shape.n_params - matrices * neurons * shape.d_model + written,
        flops_source=mlps,
        flops_slots=mlps + 6.0 * slots + 2.0 * heads,
        flops_literal=rest + heads * (6.0 * shape.d_model + 8.0 * length) + 8.0 * neurons * tokens,
        pattern_bytes_self=FLOAT32 * heads * length,
        pattern_bytes_slots=FLOAT32 * slots * length,
        pattern_bytes_dense=FLOAT32 * (heads * length + neurons * tokens) * length,
    )


def _flops_without_mlps(shape: Shape, length: int) -> float:
    """Per token at the end of the context: projections, attention and unembedding."""
    queries, keys = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    projections = 2.0 * shape.d_model * (2 * queries + 2 * keys)
    attention = 4.0 * queries * length + 4.0 * shape.n_heads * length
    return shape.n_layers * (projections + attention) + 2.0 * shape.d_model * shape.d_vocab
