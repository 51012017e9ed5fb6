"""CircuitsVis, BertViz, Captum, Inseq and nnsight with a twin: each does what its README does with a model.

All numbers that it shows or computes are compared with those of the twin's source, in float64, where a twin that
computes by the activations themselves differs by rounding only. So that the comparison can fail, the numbers of a
source without one of its MLPs have to differ visibly.

    python peers/tools.py [NAME ...]
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

import allheads as ah
from allheads.disk import digest

# Of this folder.
import hub  # isort: skip
from packages import installed  # isort: skip

HERE = Path(__file__).parent
TEXT = "The Eiffel Tower is in"
#: Largest difference from the source, relative to the largest number: TransformerLens computes patterns in float32.
TOLERANCE = 1e-6
#: Smallest difference from a model that lacks one MLP.
NOTICED = 1e-3
#: Numbers in a page; those before and behind a dot are parts of versions too, which are the same in both pages.
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def circuitsvis(model: TransformerBridge) -> Tensor:
    """The numbers of the picture of a layer's attention patterns."""
    import circuitsvis

    _, cache = model.run_with_cache(TEXT)
    shown = circuitsvis.attention.attention_heads(cache["pattern", 5][0], model.to_str_tokens(TEXT))
    return _numbers(str(shown))


def bertviz(model: TransformerBridge) -> Tensor:
    """The numbers of the view of all heads."""
    from bertviz import head_view

    _, cache = model.run_with_cache(TEXT)
    patterns = [cache["pattern", layer] for layer in range(model.cfg.n_layers)]
    return _numbers(head_view(patterns, model.to_str_tokens(TEXT), html_action="return").data)


def captum(model: TransformerBridge) -> Tensor:
    """What each token does for a continuation, by leaving it out, and for a logit, by integrated gradients."""
    from captum.attr import FeatureAblation, LayerIntegratedGradients, LLMAttribution, TextTokenInput

    network, tokenizer = model.original_model, model.tokenizer
    ablation = LLMAttribution(FeatureAblation(network), tokenizer)
    words = ablation.attribute(TextTokenInput(TEXT, tokenizer), target=" Paris").seq_attr

    gradients = LayerIntegratedGradients(lambda ids: network(ids).logits[:, -1], network.transformer.wte)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    embeddings = gradients.attribute(ids, target=int(tokenizer(" Paris").input_ids[0]), n_steps=4)
    return torch.cat([words.flatten(), embeddings.flatten()])


def inseq(model: TransformerBridge) -> Tensor:
    """What each token does for those that the model writes: inputs times gradients."""
    import inseq

    tool = inseq.load_model(model.original_model, "input_x_gradient", tokenizer=_tokenizer())
    found = tool.attribute("Hello ladies and", generation_args={"max_new_tokens": 3}, show_progress=False)
    return found.sequence_attributions[0].target_attributions.nan_to_num()


def nnsight(model: TransformerBridge) -> Tensor:
    """A hidden state and the logits, with a layer's output set to 0 on the way."""
    from nnsight import LanguageModel

    traced = LanguageModel(model.original_model, tokenizer=_tokenizer())
    with traced.trace(TEXT):
        traced.transformer.h[0].output[:] = 0
        hidden = traced.transformer.h[6].output.save()
        logits = traced.output.logits.save()
    return torch.cat([hidden.flatten(), logits.flatten()])


TOOLS: dict[str, Callable[[TransformerBridge], Tensor]] = {
    tool.__name__: tool for tool in (circuitsvis, bertviz, captum, inseq, nnsight)
}


def main(names: list[str]) -> int:
    """Try the tools; 1 if a twin's numbers are not those of its source."""
    sys.path.append(str(_install()))
    source, changed = (ah.load(_model(), dtype=torch.float64) for _ in range(2))
    twin = ah.convert(source)
    weights = dict(changed.original_model.named_parameters())
    with torch.no_grad():
        next(weight for name, weight in weights.items() if "h.3" in name and "mlp" in name and "c_proj" in name).zero_()
    failed = 0
    for name in names or TOOLS:
        expected, got, other = (TOOLS[name](model).detach() for model in (source, twin, changed))
        error, noticed = _difference(expected, got), _difference(expected, other)
        good = error < TOLERANCE and noticed > NOTICED
        failed += not good
        print(
            f"{'ok' if good else 'FAILED':8}{name:14}{expected.numel():8} numbers, largest difference "
            f"{error:.0e} of the largest; without one MLP, {noticed:.0e}",
            flush=True,
        )
    return int(failed > 0)


def _difference(expected: Tensor, got: Tensor) -> float:
    assert expected.shape == got.shape, f"expected {tuple(expected.shape)} numbers, got {tuple(got.shape)}"
    return float((expected - got).abs().max() / expected.abs().max())


def _numbers(page: str) -> Tensor:
    return torch.tensor([float(number) for number in NUMBER.findall(page)], dtype=torch.float64)


@cache
def _model() -> Path:
    return hub.folder(hub.build(), "gpt2")


def _tokenizer() -> AutoTokenizer:
    # TransformerLens' own begins every text with a token that these tools do not expect.
    return AutoTokenizer.from_pretrained(_model())


def _install() -> Path:
    """The tools and what they need, in a folder beside the environment, which stays as it is."""
    wanted = HERE / "requirements.txt"
    return installed(f"tools-{digest(wanted)[:16]}", "-r", str(wanted))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:]))
