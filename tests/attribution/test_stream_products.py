"""Edges as products with weights: the same as gradients give, and not used where they would not be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import allheads as ah
from allheads.attribution.edges import edges
from allheads.attribution.question import Question
from allheads.attribution.stream_products import StreamProducts, StreamRead
from allheads.twin.autoencoder import SparseAutoencoder
from allheads_labs import zoo

#: Norms behind sublayers, several stacks, weights elsewhere, or none where they are looked for.
OTHERS = ["Gemma2ForCausalLM", "Olmo2ForCausalLM", "BertForMaskedLM", "T5ForConditionalGeneration"]
PLAIN = ["LlamaForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM", "GPTNeoXForCausalLM", "Qwen3ForCausalLM"]


def _question(name, rule="half"):
    sample = zoo.build(name, dtype=torch.float64)
    inputs = {given: value[:1, :6] for given, value in sample.inputs.items()}
    return Question.of(ah.convert(sample.bridge), inputs, 7, rule, -1)


@pytest.mark.parametrize("rule", ["half", "relp"])
@pytest.mark.parametrize("name", PLAIN)
def test_products_are_the_gradients(name, rule):
    question = _question(name, rule)
    with edges(question) as flows:
        assert flows.products is not None
        groups = {}
        for site in flows.cut.sites:
            positions = range(flows.cut.leaves[site.point].shape[1])
            groups[site] = [(index, position) for index in (0, site.count - 1) for position in positions]
        by_products = {(site.name, *entry): sides for site, entry, sides in flows.into(groups)}
        flows.products = None
        count = 0
        for site, entry, sides in flows.into(groups):
            for expected, found in zip(sides, by_products[site.name, *entry], strict=True):
                assert (found.side, found.at) == (expected.side, expected.at)
                assert found.total == expected.total and found.constants == expected.constants
                size = max((float(part.abs().max()) for part in expected.parts.values() if part.numel()), default=0.0)
                for name_, part in {**expected.parts, **expected.embeddings}.items():
                    other = {**found.parts, **found.embeddings}.get(name_, torch.zeros_like(part))
                    assert other.shape == part.shape
                    assert (other - part).abs().max() <= 1e-12 * max(size, 1.0)
                    count += int((part != 0).sum())
        assert count > 500


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_are_taken_where_products_would_be_others(name):
    with edges(_question(name)) as flows:
        assert flows.products is None


def test_what_is_not_as_it_looks_is_seen():
    """Weights that are almost, but not those with which a sublayer writes: no products then."""
    question = _question("LlamaForCausalLM")
    with edges(question) as flows:
        good = flows.products.weights
        for name in ("L0.N", "L1.A"):
            weights = {**good, name: good[name] * (1 + 1e-9)}
            assert not StreamProducts(flows.cut, weights, flows.products.before, flows.products.begins)._hold()
        assert StreamProducts(flows.cut, good, flows.products.before, flows.products.begins)._hold()


def test_one_direction_is_found_and_others_are_kept():
    twin_site = next(iter(_question("LlamaForCausalLM").twin.index.attention.values()))
    along, factors = torch.randn(8, dtype=torch.float64), torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64)
    read = StreamRead.of(twin_site, factors[:, None] * along, slice(None))
    assert len(read.directions) == 1
    assert torch.allclose(read.factors[:, None] * read.directions[read.which], factors[:, None] * along)
    rows = torch.randn(3, 8, dtype=torch.float64)
    read = StreamRead.of(twin_site, rows, slice(None))
    assert torch.equal(read.factors[:, None] * read.directions[read.which], rows)
    assert torch.isfinite(StreamRead.of(twin_site, torch.zeros(3, 8), slice(None)).factors).all()


def test_an_autoencoder_stands_in_the_way():
    question = _question("LlamaForCausalLM")
    width, draw = question.twin.cfg.d_model, torch.Generator().manual_seed(0)
    weights = {"W_enc": torch.randn(width, 20, generator=draw), "W_dec": torch.randn(20, width, generator=draw)}
    biases = {"b_enc": torch.zeros(20), "b_dec": torch.zeros(width)}
    split = SparseAutoencoder("blocks.1.hook_resid_pre", "standard", **weights, **biases)
    with edges(replace(question, autoencoders=(split,))) as flows:
        assert flows.products is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_gradients_are_taken(dtype):
    """Roundings there are as large as what would be wrong, so that nothing could be seen to hold."""
    sample = zoo.build("LlamaForCausalLM", dtype=dtype)
    question = Question.of(ah.convert(sample.bridge), sample.inputs["input"][:1, :6], 7, "half", -1)
    with edges(question) as flows:
        assert flows.products is None
