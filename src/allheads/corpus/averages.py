"""What heads and neurons write on average: the reference that ablation and relative attribution need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from allheads.errors import AllHeadsError
from allheads.models.observe import Inputs, run_bridge
from allheads.progress import bar
from allheads.result import Result
from allheads.twin.capture import EMBEDDINGS
from allheads.twin.prompt import named_inputs
from allheads.twin.sites import by_head, prompts_apart, sites
from allheads.twin.twin import TwinBridge, require_twin

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Means(Result):
    """Means over ``count`` positions, by hook point, in float64.

    ``hook_z [head d_head]``, ``hook_post [d_mlp]``, embeddings ``[d_model]``; by position with a first axis ``pos``.

    >>> means(twin, ["Mary and John"]).of("blocks.3.mlp.hook_post").shape
    torch.Size([1024])
    """

    count: int
    values: dict[str, Float[Tensor, "..."]]

    def of(self, name: str) -> Float[Tensor, "..."]:
        """The mean at a hook point. Raises `AllHeadsError` if it was not measured."""
        if name not in self.values:
            some = ", ".join(list(self.values)[:2])
            raise AllHeadsError(f"a hook point with a mean, such as {some}", name, "Whole neurons and heads have one.")
        return self.values[name]

    def facts(self) -> dict[str, Any]:
        """Over how many positions they are."""
        return {"count": self.count, "hook_points": len(self.values)}

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each hook point: hook_point, shape, and the root mean square of its means."""
        import pandas

        rows = [(name, tuple(mean.shape), float(mean.square().mean().sqrt())) for name, mean in self.values.items()]
        return pandas.DataFrame(rows, columns=["hook_point", "shape", "rms"])


def means(
    twin: TwinBridge, texts: Sequence[str | Tensor | Inputs], *, skip_first: bool = True, by_position: bool = False
) -> Means:
    """What embeddings, heads and neurons write on average over all positions of some texts.

    Texts, their ids, or arguments of the twin by name: ``{"input": ids, "decoder_input": ids}``, ``{"input": image}``.
    A neuron of an expert counts at every position, with 0 where another expert was chosen.

    ``skip_first`` leaves the first position of each text out: it often is where heads rest, and unlike all others.
    ``by_position`` keeps positions apart, the first too, for prompts of one length and form.

    Raises `AllHeadsError` for anything but a twin, if no position is left, and for several lengths by position.

    >>> means(twin, ["Mary and John", "went to the store"]).count
    5
    """
    require_twin(twin)
    items = [texts] if isinstance(texts, (str, Tensor, Mapping)) else list(texts)
    runs = [named_inputs(twin, item if isinstance(item, Mapping) else {"input": item}) for item in items]
    measured = _measured(twin)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, heads: int, value: Tensor, hook: object) -> None:
        if not value.is_floating_point():
            return
        kept = by_head(apart(value.detach()), heads)[:, int(skip_first and not by_position) :]
        total = kept.sum(0 if by_position else (0, 1), dtype=torch.float64)
        if name in sums and sums[name].shape != total.shape:
            raise AllHeadsError(
                f"prompts of {len(sums[name])} tokens each", f"one of {len(total)}", "Or leave by_position out."
            )
        counts[name] = counts.get(name, 0) + kept.shape[0] * (1 if by_position else kept.shape[1])
        sums[name] = sums[name] + total if name in sums else total

    hooks: Any = [(name, partial(add, name, heads)) for name, heads in measured.items()]
    with torch.no_grad(), prompts_apart(twin) as apart, twin.hooks(fwd_hooks=hooks):
        for inputs in bar("Means", runs):
            run_bridge(twin, inputs)
    count = max(counts.values(), default=0)
    if not count:
        raise AllHeadsError("texts with a position to average over", "none", "Give longer texts, or skip_first=False.")
    return Means(count, {name: total / counts[name] for name, total in sums.items() if counts[name]})


def _measured(twin: TwinBridge) -> dict[str, int]:
    """Hook points, and how many heads write at each: 0 where no heads do."""
    for layer in twin.layers:
        layer.bank.require_shared("neurons with one activation each", layer.location.stem)
    points = {site.point: 0 if site.kind == "N" else site.count for site in sites(twin)}
    known = twin.hook_dict
    return {name: heads for name, heads in (dict.fromkeys(EMBEDDINGS, 0) | points).items() if name in known}
