"""Whatever is not the twin that was saved is refused, in one sentence that says what to do."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import save_file
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import LlamaForCausalLM

import allheads as ah
from allheads.gates.activations import Activation
from allheads.models import descriptions as bridge_like
from allheads.untrusted import sealed


def refused(message, call, *args, **kwargs):
    with pytest.raises(ah.AllHeadsError, match=message) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    assert error.value.remedy
    return error.value


def rewritten(folder, change):
    """``twin.json`` with other content and the right checksum: what no accident would do."""
    path = folder / "twin.json"
    content = json.loads(path.read_text())
    change(content)
    del content["checksum"]
    path.write_text(json.dumps(sealed(content)))


# --- what is saved


def test_only_twins_are_saved(any_kind, tmp_path):
    source = any_kind("llama")
    refused("attention-only twin, got TransformerBridge", ah.save, source, tmp_path / "twin")
    refused("attention-only twin, got LlamaForCausalLM", ah.save, source.original_model, tmp_path / "twin")
    refused("attention-only twin, got NoneType", ah.save, None, tmp_path / "twin")
    twin = ah.convert(source)
    twin.enable_compatibility_mode(no_processing=True)
    refused("compatibility mode.*Save it first", ah.save, twin, tmp_path / "twin")
    assert not any(tmp_path.iterdir())


def test_gates_without_a_name(any_kind, tmp_path):
    twin = ah.convert(any_kind("opt"))
    mine = Activation("mine", "max(t, 0)", "here", torch.relu)
    gates = twin.banks[0].gates
    twin.banks[0].gates = ah.gates.GateSum(mine, False, gates.gates, gates.alpha, gates.delta, gates.max_error)
    refused("gates for an activation out of silu.*'mine'", ah.save, twin, tmp_path / "twin")
    assert not any(tmp_path.iterdir())


def test_parameters_that_came_or_went(any_kind, tmp_path):
    twin = ah.convert(any_kind("llama"))
    norm = twin.original_model.model.norm.original_component
    norm.bias = torch.nn.Parameter(torch.zeros(32))
    refused("parameters that it was made with, got model.norm.bias beside", ah.save, twin, tmp_path / "twin")
    del norm.bias, norm.weight
    refused("one without model.norm.weight", ah.save, twin, tmp_path / "twin")


class Mine(LlamaForCausalLM):
    """A network that transformers does not have."""


def test_networks_that_cannot_stand_alone(any_kind, tmp_path, monkeypatch):
    model = Mine(any_kind("llama").original_model.config).eval()
    bridge = build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)
    twin = ah.convert(bridge)
    refused("class in transformers, got Mine.*source=", ah.save, twin, tmp_path / "twin", standalone=True)
    assert not any(tmp_path.iterdir())
    ah.load(ah.save(twin, tmp_path / "twin"), source=bridge)
    Mine.__name__ = "LlamaForCausalLM"
    refused("another LlamaForCausalLM", ah.save, twin, tmp_path / "other", standalone=True)


# --- where it is saved


def test_folders_with_something_else(any_kind, tmp_path):
    twin = ah.convert(any_kind("llama"))
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "empty", "file"):
        refused("a new folder, or a saved twin to replace", ah.save, twin, tmp_path / name)
    refused("existing folder.*Create", ah.save, twin, tmp_path / "no" / "twin")
    path = ah.save(twin, tmp_path / "twin")
    (path / "more").mkdir()
    (path / "more" / "notes.txt").write_text("mine")
    refused("nothing but a saved twin in .*more/notes.txt beside", ah.save, twin, path)
    assert (path / "more" / "notes.txt").read_text() == "mine"
    shutil.rmtree(path / "more")
    ah.save(twin, path)
    (path / "twin.json").write_text("{")
    refused("saved twin to replace, got twin.json that cannot be read.*Delete", ah.save, twin, path)


# --- what is loaded


def test_folders_that_are_no_twins(saved, model_folder, any_kind):
    folder, source = saved
    refused("saved twin, to load with a given source", ah.load, model_folder(), source=source)
    refused("saved twin, to load with a given source", ah.load, "smollm2-135m", source=source)
    refused("Check the path", ah.load, folder / "nothing")
    (folder / "twin.json").unlink()
    refused("ah.save has written, with twin.json, got .* without it", ah.load, folder, source=source)
    (folder / "twin.json").write_text('{"format": "something else"}')
    refused("a twin.json of something else", ah.load, folder, source=source)


@pytest.mark.parametrize("name", ["twin.json", "twin.safetensors"])
@pytest.mark.parametrize("how", ["cut", "spoiled", "empty", "longer", "gone"])
def test_damaged_files(saved, name, how):
    folder, source = saved
    path = folder / name
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "spoiled":
        # A digit or a bit; the file stays readable.
        place = data.rindex(b"5e-07") if name == "twin.json" else len(data) - 9
        data[place] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes({"cut": data[:-30], "empty": b"", "longer": data + b"\n{}"}[how])
    refused("without its checksum|cannot be read|no file|without it", ah.load, folder, source=source)


def test_nothing_is_unpickled(saved):
    folder, source = saved

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    (folder / "twin.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused("without its checksum", ah.load, folder, source=source)

    def accept(content):
        content["files"] = {name: dict(zip(("bytes", "sha256"), entry, strict=True)) for name, entry in found.items()}

    from allheads.store.folder import listing

    found = listing(folder)
    rewritten(folder, accept)
    refused("twin.safetensors that cannot be read", ah.load, folder, source=source)


def test_files_elsewhere_are_not_read(saved):
    folder, source = saved
    (folder.parent / "other.safetensors").write_bytes((folder / "twin.safetensors").read_bytes())

    def move(content):
        content["files"] = {"../other.safetensors": content["files"]["twin.safetensors"]}

    rewritten(folder, move)
    refused(r"no file \.\./other", ah.load, folder, source=source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=3), "saved in format 2 or before, got format 3 .*allheads.*Update allheads"),
        (lambda c: c.update(version=None), "got format None"),
        (lambda c: c["gates"][0].update(activation="mish"), "a supported activation, got 'mish'"),
        (lambda c: c["gates"][0].update(heads=[]), "gates as ah.save writes them"),
        (lambda c: c["banks"][0].update(gates=99), "other entries .IndexError"),
        (lambda c: c["banks"][0].update(evaluation="magic"), "other entries .ValueError: banks.0.evaluation: input"),
        (
            lambda c: c["banks"][0].update(pattern_dtype="nn"),
            "other entries .*pattern_dtype: value error, nn is no dtype",
        ),
        (lambda c: c.pop("tolerance"), "other entries .KeyError: 'tolerance'"),
        (lambda c: c["source"].update(colour="red"), "other entries"),
        (lambda c: c["banks"].pop(), "a source with 1 MLPs, got one with blocks.1.mlp"),
        (lambda c: c["banks"][1].update(location="blocks.7.mlp"), "an MLP at blocks.7.mlp, got one with blocks.1.mlp"),
        (lambda c: c["banks"][1].update(edited=False), "one without blocks.1.mlp.edited"),
        (lambda c: c["source"]["sha256"].popitem(), "got one with lm_head.*beside it"),
        (lambda c: c["source"].update(name="nobody-here"), None),
        (lambda c: c["source"]["kernels"].update(token="secret"), "kernels.token"),
        (lambda c: c["source"]["kernels"].update(attn_implementation="org/kernel"), "attn_implementation"),
        (lambda c: c["source"].update(name=["a"]), "source.name"),
        (lambda c: c["source"].update(prepends_bos=1), "source.prepends_bos"),
        (lambda c: c["source"]["sha256"].update({"lm_head.weight": "0"}), "sha256.lm_head.weight"),
        (lambda c: c.update(tolerance="small"), "tolerance"),
        (lambda c: c.update(standalone="yes"), "standalone"),
        (lambda c: c.update(banks={}), "banks"),
        (lambda c: c["banks"][0].update(gates=-1), "gates"),
        (lambda c: c["banks"][0].update(domain=None), "domain"),
        (lambda c: c["banks"][0]["domain"].update(limit="1e3"), "limit"),
        (lambda c: c["gates"][0]["heads"][0].update(alpha=[]), "gates as ah.save writes them"),
        (lambda c: c["gates"].append(3), "gates|1: "),
        (lambda c: c["files"]["twin.safetensors"].update(bytes=-1), "files.twin.safetensors"),
        (lambda c: c["files"].update({"nul\0": c["files"]["twin.safetensors"]}), "embedded null"),
    ],
)
def test_other_contents(saved, change, message):
    folder, source = saved
    rewritten(folder, change)
    if message is None:
        refused("the source of the twin in .*nobody-here, got none: .*Bring it back", ah.load, folder)
    else:
        refused(message, ah.load, folder, source=source)


def test_tensors_of_another_shape(saved):
    folder, source = saved
    save_file({"model.norm.weight": torch.ones(5)}, folder / "twin.safetensors")

    def accept(content):
        from allheads.store.folder import listing

        size, digest = listing(folder)["twin.safetensors"]
        content["files"]["twin.safetensors"] = {"bytes": size, "sha256": digest}
        content["banks"][1]["edited"] = False
        del content["source"]["sha256"]["model.norm.weight"]

    rewritten(folder, accept)
    refused(r"model.norm.weight of shape \(5,\), got \(32,\)", ah.load, folder, source=source)


def test_records_are_bounded_before_they_are_read(saved):
    folder, source = saved
    good = (folder / "twin.json").read_text()
    deep = "[" * 1000 + "]" * 1000
    for text in (deep, good.replace("{", '{"deep": ' + deep + ",", 1), "[" + "0," * 10_000_000 + "0]", "9" * 5000):
        (folder / "twin.json").write_text(text)
        started = time.perf_counter()
        refused("twin.json that cannot be read", ah.load, folder, source=source)
        assert time.perf_counter() - started < 5


def test_links_to_elsewhere_are_not_followed(saved):
    folder, source = saved
    (folder / "twin.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "twin.safetensors").symlink_to(folder.parent / "other.safetensors")
    refused("no file twin.safetensors", ah.load, folder, source=source)


# --- the source


def test_a_file_does_not_decide_that_the_network_is_asked(saved, monkeypatch):
    """A hub's model is taken from this machine, or given."""
    folder, _ = saved
    asked = []
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *host, **options: asked.append(host) or (_ for _ in ()).throw(OSError)
    )
    rewritten(folder, lambda content: content["source"].update(name="org/name"))
    refused(r"org/name, got none: .*in the Hugging Face cache.*source=ah.load\('org/name'\)", ah.load, folder)
    assert asked == []


