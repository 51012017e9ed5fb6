"""The pictures show the model's own numbers, under the names of the tokens and heads they belong to."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import allheads as ah
from allheads.errors import AllHeadsError
from allheads.gates.approximation import approximate
from allheads.gates.opening import gate_part
from allheads.gates.table import fits
from allheads.plots.gate_maps import neuron_gates
from allheads.plots.principal_components import principal_components
from allheads.plots.style import BOTH, SCALE
from allheads.plots.token_names import token_names


def _heat(figure):
    return torch.tensor(figure.data[0].z)


def test_gates_are_means_of_the_logistic_head(twin, ids, cache):
    shown = _heat(ah.plots.gates(twin, ids))
    for layer, bank in enumerate(twin.banks):
        gate = cache[f"blocks.{layer}.mlp.hook_pattern_self"][0, bank.d_mlp :]
        assert torch.allclose(shown[layer], gate.mean(0), atol=1e-6)
    assert shown.std() > 0.01


def test_neurons_are_those_that_write_most(twin, source, ids, cache):
    figure = ah.plots.gates(twin, ids, 1, top=7)
    post, norms = cache["blocks.1.mlp.hook_post"][0], source.blocks[1].mlp.W_out.norm(dim=1)
    sizes = post.abs() * norms
    expected = sizes.amax(0).topk(7).indices.tolist()
    assert list(figure.data[0].y) == [f"L1.N{neuron}" for neuron in expected]
    gate = cache["blocks.1.mlp.hook_pattern_self"][0, twin.banks[1].d_mlp :]
    assert torch.allclose(_heat(figure), gate[expected], atol=1e-6)
    assert torch.allclose(torch.tensor(figure.data[0].customdata), sizes[:, expected].T, rtol=1e-3, atol=1e-5)


def test_neurons_by_openness(twin, ids, cache):
    figure = ah.plots.gates(twin, ids, 2, by="openness", top=5)
    gate = cache["blocks.2.mlp.hook_pattern_self"][0, twin.banks[2].d_mlp :]
    assert list(figure.data[0].y) == [f"L2.N{neuron}" for neuron in gate.mean(1).topk(5).indices.tolist()]


def test_streams_are_projected_onto_their_widest_directions(twin, ids):
    drawn = ah.plots.residual(twin, ids)
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(3)), "blocks.2.hook_resid_post"]
    with torch.no_grad():
        cache = twin.run_with_cache(ids, names_filter=names)[1]
    streams = torch.stack([cache[name][0] for name in names]).double()
    directions = streams / streams.norm(dim=-1, keepdim=True)
    places = torch.tensor([[line.x, line.y] for line in drawn.data], dtype=torch.float64).permute(2, 0, 1)
    assert places.shape == (4, ids.shape[1], 2)
    rest = directions[:, 1:].flatten(0, 1)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(rest.T, correction=0)).flip(0)
    shown = places[:, 1:].flatten(0, 1)
    assert torch.allclose(shown.var(0, correction=0), eigenvalues[:2], rtol=1e-6)
    assert f"{float(eigenvalues[:2].sum() / eigenvalues.sum()):.0%}" in drawn.layout.title.text
    assert float(drawn.data[3].customdata[2][1]) == pytest.approx(float(streams[2, 3].norm()), rel=0.01)


def test_principal_components_are_the_directions_of_largest_variance_of_what_they_are_fitted_to():
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(6, 5, 10, generator=draw) * torch.logspace(1, -2, 10)
    projected, shares = principal_components(points, points[:, 1:])
    fitted = points[:, 1:].flatten(0, 1).double()
    sizes = torch.linalg.svdvals(fitted - fitted.mean(0)).square()
    assert torch.allclose(shares, sizes[:3] / sizes.sum())
    assert torch.allclose(projected[:, 1:].flatten(0, 1).square().sum(0), sizes[:3])
    assert torch.equal(principal_components(points)[1], principal_components(points, points)[1])
    whole = points.flatten(0, 1).double()
    assert torch.allclose(principal_components(points)[0].flatten(0, 1).mean(0), torch.zeros(3).double(), atol=1e-12)
    assert float((projected[:, 0] - projected[:, 1]).norm()) <= float((whole[0::5] - whole[1::5]).norm()) + 1e-9


def test_the_frontier_shows_every_fit_of_an_activation():
    for gated in (False, True):
        drawn = ah.plots.frontier("gelu", gated=gated)
        domain = 64.0 if gated else float("inf")
        own = [f.gate_sum for f in fits() if (f.gate_sum.activation.name, f.gate_sum.gated) == ("gelu", gated)]
        own = [gate_sum for gate_sum in own if gate_sum.domain == domain]
        shown = {(line.name.split()[0], x, y) for line in drawn.data for x, y in zip(line.x, line.y, strict=True)}
        assert shown == {(str(each.heads), sum(each.bias_tokens), each.max_error) for each in own}


def test_sizes_are_those_of_the_heads_of_an_edited_bank(source, ids):
    edited = ah.convert(source)
    before = neuron_gates(edited, ids, [0])[0]
    bank = edited.banks[0]
    with bank.edit() as heads:
        heads.W_O[4] *= 3.0
        heads.W_O[bank.d_mlp + 4] *= 3.0
    after = neuron_gates(edited, ids, [0])[0]
    assert torch.allclose(after.size[:, 4], 3 * before.size[:, 4], rtol=1e-3)
    assert torch.allclose(after.size[:, 5:], before.size[:, 5:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["silu", "relu", "gelu", "gelu_new", "quick_gelu"])
def test_the_gate_of_a_neuron_opens(name):
    gates = approximate(name)
    gate = gates.gates[gate_part(gates)]
    assert gate.bias_tokens == min(gates.bias_tokens)
    assert float(gate(torch.tensor(-30.0))) < 0.01
    assert float(gate(torch.tensor(30.0))) > 0.99


def test_a_plain_model_with_several_heads_a_neuron(tiny, ids):
    twin = ah.convert(tiny("gpt2"))
    shown = _heat(ah.plots.gates(twin, ids))
    assert shown.shape == (2, ids.shape[1])
    assert ((shown > 0) & (shown < 1)).all()


def test_errors_and_bounds_are_those_of_the_report(report):
    bound, error = ah.plots.errors(report).data
    assert list(error.y) == [proof.error for proof in report.layers]
    assert list(bound.y) == [proof.bound for proof in report.layers]
    assert set(error.marker.symbol) == {"circle"}


def test_a_failing_layer_is_a_cross_and_what_has_no_logarithm_is_left_out(report):
    layers = list(report.layers)
    layers[1] = replace(layers[1], bound=0.0, passed=False)
    layers[2] = replace(layers[2], bound=float("inf"))
    bound, error = ah.plots.errors(replace(report, layers=layers)).data
    assert error.marker.symbol == ("circle", "x", "circle")
    assert bound.y[1] is None and bound.y[2] is None and bound.y[0] == layers[0].bound
    assert error.customdata[1].endswith("FAILS")


@pytest.mark.parametrize("page", [(255, 255, 255), (13, 17, 23)])
@pytest.mark.parametrize("ramp", [SCALE, BOTH[1:], BOTH[1::-1]])
def test_every_step_of_a_colour_scale_leads_away_from_the_page(luminance, page, ramp):
    (_, first), (_, last) = ramp
    seen = []
    for step in range(21):
        start, end = ([float(part) for part in colour[5:-1].split(",")] for colour in (first, last))
        *colour, alpha = (a + (b - a) * step / 20 for a, b in zip(start, end, strict=True))
        seen.append(luminance([alpha * c + (1 - alpha) * p for c, p in zip(colour, page, strict=True)]))
    away = [abs(each - luminance(page)) for each in seen]
    assert all(later > earlier for earlier, later in pairwise(away)) and away[0] == pytest.approx(0, abs=1e-9)
    light, dark = sorted((seen[-1], luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3.0  # the contrast that WCAG asks of graphics


def test_names_of_tokens_are_different_escaped_and_visible(twin):
    names = token_names(twin, torch.arange(10)[None])
    assert names[:5] == [
        "0 &lt;/script&gt;",
        "1 &lt;!--",
        "2 &lt;b&gt;bold&lt;/b&gt;",
        "3 ·a·&amp;·b",
        "4 \"'",
    ]
    assert names[6:8] == ["6 ↵", "7 �"]
    assert names[8] == "8 " + "x" * 17 + "…"
    assert len(set(token_names(twin, torch.zeros(1, 5, dtype=torch.long)))) == 5


def test_a_model_without_a_tokenizer_shows_ids(tiny, ids):
    assert token_names(ah.convert(tiny("opt")), ids)[3] == f"3 {ids[0, 3]}"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda twin, ids: ah.plots.gates(twin, ids, 1, by="size"), "by='contribution' or 'openness'"),
        (lambda twin, ids: ah.plots.gates(twin, ids, 1, top=0), "top of 1 or more, got 'contribution', 0"),
        (lambda twin, ids: ah.plots.residual(twin, ids.repeat(2, 1)), "one text, got 2"),
        (lambda twin, ids: ah.plots.frontier("tanh"), "an activation with fits: gelu"),
        (lambda twin, ids: ah.plots.frontier("silu"), "an activation with fits"),
        (lambda twin, ids: ah.plots.gates(twin, ids, 3), "a layer from 0 to 2, with one MLP, got 3"),
        (lambda twin, ids: ah.plots.gates(twin, ids, -1), "a layer from 0 to 2, with one MLP, got -1"),
        (lambda twin, ids: ah.plots.gates(twin, ids.repeat(2, 1)), "one text, got 2"),
        (lambda twin, ids: ah.plots.gates("twin", ids), "an attention-only twin, got str"),
    ],
)
def test_requests_that_make_no_sense(twin, ids, call, words):
    with pytest.raises(AllHeadsError, match=words):
        call(twin, ids)


def test_activations_that_are_not_finite(source, ids):
    broken = ah.convert(source)
    with broken.banks[1].edit() as heads:
        pass
    heads.W_O.data[0] = float("nan")  # an edit would refuse it
    with pytest.raises(AllHeadsError, match=r"finite activations, got NaN or infinity at blocks\.2"):
        ah.plots.gates(broken, ids)
