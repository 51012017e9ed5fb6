"""What the texts of a verification did not reach: there the comparison of weights is all there is."""

from __future__ import annotations

from collections.abc import Sequence

from allheads.models.bridge import TransformerBridge
from allheads.models.observe import Inputs
from allheads.verification.layers import LayerProof

#: How many layers or experts are named.
_NAMED = 6


def unreached(
    source: TransformerBridge, runs: Sequence[Inputs], layers: Sequence[LayerProof], same_weights: bool
) -> list[str]:
    """Neurons that never open, experts that are never chosen, positions and tokens that do not occur, each a phrase.

    A phrase ends with what the comparison of their weights said; ``same_weights`` is that of everything but the banks.
    """
    found = []
    ran = [layer for layer in layers if layer.rows]
    if shut := [layer for layer in ran if layer.never_open]:
        counts = [f"{layer.location} {layer.never_open}" for layer in shut]
        total = sum(layer.never_open for layer in shut)
        found.append(f"{total:,} neurons, which never open ({_some(counts)}); {_verdict(_same(shut))}")
    if silent := [layer for layer in layers if not layer.rows]:
        names = _some([layer.location for layer in silent])
        found.append(f"{len(silent)} MLPs or experts, which are never chosen ({names}); {_verdict(_same(silent))}")
    given = [run[name] for run in runs for name in ("input", "decoder_input") if name in run]
    texts = [ids for ids in given if not ids.is_floating_point()]
    if texts:
        longest, ends = max(text.shape[-1] for text in texts), getattr(source.cfg, "n_ctx", None) or 0
        if longest < ends:
            found.append(f"positions {longest:,} to {ends - 1:,}; {_verdict(same_weights)}")
        seen = len({token for text in texts for token in text.unique().tolist()})
        found.append(f"{source.cfg.d_vocab - seen:,} of {source.cfg.d_vocab:,} tokens; {_verdict(same_weights)}")
    return found


def _same(layers: Sequence[LayerProof]) -> bool:
    return not any(layer.faults for layer in layers)


def _verdict(same: bool) -> str:
    return "their weights are the source's" if same else "their weights are NOT all the source's"


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])])
