"""explore: one page for one text, with every prediction, what made it, and every head and neuron that took part.

1. The twin reads the text: what it predicts after every token, and every pattern and gate.
2. For every prediction one backward pass gives the effect of every head and neuron at every position.
3. One prediction's graph is grown, and the parts that matter most anywhere get cards.
4. All of it goes into one file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

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
from allheads.plots.cards import cards
from allheads.plots.gate_maps import read_gates
from allheads.plots.graph_view import graph_data
from allheads.plots.packing import deflated
from allheads.plots.pattern_sources import read_patterns
from allheads.plots.texts import visible, words
from allheads.plots.view import View
from allheads.progress import bar
from allheads.twin.labels import Label
from allheads.twin.prompt import position_in, prompt_ids
from allheads.twin.twin import TwinBridge

#: Tokens that are offered after each token; predictions that are explained, the last ones of a long text.
_OFFERED, EXPLAINED = 5, 64
#: Parts listed for each prediction, and of these, those that get a card.
_LISTED, _CARDS = 100, 40
#: Predictions explained with one forward pass, over what comes before the last of them.
_CHUNK = 16
#: Tokens of the longest text.
LONGEST = 512


def explore(
    twin: TwinBridge, tokens: str | Tensor, *, rule: str | Rule = DEFAULT, position: int = -1, budget: int = 60
) -> View:
    r"""One page for a text: click a prediction to see what made it, and a head or neuron to see what it does.

    A prediction is the likeliest next token; what is explained is its logit less the mean over the vocabulary, so that
    what raises all logits alike counts for nothing. Ordinary heads and neurons stand in one list, ranked by their
    effect under the rule. The page needs no server and no network; ``#L10.N77`` behind its address opens that card.

    Args:
        twin: from `ah.convert`; a language model that reads from left to right.
        tokens: a text of up to 512 tokens, or its ids ``[pos]``; its last 64 predictions are explained.
        rule: what is held, as in `ah.attribute`.
        position: after which token the prediction is whose graph is drawn.
        budget: heads and neurons in that graph.

    Returns:
        A `View`; ``view.save("explore.html")`` writes the page.

    Raises:
        AllHeadsError: a text that is too long or cannot be read, a position outside it, a rule or budget that
            `ah.graph` refuses, or a network that looks ahead.

    >>> import allheads as ah
    >>> ah.plots.explore(twin, "When Mary and John went to the store").save("explore.html")  # doctest: +SKIP
    """
    chosen = rule_named(rule)
    ids = prompt_ids(twin, tokens)
    length = ids.shape[1]
    if length > LONGEST:
        raise AllHeadsError(f"a text of at most {LONGEST} tokens", f"{length}", "Explore a part of it.")
    at = position_in(length, position)
    offers = _offers(twin, ids)
    targets = [_target(twin, offer[0][0], place) for place, offer in enumerate(offers)]
    flows = grow(Question(twin, ids, targets[at], chosen), budget)
    explained = {
        found.target.position: _explanation(found)
        for found in bar("Predictions", _attributions(twin, ids, targets, chosen), total=min(length, EXPLAINED))
    }
    places = _places(flows, explained.values())
    neurons = [label for label in places if Label.parse(label).kind == "N"]
    ordinary = [str(head) for head in twin.index.ordinary()]
    data = {
        **read_patterns(twin, ids, None, [*ordinary, *neurons], None).to_dict(),
        "cards": cards(twin, ids, places),
        "gates": [deflated(reading.gate.T) for reading in read_gates(twin, ids, range(len(twin.banks)))],
        "graph": graph_data(flows),
        "predictions": [
            {"offered": [[visible(text), round(p, 4)] for _, text, p in offer], **explained.get(place, {})}
            for place, offer in enumerate(offers)
        ],
        "d_mlp": [bank.d_mlp for bank in twin.banks],
        "opened": at,
        "rule": {"name": chosen.name, "answers": chosen.answers, "misses": chosen.misses},
    }
    return View("explore", data, f"{twin.cfg.model_name}: a network of heads", height=900)


Offer = list[tuple[int, str, float]]


@torch.no_grad()
def _offers(twin: TwinBridge, ids: Int[Tensor, "1 pos"]) -> list[Offer]:
    """After each token the likeliest ones, with their probabilities.

    Raises `AllHeadsError` for a network whose first logits depend on later tokens.
    """
    logits = twin(ids)[0].float()
    alone = twin(ids[:, :1])[0, 0].float()
    if not torch.allclose(alone, logits[0], atol=1e-2 * float(logits[0].abs().max())):
        raise AllHeadsError("a model that reads from left to right", str(twin.cfg.architecture), "Use ah.attribute.")
    shares, tokens = logits.softmax(-1).topk(_OFFERED)
    texts = [words(twin, row[None]) for row in tokens]
    return [list(zip(*each, strict=True)) for each in zip(tokens.tolist(), texts, shares.tolist(), strict=True)]


def _target(twin: TwinBridge, token: int, position: int) -> Metric:
    """A token's logit, less the mean over the vocabulary."""
    weights = torch.full((twin.cfg.d_vocab_out,), -1.0 / twin.cfg.d_vocab_out, dtype=torch.float64)
    weights[token] += 1.0
    return Metric.of_logits(visible(words(twin, torch.tensor([[token]]))[0]), position, weights.to(twin.cfg.device))


def _attributions(
    twin: TwinBridge, ids: Int[Tensor, "1 pos"], targets: Sequence[Metric], rule: Rule
) -> Iterator[Attribution]:
    """The last predictions, some at a time: the network looks back only, so what comes after them is left out."""
    for start in range(max(0, len(targets) - EXPLAINED), len(targets), _CHUNK):
        some = targets[start : start + _CHUNK]
        read = ids[:, : start + len(some)]
        yield from answers([Question(twin, read, metric, rule) for metric in some])


def _explanation(found: Attribution) -> dict[str, Any]:
    """Plain values for JSON: the parts with the largest effects, and what the tokens themselves bring."""
    begun = found.embeddings if found.positions is None else found.embeddings + found.positions
    before = begun[: found.target.position + 1]
    return {
        "target": found.target.name,
        "value": _short(found.target_value),
        "tokens": [_short(value) for value in before.tolist()],
        "constants": _short(sum(value for value, _ in found.constants.values()) + found.intercept),
        "parts": [[each.label, each.position, _short(each.effect), _short(each.direct)] for each in found.top(_LISTED)],
    }


def _places(flows: AttributionGraph, explained: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The parts that get cards, and where each matters most: those of the graph, and the first of every list."""
    largest: dict[str, tuple[float, int]] = {}
    rows = [(node.label, node.position, node.effect) for node in flows.parts]
    rows += [(label, place, effect) for each in explained for label, place, effect, _ in each["parts"][:_CARDS]]
    for label, place, effect in rows:
        largest[label] = max(largest.get(label, (0.0, place)), (abs(effect), place))
    return {label: place for label, (_, place) in largest.items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
