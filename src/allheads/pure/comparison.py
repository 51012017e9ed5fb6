"""Is a pure model its twin? Every sublayer on what it reads in the twin, the whole on other texts, special tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.compat import network_path
from allheads.models.observe import evaluating, run_bridge
from allheads.pure.runner import Pure, logits, write
from allheads.pure.streams import Streams, rows, texts
from allheads.twin.twin import TwinBridge

#: Largest difference of attention and its pure form, and of anything else, relative to what it writes: float32 is at
#: 1e-6, and neurons, whose heads cancel, at 1e-5.
ATTENTION, CLOSE = 2e-5, 1e-4
#: Ordinary tokens of the text that a whole model is compared on.
LENGTH = 24


def compared(streams: Streams, model: Pure) -> Pure:
    """The model, with the tokens that it does not know; `AllHeadsError` by name for what is not the same."""
    run = streams.run
    for sublayer in model.sublayers:
        reads = [name for name in (f"{sublayer.name}.Q", sublayer.name) if name in run.reads]
        if sublayer.heads and reads:
            x = rows(run.reads[reads[0]])[0]
            other = None if sublayer.other is None else rows(run.reads[f"{sublayer.name}.V"])[0]
            ours = write(x, len(x), replace(sublayer, norm=None), other=other)
            close = ATTENTION if reads[0] != sublayer.name else CLOSE
            _same(sublayer.name, ours, streams.writes[sublayer.name][0], close)
    if streams.given is not None:
        theirs = _theirs(streams.twin, run.inputs)[1]
        _same("the whole model", logits(model, streams.given[1], torch.float64, "explicit"), theirs, CLOSE)
        return model
    special = _special(streams.twin)
    if _known(streams, model, special):
        return model
    _same("the whole model", *_pair(streams, model, []), CLOSE)
    return replace(model, refused=[token for token in special if not _known(streams, model, [token])])


def _same(name: str, ours: Tensor, theirs: Tensor, close: float) -> None:
    off, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not off <= close * size:
        raise AllHeadsError(
            "parts that are norms, attention and matrices only",
            f"{network_path(name)}, which writes up to {size:.2g} and is {off:.1e} away from that",
            "This part cannot be exported.",
        )


def _pair(streams: Streams, model: Pure, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """What pure model and twin give for a text with these tokens among others."""
    inputs = texts(streams.twin, min(LENGTH + len(tokens), model.n_ctx))
    for text in inputs.values():
        text[:, 4 : 4 + len(tokens)] = torch.tensor(tokens, dtype=text.dtype)
    if "decoder_input" in inputs:
        inputs = inputs | {"decoder_input": inputs["decoder_input"][:, :-2]}
    ids = [inputs[name][0] for name in ("input", "decoder_input") if name in inputs]
    return logits(model, ids[0], torch.float64, "explicit", *ids[1:]), _theirs(streams.twin, inputs)[0]


def _theirs(twin: TwinBridge, inputs: Any) -> Tensor:
    with torch.no_grad(), evaluating(twin), twin.evaluated("slots"):
        out = run_bridge(twin, inputs).double()
    return out if out.ndim == 3 else out[:, None]


def _special(twin: TwinBridge) -> list[int]:
    """Tokens that configurations name: some stand for something else than themselves."""
    found = set()
    for config in {id(c): c for m in twin.original_model.modules() if (c := getattr(m, "config", None))}.values():
        for name, value in vars(config).items():
            if name.endswith(("token_id", "token_index")):
                found |= {token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)}
    return sorted(token for token in found if 0 <= token < twin.cfg.d_vocab)


def _known(streams: Streams, model: Pure, tokens: list[int]) -> bool:
    """Is a text with these tokens the same for both?"""
    if 6 + len(tokens) > model.n_ctx:
        return False
    try:
        ours, theirs = _pair(streams, model, tokens)
    except Exception:  # of an image that is missing, in many ways
        return False
    return bool((ours - theirs).abs().max() <= CLOSE * theirs.abs().max())
