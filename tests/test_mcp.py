"""``allheads mcp``, asked by the client of the protocol's own SDK."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from mcp import Client, StdioServerParameters
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import allheads as ah
from allheads.cli import mcp_command
from allheads.cli.main import app
from allheads.cli.mcp_answers import BUDGET, LETTERS, PARTS, ROWS, Answers
from allheads.cli.mcp_command import TOOLS, _within, make_server
from allheads.models.sources import find_source

PROMPT = "When Mary and John went"
ASKED = [
    ("model", {}),
    ("attribute", {"prompt": PROMPT, "target": " Mary", "versus": " John", "top": 3}),
    ("graph", {"prompt": PROMPT, "target": " Mary", "budget": 5, "edges": 4}),
    ("card", {"label": "L1.N7", "k": 2}),
    ("ablate", {"prompt": PROMPT, "labels": ["L0.A1", "L1.N7"], "top": 2}),
    ("seen", {"label": "L1.N7"}),
    ("load", {"model": "no-such-model"}),
    ("attribute", {"prompt": PROMPT, "target": "two words"}),
    ("model", {}),
]


def _run(question: Any) -> Any:
    """In a thread of its own: where a browser is driven, the main one has a loop that runs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(anyio.run, question).result()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama with SmolLM2's tokenizer, and a sweep of it."""
    made = tmp_path_factory.mktemp("assistants") / "tiny"
    sizes = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 48, "vocab_size": 49152}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=3, num_key_value_heads=3)).save_pretrained(made)
    for file in Path(find_source("smollm2-135m").where).glob("*token*"):
        shutil.copy(file, made)
    ah.corpus.sweep(ah.convert(ah.load(made)), [PROMPT]).save(made.with_name("sweep.safetensors"))
    return made


@pytest.fixture(scope="module")
def twin(folder):
    return ah.convert(ah.load(folder))


@pytest.fixture(scope="module")
def answers(folder):
    """What a server in a process of its own answers, over its standard input and output."""
    arguments = ["-m", "allheads", "mcp", "--model", str(folder), "--sweep", str(folder.with_name("sweep.safetensors"))]

    async def ask():
        async with Client(StdioServerParameters(command=sys.executable, args=arguments, env=_environment())) as client:
            tools = (await client.list_tools()).tools
            return tools, [await client.call_tool(name, given) for name, given in ASKED]

    return _run(ask)


