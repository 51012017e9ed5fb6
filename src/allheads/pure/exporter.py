"""Write a twin down as attention and nothing else: one safetensors file that `allheads.pure.runner` executes."""

from __future__ import annotations

import json
import zlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allheads.disk import checked_path, write_tensors
from allheads.errors import AllHeadsError
from allheads.heads.bank import HeadBank
from allheads.heads.edited import EditedHeads
from allheads.models.attention import Attention, read_attention
from allheads.models.norms import measure_norm
from allheads.pure.runner import FORMAT, VERSION, Heads, Norm, Pure, Sublayer, checksum, final, write
from allheads.twin.twin import TwinBridge, require_twin

#: Largest difference of a sublayer and its pure form, relative to what it writes: float32 is at 1e-6.
CLOSE = 1e-4


def export(twin: TwinBridge, path: str | Path) -> None:
    """Write ``twin`` into one file, all of whose sublayers are attention.

    Each sublayer is first compared with the twin's own on random tokens, so that what this form cannot say (another
    way of turning queries, softcaps, parallel layers) is refused by name and nothing is written.

    Raises `AllHeadsError` for anything but a twin, for a part that is not plain attention, and for a path that no file
    can have.
    """
    require_twin(twin)
    checked_path(path)
    twin.require_one_stack("write a model down as attention")
    with torch.no_grad():
        model = purified(twin)
        compare(twin, model)
    save(model, path)


def purified(twin: TwinBridge) -> Pure:
    """The twin as `Pure`: weights are views where nothing has to be multiplied."""
    learned = twin.cfg.positional_embedding_type == "standard"
    bias = twin.b_U.detach()
    sublayers = []
    for layer, (block, bank) in enumerate(zip(twin.blocks, twin.banks, strict=True)):
        attention = _attention_heads(read_attention(twin, layer))
        sublayers.append(Sublayer(f"L{layer}.A", attention, _norm(block.ln1, twin, f"L{layer}.A")))
        sublayers.append(Sublayer(f"L{layer}.N", _neuron_heads(bank), _norm(block.ln2, twin, f"L{layer}.N")))
    return Pure(
        name=twin.cfg.model_name,
        n_ctx=twin.cfg.n_ctx,
        embed=twin.W_E.detach(),
        unembed=twin.W_U.detach(),
        sublayers=sublayers,
        positions=twin.W_pos.detach()[: twin.cfg.n_ctx] if learned else None,
        final_norm=_norm(twin.ln_final, twin, "the end"),
        unembed_bias=bias if bias.any() else None,
    )


def _norm(module: Any, twin: TwinBridge, where: str) -> Norm:
    norm = measure_norm(module.original_component, twin.cfg.d_model)
    if norm is None:
        raise AllHeadsError(f"an RMSNorm or LayerNorm before {where}", type(module).__name__, "It cannot be exported.")
    return Norm(norm.gain, norm.shift, norm.centred, norm.eps)


def _attention_heads(read: Attention) -> list[Heads]:
    heads = Heads(
        W_O=read.W_O,
        W_Q=read.W_Q,
        W_K=read.W_K,
        W_V=read.W_V,
        b_Q=read.b_Q,
        b_K=read.b_K,
        b_V=read.b_V,
        rotary=read.rotary,
        mask="causal",
        window=read.window,
        scale=read.scale,
        rotary_scale=read.rotary_scale,
    )
    return [heads, *_constant(read.b_O)]


def _neuron_heads(bank: HeadBank) -> list[Heads]:
    """One entry per part of the neurons: heads of a part have equally many bias tokens."""
    weights = bank.weights(torch.float64)
    groups: list[Heads] = []
    for number in range(weights.parts):
        tensors: dict[str, Any] = EditedHeads.layout(weights.part(number))
        tokens = {name: tensors.pop(name)[:, : weights.tokens(number)] for name in ("bias_keys", "bias_offsets")}
        W_O, b_O = tensors.pop("W_O"), tensors.pop("b_O")
        groups.append(Heads(W_O=W_O, **tokens, **{name: tensor for name, tensor in tensors.items() if tensor.any()}))
    return [*groups, *_constant(b_O)]


