"""Ablate, patch and pin heads and neurons by label; TransformerLens' patching functions on a twin."""

from __future__ import annotations

import pytest
import torch
from transformer_lens import patching

import allheads as ah
from allheads_labs import zoo


@pytest.fixture(scope="module")
def sample():
    return zoo.build("LlamaForCausalLM")


@pytest.fixture(scope="module")
def twin(sample):
    return ah.convert(sample.bridge)


@pytest.fixture(scope="module")
def ids(sample):
    return sample.inputs["input"]


def _same(one, other):
    """The same operations on other shapes: some hundred roundings, of the size of the largest number."""
    allowed = 256 * torch.finfo(one.dtype).eps * float(other.abs().max())
    return bool((one - other).abs().max() <= allowed)


def _logits(twin, ids):
    with torch.no_grad():
        return twin(ids)


def _with(twin, ids, *names):
    with torch.no_grad():
        return twin.run_with_cache(ids, names_filter=list(names))[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_without_the_weights(dtype):
    """What is left out could as well not be written."""
    sample = zoo.build("LlamaForCausalLM", dtype=dtype)
    twin, other, ids = ah.convert(sample.bridge), ah.convert(sample.bridge), sample.inputs["input"]
    with other.banks[0].edit() as heads:
        for part in range(other.banks[0].gates.heads):
            heads.W_O[part * other.banks[0].d_mlp + 5] = 0.0
    # By slots on both sides: closed is the activation itself, and edited heads are its approximation.
    with twin.evaluated("slots"), other.evaluated("slots"), ah.ablate(twin, ["L0.N5"]):
        assert _same(_logits(twin, ids), _logits(other, ids))
    with ah.ablate(twin, ["L0.A1"]):
        without = _with(twin, ids, "blocks.0.attn.hook_z", "blocks.0.attn.hook_out")
    assert not without["blocks.0.attn.hook_out"].isnan().any()
    W_O = twin.head("L0.A1").W_O
    z = _with(twin, ids, "blocks.0.attn.hook_z", "blocks.0.attn.hook_out")
    written = z["blocks.0.attn.hook_z"][:, :, 1] @ W_O
    assert _same(without["blocks.0.attn.hook_out"] + written, z["blocks.0.attn.hook_out"])
    assert not _same(without["blocks.0.attn.hook_out"], z["blocks.0.attn.hook_out"])


def test_a_neuron_is_the_sum_of_its_heads(twin, ids):
    parts = [f"L0.N5.{part}" for part in range(twin.banks[0].gates.heads)]
    with ah.ablate(twin, ["L0.N5"]):
        whole = _logits(twin, ids)
    with ah.ablate(twin, parts):
        assert _same(_logits(twin, ids), whole)
    with ah.ablate(twin, parts[:1]):
        assert (_logits(twin, ids) - whole).abs().max() > 1e-5


def test_positions(twin, ids):
    with ah.ablate(twin, ["L0.N5", "L1.A0", "L0.A2"], positions=[4, -1]):
        seen = _with(twin, ids, "blocks.0.mlp.hook_post", "blocks.1.attn.hook_z", "blocks.0.attn.hook_z")
        changed = _logits(twin, ids)
    last = ids.shape[1] - 1
    for name, index in (("blocks.0.mlp.hook_post", 5), ("blocks.1.attn.hook_z", 0), ("blocks.0.attn.hook_z", 2)):
        zero = seen[name][0, :, index].reshape(last + 1, -1).abs().sum(-1) == 0
        assert zero.tolist() == [position in (4, last) for position in range(last + 1)]
    own = _logits(twin, ids)
    assert torch.equal(changed[:, :4], own[:, :4])
    assert not torch.equal(changed[:, 4], own[:, 4])


def test_means(twin, ids):
    texts = [ids, ids[:, :5], ids.flip(1)]
    average = ah.corpus.means(twin, texts)
    caches = [_with(twin, text, "blocks.1.mlp.hook_post", "blocks.0.attn.hook_z") for text in texts]
    assert average.count == sum(text.shape[1] - 1 for text in texts)
    for name in ("blocks.1.mlp.hook_post", "blocks.0.attn.hook_z"):
        rows = torch.cat([cache[name][0, 1:] for cache in caches]).double()
        assert torch.allclose(average.of(name), rows.mean(0), atol=1e-7)
    assert ah.corpus.means(twin, texts, skip_first=False).count == average.count + 3
    with ah.ablate(twin, ["L1.N3", "L1.N9", "L0.A2"], means=average):
        seen = _with(twin, ids, "blocks.1.mlp.hook_post", "blocks.0.attn.hook_z")
    assert torch.allclose(
        seen["blocks.1.mlp.hook_post"][0, :, [3, 9]].double(),
        average.of("blocks.1.mlp.hook_post")[[3, 9]].expand(ids.shape[1], 2),
        atol=1e-6,
    )
    assert torch.allclose(
        seen["blocks.0.attn.hook_z"][0, 3, 2].double(), average.of("blocks.0.attn.hook_z")[2], atol=1e-6
    )


def test_resample(twin, ids):
    other = ids.flip(1)
    names = ("blocks.0.mlp.hook_post", "blocks.0.attn.hook_z")
    there = _with(twin, other, *names)
    with ah.ablate(twin, ["L0.N7", "L0.A3"], resample=other):
        seen = _with(twin, ids, *names)
    assert torch.equal(seen[names[0]][:, :, 7], there[names[0]][:, :, 7])
    assert torch.equal(seen[names[1]][:, :, 3], there[names[1]][:, :, 3])
    assert not torch.equal(seen[names[0]][:, :, 8], there[names[0]][:, :, 8])
    everything = [str(label) for label in ("L0.A0", "L0.A1", "L0.A2", "L0.A3")]
    assert len(everything) == twin.cfg.n_heads
    everything += [f"L{layer}.N{neuron}" for layer in range(2) for neuron in range(twin.banks[0].d_mlp)]
    everything += [f"L1.A{head}" for head in range(4)]
    start = _with(twin, other, "blocks.0.hook_resid_pre")["blocks.0.hook_resid_pre"]
    with (
        ah.ablate(twin, everything, resample=other),
        twin.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: start)]),
    ):
        assert _same(_logits(twin, ids), _logits(twin, other))


