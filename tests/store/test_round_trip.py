"""A twin comes back as it was: logits to the last bit, banks, gates, locations, domains, edits."""

from __future__ import annotations

import copy
import json
import stat

import pytest
import torch

import allheads as ah
from allheads.models.mlps import activation_with_values
from allheads.models.origin import state
from allheads.twin import convert

KINDS = ["llama", "gpt2", "opt", "t5", "bart", "mixtral", "falcon_h1"]


def same(a, b):
    """Everything that makes a twin, hooks excepted."""
    assert type(b) is ah.TwinBridge
    assert (b.tolerance, b.untouched) == (a.tolerance, a.untouched)
    assert [(layer.location, layer.domain) for layer in b.layers] == [
        (layer.location, layer.domain) for layer in a.layers
    ]
    for one, other in zip(a.banks, b.banks, strict=True):
        assert (one.gates, one.evaluation, one.pattern_dtype) == (other.gates, other.evaluation, other.pattern_dtype)
        assert (one.edited is None) == (other.edited is None)
    assert not b.original_model.training
    theirs = state(b)
    assert theirs.keys() == state(a).keys()
    for name, tensor in state(a).items():
        assert theirs[name].dtype == tensor.dtype, name
        assert torch.equal(theirs[name], tensor), name
    return True


def changed(twin):
    """One edited layer, one bank evaluated in another way, one weight of what is not a bank."""
    with twin.banks[-1].edit() as heads:
        heads.W_O[0] *= 3.0
        heads.bias_offsets[1] -= 1e-9  # below float32
    twin.banks[0].evaluation, twin.banks[0].pattern_dtype = "slots", torch.float64
    embedding = next(
        t for name, t in state(twin).items() if name.endswith(("embed_tokens.weight", "wte.weight", "shared.weight"))
    )
    embedding.data[5] += 0.5
    return twin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("standalone", [False, True], ids=["shared", "standalone"])
def test_twins_of_every_kind(kind, standalone, any_kind, run, tmp_path, source_of):
    twin = ah.convert(any_kind(kind))
    before = run(twin)
    path = ah.save(changed(twin), tmp_path / "twin", standalone=standalone)
    again = ah.load(path) if standalone else ah.load(path, source=source_of(kind))
    assert same(twin, again)
    assert torch.equal(run(again), run(twin))
    assert not torch.equal(run(again), before)


@pytest.mark.parametrize(
    ("dtype", "standalone"), [(torch.float64, False), (torch.float64, True), (torch.bfloat16, True)], ids=str
)
def test_dtypes(dtype, standalone, any_kind, run, tmp_path, source_of):
    """The tiny models are cast with all their buffers, which a configuration would not give back."""
    source = any_kind("llama", dtype)
    twin = changed(ah.convert(source))
    ah.save(twin, tmp_path / "twin", standalone=standalone)
    given = {} if standalone else {"source": source_of("llama", dtype)}
    again = ah.load(tmp_path / "twin", dtype=dtype, **given)
    assert same(twin, again)
    assert again.banks[-1].edited.bias_offsets.dtype == torch.float64
    assert torch.equal(run(again), run(twin))


@pytest.mark.parametrize(("adds_bos", "standalone"), [(False, True), (True, False), (True, True)])
def test_models_from_folders(model_folder, run, tmp_path, adds_bos, standalone):
    source = ah.load(model_folder(adds_bos, tie_word_embeddings=adds_bos), dtype=torch.bfloat16)
    twin = ah.convert(source, tolerance=1e-4, evaluation="slots")
    ah.save(twin, tmp_path / "twin", standalone=standalone)
    if standalone:
        (tmp_path / "tiny-llama").rename(tmp_path / "gone")
    again = ah.load(str(tmp_path / "twin"))
    assert same(twin, again)
    assert torch.equal(run(again), run(twin))
    assert again.cfg.dtype == torch.bfloat16
    for text in ("the cat sat", ["a", "the cat"]):
        assert torch.equal(again.to_tokens(text), twin.to_tokens(text))
    settings = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "return_type": "tokens"}
    assert torch.equal(again.generate("the cat", **settings), twin.generate("the cat", **settings))


