"""Run a network on small random input, whatever its kind, and look at what its modules read and write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from allheads.models.compat import called

#: What a bridge is called with, by name.
Inputs = Mapping[str, Tensor]
#: Length of a random text.
TOKENS = 8


@dataclass
class Activations:
    """What modules were called with and gave, in the order of their calls, by path."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    routes: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    result: Tensor | None = None


def probe_inputs(body: nn.Module, cfg: Any) -> dict[str, Tensor]:
    """Random arguments for the network's forward: tokens, an image, a waveform, and tokens for a decoder beside."""
    generator = torch.Generator().manual_seed(0)
    parameter = next(body.parameters())
    config: Any = getattr(body, "config", None)
    name = str(getattr(body, "main_input_name", "input_ids"))
    if name == "input_ids":
        length = min(TOKENS, getattr(cfg, "n_ctx", None) or TOKENS)
        tables = [] if config is not None else [m.num_embeddings for m in body.modules() if isinstance(m, nn.Embedding)]
        made = {name: _words(config, min([cfg.d_vocab, *tables]), length, generator)}
    elif name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = vision.image_size if isinstance(vision.image_size, (tuple, list)) else [vision.image_size] * 2
        made = {name: torch.randn(1, getattr(vision, "num_channels", 3), *size, generator=generator)}
    elif name == "input_values" and hasattr(config, "num_mel_bins"):
        made = {name: torch.randn(1, config.max_length, config.num_mel_bins, generator=generator)}
    elif name == "input_values":
        made = {name: torch.randn(1, 4000, generator=generator)}
    else:
        made = {name: torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)}
    if getattr(config, "is_encoder_decoder", False):
        made["decoder_input_ids"] = _words(config, cfg.d_vocab, 8, generator)
    return {
        key: value.to(parameter) if value.is_floating_point() else value.to(parameter.device)
        for key, value in made.items()
    }


def _words(config: Any, d_vocab: int, length: int, generator: torch.Generator) -> Tensor:
    """Random ids, none of which stands for an image or a sound."""
    special = {value for name, value in vars(config or object).items() if name.endswith(("token_id", "token_index"))}
    # A second table of embeddings, one for each layer, may know fewer words.
    second = getattr(getattr(config, "text_config", config), "vocab_size_per_layer_input", None)
    ordinary = [token for token in range(min(d_vocab, second or d_vocab)) if token not in special]
    return torch.tensor(ordinary)[torch.randint(len(ordinary), (1, length), generator=generator)]


def observe(body: nn.Module, inputs: dict[str, Tensor], paths: Iterable[str]) -> Activations:
    """Run the network once, and keep what the modules at ``paths`` read and wrote."""
    with torch.no_grad(), watching(body, paths) as activations:
        activations.result = run_network(body, inputs)
    return activations


@contextmanager
def watching(body: nn.Module, paths: Iterable[str]) -> Iterator[Activations]:
    """Keep what the modules at ``paths`` of a network, bridged or not, read and write."""
    activations = Activations()
    handles = [
        called(body, path).register_forward_hook(_recorder(path, activations), with_kwargs=True) for path in set(paths)
    ]
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: TransformerBridge) -> Iterator[None]:
    """In evaluation mode for a while, whatever the mode of each module is."""
    training = [module for module in model.original_model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def run_bridge(model: TransformerBridge, inputs: Inputs) -> Tensor:
    """What the bridge makes of these arguments: logits, or the last hidden state of a network without a head."""
    rest = dict(inputs)
    return first_tensor(model(rest.pop("input", None), **rest))


def run_network(network: nn.Module, inputs: Inputs) -> Tensor:
    """The same of a network, bridged or not, for arguments under its own names.

    Networks of others than transformers may call their tokens what they like: these come first.
    """
    named = dict(inputs)
    first = [] if hasattr(network, "main_input_name") else [named.pop("input_ids")]
    return first_tensor(network(*first, **named))


def network_inputs(model: TransformerBridge, inputs: Inputs) -> dict[str, Tensor]:
    """The same arguments under the names of the network itself."""
    names = {
        "input": getattr(model.original_model, "main_input_name", "input_ids"),
        "decoder_input": "decoder_input_ids",
    }
    return {names.get(name, name): value for name, value in inputs.items()}


def output_kind(model: TransformerBridge) -> str:
    """``logits``, or ``last hidden state`` for a network without a head."""
    headless = type(model.original_model).__name__.endswith("Model") and not any(
        hasattr(model.original_model, name) for name in ("lm_head", "cls", "classifier")
    )
    return "last hidden state" if headless else "logits"


def first_tensor(output: Any) -> Tensor:
    """Logits, or the last hidden state of a network without a head."""
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    return output if isinstance(output, Tensor) else output[0]


def _recorder(path: str, activations: Activations) -> Any:
    def record(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        written = output[0] if isinstance(output, tuple) else output
        if given:
            activations.inputs.setdefault(path, []).append(given[0].detach())
            activations.routes.setdefault(path, []).append([value.detach() for value in given[1:]])
        if isinstance(written, Tensor):
            activations.outputs.setdefault(path, []).append(written.detach())

    return record
