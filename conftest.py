"""What examples in docstrings take for granted: a small random model with SmolLM2's tokenizer, and its twin.

Examples are about forms, which do not depend on the model; what SmolLM2 itself says is in the README, in docs/ and in
the notebooks, which are run as well.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def example_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random Llama of 4 layers, with 6 heads and 1,024 neurons in each, from a folder as any other."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import allheads as ah
    from allheads.models.sources import find_source

    folder = tmp_path_factory.mktemp("example")
    sizes = {"num_hidden_layers": 4, "hidden_size": 48, "intermediate_size": 1024, "vocab_size": 49152}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=3)).save_pretrained(folder)
    for file in Path(find_source("smollm2-135m").where).glob("*token*"):
        shutil.copy(file, folder)
    return ah.load(folder)


@pytest.fixture(scope="session")
def example_names(example_model: Any) -> dict[str, Any]:
    """What examples may name without having made it."""
    import torch

    import allheads as ah

    twin = ah.convert(example_model)
    return {"ah": ah, "torch": torch, "source": example_model, "twin": twin, "prompt": "When Mary and John"}


@pytest.fixture(autouse=True)
def _examples(
    request: pytest.FixtureRequest,
    doctest_namespace: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Examples that name a model have the small one, also where they load the default; they write into a folder of
    their own."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    lines = "".join(example.source for example in request.node.dtest.examples if not example.options)
    if not re.search(r"\b(source|twin|model)\b", lines):
        return
    monkeypatch.chdir(tmp_path_factory.mktemp("example"))
    doctest_namespace |= request.getfixturevalue("example_names")
    import allheads.store.load as home

    opened, model = home.load, doctest_namespace["source"]
    monkeypatch.setattr(
        home, "load", lambda *name, **more: model if name in ((), ("smollm2-135m",)) else opened(*name, **more)
    )
