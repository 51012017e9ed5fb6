"""The hook points' page: what `twin.points()` says of a small Llama, and of a small Gemma 2 where that differs."""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

import allheads as ah

#: The layer whose points are shown.
LAYER = 3
_SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}
_COLUMNS = ("nnsight", "nnterp", "interp_engine")


def page() -> str:
    """The page, as Markdown."""
    llama = _table(LlamaForCausalLM(LlamaConfig(**_SIZES, attn_implementation="eager")))
    gemma = _table(Gemma2ForCausalLM(Gemma2Config(**_SIZES, head_dim=8, attn_implementation="eager")))
    other = gemma[~gemma.apply(tuple, axis=1).isin(llama.apply(tuple, axis=1))]
    lines = [
        "# Hook points",
        "",
        "Every hook point of a twin, by its name in TransformerLens and here, and its names in nnsight, nnterp (1.3) "
        "and interp-engine (1.14): the same tensor, or no name. Those tools may show heads otherwise. "
        "`twin.points()` has this table for the model at hand, whose modules may be called otherwise: in GPT-2 "
        "`transformer.h[3].mlp.output` is what `model.layers[3].mlp.output` is here.",
        "",
        f"A model like Llama, with the points of layer {LAYER}:",
        "",
        *_rows(llama),
        "",
        "## Two outputs of an MLP",
        "",
        "`blocks.3.mlp.hook_out` is what the MLP gives, `blocks.3.hook_mlp_out` what it adds to the stream. They are "
        "one point unless there is a norm behind the MLP; the same goes for attention. And `blocks.3.mlp.hook_in` is "
        "what the MLP reads, `blocks.3.hook_mlp_in` the stream before its norm. Gemma 2, where its points are not "
        "those above:",
        "",
        *_rows(other),
    ]
    return "\n".join(lines) + "\n"


def _table(network: Any) -> Any:
    bridge = build_bridge_from_module(
        network.eval(), type(network).__name__, hf_config=network.config, dtype=torch.float32
    )
    table = ah.convert(bridge).points().to_dataframe()
    return table[~table.point.str.contains(r"\.\d+\.") | table.point.str.contains(rf"\.{LAYER}\.")]


def _rows(table: Any) -> list[str]:
    lines = [
        "| hook point | what passes | axes | nnsight | nnterp | interp-engine |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in table.itertuples():
        names = (f"`{name}`" if (name := getattr(row, column)) else "" for column in _COLUMNS)
        lines.append(f"| `{row.point}` | {row.what} | {row.shape} | {' | '.join(names)} |")
    return lines