def test_sources_that_are_missing(saved, model_folder, tmp_path):
    folder, _ = saved
    refused("not loaded with ah.load, got none.*source=bridge", ah.load, folder)
    path = ah.save(ah.convert(ah.load(model_folder())), tmp_path / "twin")
    (tmp_path / "tiny-llama").rename(tmp_path / "moved")
    error = refused(r"the source of the twin.*tiny-llama, got none: .*Bring it back", ah.load, path)
    assert isinstance(error.__cause__, ah.AllHeadsError)
    assert type(ah.load(path, source=ah.load(tmp_path / "moved"))) is ah.TwinBridge


def test_sources_that_changed(model_folder, tmp_path):
    path = ah.save(ah.convert(ah.load(model_folder())), tmp_path / "twin")
    model_folder(rms_norm_eps=1e-5)
    refused("a source configured like the twin's, got another rms_norm_eps", ah.load, path)
    model_folder(rope_theta=5e5)
    refused("another rope_theta", ah.load, path)
    model_folder(seed=1)
    refused(r"when the twin was saved, got another .*model.embed_tokens.weight.* and \d+ more", ah.load, path)
    model_folder(intermediate_size=40)
    refused("another intermediate_size", ah.load, path)
    folder = model_folder()
    model = LlamaForCausalLM.from_pretrained(folder)
    model.model.norm.weight.data[3] *= 1 + 1e-6
    model.save_pretrained(folder)
    refused("got another model.norm.weight. Give the source as it was", ah.load, path)


