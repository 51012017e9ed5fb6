"""Attribution on other structures against one forward and backward pass of the source, as JSON. 2 threads.

Random models of one width and depth: a plain decoder, one with experts, an encoder, an encoder with a decoder, one
that sees. Times are taken in turn in one process; ratios are medians over rounds. A part is a head or a neuron at a
position.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from pairs import interleaved, median_ratio

import allheads as ah

WIDTH, LAYERS, HEADS, VOCABULARY, TOKENS, ROUNDS = 512, 6, 8, 4096, 256, 7
DECODER = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCABULARY}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("LlamaConfig", "LlamaForCausalLM", DECODER | {"intermediate_size": 2048}),
    "experts": (
        "MixtralConfig",
        "MixtralForCausalLM",
        DECODER | {"intermediate_size": 1024, "num_key_value_heads": 4, "num_local_experts": 4},
    ),
    "encoder": ("BertConfig", "BertForMaskedLM", DECODER | {"intermediate_size": 2048}),
    "encoder-decoder": (
        "BartConfig",
        "BartForConditionalGeneration",
        {"d_model": WIDTH, "vocab_size": VOCABULARY}
        | {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (
            ("layers", LAYERS // 2), ("attention_heads", HEADS), ("ffn_dim", 2048))},
    ),
    "vision": (
        "ViTConfig",
        "ViTForImageClassification",
        {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 2048}
        | {"image_size": 256, "patch_size": 16, "num_labels": 10},
    ),
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(2)
    print(json.dumps({kind: _measured(*made) for kind, made in KINDS.items()}, indent=2))


def _measured(config: str, model: str, settings: dict[str, Any]) -> dict[str, float]:
    torch.manual_seed(0)
    network = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        source = ah.load(folder)
    twin, inputs = ah.convert(source), _inputs(model)
    found = ah.attribute(twin, inputs, 5)
    runs: dict[str, Callable[[], Any]] = {"source": partial(_forward_backward, source, inputs)}
    runs |= {"attribution": partial(ah.attribute, twin, inputs, 5)}
    seconds = interleaved(runs, ROUNDS)
    parts = sum(table.numel() for table in found.effects.values())
    ratio = median_ratio(seconds, "attribution", "source")
    return {
        "parts": parts,
        "ratio_to_source": round(ratio, 3),
        "microseconds_per_part": round(1e6 * sorted(seconds["attribution"])[ROUNDS // 2] / parts, 3),
        "completeness_error": found.completeness_error,
    }


def _inputs(model: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if model.startswith("ViT"):
        return {"input": torch.randn(1, 3, 256, 256, generator=generator)}
    ids = torch.randint(10, VOCABULARY, (1, TOKENS), generator=generator)
    return {"input": ids} | ({"decoder_input": ids.flip(1)} if model.startswith("Bart") else {})


def _forward_backward(source: Any, inputs: dict[str, torch.Tensor]) -> None:
    """One forward pass, and one backward pass to what the first layer reads."""
    leaf: list[torch.Tensor] = []
    stack = "blocks" if hasattr(source, "blocks") else "encoder_blocks"

    def start(value: torch.Tensor, hook: object) -> torch.Tensor:
        leaf.append(value.detach().requires_grad_())
        return leaf[0]

    rest = dict(inputs)
    with torch.enable_grad(), source.hooks(fwd_hooks=[(f"{stack}.0.hook_resid_pre", start)]):
        out = source(rest.pop("input"), **rest)
        torch.autograd.grad(out[0, ..., 5].flatten()[-1], leaf)


if __name__ == "__main__":
    main()
