"""What an assistant may ask: the functions of the commands, with bounds on what goes in and on what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import allheads as ah
from allheads.cli.attributing import attribution_facts
from allheads.cli.before_loading import check_model, check_rule, check_targets, check_text
from allheads.cli.console import load_twin
from allheads.errors import AllHeadsError
from allheads.result import finite
from allheads.twin.prompt import prompt_ids, token_texts

#: Letters of a text, rows of a table, parts of a graph and parts that are taken away: the most in one question.
LETTERS, ROWS, BUDGET, PARTS = 4000, 50, 200, 100
_NO_SWEEP = "Start it with one: allheads mcp --sweep sweep.safetensors, made with allheads sweep."


class Answers:
    """One twin at a time, loaded when it is first asked about, and the sweep that the server was started with.

    Its methods are the tools: their docstrings are what an assistant reads. Each raises `AllHeadsError` for what it
    refuses, before it computes.
    """

    def __init__(self, model: str, sweep: Path | None, device: str | None, dtype: str | None) -> None:
        self._model, self._sweep_file, self._device, self._dtype = model, sweep, device, dtype

    @cached_property
    def _twin(self) -> ah.TwinBridge:
        return load_twin(self._model, self._device, self._dtype)

    @cached_property
    def _sweep(self) -> ah.corpus.Sweep:
        if self._sweep_file is None:
            raise AllHeadsError("a server with a sweep", "one without", _NO_SWEEP)
        return ah.corpus.Sweep.load(self._sweep_file)

    def load(self, model: str) -> dict[str, Any]:
        """Load another model, by short name, folder or hub id, in place of the present one; says what is in it."""
        check_model(model, self._device, self._dtype)
        if model != self._model:
            twin = load_twin(model, self._device, self._dtype)  # the present one stays if this fails
            self._model, self._twin = model, twin
        return self.model()

    def model(self) -> dict[str, Any]:
        """Which model is loaded: its layers, heads and neurons, and how heads and neurons are called."""
        cfg, banks = self._twin.cfg, self._twin.banks
        return {
            "model": self._model,
            "architecture": cfg.architecture,
            "n_layers": cfg.n_layers,
            "n_heads": cfg.n_heads,
            "n_neurons": sum(bank.d_mlp for bank in banks),
            "n_ctx": cfg.n_ctx,
            "labels": f"heads L0.A0 to L{cfg.n_layers - 1}.A{cfg.n_heads - 1}, "
            f"neurons L0.N0 to {self._twin.layers[-1].location.stem}.N{banks[-1].d_mlp - 1}",
        }

    def attribute(
        self, prompt: str, target: str, versus: str | None = None, rule: str = "half", position: int = -1, top: int = 12
    ) -> dict[str, Any]:
        """What makes a token the next one: effects, in logits, of tokens, attention heads and MLP neurons.

        target is one token, with its space: ' Paris'; versus a token that it is compared with. position is after which
        token of the prompt, -1 the last; top how many heads and neurons are listed.
        """
        _bounded("top", top, ROWS)
        return finite(attribution_facts(self._found(prompt, target, versus, rule, position), top))

    def graph(
        self, prompt: str, target: str, versus: str | None = None, rule: str = "half", budget: int = 40, edges: int = 50
    ) -> dict[str, Any]:
        """Which heads and neurons write into which on the way to a token: a graph of at most budget of them.

        edges is how many of its edges are listed, the largest.
        """
        _bounded("budget", budget, BUDGET)
        _bounded("edges", edges, ROWS)
        graph = self._found(prompt, target, versus, rule, -1).graph(budget=budget)
        facts, flows = graph.facts(), graph.to_dataframe("edges")
        largest = flows.reindex(flows.weight.abs().sort_values(ascending=False).index).head(edges)
        nodes = graph.to_dataframe().drop(columns=["kind", "layer"])
        rows = {"parts": nodes.head(ROWS).to_dict("records"), "largest_edges": largest.to_dict("records")}
        return finite(facts | rows)

    def card(self, label: str, k: int = 8) -> dict[str, Any]:
        """What a head (L3.A5) or a neuron (L3.N812) reads and writes by its weights, as tokens: k for each side."""
        _bounded("k", k, ROWS)
        return finite(ah.weights.circuit(self._twin, label, k=k).to_dict())

    def ablate(self, prompt: str, labels: list[str], top: int = 8) -> dict[str, Any]:
        """Take heads and neurons away, by writing zero, and say the likeliest next tokens before and after."""
        _text(prompt)
        _bounded("the number of labels", len(labels), PARTS)
        _bounded("top", top, ROWS)
        ids = prompt_ids(self._twin, prompt)
        with torch.no_grad():
            before = self._twin(ids)[0, -1]
            with ah.ablate(self._twin, labels):
                after = self._twin(ids)[0, -1]
        return finite({"before": self._likeliest(before, top), "after": self._likeliest(after, top)})

    def seen(self, label: str) -> dict[str, Any]:
        """What the sweep has counted of a head or neuron over its corpus; of a neuron, texts that excite it most."""
        if (of := self._sweep.settings["model"]) != self._twin.cfg.model_name:
            raise AllHeadsError(f"the sweep's model, {of}", f"{self._model}", f"Load it: load({of!r}).")
        row = self._sweep.of(label)
        examples = [
            {"value": example.value, "text": "".join(token_texts(self._twin, torch.tensor([example.tokens])))}
            for example in row.pop("examples", [])
        ]
        return finite({"model": of, **row, "examples": examples[:ROWS]})

    def _found(self, prompt: str, target: str, versus: str | None, rule: str, position: int) -> Any:
        _text(prompt)
        check_rule(rule)
        check_targets(self._model, prompt, [target] if versus is None else [target, versus], position)
        tokens = target if versus is None else (target, versus)
        return ah.attribute(self._twin, prompt, tokens, rule=rule, position=position)

    def _likeliest(self, logits: torch.Tensor, top: int) -> Sequence[dict[str, Any]]:
        best = logits.float().softmax(-1).topk(min(top, len(logits)))
        texts = token_texts(self._twin, best.indices[None])
        return [{"token": text, "probability": p} for text, p in zip(texts, best.values.tolist(), strict=True)]


def _text(prompt: str) -> None:
    check_text(prompt)
    _bounded("the length of the text", len(prompt), LETTERS)


def _bounded(what: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise AllHeadsError(f"{what} from 1 to {most:,}", f"{value:,}", "Ask for less.")
