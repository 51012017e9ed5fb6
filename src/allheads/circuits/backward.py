"""attribute: one forward and one backward pass of the held twin, and every part's share of the target.

1. The twin runs with what the rule holds, and hook points keep what embeddings, heads and neurons write.
2. The gradient of the target at each of them, times what is written there, is its effect.
3. The gradient of the target at the end of the stream, carried back through the layer that writes and no other, gives
   what is written straight into the logits.
4. Identities are checked: cuts of the stream, and the sum of all direct parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from allheads.circuits.attribution import Attribution
from allheads.circuits.holding import Holding, holding
from allheads.circuits.rules import Rule, rule_named
from allheads.circuits.tokens import Target, TargetLike, make_target, token_ids
from allheads.errors import AllHeadsError
from allheads.models.bridge import TwinBridge

#: Completeness that rounding allows, relative to the sum of absolute contributions, in units of the last place.
_ULPS = 2.0**10


def attribute(
    twin: TwinBridge,
    tokens: str | Tensor,
    target: TargetLike,
    *,
    rule: str | Rule = "frozen",
    position: int = -1,
    sources: bool = False,
) -> Attribution:
    r"""How much every embedding, head and neuron contributes to a target, at every position.

    With the rule's parts held, the target is ``sum_p G_p . x_p + c`` for the stream x at any cut, where G is its
    gradient there. A part that writes a, through weights W_O, contributes ``a W_O . G``: exactly, not to first order.

    Args:
        twin: from `ah.convert`.
        tokens: a prompt, or its ids ``[pos]``.
        target: a token (text or id), a pair (for, against), weights ``[d_vocab]``, or a function of the logits
            ``[d_vocab]``. Where that, or the end of the network (a soft cap), is not linear, the result has an
            ``intercept``: what linear contributions cannot reach.
        rule: a name out of `allheads.circuits.rules`.
        position: where the target's logits are read; the last by default.
        sources: also split each head by the position it carried from.

    Returns:
        An `Attribution`. For complete rules ``completeness_error`` is rounding: below 1e-5 in float32 and 1e-12 in
        float64, at every cut.

    Raises:
        AllHeadsError: the prompt, target, position or rule cannot be read; gradients are switched off by
            `torch.inference_mode`; or this architecture has parts that the rule cannot hold.

    >>> import allheads as ah
    >>> found = ah.attribute(twin, "When Mary and John", (" Mary", " John"))  # doctest: +SKIP
    >>> found.top(3)  # doctest: +SKIP
    """
    chosen = rule_named(rule)
    ids = token_ids(twin, tokens)
    asked = make_target(twin, target, position, ids.shape[1])
    if torch.is_inference_mode_enabled():
        raise AllHeadsError("a place where gradients can be taken", "torch.inference_mode", "Leave it first.")
    with torch.enable_grad(), _only_biases_differ(twin), holding(twin, chosen) as held:
        run = Run(twin, sources)
        with run.watching():
            logits = twin(ids)
        value = asked.of(logits)
        found = _effects(run, held, value)
        direct = _direct(run, ids, asked, value)
    result = Attribution(
        rule=chosen,
        target=asked,
        tokens=twin.to_str_tokens(ids[0]) if twin.tokenizer is not None else [str(i) for i in ids[0].tolist()],
        target_value=float(value.detach()),
        **found,
        **direct,
    )
    return _checked(result, twin, logits.dtype) if chosen.complete else result


@dataclass
class Run:
    """One forward pass, and the tensors of it that contributions are read from."""

    twin: TwinBridge
    sources: bool = False
    cut: bool = False
    leaves: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> range:
        """Numbers of the layers."""
        return range(len(self.twin.banks))

    def names(self) -> Iterator[str]:
        """Hook points that are watched: streams, what each layer writes, and what its heads and neurons do."""
        for layer in self.layers:
            block = f"blocks.{layer}"
            yield from (f"{block}.hook_{point}" for point in ("resid_pre", "attn_out", "mlp_out"))
            yield from (f"{block}.attn.hook_z", f"{block}.mlp.hook_post")
            if self.sources:
                yield from (f"{block}.attn.hook_v", f"{block}.attn.hook_pattern")
        yield f"blocks.{self.layers[-1]}.hook_resid_post"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what passes the hook points; embeddings become leaves of the graph, where cut heads and neurons too."""
        known = self.twin.hook_dict
        missing = [name for name in (*EMBEDDINGS[:1], *self.names()) if name not in known]
        if missing:
            raise AllHeadsError(
                "a decoder or encoder with heads and neurons in every layer",
                f"{self.twin.cfg.architecture} without {missing[0]}",
                "Its layers are of another kind: attribution does not read them yet.",
            )
        watched = [*(name for name in EMBEDDINGS if name in known), *self.names()]
        with self.twin.hooks(fwd_hooks=[(name, self._keeper(name)) for name in watched]):
            yield

    def _keeper(self, name: str) -> Any:
        leaf = name in EMBEDDINGS or (self.cut and name.endswith(("hook_z", "hook_post")))

        def keep(value: Tensor, hook: object) -> Tensor:
            if leaf and value.is_floating_point():
                value = self.leaves[name] = value.detach().requires_grad_()
            self.seen[name] = value
            return value

        return keep