def test_sources_of_another_kind(saved, any_kind, source_of):
    folder, _ = saved
    refused("the twin's kind, LlamaForCausalLM, got GPT2LMHeadModel", ah.load, folder, source=source_of("gpt2"))
    refused("source in torch.float32.*float64", ah.load, folder, source=any_kind("llama", torch.float64))
    refused("a TransformerBridge, got str", ah.load, folder, source="smollm2-135m")
    refused("got an attention-only twin", ah.load, folder, source=ah.convert(any_kind("llama")))


def test_sources_of_another_shape(saved, tiny):
    folder, _ = saved
    refused("another num_hidden_layers", ah.load, folder, source=tiny("llama", num_hidden_layers=3))
    refused("another hidden_act", ah.load, folder, source=tiny("llama", num_hidden_layers=2, hidden_act="relu"))

    def forget(content):
        content["source"]["config"] = {}

    rewritten(folder, forget)
    refused(
        "a source with 2 MLPs, got one with blocks.2.mlp", ah.load, folder, source=tiny("llama", num_hidden_layers=3)
    )
    refused("an MLP at blocks.1.mlp, got one with none", ah.load, folder, source=tiny("llama", num_hidden_layers=1))
    refused("got another", ah.load, folder, source=tiny("llama", num_hidden_layers=2, intermediate_size=40))
    refused(
        "_proj.bias and 5 more beside", ah.load, folder, source=tiny("llama", num_hidden_layers=2, attention_bias=True)
    )