def test_what_was_trained_is_stored_and_nothing_else(model_folder, run, tmp_path):
    """Before the conversion and after, by assignment and through .data, on the source and on the twin."""
    source = ah.load(model_folder())
    source.original_model.model.norm.original_component.weight.data.mul_(1.5)
    twin = ah.convert(source)
    with torch.no_grad():
        twin.banks[0].W_out[0] += 1.0  # shared with the source
        source.blocks[1].attn.original_component.q_proj.original_component.weight.data[0] *= -1.0
    path = ah.save(twin, tmp_path / "twin")
    stored = json.loads((path / "twin.json").read_text())["source"]["sha256"].keys()
    assert set(state(twin)) - set(stored) == {
        "model.norm.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    }
    again = ah.load(path)
    assert torch.equal(run(again), run(twin))
    assert not torch.equal(run(again), run(ah.load(tmp_path / "tiny-llama")))
    # And again, from what was loaded.
    ah.save(again, path)
    assert torch.equal(run(ah.load(path)), run(twin))


def test_a_cast_twin_stays_cast(any_kind, run, tmp_path, source_of):
    source = any_kind("llama")
    twin = ah.convert(source)
    twin.original_model.double()
    again = ah.load(ah.save(twin, tmp_path / "twin"), source=source_of("llama"))
    assert run(again).dtype == torch.float64
    assert torch.equal(run(again), run(twin))


def test_loading_leaves_the_given_source_alone(any_kind, run, tmp_path):
    source = any_kind("gpt2")
    before, tensors = run(source), copy.deepcopy(state(source))
    twin = changed(ah.convert(any_kind("gpt2")))
    twin.cfg.default_prepend_bos = not source.cfg.default_prepend_bos
    again = ah.load(ah.save(twin, tmp_path / "twin"), source=source)
    assert torch.equal(run(source), before)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state(source).items())
    assert again.cfg.default_prepend_bos != source.cfg.default_prepend_bos
    # What is not stored is not there twice.
    memory = {tensor.data_ptr() for tensor in state(source).values()}
    assert state(again)["transformer.ln_f.weight"].data_ptr() in memory
    assert again.banks[0].W_in.data_ptr() in memory


def test_gates_put_in_by_hand_come_back(any_kind, run, tmp_path, source_of):
    twin = ah.convert(any_kind("llama"))
    twin.banks[0].gates = ah.gates.approximate("relu", gated=True, tolerance=1e-3)
    twin.banks[1].gates = ah.gates.approximate("silu", gated=True, tolerance=1e-2)
    again = ah.load(ah.save(twin, tmp_path / "twin"), source=source_of("llama"))
    assert same(twin, again)
    with twin.evaluated("slots"), again.evaluated("slots"):
        assert torch.equal(run(again), run(twin))


def test_any_number_of_bias_tokens(any_kind, run, tmp_path, source_of):
    twin = ah.convert(any_kind("llama"))
    with twin.banks[1].edit() as heads:
        for name, more in (("bias_keys", torch.ones(128, 1, 1)), ("bias_offsets", torch.zeros(128, 1))):
            old = getattr(heads, name)
            setattr(heads, name, torch.nn.Parameter(torch.cat([old, more.to(old)], 1)))
    again = ah.load(ah.save(twin, tmp_path / "twin"), source=source_of("llama"))
    assert torch.equal(run(again), run(twin))


def test_nothing_is_fitted_again(any_kind, tmp_path, monkeypatch):
    source = any_kind("falcon_h1")  # with factors
    twin = ah.convert(source)
    path = ah.save(twin, tmp_path / "twin")

    def fit(*args, **kwargs):
        raise AssertionError("gates were chosen again")

    monkeypatch.setattr(convert, "approximate", fit)
    assert same(twin, ah.load(path, source=source))


