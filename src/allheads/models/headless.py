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


def _headless(adapter: Any, outer: str) -> Any:
    """An adapter without the head, for the network that its own keeps under the name ``outer``."""

    def init(self: Any, cfg: Any) -> None:
        adapter.__init__(self, cfg)
        for name in _HEAD:
            self.components.pop(name, None)
        for component in self.components.values():
            component.name = component.name.removeprefix(f"{outer}.")

    def prepare_model(self: Any, hf_model: Any) -> None:
        # The pooler is shown, where there is one.
        if getattr(hf_model, "pooler", None) is not None:
            self.components["pooler"] = BertPoolerBridge(
                name="pooler", submodules={"dense": LinearBridge(name="dense")}
            )

    return type(f"Headless{adapter.__name__}", (adapter,), {"__init__": init, "prepare_model": prepare_model})


#: Networks without a head that can be bridged.
HEADLESS = {
    "BertModel": _headless(BertArchitectureAdapter, "bert"),
    "RobertaModel": _headless(RobertaArchitectureAdapter, "roberta"),
}


def register_headless() -> None:
    """Let TransformerLens know these adapters; again does no harm."""
    for name, adapter in HEADLESS.items():
        ArchitectureAdapterFactory.register_adapter(name, adapter)