def test_another_kernel(saved, any_kind):
    folder, _ = saved
    source = any_kind("llama")
    source.original_model.config._attn_implementation = "sdpa"
    refused("another attn_implementation", ah.load, folder, source=source)


def test_dtype_and_device(saved):
    folder, source = saved
    refused("dtype of the saved twin, torch.float32, got torch.bfloat16", ah.load, folder, dtype=torch.bfloat16)
    refused("a device or a source, got both", ah.load, folder, source=source, device="cpu")


# --- standalone folders


def test_standalone_folders_that_cannot_be_built(any_kind, tmp_path, monkeypatch):
    twin = ah.convert(any_kind("llama"))
    path = ah.save(twin, tmp_path / "twin", standalone=True)
    refused("a device that this PyTorch can use", ah.load, path, device="cudaa")
    rewritten(path, lambda content: content["source"].update(network="Modelling"))
    refused("a network of a class in transformers, got Modelling", ah.load, path)
    rewritten(path, lambda content: content["source"].update(network="LlamaConfig"))
    refused("a network of a class in transformers, got LlamaConfig", ah.load, path)
    monkeypatch.setattr(bridge_like, "AutoConfig", None)
    refused("a configuration and a tokenizer in", ah.load, path)


def test_custom_code_is_not_run(any_kind, tmp_path):
    path = ah.save(ah.convert(any_kind("llama")), tmp_path / "twin", standalone=True)
    config = json.loads((path / "config.json").read_text())
    (path / "custom.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"}
    (path / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": auto_map}))

    def accept(content):
        from allheads.store.folder import listing

        content["files"] = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in listing(path).items()}

    rewritten(path, accept)
    refused("a configuration and a tokenizer", ah.load, path)
