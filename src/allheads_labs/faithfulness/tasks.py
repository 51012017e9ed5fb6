"""Three tasks from templates: indirect objects, agreement across a relative clause, later years."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from allheads import AllHeadsError, TwinBridge

_NAMES = (
    *("Mary", "John", "Tom", "James", "Dan", "Sarah", "Anna", "Peter", "Paul", "Kate"),
    *("Emma", "Alice", "Mark", "David", "Lisa", "Jack", "Adam", "Laura", "Simon", "Robert"),
)
_PLACES = ("store", "park", "school", "office", "garden", "station")
_THINGS = ("drink", "book", "key", "ring", "letter", "ball")
_NOUNS = ("author", "teacher", "doctor", "farmer", "pilot", "senator", "driver", "lawyer", "artist", "guard", "king")
_VERBS = ("like", "know", "help", "meet", "trust", "see")
_EVENTS = ("war", "siege", "journey", "strike", "drought", "project", "trial", "voyage", "festival", "mission")


@dataclass(frozen=True)
class Prompt:
    """A text whose next token should be ``right`` and not ``wrong``; ``corrupt`` is as long and asks otherwise."""

    text: str
    corrupt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]

    def target(self, twin: TwinBridge) -> Tensor:
        """Weights ``[d_vocab]``: the mean logit of the right tokens less that of the wrong ones."""
        weights = torch.zeros(twin.cfg.d_vocab_out, dtype=torch.float64)
        for tokens, sign in ((self.right, 1.0), (self.wrong, -1.0)):
            for token in tokens:
                ids = twin.tokenizer(token, add_special_tokens=False).input_ids
                if len(ids) != 1:
                    raise AllHeadsError(
                        "a tokenizer that knows the words of the tasks", f"{token!r} in parts", "Use another model."
                    )
                weights[ids[0]] += sign / len(tokens)
        return weights


def objects(draw: random.Random) -> Prompt:
    """Who got it? "When Mary and John went to the store, John gave a drink to" (Wang et al. 2022, arXiv 2211.00593)."""
    (a, b), place, thing = draw.sample(_NAMES, 2), draw.choice(_PLACES), draw.choice(_THINGS)
    first, second = draw.sample([a, b], 2)
    start = f"When {first} and {second} went to the {place},"
    return Prompt(f"{start} {b} gave a {thing} to", f"{start} {a} gave a {thing} to", (f" {a}",), (f" {b}",))


def agreement(draw: random.Random) -> Prompt:
    """One or many? "The farmers that the king sees": as the first noun (Linzen et al. 2016, arXiv 1611.01368)."""
    (noun, other), verb, plural = draw.sample(_NOUNS, 2), draw.choice(_VERBS), draw.random() < 0.5
    clause = f"that the {other if plural else other + 's'} {verb + 's' if plural else verb}"
    many, one = f"The {noun}s {clause}", f"The {noun} {clause}"
    return Prompt(many, one, (" are",), (" is",)) if plural else Prompt(one, many, (" is",), (" are",))


def years(draw: random.Random) -> Prompt:
    """When? "The war lasted from the year 1732 to the year 17": not before (Hanna et al. 2023, arXiv 2305.00586)."""
    event, century, decade, year = (
        draw.choice(_EVENTS),
        draw.choice((16, 17, 18)),
        draw.randint(3, 7),
        draw.randint(2, 8),
    )

    def text(from_decade: int) -> str:
        return f"The {event} lasted from the year {century}{from_decade}{year} to the year {century}"

    later, earlier = (tuple(map(str, digits)) for digits in (range(decade + 1, 10), range(decade)))
    return Prompt(text(decade), text(0), later, earlier)


#: Tasks by name.
TASKS: dict[str, Callable[[random.Random], Prompt]] = {"objects": objects, "agreement": agreement, "years": years}


def right_ones(twin: TwinBridge, task: str, count: int, seed: int) -> list[Prompt]:
    """Different prompts of a task whose target is above 0: what the model gets right.

    Raises `AllHeadsError` for an unknown task, and if too few of a hundred times as many drawn are right.
    """
    if task not in TASKS:
        raise AllHeadsError(f"a task out of {', '.join(TASKS)}", repr(task), "Choose one.")
    prompts: list[Prompt] = []
    for prompt in _different(TASKS[task], random.Random(seed), 100 * count):
        with torch.no_grad():
            logits = twin(prompt.text)[0, -1]
        if float(logits.double() @ prompt.target(twin).to(logits.device)) > 0:
            prompts.append(prompt)
        if len(prompts) == count:
            return prompts
    raise AllHeadsError(f"a model that gets {count} prompts of {task!r} right", f"{len(prompts)}", "Ask for fewer.")


def _different(template: Callable[[random.Random], Prompt], draw: random.Random, tries: int) -> Iterator[Prompt]:
    texts = set()
    for _ in range(tries):
        prompt = template(draw)
        if prompt.text not in texts:
            texts.add(prompt.text)
            yield prompt
