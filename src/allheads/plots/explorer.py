"""explore: one page for one text, with every prediction, what made it, and every head and neuron that took part.

1. The twin reads the text: what it predicts after every token, and every pattern and gate.
2. For every prediction one backward pass gives the effect of every head and neuron at every position.
3. One prediction's graph is grown, and the parts that matter most anywhere get cards.
4. All of it goes into one file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from allheads.attribution.attribute import answers
from allheads.attribution.attribution import Attribution
from allheads.attribution.attribution_graph import AttributionGraph
from allheads.attribution.graph import grow
from allheads.attribution.metric import Metric
from allheads.attribution.question import Question
from allheads.attribution.rules import DEFAULT, Rule, rule_named
from allheads.errors import AllHeadsError
from allheads.gates.opening import gate_part
from allheads.plots.cards import cards
from allheads.plots.contributions import by_token
from allheads.plots.gate_maps import mlps, neuron_gates
from allheads.plots.graph_view import graph_data
from allheads.plots.packing import pack, short
from allheads.plots.pattern_sources import read_patterns
from allheads.plots.token_names import visible
from allheads.plots.view import View
from allheads.progress import bar
from allheads.twin.labels import Label
from allheads.twin.prompt import one_prompt, one_token, position_in, token_texts
from allheads.twin.twin import TwinBridge, require_twin

#: Likely next tokens shown after each token; predictions that are explained, the last ones of a long text.
_NEXT, EXPLAINED = 5, 64
#: Parts listed for each prediction, and of these, those that get a card.
_LISTED, _CARDS = 100, 40
#: Predictions explained with one forward pass, over what comes before the last of them.
_CHUNK = 16
#: Tokens of the longest text.
LONGEST = 512


# Six arguments, because two things are asked: why every prediction is what it is, and for one of them, its graph.
def explore(
    twin: TwinBridge,
    tokens: str | Tensor,
    *,
    versus: str | int | None = None,
    rule: str | Rule = DEFAULT,
    position: int = -1,
    budget: int = 60,
) -> View:
    r"""One page for a text: click a prediction to see what made it, and a head or neuron to see what it does.

    A prediction is the likeliest next token; what is explained is its logit less that of the second, or of ``versus``:
    exactly what `ah.attribute` gives for the pair. Ordinary heads and neurons stand in one list, ranked by their effect
    under the rule; those at the first token, where heads rest, are folded away. The page needs no server and no
    network; ``#L10.N77`` behind its address opens that card.

    Args:
        twin: from `ah.convert`; a language model that reads from left to right.
        tokens: a text of up to 512 tokens, or its ids ``[pos]``; its last 64 predictions are explained.
        versus: a token, by text or id, that every prediction is compared with.
        rule: what is frozen, as in `ah.attribute`.
        position: after which token the prediction is whose graph is drawn.
        budget: heads and neurons in that graph.

    Returns:
        A `View`; ``view.save("explore.html")`` writes the page.

    Raises:
        AllHeadsError: a text that is too long or cannot be read, a position outside it, a rule or budget that
            `ah.graph` refuses, or a network that looks ahead or reads something else than one text.

    >>> import allheads as ah
    >>> ah.plots.explore(twin, "When Mary and John", budget=5).save("explore.html").name
    'explore.html'
    """
    chosen = rule_named(rule)
    ids = _text(twin, tokens)
    length = ids.shape[1]
    if length > LONGEST:
        raise AllHeadsError(f"a text of at most {LONGEST} tokens", f"{length}", "Explore a part of it.")
    opened = position_in(length, position)
    other = None if versus is None else one_token(twin, versus)[0]
    predictions = _predictions(twin, ids)
    rivals = [_rival(twin, after, other) for after in predictions]
    pairs = zip(predictions, rivals, strict=True)
    metrics = [_difference(twin, after[0], rival, at) for at, (after, rival) in enumerate(pairs)]
    question = Question(twin, {"input": ids}, metrics[opened], chosen)
    flows = grow(question, budget)
    explained = {
        found.target.position: _explanation(found)
        for found in bar("Predictions", _attributions(twin, ids, metrics, chosen), total=min(length, EXPLAINED))
    }
    positions = _positions(flows, explained.values())
    banks = mlps(twin)
    opened_gates = neuron_gates(twin, ids, list(banks)) if banks else []
    gates = {layer.layer: pack(layer.gate.T)[0] for layer in opened_gates}
    labels = [*map(str, twin.index.ordinary()), *(label for label in positions if Label.parse(label).kind == "N")]
    data = {
        **read_patterns(twin, ids, None, labels, None).to_dict(),
        "cards": cards(question, positions),
        "gates": [gates.get(layer) for layer in range(len(twin.blocks))],
        "graph": graph_data(flows),
        "predictions": [
            {
                "offered": [[visible(text), round(share, 4)] for _, text, share in after],
                "versus": visible(rival[1]),
                **explained.get(position, {}),
            }
            for position, (after, rival) in enumerate(zip(predictions, rivals, strict=True))
        ],
        "d_mlp": [banks[layer].d_mlp if layer in banks else 0 for layer in range(len(twin.blocks))],
        "gate_parts": [gate_part(banks[layer].gates) if layer in banks else 0 for layer in range(len(twin.blocks))],
        "opened": opened,
        "rule": {"name": chosen.name, "answers": chosen.answers, "misses": chosen.misses},
    }
    return View("explore", data, f"{twin.cfg.model_name}: a network of heads", height=900)


def _text(twin: TwinBridge, tokens: str | Tensor) -> Int[Tensor, "1 pos"]:
    """The ids of one text. Raises `AllHeadsError` for a network that reads something else, or something beside it."""
    inputs = one_prompt(require_twin(twin), tokens)
    if set(inputs) != {"input"} or inputs["input"].is_floating_point():
        raise AllHeadsError("one text", ", ".join(inputs), "Use ah.attribute and ah.plots.graph for this network.")
    return inputs["input"]


#: A likely next token: its id, its text, its probability.
NextToken: TypeAlias = tuple[int, str, float]


@torch.no_grad()
def _predictions(twin: TwinBridge, ids: Int[Tensor, "1 pos"]) -> list[list[NextToken]]:
    """After each token the likeliest next ones.

    Raises `AllHeadsError` for a network whose first logits depend on later tokens.
    """
    logits = twin(ids)[0].float()
    alone = twin(ids[:, :1])[0, 0].float()
    if not torch.allclose(alone, logits[0], atol=1e-2 * float(logits[0].abs().max())):
        raise AllHeadsError("a model that reads from left to right", str(twin.cfg.architecture), "Use ah.attribute.")
    shares, tokens = logits.softmax(-1).topk(_NEXT)
    texts = [token_texts(twin, row[None]) for row in tokens]
    return [list(zip(*rows, strict=True)) for rows in zip(tokens.tolist(), texts, shares.tolist(), strict=True)]


def _rival(twin: TwinBridge, after: Sequence[NextToken], other: int | None) -> tuple[int, str]:
    """What the likeliest token is compared with: the second, where it is ``other`` itself."""
    if other is None or other == after[0][0]:
        return after[1][:2]
    return other, token_texts(twin, torch.tensor([[other]], device=twin.cfg.device))[0]


def _difference(twin: TwinBridge, token: NextToken, rival: tuple[int, str], position: int) -> Metric:
    """A token's logit, less its rival's."""
    weights = torch.zeros(twin.cfg.d_vocab_out, dtype=torch.float64)
    weights[token[0]], weights[rival[0]] = 1.0, -1.0
    name = f"{visible(token[1])} - {visible(rival[1])}"
    return Metric.of_outputs(name, position, weights.to(twin.cfg.device))


def _attributions(
    twin: TwinBridge, ids: Int[Tensor, "1 pos"], metrics: Sequence[Metric], rule: Rule
) -> Iterator[Attribution]:
    """The last predictions, some at a time: the network looks back only, so what comes after them is left out."""
    for start in range(max(0, len(metrics) - EXPLAINED), len(metrics), _CHUNK):
        chunk = metrics[start : start + _CHUNK]
        before = ids[:, : start + len(chunk)]
        yield from answers([Question(twin, {"input": before}, metric, rule) for metric in chunk])


def _explanation(found: Attribution) -> dict[str, Any]:
    """Plain values for JSON: the parts with the largest effects, and what the tokens themselves bring."""
    tokens = by_token(found)[: found.target.position + 1]
    return {
        "value": short(found.target_value),
        "tokens": [short(value) for value in tokens.tolist()],
        "constants": short(sum(value for value, _ in found.constants.values()) + found.intercept),
        "parts": [[part.label, part.position, short(part.effect), short(part.direct)] for part in found.top(_LISTED)],
    }


def _positions(flows: AttributionGraph, explained: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The parts that get cards, and where each matters most: those of the graph, and the first of every list."""
    parts = [(node.label, node.position, node.effect) for node in flows.parts]
    parts += [tuple(part[:3]) for found in explained for part in found["parts"][:_CARDS]]
    parts.sort(key=lambda part: (abs(part[2]), part[1]))
    return {label: position for label, position, _ in parts}