def _constant(b_O: Tensor | None) -> list[Heads]:
    """An output bias as one more head: it attends to its own token, and its value is 1."""
    if b_O is None or not b_O.any():
        return []
    return [Heads(W_O=b_O.detach()[None, None], b_V=b_O.new_ones(1, 1))]


def compare(twin: TwinBridge, model: Pure) -> None:
    """Every sublayer on the input it has in the twin, and the logits; refuse by name what is not the same."""
    length = min(24, twin.cfg.n_ctx)
    tokens = torch.randint(twin.cfg.d_vocab, (1, length), generator=torch.Generator().manual_seed(0))
    points = [f"blocks.{layer}.hook_{name}" for layer in range(len(twin.blocks)) for name in _POINTS]
    with twin.evaluated("slots"):
        logits, cache = twin.run_with_cache(tokens.to(twin.cfg.device), names_filter=points)
    last = f"blocks.{len(twin.blocks) - 1}.hook_resid_post"
    for sublayer in model.sublayers:
        layer, kind = sublayer.name.split(".")
        prefix = f"blocks.{layer[1:]}.hook_"
        x, theirs = cache[prefix + _READ_BY[kind]][0], cache[prefix + _WRITTEN_BY[kind]][0]
        _same(sublayer.name, write(x.double(), length, sublayer), theirs)
    _same("the end of the model", final(model, cache[last][0].double()), logits[0])


_READ_BY = {"A": "resid_pre", "N": "resid_mid"}
_WRITTEN_BY = {"A": "attn_out", "N": "mlp_out"}
_POINTS = {*_READ_BY.values(), *_WRITTEN_BY.values(), "resid_post"}


def _same(name: str, ours: Tensor, theirs: Tensor) -> None:
    off, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not off <= CLOSE * size:
        raise AllHeadsError(
            "parts that are norms, attention and matrices only",
            f"{name}, which writes up to {size:.2g} and is {off:.1e} away from that",
            "This part cannot be exported.",
        )


def save(model: Pure, path: str | Path) -> None:
    """Write a pure model into one safetensors file."""
    tensors: dict[str, Tensor] = {}
    node = _packed(model, tensors, "model")
    tensors = {name: _apart(tensor) for name, tensor in tensors.items()}
    header = {"version": VERSION, "checksums": {k: checksum(v) for k, v in tensors.items()}, "model": node}
    header["checksum"] = zlib.crc32(json.dumps(header).encode())
    write_tensors(path, tensors, {FORMAT: json.dumps(header)})


def _apart(tensor: Tensor) -> Tensor:
    """Dense, on the processor, and not a slice of something larger, as safetensors has it."""
    dense = tensor.detach().cpu().contiguous()
    return dense if dense.untyped_storage().nbytes() == dense.nbytes else dense.clone()


def _packed(node: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """The header's form of an object; its tensors go into ``tensors``, equal views once."""
    if isinstance(node, Tensor):
        return _stored(node, tensors, where)
    if isinstance(node, list):
        return [_packed(child, tensors, f"{where}.{number}") for number, child in enumerate(node)]
    if not is_dataclass(node):
        return node
    here = getattr(node, "name", where)
    kept = ((each.name, getattr(node, each.name)) for each in fields(node))
    packed = {name: _packed(child, tensors, f"{here}.{name}") for name, child in kept if child is not None}
    return {"kind": type(node).__name__} | packed


def _stored(tensor: Tensor, tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    """Keep a tensor under a name, once for all views of the same memory; a matrix may be stored transposed."""
    transposed = tensor.ndim == 2 and tensor.mT.is_contiguous() and not tensor.is_contiguous()
    rows = tensor.mT if transposed else tensor
    for known, kept in tensors.items():
        if (kept.data_ptr(), kept.shape, kept.stride(), kept.dtype) == (
            rows.data_ptr(),
            rows.shape,
            rows.stride(),
            rows.dtype,
        ):
            return {"tensor": known, "transposed": transposed}
    tensors[name] = rows
    return {"tensor": name, "transposed": transposed}
