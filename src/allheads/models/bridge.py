"""The twin as a TransformerLens bridge: the source's network, shared, with banks where its MLPs were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from allheads.banks.bank import HeadBank
from allheads.banks.evaluate import Evaluation
from allheads.banks.hooks import HeadHooks
from allheads.errors import AllHeadsError


class TwinBridge(TransformerBridge):
    """An attention-only twin: a `TransformerBridge` whose ``blocks.{l}.mlp`` are banks of heads."""

    tolerance: float
    domains: list[Any]

    @property
    def banks(self) -> list[HeadBank]:
        """The bank of every layer, in order."""
        return [block.mlp.original_component for block in self.blocks]

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


class HeadBankBridge(GeneralizedComponent):
    """The bridge component around a bank: its hook points appear as ``blocks.{l}.mlp.hook_*``."""

    def set_original_component(self, original_component: nn.Module) -> None:
        """Adopt the bank and show its hook points as this component's own."""
        super().set_original_component(original_component)
        for name, point in original_component.get_submodule("hooks").named_children():
            setattr(self, name, point)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """``hook_out(bank(hook_in(x)))``. Layers that flatten batch and position are shown unflattened."""
        x = self.hook_in(args[0] if args else kwargs["hidden_states"])
        conversion = self.hook_in.hook_conversion
        rows = conversion.convert(x) if conversion is not None else x
        out = self.original_component(rows if rows.ndim == 3 else rows[None])
        return self.hook_out(out.reshape(x.shape))


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
    return copy.deepcopy(model, memo)


def build_twin(source: TransformerBridge, body: nn.Module) -> TwinBridge:
    """Bridge a network in which banks have taken the place of the MLPs."""
    twin = build_bridge_from_module(
        body,
        architecture=source.cfg.architecture,
        hf_config=body.config,
        tokenizer=source.tokenizer,
        dtype=source.cfg.dtype,
        model_name=source.cfg.model_name,
        post_adapter_hook=_expect_banks,
    )
    twin.cfg.default_prepend_bos = source.cfg.default_prepend_bos
    # The builder names its class; ours only adds to it.
    twin.__class__ = TwinBridge
    return twin


def _expect_banks(adapter: ArchitectureAdapter) -> None:
    """Change the component mapping after the adapter finished it, which some do only in `prepare_model`."""
    prepare = adapter.prepare_model

    def prepare_and_patch(model: nn.Module) -> None:
        prepare(model)
        blocks = adapter.component_mapping["blocks"]
        read = blocks.submodules["mlp"]
        bank = HeadBankBridge(name=read.name or read.submodules["in"].name)
        for point in ("hook_in", "hook_out"):
            getattr(bank, point).hook_conversion = getattr(read, point).hook_conversion
        blocks.submodules["mlp"] = bank
        if str(blocks.hook_aliases["hook_mlp_out"]).startswith("mlp."):
            blocks.hook_aliases = {**blocks.hook_aliases, "hook_mlp_out": "mlp.hook_out"}

    adapter.prepare_model = prepare_and_patch
