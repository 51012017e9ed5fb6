"""Twins on a hub: the client of the Hugging Face Hub, against a hub on this machine."""

from __future__ import annotations

import shutil
import traceback

import pytest
import torch
from huggingface_hub import constants
from tests.store.fake_hub import READ, WRITE, Repository, fake_hub
from transformers import LlamaConfig, LlamaForCausalLM

import allheads as ah

NAME = "somebody/small-twin"


@pytest.fixture(scope="module")
def twin(any_kind):
    return ah.convert(any_kind("llama"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What ``HF_ENDPOINT``, ``HF_HUB_CACHE`` and ``HF_TOKEN`` set, for a hub of this test."""
    with fake_hub() as made:
        _use(monkeypatch, made.endpoint, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield made


def _use(monkeypatch, endpoint, cache):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def _same(first, second):
    ids = torch.tensor([[1, 2, 3]])
    return torch.equal(first(ids), second(ids))


def test_a_twin_goes_to_the_hub_and_comes_back(twin, hub):
    url = ah.formats.push_to_hub(twin, NAME, standalone=True)
    assert url == f"{hub.endpoint}/{NAME}"
    repository = hub.repositories[NAME]
    assert repository.created["visibility"] == "private"
    _, files = repository.at("main")
    assert {"twin.json", "twin.safetensors", "config.json", "README.md", ".gitattributes"} <= files.keys()
    again = ah.load(NAME)
    assert isinstance(again, ah.TwinBridge) and _same(again, twin)


def test_a_twin_by_reference_asks_for_its_source(twin, any_kind, hub, tmp_path):
    folder = ah.save(twin, tmp_path / "twin")
    ah.formats.push_to_hub(folder, NAME, private=False)
    assert hub.repositories[NAME].created["visibility"] == "public"
    assert _same(ah.load(NAME, source=any_kind("llama")), twin)
    with pytest.raises(ah.AllHeadsError, match="the source of the twin"):
        ah.load(NAME)


def test_the_newest_twin_is_loaded_and_old_files_go(any_kind, hub):
    twin = ah.convert(any_kind("llama"))
    with twin.banks[0].edit() as heads:
        heads.W_O[0] += 1.0
    ah.formats.push_to_hub(twin, NAME)
    assert _same(ah.load(NAME, source=any_kind("llama")), twin)
    with twin.banks[0].edit() as heads:
        heads.W_O[0] += 1.0
    hub.repositories[NAME].commits[next(reversed(hub.repositories[NAME].commits))]["twin-00001.safetensors"] = b""
    ah.formats.push_to_hub(twin, NAME)
    assert "twin-00001.safetensors" not in hub.repositories[NAME].at("main")[1]
    assert _same(ah.load(NAME, source=any_kind("llama")), twin)


def test_without_a_network_it_comes_from_the_cache(twin, any_kind, hub, monkeypatch):
    ah.formats.push_to_hub(twin, NAME)
    ah.load(NAME, source=any_kind("llama"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert _same(ah.load(NAME, source=any_kind("llama")), twin)


def _model_files(folder):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_of_the_hub_is_no_twin(hub, tmp_path):
    """It is loaded as before, and a twin of it names it, with its commit, which is found again."""
    files = _model_files(tmp_path / "model")
    repository = hub.repositories["somebody/model"] = Repository()
    commit = repository.add(files)
    source = ah.load("somebody/model")
    assert not isinstance(source, ah.TwinBridge)
    twin = ah.convert(source)
    card = (ah.save(twin, tmp_path / "twin") / "README.md").read_text("utf-8")
    assert "base_model: somebody/model\n" in card and f"at revision `{commit}`" in card
    repository.add({**files, "config.json": files["config.json"].replace(b"48", b"49")})
    with pytest.raises(ah.AllHeadsError):
        ah.load("somebody/model")  # the newest does not fit its weights
    again = ah.load(tmp_path / "twin")
    assert _same(again, twin) and again.origin.revision == commit


def test_a_repository_with_something_else_is_left_alone(twin, hub):
    hub.repositories["somebody/model"] = Repository()
    before = hub.repositories["somebody/model"].add({"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(ah.AllHeadsError, match=r"a new repository.*somebody/model with config\.json, model\.saf"):
        ah.formats.push_to_hub(twin, "somebody/model")
    assert list(hub.repositories["somebody/model"].commits) == [before]
    with pytest.raises(ah.AllHeadsError, match="a readable model in the folder"):
        ah.load("somebody/model")


@pytest.mark.parametrize(
    ("token", "message"),
    [(READ, "403 Forbidden: a token that may not do that"), ("hf_nobodynobody", "401 Unauthorized: a token that it")],
)
def test_a_token_that_may_not_write(twin, hub, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ah.AllHeadsError, match=message) as refused:
        ah.formats.push_to_hub(twin, NAME)
    assert token not in "".join(traceback.format_exception(refused.value))
    assert not hub.repositories
    with pytest.raises(ah.AllHeadsError, match="the model somebody/small-twin from the Hugging Face Hub") as refused:
        ah.load(NAME)
    assert token not in "".join(traceback.format_exception(refused.value))


def test_a_hub_that_does_not_answer(twin, monkeypatch, tmp_path):
    _use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # a port that nobody listens on
    monkeypatch.setenv("HF_TOKEN", WRITE)
    with pytest.raises(ah.AllHeadsError, match=r"no answer .ConnectError.. Check the network") as refused:
        ah.formats.push_to_hub(twin, NAME)
    assert WRITE not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(ah.AllHeadsError, match="a hub that answers"):
        ah.load(NAME)


def test_a_damaged_twin_of_the_hub_is_refused(twin, hub):
    ah.formats.push_to_hub(twin, NAME, standalone=True)
    files = hub.repositories[NAME].at("main")[1]
    files["twin.safetensors"] = files["twin.safetensors"][:-4] + b"\0\0\0\1"
    with pytest.raises(ah.AllHeadsError, match=r"twin\.safetensors without its checksum"):
        ah.load(NAME)


def test_a_card_may_be_edited(twin, any_kind, hub, tmp_path):
    folder = ah.save(twin, tmp_path / "twin")
    (folder / "README.md").write_text("My own words.", "utf-8")
    assert _same(ah.load(folder, source=any_kind("llama")), twin)
    ah.formats.push_to_hub(folder, NAME)
    assert hub.repositories[NAME].at("main")[1]["README.md"] == b"My own words."
    ah.save(twin, folder)
    assert "attention-only twin" in (folder / "README.md").read_text("utf-8")


def test_bad_arguments_are_refused_before_anything_is_sent(twin, hub, tmp_path):
    for name in ("one", "a/b/c", "", 3, "spaces in/it"):
        with pytest.raises(ah.AllHeadsError, match="a name on the hub"):
            ah.formats.push_to_hub(twin, name)
    with pytest.raises(ah.AllHeadsError, match=r"a folder that ah\.save has written"):
        ah.formats.push_to_hub(tmp_path, NAME)
    with pytest.raises(ah.AllHeadsError, match="to save it standalone"):
        ah.formats.push_to_hub(ah.save(twin, tmp_path / "twin"), NAME, standalone=True)
    shutil.rmtree(tmp_path / "twin")
    assert hub.asked == []
