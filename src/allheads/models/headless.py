"""Encoders without a head, as in folders of sentence embeddings: the adapters of their siblings that have one.

TransformerLens knows ``BertForMaskedLM``; a bare ``BertModel`` is the same network one level higher, without what
predicts words.
"""

from __future__ import annotations

from typing import Any

from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.generalized_components.pooler import BertPoolerBridge
from transformer_lens.model_bridge.supported_architectures.bert import BertArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.roberta import RobertaArchitectureAdapter

_HEAD = ("mlm_head", "unembed", "ln_final")


class _Bare:
    """Mixed into an adapter: its components without the head and without the outer name."""

    outer: str
    components: dict[str, Any]

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)  # type: ignore[call-arg]
        for name in _HEAD:
            self.components.pop(name, None)
        for component in self.components.values():
            component.name = component.name.removeprefix(f"{self.outer}.")

    def prepare_model(self, hf_model: Any) -> None:
        """Show the pooler, where there is one."""
        if getattr(hf_model, "pooler", None) is not None:
            self.components["pooler"] = BertPoolerBridge(
                name="pooler", submodules={"dense": LinearBridge(name="dense")}
            )


class HeadlessBert(_Bare, BertArchitectureAdapter):
    """``BertModel``."""

    outer = "bert"


class HeadlessRoberta(_Bare, RobertaArchitectureAdapter):
    """``RobertaModel``."""

    outer = "roberta"


def register() -> None:
    """Let TransformerLens know these adapters; again does no harm."""
    for name, adapter in (("BertModel", HeadlessBert), ("RobertaModel", HeadlessRoberta)):
        ArchitectureAdapterFactory.register_adapter(name, adapter)