#: Where the stream begins: tokens, learned positions, types of segments.
EMBEDDINGS = ("embed.hook_out", "pos_embed.hook_out", "token_type_embed.hook_out")


def _effects(run: Run, held: Holding, value: Tensor) -> dict[str, Any]:
    """Phases: the gradient everywhere, heads and neurons, embeddings and the stream, constants."""
    constants = {name: (module, tensor) for name, module, tensor in held.constants()}
    constants |= {name: (module, bias) for name, module, bias in _biases(run.twin, set(held.norms))}
    begin = {name: leaf for name, leaf in run.leaves.items() if leaf.shape == run.leaves[EMBEDDINGS[0]].shape}
    streams = [f"blocks.{layer}.hook_resid_pre" for layer in run.layers]
    streams.append(f"blocks.{run.layers[-1]}.hook_resid_post")
    z, post = ([f"blocks.{layer}.{name}" for layer in run.layers] for name in ("attn.hook_z", "mlp.hook_post"))
    wanted = [run.seen[name] for name in (*begin, *streams, *z, *post)] + [tensor for _, tensor in constants.values()]
    grads = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
    names = [*begin, *streams, *z, *post, *constants]
    grad = dict(zip(names, grads, strict=True))

    def times(name: str) -> Tensor:
        gradient, tensor = grad[name], run.seen[name].detach()
        return torch.zeros_like(tensor[0]) if gradient is None else (gradient * tensor)[0].detach()

    places = _places(run, {name: pair for name, pair in constants.items() if grad[name] is not None})
    worth = {name: (float((grad[name] * constants[name][1].detach()).sum()), place) for name, place in places.items()}
    segments = times(EMBEDDINGS[2]).sum() if EMBEDDINGS[2] in begin else None
    if segments is not None:
        worth[EMBEDDINGS[2]] = (float(segments), -1)
    return {
        "intercept": 0.0,
        "embeddings": times(EMBEDDINGS[0]).sum(-1),
        "positions": times(EMBEDDINGS[1]).sum(-1) if EMBEDDINGS[1] in begin else None,
        "constants": worth,
        "heads": torch.stack([times(name).sum(-1).T for name in z]),
        "neurons": torch.stack([times(name) for name in post]),
        "stream": torch.stack([times(name).sum(-1) for name in streams]),
        "sources": torch.stack([_by_source(run, layer, grad[z[layer]]) for layer in run.layers])
        if run.sources
        else None,
    }