def test_patch(twin, ids):
    vector = torch.arange(8.0)
    with ah.patch(
        twin, {"L0.N5": 3.0, "L0.A1": vector, "L1.N2.0": torch.linspace(0, 1, ids.shape[1])}, positions=[2, 3]
    ):
        seen = _with(twin, ids, "blocks.0.mlp.hook_post", "blocks.0.attn.hook_z", "blocks.1.mlp.hook_z")
    assert seen["blocks.0.mlp.hook_post"][0, [2, 3], 5].tolist() == [3.0, 3.0]
    assert seen["blocks.0.mlp.hook_post"][0, 4, 5] != 3.0
    assert torch.equal(seen["blocks.0.attn.hook_z"][0, 2, 1], vector)
    assert seen["blocks.1.mlp.hook_z"][0, 3, 2, 0] == pytest.approx(3 / (ids.shape[1] - 1))


def test_pin(twin, ids):
    length = ids.shape[1]
    with ah.pin(twin, {"L1.A2": torch.eye(length), "L0.N4": 1.0}):
        seen = _with(twin, ids, "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z", "blocks.1.attn.hook_v")
        gates = _with(twin, ids, "blocks.0.mlp.hook_pattern_self", "blocks.0.mlp.hook_v", "blocks.0.mlp.hook_z")
    assert torch.equal(seen["blocks.1.attn.hook_pattern"][0, 2], torch.eye(length))
    assert torch.allclose(seen["blocks.1.attn.hook_z"][0, :, 2], seen["blocks.1.attn.hook_v"][0, :, 1])
    assert torch.equal(gates["blocks.0.mlp.hook_z"][0, :, 4], gates["blocks.0.mlp.hook_v"][0, :, 4])
    with ah.pin(twin, {"L0.N4": 0.0}):
        shut = _logits(twin, ids)
    with ah.ablate(twin, ["L0.N4"]):
        assert _same(_logits(twin, ids), shut)


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "MixtralForCausalLM", "BertForMaskedLM"])
def test_every_family_has_labels(name):
    sample = zoo.build(name)
    twin = ah.convert(sample.bridge)
    own = sample.run(twin)
    chosen = {str(each.label.neuron) for each in twin.heads() if each.label.index == 1}
    for label in sorted(chosen):
        with ah.ablate(twin, [label]):
            assert not torch.equal(sample.run(twin), own), label
    assert torch.equal(sample.run(twin), own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edited_heads(dtype):
    sample = zoo.build("LlamaForCausalLM", dtype=dtype)
    twin, ids = ah.convert(sample.bridge), sample.inputs["input"]
    with twin.evaluated("slots"), ah.ablate(twin, ["L0.N5"]):
        expected = _logits(twin, ids)
    with twin.banks[0].edit():
        pass
    with twin.evaluated("slots"), ah.ablate(twin, ["L0.N5"]):
        assert _same(_logits(twin, ids), expected)
    with pytest.raises(ah.AllHeadsError, match=r"whose heads were edited. Name its heads: L0.N5.0"):
        ah.patch(twin, {"L0.N5": 1.0})


def test_bad_input(twin, ids):
    own = _logits(twin, ids)
    before = {
        "a list of labels": lambda: ah.ablate(twin, "L0.A1"),
        "a head of this twin": lambda: ah.ablate(twin, ["L9.A1"]),
        "a label such as": lambda: ah.ablate(twin, ["nine"]),
        "means, or a prompt to resample from, got both": lambda: ah.ablate(
            twin, ["L0.A1"], means=ah.corpus.means(twin, [ids]), resample=ids
        ),
        "a hook point with a mean": lambda: ah.ablate(twin, ["L0.N1.0"], means=ah.corpus.means(twin, [ids])),
        "a position to average over": lambda: ah.corpus.means(twin, [ids[:, :1]]),
    }
    for message, call in before.items():
        with pytest.raises(ah.AllHeadsError, match=message):
            call()
    inside = {
        "positions from -12 to 11, got 12": ah.ablate(twin, ["L0.A1"], positions=[12]),
        r"values that broadcast to \(1, 12, 8\)": ah.patch(twin, {"L0.A1": torch.zeros(7)}),
        r"values that broadcast to \(1, 12, 12\)": ah.pin(twin, {"L0.A1": torch.zeros(3, 3)}),
        r"broadcast to \(1, 12, 1, 8\)": ah.ablate(twin, ["L0.A1"], resample=ids[:, :5]),
    }
    for message, context in inside.items():
        with pytest.raises(ah.AllHeadsError, match=message), context:
            _logits(twin, ids)
    assert torch.equal(_logits(twin, ids), own)


PATCHING = sorted(
    name
    for name in vars(patching)
    if name.startswith("get_act_patch") and "direct_path" not in name and callable(getattr(patching, name))
)


@pytest.mark.parametrize("name", PATCHING)
def test_transformer_lens_patches_a_twin(twin, sample, ids, name):
    """Every patching function finds in the twin what it finds in the source."""
    corrupted = ids.clone()
    corrupted[0, 3] = (corrupted[0, 3] + 7) % twin.cfg.d_vocab
    short, other = ids[:, :6], corrupted[:, :6]
    function = getattr(patching, name)
    found = []
    for model in (sample.bridge, twin):
        with torch.no_grad():
            _, cache = model.run_with_cache(short)
            found.append(function(model, other, cache, lambda logits: logits[0, -1, 5]))
    mine, theirs = (
        each.values if hasattr(each, "values") and not isinstance(each, torch.Tensor) else each for each in found
    )
    assert torch.allclose(mine, theirs, atol=1e-4)
    assert mine.std() > 1e-5


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_transformer_lens_patches_direct_paths(component):
    """From one source head into each later head, and from all source heads; the source keeps its weights and flags."""
    sample = zoo.build("GPT2LMHeadModel")
    ids = sample.inputs["input"][:, :5]
    corrupted = ids.flip(1)
    results = []
    for model in (sample.bridge, ah.convert(sample.bridge)):
        with torch.no_grad():
            clean, broken = (model.run_with_cache(each)[1] for each in (ids, corrupted))
            given = (model, corrupted, clean, broken, lambda logits: logits[0, -1, 5])
            one = patching.get_act_patch_direct_path(*given, 0, 1, component, verbose=False)
            every = patching.get_act_patch_direct_path_all_sources(*given, component=component, verbose=False)
        results.append((one, every))
    (one, every), (mine, all_mine) = results
    assert torch.allclose(one, mine, atol=1e-4)
    assert torch.allclose(every, all_mine, atol=1e-4)
    assert mine[1].std() > 1e-6
