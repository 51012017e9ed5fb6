"""The twin as a TransformerLens bridge: the source's network, shared, with banks where its MLPs were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from allheads.errors import AllHeadsError
from allheads.heads.bank import HeadBank
from allheads.heads.evaluate import Evaluation
from allheads.heads.hooks import HeadHooks
from allheads.models.locations import Place


class TwinBridge(TransformerBridge):
    """An attention-only twin: a `TransformerBridge` in which every MLP and every expert is a bank of heads.

    ``banks``, ``places`` and ``domains`` go together, in the order of the layers: in a decoder whose layers have one
    MLP each, ``banks[l]`` is that of layer l, ``blocks.{l}.mlp`` in the bridge. ``rest`` names what else has matrices
    in the layers and stays: routers, mixers that are not attention.
    """

    rest: list[str]
    tolerance: float
    banks: list[HeadBank]
    places: list[Place]
    domains: list[Any]

    def require_one_stack(self, what: str) -> None:
        """Refuse ``what`` for encoder-decoders, towers and mixtures, whose banks are not one for each of ``blocks``.

        Raises `AllHeadsError`.
        """
        if [place.name for place in self.places] != [f"blocks.{layer}.mlp" for layer in range(len(self.places))]:
            raise AllHeadsError(
                f"one stack of layers with one MLP each, to {what}",
                f"banks at {', '.join(dict.fromkeys(place.stem for place in self.places))}"[:200],
                "Look at single heads with ah.heads and ah.plots.attention.",
            )

    @contextmanager
    def evaluated(self, evaluation: Evaluation, pattern_dtype: torch.dtype | None = None) -> Iterator[TwinBridge]:
        """Evaluate all banks in another way for a while, with patterns in ``pattern_dtype``.

        Raises `AllHeadsError` for patterns below float32: gates cancel, and need its precision.
        """
        if pattern_dtype not in (None, torch.float32, torch.float64):
            raise AllHeadsError("patterns in float32 or float64", str(pattern_dtype), "Leave it out for the default.")
        before = [(bank.evaluation, bank.pattern_dtype) for bank in self.banks]
        try:
            for bank in self.banks:
                bank.evaluation, bank.pattern_dtype = evaluation, pattern_dtype
            yield self
        finally:
            for bank, (name, dtype) in zip(self.banks, before, strict=True):
                bank.evaluation, bank.pattern_dtype = name, dtype

    def run_with_cache(
        self,
        input: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As in TransformerLens. Without a filter, the large activations of neuron heads are left out.

        Ask for them by name: ``names_filter="blocks.3.mlp.hook_pattern"``.
        """
        if names_filter is None:
            large = tuple(f"mlp.{name}" for name in HeadHooks.ON_REQUEST)
            points = self.hook_dict
            names_filter = [
                name
                for name, point in points.items()
                if not name.endswith(large) and self._gated_hook_reason(point.name or name) is None
            ]
        return super().run_with_cache(input, return_cache_object, remove_batch_dim, names_filter=names_filter, **kwargs)


def share(source: TransformerBridge) -> nn.Module:
    """A copy of the source's network without bridge components, over the same weight memory.

    Parameters are new objects: casting or moving one network leaves the other alone, and gradients are its own.
    Values are shared, so training in place changes both.
    """
    model = source.original_model
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        shared = tensor.detach()
        memo[id(tensor)] = (
            nn.Parameter(shared, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shared
        )
    # Children before parents: a copied module then meets its unwrapped children in the memo.
    for module in reversed(list(model.modules())):
        # A component without a name stands for parts of the layer it sits in, and wraps that layer.
        if (
            isinstance(module, GeneralizedComponent)
            and module.name is not None
            and module.original_component is not None
        ):
            memo[id(module)] = copy.deepcopy(module.original_component, memo)
    body = copy.deepcopy(model, memo)
    for module in body.modules():
        # Some components patch what they wrap; the copy is to compute as the architecture does.
        for name in [name for name, value in vars(module).items() if _patched(value)]:
            delattr(module, name)
    return body


def _patched(value: Any) -> bool:
    return callable(value) and str(getattr(value, "__module__", "")).startswith("transformer_lens")


def bridge(source: TransformerBridge, body: nn.Module) -> TwinBridge:
    """Bridge a copy of the source's network; its MLPs are still there."""
    # Networks of TransformerLens' own have no configuration of transformers.
    config = getattr(body, "config", None)
    twin = build_bridge_from_module(
        body,
        architecture=source.cfg.architecture,
        hf_config=config,
        tl_config=copy.deepcopy(source.cfg) if config is None else None,
        tokenizer=source.tokenizer,
        dtype=source.cfg.dtype,
        model_name=source.cfg.model_name,
    )
    # Folding norms and centring weights want projections where the banks are.
    twin.adapter.supports_fold_ln = twin.adapter.supports_center_writing_weights = False
    twin.cfg.default_prepend_bos = source.cfg.default_prepend_bos
    # The builder names its class; ours only adds to it.
    twin.__class__ = TwinBridge
    return twin