def _by_source(run: Run, layer: int, gradient: Tensor) -> Tensor:
    """What a head's value carried from each source is worth: pattern times ``v . G``."""
    pattern, v = (run.seen[f"blocks.{layer}.attn.hook_{name}"].detach()[0] for name in ("pattern", "v"))
    v = v.repeat_interleave(gradient.shape[2] // v.shape[1], 1)
    return pattern * torch.einsum("dhe,she->hds", gradient[0], v)


def _places(run: Run, constants: dict[str, tuple[nn.Module, Tensor]]) -> dict[str, int]:
    """The layer of every constant: -1 if the stream begins with it, n_layers if it comes after the last layer."""
    inside = {
        id(module): layer for layer in run.layers for module in run.twin.blocks[layer].original_component.modules()
    }
    places = {name: inside[id(module)] for name, (module, _) in constants.items() if id(module) in inside}
    outside = [name for name in constants if name not in places]
    if outside:
        first = run.seen["blocks.0.hook_resid_pre"]
        reach = torch.autograd.grad(
            first.sum(), [constants[name][1] for name in outside], retain_graph=True, allow_unused=True
        )
        places |= {name: len(run.layers) if each is None else -1 for name, each in zip(outside, reach, strict=True)}
    return places


def _direct(run: Run, ids: Tensor, target: Target, value: Tensor) -> dict[str, Any]:
    """What heads and neurons write straight into the target.

    Where every layer adds to the stream, the gradient at its end is that at the end of each layer, and is carried back
    through what the layer adds. Norms after the sum change that: then the network runs once more, with everything that
    heads and neurons write cut off from what they read.
    """
    z, post = ([f"blocks.{layer}.{name}" for layer in run.layers] for name in ("attn.hook_z", "mlp.hook_post"))
    end = f"blocks.{run.layers[-1]}.hook_resid_post"
    (gradient,) = torch.autograd.grad(value, [run.seen[end]], retain_graph=True)
    if _adds_up(run, target.position, end):
        grads = [_through(run, name, gradient) for name in (*z, *post)]
        seen = run.seen
    else:
        again = Run(run.twin, cut=True)
        with again.watching():
            grads = list(torch.autograd.grad(target.of(run.twin(ids)), [again.leaves[name] for name in (*z, *post)]))
        seen = again.seen
    parts = [(grad * seen[name].detach())[0, target.position] for grad, name in zip(grads, (*z, *post), strict=True)]
    heads = torch.stack([part.sum(-1) for part in parts[: len(z)]])
    neurons = torch.stack(parts[len(z) :])
    return {"heads_direct": heads.detach(), "neurons_direct": neurons.detach()}


def _through(run: Run, name: str, gradient: Tensor) -> Tensor:
    """The gradient at the end of the stream, carried back through what one layer's heads or neurons add."""
    added = run.seen[f"{name.rpartition('.')[0].rpartition('.')[0]}.hook_{'attn' if name.endswith('z') else 'mlp'}_out"]
    (carried,) = torch.autograd.grad(added, [run.seen[name]], grad_outputs=gradient, retain_graph=True)
    return carried


def _adds_up(run: Run, position: int, end: str) -> bool:
    """Is the end of the stream its beginning plus what attention and MLPs add?"""
    added = [run.seen[f"blocks.{layer}.hook_{name}_out"] for layer in run.layers for name in ("attn", "mlp")]
    stream = sum(
        (each[0, position].detach() for each in added), run.seen["blocks.0.hook_resid_pre"][0, position].detach()
    )
    expected = run.seen[end][0, position].detach()
    size = sum(float(each[0, position].detach().abs().max()) for each in added)
    return bool((stream - expected).abs().max() <= _ULPS * torch.finfo(expected.dtype).eps * size)


def _biases(twin: TwinBridge, norms: set[str]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every bias of the network that is used outside of norms, once, with the module that has it."""
    seen: set[int] = set()
    for path, module in twin.original_model.named_modules():
        clean = ".".join(part for part in path.split(".") if part != "_original_component")
        for leaf, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen or clean in norms:
                continue
            if leaf.endswith("bias") or leaf.startswith("b_"):
                seen.add(id(parameter))
                yield f"{clean}.{leaf}", module, parameter


@contextmanager
def _only_biases_differ(twin: TwinBridge) -> Iterator[None]:
    """Gradients for biases and no other parameter: what weights read need not be kept."""
    before = {parameter: parameter.requires_grad for parameter in twin.original_model.parameters()}
    biases = {id(bias) for _, _, bias in _biases(twin, set())}
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in biases)
        yield
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)


def _checked(result: Attribution, twin: TwinBridge, dtype: torch.dtype) -> Attribution:
    """Give the end of the network, where it is not linear, its intercept; then every cut has to reach the target.

    Raises `AllHeadsError` if one does not: the architecture has something that the rule does not hold.
    """
    close = _ULPS * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    last = len(result.stream) - 1
    gap = result.target_value - result.cut(last)
    if abs(gap) > close * max(abs(result.target_value), float(result.stream[last].abs().sum())):
        result = replace(result, intercept=gap)
    if result.completeness_error > close and dtype in (torch.float32, torch.float64):
        raise AllHeadsError(
            f"a network that is linear under rule {result.rule.name!r}",
            f"{twin.cfg.architecture}, whose parts miss the whole by {result.completeness_error:.0e} of their size",
            "Something in its layers is not held: use rule='gradient'.",
        )
    return result
