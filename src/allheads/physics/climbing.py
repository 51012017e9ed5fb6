"""Does a head move a token along the gradient of its potential? The angle between what it writes and that gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allheads.models.attention import read_attention
from allheads.models.bridge import TwinBridge
from allheads.models.norms import Norm
from allheads.models.wiring import read_wiring
from allheads.physics.potentials import potentials


def climbing(
    twin: TwinBridge, ids: Int[Tensor, "1 pos"], layers: Sequence[int], seeds: int
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "seed layer head"]]:
    """The mean cosine between what every head writes at a token and the gradient of its potential there.

    The gradient is taken in the stream, through the norm, with keys held. 1 would be motion uphill, -1 downhill, 0 has
    nothing to do with it. The second is the same with gradients of other tokens of the prompt, by seed. The first token
    is left out: it sees itself only.
    """
    wiring = read_wiring(twin)
    n_heads = read_attention(twin, 0).W_O.shape[0]
    labels = [f"L{layer}.A{number}" for layer in layers for number in range(n_heads)]
    names = [f"blocks.{layer}.{name}" for layer in layers for name in ("hook_resid_pre", "attn.hook_z")]
    with torch.no_grad():
        seen = twin.run_with_cache(ids, names_filter=names, return_cache_object=False)[1]
    orders = [torch.randperm(ids.shape[1] - 1, generator=torch.Generator().manual_seed(seed)) for seed in range(seeds)]
    true, other = [], []
    for found, label in zip(potentials(twin, ids, labels), labels, strict=True):
        layer, number = (int(part[1:]) for part in label.split("."))
        stream = seen[f"blocks.{layer}.hook_resid_pre"][0].to(found.x)
        uphill = through(wiring.attention[layer].before, stream, found.gradient)[1:]
        read = read_attention(twin, layer)
        z = seen[f"blocks.{layer}.attn.hook_z"][0].to(found.x)
        write = z.reshape(len(z), n_heads, -1)[1:, number] @ read.W_O[number].to(found.x)
        cosine = torch.cosine_similarity
        true.append(cosine(write, uphill, dim=-1).mean())
        other.append(torch.stack([cosine(write, uphill[order], dim=-1).mean() for order in orders]))
    shape = (len(layers), n_heads)
    return torch.stack(true).reshape(shape), torch.stack(other, 1).reshape(seeds, *shape)


def through(norm: Norm | None, stream: Float[Tensor, "pos d_model"], gradient: Tensor) -> Float[Tensor, "pos d_model"]:
    """A gradient in what a norm gives, as one in the stream it reads.

    >>> norm = Norm(torch.ones(2), torch.zeros(2), centred=False, slack=1.0)
    >>> through(norm, torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 1.0]])).mul(2**0.5).tolist()
    [[0.0, 1.0]]
    """
    if norm is None:
        return gradient
    with torch.enable_grad():
        stream = stream.clone().requires_grad_()
        return torch.autograd.grad(norm(stream), stream, gradient)[0]
