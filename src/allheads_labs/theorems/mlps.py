r"""**A transformer's MLPs are layers of attention.** Constructions, each with its claim; all on one residual stream.

*A neuron is a masked head of internal dimension 1* (`neuron_heads`). For ``f(t) = sum_h (alpha_h t + delta_h) P_h(t)``
the MLP ``f(x W_in + b_in) W_out`` is one layer of attention, with as many heads for every neuron as the sum has terms.
Head h of neuron n sees its own token and its bias tokens: its query is ``t = x . W_in[:, n] + b_in[n]``, the key of
every token 0, the key of bias token j ``-l_j`` with ``a_j`` added to the score. The softmax over the scores
``(0, a_1 - l_1 t, ...)`` leaves ``P_h(t)`` on the token itself, whose value is ``alpha_h t + delta_h``; bias tokens
have value 0. SiLU is one head with one bias token: ``t e^0 / (e^0 + e^-t)``.

*A linear map is a layer of heads that attend to themselves* (`linear_heads`). Such a head has the pattern 1, whatever
its scores, and writes ``x W_V W_O``: ``x M + b`` takes ``ceil(min(d_in, d_out) / d_head)`` heads (and one for b), and,
since each head adds a matrix of rank d_head at most, no fewer can do it if M has full rank.

*An activation in place is a layer of heads* (`activation_heads`). A residual layer adds, so heads write the correction
``f(x_i) - x_i``: they are neurons that read and write coordinate i, for the sum ``f(t) - t``, in which the identity is
one more term, a gate without bias tokens, whose pattern is 1.

*An MLP is one layer of attention, or three* (`in_one_layer`, `in_three_layers`). One: the heads of its neurons, and a
constant head for ``b_out``. Three, on a stream with d_mlp more coordinates h: linear heads write ``x W_in + b_in``
into h, activation heads turn it into ``f(h)`` in place, linear heads add ``h W_out + b_out`` to x and ``-h`` to h.

*A whole transformer without norms is attention and nothing else* (`attention_only`): by induction over the layers, as
the stream before the next layer is the same in both. Written with ``masks="weights"`` it has no masks either. With
norms the construction stays the same: they act on the original coordinates (`allheads.pure.export`).

*Bounds.* ``sum_n |W_out[n]|`` times the certified error of the sum (0 for SiLU), plus rounding; of a whole transformer
none is known but for exact sums: the error of each MLP passes through the layers above.

*Source.* Huben & Morris 2023 for SiLU and its limits, linear maps, both forms of an MLP and the induction; sums with
value offsets are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from allheads.gates import Gate, GateSum
from allheads.pure.runner import Beginning, Heads, Pure, Sublayer, write


def neuron_heads(
    W_in: Float[Tensor, "d_model d_mlp"],
    b_in: Float[Tensor, " d_mlp"],
    W_out: Float[Tensor, "d_mlp d_model"],
    gates: GateSum,
) -> list[Heads]:
    """An MLP as heads, one entry per term of the sum.

    >>> from allheads.pure.runner import allowed, attend
    >>> from allheads.gates.approximation import approximate
    >>> one = torch.ones(1, 1)
    >>> (heads,) = neuron_heads(one, torch.zeros(1), one, approximate("silu"))
    >>> x = torch.tensor([[2.0], [-1.0]])
    >>> torch.allclose(attend(x, heads, allowed(heads, 2)), torch.nn.functional.silu(x))
    True
    """
    d_mlp = W_in.shape[1]
    query, bias = W_in.T[..., None], b_in[:, None]

    def per_neuron(row: tuple[float, ...]) -> Float[Tensor, "d_mlp token"]:
        return torch.tensor(row, dtype=W_in.dtype).expand(d_mlp, len(row))

    return [
        Heads(
            W_O=W_out[:, None],
            W_Q=query,
            b_Q=bias,
            W_V=alpha * query,
            b_V=alpha * bias + delta,
            bias_keys=-per_neuron(gate.slopes)[..., None],
            bias_offsets=per_neuron(gate.offsets),
        )
        for gate, alpha, delta in zip(gates.gates, gates.alpha, gates.delta, strict=True)
    ]


def linear_heads(
    M: Float[Tensor, "d_model d_model"], bias: Float[Tensor, " d_model"] | None = None, *, d_head: int
) -> list[Heads]:
    """``x M + bias`` by heads that attend to themselves; rows and columns of zeros cost nothing.

    >>> from allheads.pure.runner import allowed, attend
    >>> M, x = torch.randn(5, 5, generator=torch.manual_seed(0)), torch.randn(3, 5)
    >>> (heads,) = linear_heads(M, d_head=2)
    >>> len(heads.W_O), torch.allclose(attend(x, heads, allowed(heads, 3)), x @ M, atol=1e-5)
    (3, True)
    """
    rows, columns = M.any(1).nonzero()[:, 0], M.any(0).nonzero()[:, 0]
    identity = torch.eye(len(M), dtype=M.dtype)
    if len(rows) <= len(columns):
        inner, outer = identity[:, rows], M[rows]
    else:
        inner, outer = M[:, columns], identity[columns]
    spare = -inner.shape[1] % d_head
    W_V = F.pad(inner, (0, spare)).unflatten(1, (-1, d_head)).movedim(1, 0)
    W_O = F.pad(outer, (0, 0, 0, spare)).unflatten(0, (-1, d_head))
    return [Heads(W_O=W_O, W_V=W_V), *constant_head(bias)]


def constant_head(bias: Float[Tensor, " d_model"] | None) -> list[Heads]:
    """A head that writes the same vector everywhere: it attends to itself, and its value is 1."""
    return [] if bias is None else [Heads(W_O=bias[None, None], b_V=bias.new_ones(1, 1))]


def activation_heads(gates: GateSum, chosen: Tensor, d_model: int) -> list[Heads]:
    """Heads that write ``f(x_i) - x_i`` at the chosen coordinates, in float64.

    >>> from allheads.pure.runner import allowed, attend
    >>> from allheads.gates.approximation import approximate
    >>> x = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    >>> heads = activation_heads(approximate("silu"), torch.tensor([0, 2]), 3)
    >>> x = x + sum(attend(x, term, allowed(term, 1)) for term in heads)
    >>> x.allclose(torch.tensor([[0.7310586, -2.0, 2.8577224]], dtype=torch.float64))
    True
    """
    correction = replace(
        gates, gates=(*gates.gates, Gate((), ())), alpha=(*gates.alpha, -1.0), delta=(*gates.delta, 0.0)
    )
    unit = torch.eye(d_model, dtype=torch.float64)[chosen]
    return neuron_heads(unit.T, unit.new_zeros(len(chosen)), unit, correction)


@dataclass(frozen=True)
class PlainMLP:
    """``f(x W_in + b_in) W_out + b_out``, in float64."""

    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]
    gates: GateSum

    def __call__(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """The MLP itself, with its own activation function."""
        return self.gates.activation(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


def in_one_layer(mlp: PlainMLP) -> Sublayer:
    """The heads of the neurons, and a constant head.

    >>> from allheads.pure.runner import write
    >>> from allheads.gates.approximation import approximate
    >>> draw = torch.Generator().manual_seed(0)
    >>> W_in, W_out, x = (torch.randn(s, generator=draw).double() for s in ((3, 8), (8, 3), (5, 3)))
    >>> mlp = PlainMLP(W_in, torch.ones(8).double(), W_out, torch.ones(3).double(), approximate("silu"))
    >>> bool((write(x, 5, in_one_layer(mlp)) - mlp(x)).abs().max() < 1e-13)
    True
    """
    return Sublayer("mlp", [*neuron_heads(mlp.W_in, mlp.b_in, mlp.W_out, mlp.gates), *constant_head(mlp.b_out)])


def in_three_layers(mlp: PlainMLP, *, d_head: int) -> list[Sublayer]:
    """Linear, activation and linear heads on the stream ``[x | h]``, h empty before and after.

    >>> from allheads.pure.runner import write
    >>> from allheads.gates.approximation import approximate
    >>> W = torch.eye(2).double()
    >>> mlp = PlainMLP(W, torch.ones(2).double(), W, torch.zeros(2).double(), approximate("silu"))
    >>> stream = torch.tensor([[0.5, -1.0, 0.0, 0.0]]).double()
    >>> for layer in in_three_layers(mlp, d_head=2):
    ...     stream = stream + write(stream, 1, layer)
    >>> torch.allclose(stream[:, :2], torch.tensor([[0.5, -1.0]]).double() + mlp(torch.tensor([[0.5, -1.0]]).double()))
    True
    """
    d_model, d_mlp = mlp.W_in.shape
    into = F.pad(mlp.W_in, (d_model, 0, 0, d_mlp))
    out = torch.zeros(d_model + d_mlp, d_model + d_mlp).to(mlp.W_out)
    out[d_model:] = torch.cat([mlp.W_out, -torch.eye(d_mlp).to(mlp.W_out)], 1)
    hidden = torch.arange(d_model, d_model + d_mlp)
    return [
        Sublayer("linear", linear_heads(into, F.pad(mlp.b_in, (d_model, 0)), d_head=d_head)),
        Sublayer("activation", activation_heads(mlp.gates, hidden, d_model + d_mlp)),
        Sublayer("linear", linear_heads(out, F.pad(mlp.b_out, (0, d_mlp)), d_head=d_head)),
    ]


@dataclass(frozen=True)
class Transformer:
    """Embedding, learned positions, layers that are heads or MLPs, unembedding; no norms."""

    embed: Float[Tensor, "d_vocab d_model"]
    positions: Float[Tensor, "n_ctx d_model"]
    layers: list[Heads | PlainMLP]
    unembed: Float[Tensor, "d_model d_vocab"]

    def __call__(self, tokens: Tensor) -> Float[Tensor, "pos d_vocab"]:
        """Logits, MLPs evaluated as MLPs."""
        x = self.embed[tokens] + self.positions[: len(tokens)]
        for layer in self.layers:
            x = x + (layer(x) if isinstance(layer, PlainMLP) else write(x, len(x), Sublayer("attention", [layer])))
        return x @ self.unembed


def attention_only(model: Transformer, name: str = "transformer") -> Pure:
    """The same transformer as a list of attention layers."""
    begun = [Beginning("tokens", model.embed), Beginning("positions", model.positions, "position")]
    sublayers = [Sublayer("x0", reads={"tokens": 1.0, "positions": 1.0})]
    for n, layer in enumerate(model.layers):
        heads = in_one_layer(layer).heads if isinstance(layer, PlainMLP) else [layer]
        sublayers.append(Sublayer(f"L{n}", heads, reads={f"x{n}": 1.0}))
        sublayers.append(Sublayer(f"x{n + 1}", reads={f"x{n}": 1.0, f"L{n}": 1.0}))
    n_ctx, d_model = model.positions.shape
    return Pure(name, n_ctx, d_model, begun, sublayers, model.unembed)