def test_the_checks_of_the_conversion_are_passed_again(any_kind, tmp_path, monkeypatch):
    source = any_kind("llama")
    for standalone in (False, True):
        path = ah.save(ah.convert(source), tmp_path / f"twin{standalone}", standalone=standalone)
        calls = []
        real = convert.audit
        monkeypatch.setattr(convert, "audit", lambda *args, calls=calls, real=real: (calls.append(1), real(*args)))
        ah.load(path, **({} if standalone else {"source": source}))
        assert calls == [1]
        monkeypatch.undo()
    monkeypatch.setattr("allheads.models.formulas.ACTIVATIONS", {"relu": activation_with_values(torch.relu)})
    with pytest.raises(ah.AllHeadsError, match="numbers fit no such formula"):
        ah.load(path)


def test_standalone_twins_are_checked_with_their_own_weights(any_kind, tmp_path, monkeypatch):
    """Before banks replace them, the MLPs that no edit has replaced compute what they did."""
    twin = changed(ah.convert(any_kind("llama")))
    path = ah.save(twin, tmp_path / "twin", standalone=True)
    real, readings = convert.read, []
    monkeypatch.setattr(convert, "read", lambda source: readings.append(real(source)) or readings[-1])
    ah.load(path)
    (reading,) = readings
    whole, edited = reading.mlps
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, getattr(twin.banks[0], name))
    assert edited.tensors["W_in"].std() > 0  # anything that is not degenerate
    assert torch.equal(reading.body.model.embed_tokens.weight, state(twin)["model.embed_tokens.weight"])


def test_files_of_a_twin_as_it_was_made(any_kind, tmp_path):
    source = any_kind("llama")
    twin = ah.convert(source)
    path = ah.save(twin, tmp_path / "twin")
    assert same(twin, ah.load(path, source=source))
    assert path == tmp_path / "twin"
    assert {file.name for file in path.iterdir()} == {"README.md", "twin.json", "twin.safetensors"}
    assert sum(file.stat().st_size for file in path.iterdir()) < 20_000
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    assert len(modes) == 1
    content = json.loads((path / "twin.json").read_text())
    assert (content["format"], content["version"], content["source"]["name"]) == ("allheads.twin", 2, None)
    assert set(content["made_with"]) == {"allheads", "torch", "transformers", "transformer-lens"}
    assert len(content["banks"]) == 2
    assert len(content["gates"]) == 1  # equal ones once


def test_large_twins_are_sharded(any_kind, run, tmp_path, monkeypatch):
    monkeypatch.setattr("allheads.store.tensors.SHARD", 20_000)
    twin = ah.convert(any_kind("llama"))
    path = ah.save(twin, tmp_path / "twin", standalone=True)
    shards = sorted(file.name for file in path.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"twin-00001-of-{len(shards):05}.safetensors"
    assert max((path / name).stat().st_size for name in shards) < 30_000
    assert torch.equal(run(ah.load(path)), run(twin))


def test_tied_weights_are_stored_once_and_stay_tied(model_folder, run, tmp_path):
    twin = ah.convert(ah.load(model_folder(tie_word_embeddings=True)))
    path = ah.save(twin, tmp_path / "twin", standalone=True)
    again = ah.load(path)
    tensors = state(again)
    assert "model.embed_tokens.weight" in tensors
    assert "lm_head.weight" not in tensors
    with torch.no_grad():
        tensors["model.embed_tokens.weight"].zero_()
    assert run(again).abs().max() == 0


def test_chance_is_left_alone(any_kind, tmp_path):
    path = ah.save(ah.convert(any_kind("llama")), tmp_path / "twin", standalone=True)
    before = torch.get_rng_state()
    ah.load(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_in_inference_mode(any_kind, run, tmp_path):
    source = any_kind("llama")
    with torch.inference_mode():
        twin = ah.convert(source)
        again = ah.load(ah.save(twin, tmp_path / "twin", standalone=True))
    with again.banks[0].edit() as heads:
        heads.W_O[0] += 1.0
    assert not torch.equal(run(again), run(twin))