def _environment():
    return {"PYTHONPATH": str(Path(ah.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def _content(answer):
    assert not answer.is_error
    assert json.loads(answer.content[0].text) == answer.structured_content
    return answer.structured_content


def _refusal(answer):
    assert answer.is_error and "\n" not in answer.content[0].text
    return answer.content[0].text


def test_tools_say_what_they_are_for(answers):
    tools, _ = answers
    assert [tool.name for tool in tools] == list(TOOLS)
    by_name = {tool.name: tool for tool in tools}
    assert all(tool.description for tool in tools)
    assert by_name["attribute"].input_schema["required"] == ["prompt", "target"]
    assert by_name["ablate"].input_schema["properties"]["labels"]["type"] == "array"


def test_the_server_says_what_the_functions_say(answers, twin):
    model, attributed, graph, card, ablated, seen, *_ = answers[1]
    assert _content(model)["labels"] == "heads L0.A0 to L1.A2, neurons L0.N0 to L1.N47"
    found = ah.attribute(twin, PROMPT, (" Mary", " John"))
    said = _content(attributed)
    assert said["target_value"] == pytest.approx(found.target_value, abs=1e-5)
    assert [row["label"] for row in said["top"]] == [part.label for part in found.top(3)]
    expected = ah.graph(twin, PROMPT, " Mary", budget=5)
    said = _content(graph)
    assert said["edges"] == len(expected.edges) > len(said["largest_edges"]) == 4
    largest = max(abs(edge.weight) for edge in expected.edges)
    assert abs(said["largest_edges"][0]["weight"]) == pytest.approx(largest, abs=1e-5)
    assert _content(card)["rows"][0]["token"] == ah.weights.circuit(twin, "L1.N7", k=2).to_dict()["rows"][0]["token"]
    with torch.no_grad(), ah.ablate(twin, ["L0.A1", "L1.N7"]):
        after = twin(PROMPT)[0, -1].softmax(-1)
    assert _content(ablated)["after"][0]["probability"] == pytest.approx(float(after.max()), abs=1e-6)
    assert len(_content(ablated)["before"]) == 2
    example = _content(seen)["examples"][0]
    assert PROMPT.startswith(example["text"]) and example["text"]


def test_refusals_are_one_sentence_and_the_server_goes_on(answers):
    *_, unknown, target, model = answers[1]
    assert _refusal(unknown).startswith("Expected a short model name, a path or a Hugging Face id")
    assert "Expected one token, got 'two words', which is" in _refusal(target)
    assert _content(model)["n_layers"] == 2


async def _ask(server, name, **given):
    async with Client(server) as client:
        return await client.call_tool(name, given)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("attribute", {"prompt": "a" * (LETTERS + 1), "target": " Mary"}, "the length of the text from 1 to 4,000"),
        ("attribute", {"prompt": " ", "target": " Mary"}, "Expected text"),
        ("attribute", {"prompt": PROMPT, "target": " Mary", "top": ROWS + 1}, "top from 1 to 50"),
        ("attribute", {"prompt": PROMPT, "target": " Mary", "rule": "none"}, "Expected a rule out of"),
        ("attribute", {"prompt": PROMPT, "target": " Mary", "position": 99}, "a position from"),
        ("graph", {"prompt": PROMPT, "target": " Mary", "budget": BUDGET + 1}, "budget from 1 to 200"),
        ("graph", {"prompt": PROMPT, "target": " Mary", "edges": 0}, "edges from 1 to 50"),
        ("card", {"label": "L1.N7", "k": 0}, "k from 1 to 50"),
        ("card", {"label": "X" * 5000}, "a label such as L3.A5"),
        ("ablate", {"prompt": PROMPT, "labels": ["L0.A0"] * (PARTS + 1)}, "the number of labels from 1 to 100"),
        ("ablate", {"prompt": PROMPT, "labels": ["L9.A0"]}, "L9.A0"),
        ("seen", {"label": "L1.N7"}, "a server with a sweep, got one without"),
        ("card", {"label": 3}, "arguments that fit card, got label: input should be a valid string. Its schema"),
        ("attribute", {"prompt": PROMPT}, "arguments that fit attribute, got target: field required."),
        ("nothing", {}, "Unknown tool: nothing"),
    ],
)
def test_what_is_asked_is_bounded(folder, name, given, sentence):
    server = make_server(Answers(str(folder), None, None, None), 60.0)
    said = _refusal(_run(lambda: _ask(server, name, **given)))
    assert sentence in said and len(said) <= 500


class _Slow(Answers):
    """Answers that wait until they are let go."""

    def __init__(self):
        super().__init__("smollm2-135m", None, None, None)
        self.go = threading.Event()

    def model(self) -> dict[str, Any]:
        """Wait."""
        self.go.wait(10)
        return {"model": "slow"}


def test_what_goes_wrong_inside_stays_inside(monkeypatch, capfd):
    answers = Answers("smollm2-135m", None, None, None)

    def wrong(self) -> dict[str, Any]:
        """Fail."""
        raise KeyError("a secret of the machine")

    monkeypatch.setattr(Answers, "model", wrong)
    said = _refusal(_run(lambda: _ask(make_server(answers, 60.0), "model")))
    assert said == "Error executing tool model"


def test_a_question_that_takes_too_long_is_told_so():
    slow = _Slow()
    server = make_server(slow, 0.1)

    async def ask():
        async with Client(server) as client:
            late, meanwhile = [await client.call_tool("model", {}) for _ in range(2)]
            slow.go.set()
            await anyio.sleep(0.2)
            return late, meanwhile, await client.call_tool("model", {})

    late, meanwhile, after = _run(ask)
    assert _refusal(late) == "No answer within 0.1 s: ask for a shorter text, or for fewer parts."
    assert _refusal(meanwhile) == "The last question is still being answered: ask again in a moment."
    assert _content(after) == {"model": "slow"}


def test_http_is_for_this_machine_only(monkeypatch):
    served = {}

    class Server:
        def run(self, transport, **options):
            served[transport] = options

    monkeypatch.setattr(mcp_command, "make_server", lambda answers, seconds: Server())
    for arguments in (["mcp"], ["mcp", "--port", "8321"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert served == {"stdio": {}, "streamable-http": {"host": "127.0.0.1", "port": 8321}}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "no-such-model"], "Expected a short model name"),
        (["--sweep", "no-such-file"], "Expected a sweep that allheads sweep wrote"),
    ],
)
def test_the_command_refuses_before_it_serves(arguments, sentence):
    done = CliRunner().invoke(app, ["mcp", *arguments])
    assert done.exit_code == 2 and sentence in done.stderr


def test_without_the_sdk_the_command_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    done = CliRunner().invoke(app, ["mcp"])
    assert done.exit_code == 2 and "pip install 'allheads[assistants]'" in done.stderr


def test_another_model_takes_the_place_of_the_first(folder, twin):
    answers = Answers("smollm2-135m", folder.with_name("sweep.safetensors"), None, None)
    assert answers.load(str(folder))["n_neurons"] == 96
    assert answers.seen("L0.A1")["label"] == "L0.A1"


def test_a_question_that_is_taken_back_lets_others_ask():
    """Cancelled before its thread has begun, it does not keep the server busy for ever."""

    def tool():
        return {"answer": 1}

    ask = _within(tool, 10.0, threading.Lock())

    async def twice():
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ask()
        return await ask()

    assert _run(twice) == {"answer": 1}
