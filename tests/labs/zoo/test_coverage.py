"""Every family: nothing crashes, and nothing passes that is not understood."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import allheads as ah
from allheads.cli.main import app
from allheads.models import graft
from allheads.models.read_mlps import untouched_modules
from allheads_labs import zoo
from allheads_labs.zoo import coverage
from allheads_labs.zoo.coverage import as_markdown, survey

REFUSED = {
    "ApertusForCausalLM": "XIELU",
    "BitNetForCausalLM": "ffn_sub_norm",
    "DeepseekV4ForCausalLM": "a clamp",
    "FalconMambaForCausalLM": "State-space",
    "Gemma3nForConditionalGeneration": "sparsity",
    "GptOssForCausalLM": "a clamp",
    "JetMoEForCausalLM": "mlp.input_linear",
    "JetMoeForCausalLM": "mlp.input_linear",
    "Mamba2ForCausalLM": "State-space",
    "MambaForCausalLM": "State-space",
    "RwkvForCausalLM": "time_shift",
    "Zamba2ForCausalLM": "mamba.in_proj",
}


@pytest.fixture(autouse=True)
def _one_thread():
    """The models are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def _silent(monkeypatch):
    """Writing tokens and reading twins take most of the time: few families are here, all of them in the command."""
    monkeypatch.setattr(coverage, "_generation", lambda sample, twin: "")
    monkeypatch.setattr(coverage, "read", lambda name, seed: None)


@pytest.mark.usefixtures("_silent")
@pytest.mark.filterwarnings("ignore:Hook alias", "ignore:.*block hook alias")
@pytest.mark.parametrize("name", zoo.names())
def test_every_family_is_converted_or_refused_in_a_sentence(name):
    row = survey(name)
    if row.outcome == "converted":
        assert name not in REFUSED
        assert row.tightness <= 1
        assert row.difference <= row.allowed
        assert row.banks > 0
    elif row.outcome == "refused":
        assert REFUSED[name] in row.reason
        assert row.reason.startswith("Expected ")
    else:
        assert row.outcome == "not built"
        assert row.reason


def test_enough_families_are_converted():
    built = 162 - 18
    assert len(zoo.names()) == 162
    assert built - len(REFUSED) >= 125


def test_multipliers_are_part_of_the_gates():
    sample = zoo.build("FalconH1ForCausalLM")
    twin = ah.convert(sample.bridge)
    gate, down = sample.bridge.original_model.config.mlp_multipliers
    for bank in twin.banks:
        assert bank.gates.activation.silu_form == pytest.approx((gate * down, gate))
    wrong = ah.gates.approximate("silu", gated=True, domain=twin.banks[0].gates.domain)
    twin.banks[0].gates = wrong
    assert not ah.verify(sample.bridge, twin, sample.inputs).layers[0].passed


def test_experts_beside_an_mlp_are_found():
    sample = zoo.build("Gemma4ForCausalLM")
    twin = ah.convert(sample.bridge)
    stems = [layer.location.stem for layer in twin.layers]
    assert stems[:5] == ["L0", "L0.M0", "L0.M1", "L0.M2", "L0.M3"]
    assert "blocks.0.experts.2.hook_pattern_self" in twin.hook_dict
    assert {layer.location.name for layer in twin.layers} >= {"blocks.0.mlp", "blocks.0.experts.2"}


def test_layers_that_the_bridge_calls_opaque_are_looked_into():
    twin = ah.convert(zoo.build("NemotronHForCausalLM").bridge)
    assert [layer.location.stem for layer in twin.layers if layer.location.expert is None] == ["L1.S", "L3"]
    assert "mixer.in_proj" in twin.untouched


def test_all_positions_are_seen_where_experts_are_looked_at():
    sample = zoo.build("MixtralForCausalLM")
    twin = ah.convert(sample.bridge)
    names = [f"{layer.location.prefix}hook_z" for layer in twin.layers[:4]]
    plain = sample.run(twin)
    with torch.no_grad():
        logits, cache = twin.run_with_cache(sample.inputs["input"], names_filter=names)
    assert torch.allclose(plain, logits, atol=1e-4)
    heads = twin.banks[0].gates.heads * twin.banks[0].d_mlp
    for name in names:
        assert cache[name].shape == (1, 12, heads, 1)
    written = torch.stack([cache[name].abs().sum((0, 2, 3)) > 0 for name in names])
    # Two of four experts write for every token; the others' values are scaled by zero.
    assert written.sum(0).eq(2).all()


def test_a_hidden_factor_is_noticed():
    """Nothing in the parts of a containerless MLP shows what happens between them: the output does."""
    source = zoo.build("OPTForCausalLM").bridge
    first = getattr(source.blocks[0].mlp, "in").original_component
    first.register_forward_hook(lambda module, args, out: 1.1 * out)
    with pytest.raises(ah.AllHeadsError, match="a twin with the source's output"):
        ah.convert(source)


def test_a_bank_that_is_not_put_in_place_is_noticed(monkeypatch):
    monkeypatch.setattr(graft, "_becomes", lambda *_: None)
    with pytest.raises(ah.AllHeadsError, match=r"read by its heads only|that the output depends on"):
        ah.convert(zoo.build("LlamaForCausalLM").bridge)


def test_what_differs_is_said(monkeypatch):
    honest = coverage.verify

    def spoilt(*args):
        report = honest(*args)
        return replace(report, max_logit_error=1.0, layers=[replace(p, passed=False) for p in report.layers])

    monkeypatch.setattr(coverage, "verify", spoilt)
    row = survey("GPT2LMHeadModel")
    assert row.outcome == "differs"
    assert "slots is 1.0e+00 away" in row.reason
    assert "L0 is" in row.reason
    assert "| GPT2LMHeadModel | differs |" in as_markdown([row])


def test_the_command(tmp_path):
    document = tmp_path / "coverage.md"
    document.write_text("<!-- coverage -->\n<!-- /coverage -->\n", encoding="utf-8")
    names = ["GPT2LMHeadModel", "MambaForCausalLM", "DreamModel"]
    run = CliRunner().invoke(app, ["coverage", *names, "--write", str(document), "--json"])
    assert run.exit_code == 0, run.output
    rows = json.loads(run.stdout)
    assert [row["outcome"] for row in rows] == ["converted", "refused", "not built"]
    assert rows[0]["generates"] == "same"
    assert rows[0]["reading"]["figures"]["attribute"] < 1e-12
    text = document.read_text("utf-8")
    assert "Of 1 twins that are read: `attribute` on 1," in text
    assert "1 of 3 registered names are converted" in text
    assert all(name in text for name in names)
    shown = CliRunner().invoke(app, ["coverage", "DreamModel"])
    assert "not built" in shown.stdout


def test_parts_are_named_by_where_they_are():
    nn = torch.nn
    layer = nn.ModuleDict({"mixer": nn.ModuleDict({"in_proj": nn.Linear(2, 2)}), "norm": nn.LayerNorm(2)})
    model = SimpleNamespace(original_model=nn.ModuleDict({"layers": nn.ModuleList([layer, layer])}))
    model.named_children = lambda: iter(())
    assert untouched_modules(model) == ["mixer.in_proj"]
