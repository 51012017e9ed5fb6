"""The twin is the model, the source is untouched, and the banks are what the twin runs."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import allheads as ah
from allheads.heads.bank import HeadBank

KINDS = ["gpt2", "opt", "llama"]


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tiny):
    source = tiny(request.param)
    return source, ah.convert(source)


def test_the_source_is_untouched(tiny, tokens):
    for kind in KINDS:
        source = tiny(kind)
        before = source(tokens)
        twin = ah.convert(source)
        assert torch.equal(source(tokens), before)
        assert torch.allclose(twin(tokens), before, atol=1e-5)


def test_every_mlp_is_a_bank(pair, tokens):
    source, twin = pair
    assert [type(bank) for bank in twin.banks] == [HeadBank] * len(source.blocks)
    called = []
    handles = [
        module.register_forward_hook(lambda module, *_: called.append(type(module).__name__))
        for module in twin.original_model.modules()
    ]
    twin(tokens)
    for handle in handles:
        handle.remove()
    assert called.count("HeadBank") == len(source.blocks)
    assert not {*called} & {"GPT2MLP", "LlamaMLP", "NewGELUActivation", "ReLU", "SiLU", "SiLUActivation"}


@pytest.mark.parametrize("evaluation", ["slots", "attention", "closed"])
def test_logits(pair, tokens, evaluation):
    source, twin = pair
    with torch.no_grad(), twin.evaluated(evaluation):
        assert (twin(tokens) - source(tokens)).abs().max() < 1e-4


def test_zeroing_the_heads_of_any_layer_moves_the_logits(pair, tokens):
    _, twin = pair
    with torch.no_grad():
        before = twin(tokens)
        for layer in range(len(twin.blocks)):
            hooks = [(f"blocks.{layer}.mlp.hook_pattern_self", lambda pattern, hook: 0 * pattern)]
            assert (twin.run_with_hooks(tokens, fwd_hooks=hooks) - before).abs().max() > 1e-3


def test_caches_compare_key_by_key(pair, tokens):
    source, twin = pair
    with torch.no_grad():
        _, mine = source.run_with_cache(tokens)
        _, theirs = twin.run_with_cache(tokens)
    inside = (".mlp.in.", ".mlp.out.", ".mlp.gate.")
    for key in mine:
        if any(part in key for part in inside):
            continue
        assert theirs[key].shape == mine[key].shape, key
        if theirs[key].is_floating_point():
            assert torch.allclose(theirs[key], mine[key], atol=1e-4), key
    for layer in range(len(twin.blocks)):
        for name in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "attn.hook_pattern"):
            assert f"blocks.{layer}.{name}" in theirs
        pattern = theirs[f"blocks.{layer}.mlp.hook_pattern_self"]
        bank = twin.banks[layer]
        assert pattern.shape == (*tokens.shape[:1], bank.gates.heads * bank.d_mlp, tokens.shape[1])


def test_large_patterns_are_cached_by_name(pair, tokens):
    _, twin = pair
    _, cache = twin.run_with_cache(tokens)
    assert "blocks.0.mlp.hook_pattern" not in cache
    name = "blocks.0.mlp.hook_pattern"
    _, cache = twin.run_with_cache(tokens, names_filter=name)
    assert torch.allclose(cache[name].sum(-1), torch.ones(()))


def test_generation_with_a_cache(pair, tokens):
    source, twin = pair
    settings = {"max_new_tokens": 8, "do_sample": False, "verbose": False, "return_type": "tokens"}
    assert torch.equal(twin.generate(tokens[:1], **settings), source.generate(tokens[:1], **settings))


def test_losses(pair, tokens):
    source, twin = pair
    assert torch.allclose(twin(tokens, return_type="loss"), source(tokens, return_type="loss"))


def test_casting_and_training_the_twin_leaves_the_source_alone(tiny, tokens):
    source = tiny("llama")
    before = source(tokens)
    twin = ah.convert(source)
    twin.train()
    twin(tokens, return_type="loss").backward()
    assert all(p.grad is None for p in source.original_model.parameters())
    assert twin.blocks[0].mlp.out.weight.grad.abs().max() > 0
    twin.original_model.double()
    source.eval()
    assert torch.equal(source(tokens), before)


def test_every_layer_is_on_its_domain_by_theorem(tiny):
    source = tiny("llama")
    twin = ah.convert(source)
    generator = torch.Generator().manual_seed(0)
    for layer, (bank, domain) in enumerate((layer.bank, layer.domain) for layer in twin.layers):
        assert domain.by_theorem
        assert domain.limit <= bank.gates.domain
        x = source.blocks[layer].ln2(100 * torch.randn(500, source.cfg.d_model, generator=generator))
        assert (x @ bank.W_gate).abs().max() <= domain.limit


def test_a_smaller_tolerance_is_nearer(tiny, tokens):
    source = tiny("llama", dtype=torch.float64)
    errors = []
    for tolerance in (1e-3, 1e-6):
        twin = ah.convert(source, tolerance=tolerance, evaluation="slots")
        assert all(bank.gates.max_error <= tolerance for bank in twin.banks)
        x = torch.randn(1, 5, source.cfg.d_model, dtype=torch.float64, generator=torch.manual_seed(0))
        plain = torch.nn.functional.silu(x @ twin.banks[0].W_gate) * (x @ twin.banks[0].W_in) @ twin.banks[0].W_out
        errors.append(float((twin.banks[0](x) - plain).detach().abs().max()))
    assert errors[1] < 0.2 * errors[0]


def test_bad_input(tiny):
    source = tiny("gpt2")
    with pytest.raises(ah.AllHeadsError, match="Expected a TransformerBridge, got GPT2LMHeadModel"):
        ah.convert(source.original_model)
    with pytest.raises(ah.AllHeadsError, match="an attention-only twin"):
        ah.convert(ah.convert(source))
    with pytest.raises(ah.AllHeadsError, match="tolerance"):
        ah.convert(source, tolerance=0.0)
    with pytest.raises(ah.AllHeadsError, match="best"):
        ah.convert(tiny("gpt2", dtype=torch.float64), tolerance=1e-14)
    with pytest.raises(ah.AllHeadsError, match="rounding"):
        ah.convert(tiny("opt"), tolerance=1e-12)
    assert ah.convert(tiny("opt", dtype=torch.float64), tolerance=1e-12).tolerance == 1e-12
    processed = tiny("gpt2")
    processed.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ah.AllHeadsError, match="compatibility_mode has processed"):
        ah.convert(processed)


def test_unsupported_activations_are_named_before_any_work(tiny, tokens):
    source = tiny("gpt2", activation_function="mish")
    before = source(tokens)
    with pytest.raises(ah.AllHeadsError, match="MishActivation"):
        ah.convert(source)
    assert torch.equal(source(tokens), before)


def test_a_gate_that_is_squared_is_refused(tiny):
    with pytest.raises(ah.AllHeadsError, match="relu2 in L0"):
        ah.convert(tiny("llama", hidden_act="relu2"))


def test_converting_in_inference_mode(tiny, tokens):
    source = tiny("llama")
    with torch.inference_mode():
        twin = ah.convert(source)
        before = twin(tokens)
    with twin.banks[0].edit() as heads:
        heads.W_O[0] += 1.0
    assert (twin(tokens) - before).abs().max() > 0


def test_a_twin_can_be_copied(tiny, tokens):
    twin = ah.convert(tiny("gpt2"))
    copied = copy.deepcopy(twin)
    assert torch.equal(copied(tokens), twin(tokens))


def test_the_cache_takes_its_filter_by_position(pair, tokens):
    _, twin = pair
    _, cache = twin.run_with_cache(tokens, True, False, ["blocks.0.mlp.hook_z"])
    assert list(cache) == ["blocks.0.mlp.hook_z"]


def _wide(tiny, factor):
    """A Llama with gated GELUs, whose preactivations reach as far as the gains of its norms."""
    source = tiny("llama", hidden_act="gelu_pytorch_tanh")
    with torch.no_grad():
        source.blocks[1].ln2.original_component.weight *= factor
    return source


def test_the_tolerance_is_the_tightest_that_a_wide_domain_allows(tiny, tokens):
    source = _wide(tiny, 20.0)
    with pytest.warns(UserWarning, match=r"of this twin is 5\.41e-07.*best for gelu_tanh on the domain of L1"):
        twin = ah.convert(source)
    assert twin.layers[1].domain.limit > 256.0 > twin.layers[0].domain.limit
    assert twin.tolerance == twin.banks[1].gates.max_error > ah.gates.approximate("gelu_tanh", gated=True).max_error
    assert ah.verify(source, twin, tokens).passed
    with pytest.raises(ah.AllHeadsError, match=r"Pass tolerance=5\.41e-07: the best here is 5\.41e-07"):
        ah.convert(source, tolerance=5e-7)
    assert ah.convert(source, tolerance=5.41e-7).tolerance == 5.41e-7


def test_a_domain_beyond_the_table_is_refused(tiny):
    with pytest.raises(ah.AllHeadsError, match=r"domain \d+.*The largest domain for these sizes is 4096"):
        ah.convert(_wide(tiny, 1000.0))


def test_a_tokenizer_in_memory_stays_with_the_twin(tiny):
    source = tiny("gpt2")
    vocabulary = {"[BOS]": 0, "[UNK]": 1, "a": 2, "b": 3}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    source.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="[BOS]", unk_token="[UNK]", pad_token="[UNK]"
    )
    source.tokenizer.init_kwargs.pop("name_or_path", None)
    d_vocab = source.cfg.d_vocab
    twin = ah.convert(source)
    assert twin.tokenizer is source.tokenizer and twin.cfg.d_vocab == d_vocab
    assert torch.equal(twin.to_tokens("a b a"), source.to_tokens("a b a"))
