"""Twins written down as attention and nothing else, and run by a file that knows nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.pure.files import rewritten

import allheads as ah
from allheads.pure import export, run, runner

KINDS = ("gpt2", "opt", "llama")


@pytest.fixture(scope="module")
def pure(tiny, tmp_path_factory):
    """``pure("llama")``: a twin in float64 and the file it was exported to."""
    made = {}

    def make(kind: str):
        if kind not in made:
            twin = ah.convert(tiny(kind, dtype=torch.float64))
            path = tmp_path_factory.mktemp("pure") / f"{kind}.safetensors"
            export(twin, path)
            made[kind] = twin, path
        return made[kind]

    return make


def logits(twin, tokens):
    with torch.no_grad(), twin.evaluated("slots"):
        return twin(tokens)


@pytest.mark.parametrize("masks", ["explicit", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_logits(pure, tokens, kind, masks):
    twin, path = pure(kind)
    wanted = logits(twin, tokens)
    got = run(path, tokens, masks=masks)
    single = run(path, tokens, masks=masks, pattern_dtype=torch.float32)
    # The RMSNorm of this Llama computes in float32 inside, whatever the model's dtype.
    assert (got - wanted).abs().max() < (1e-6 if kind == "llama" else 1e-8)
    assert (single - wanted).abs().max() < 2e-5
    assert single.dtype == torch.float64
    assert (single - got).abs().max() > 1e-11


@pytest.mark.parametrize("kind", KINDS)
def test_masks_in_weights_change_nothing_that_rounding_does_not(pure, tokens, kind):
    _, path = pure(kind)
    explicit, weights = (run(path, tokens[0], masks=masks) for masks in ("explicit", "weights"))
    assert explicit.shape == (tokens.shape[1], 96)
    assert (explicit - weights).abs().max() < 1e-12


def test_weights_means_no_mask_no_biases_and_no_virtual_keys(pure, tokens, monkeypatch):
    _, path = pure("opt")
    seen = []

    def spied(x, heads, allowed=None, pattern_dtype=None):
        seen.append((allowed, heads.b_Q, heads.b_K, heads.b_V, heads.bias_keys, heads.bias_offsets))
        return original(x, heads, allowed, pattern_dtype)

    original = runner.attend
    monkeypatch.setattr(runner, "attend", spied)
    run(path, tokens[0], masks="weights")
    assert len(seen) > 4
    assert all(each == (None,) * 6 for each in seen)


def test_without_omega_the_mask_is_gone(pure, tokens, monkeypatch):
    _, path = pure("gpt2")
    wanted = run(path, tokens[0])
    monkeypatch.setattr(runner, "omega_for", lambda *_: 0.0)
    assert (run(path, tokens[0], masks="weights") - wanted).abs().max() > 1e-3


def test_edited_heads_are_exported_as_edited(tiny, tokens, tmp_path):
    twin = ah.convert(tiny("llama", dtype=torch.float64))
    with twin.banks[1].edit() as heads:
        heads.W_O[3:9] *= -2.0
        heads.bias_offsets[5, 0] = -torch.inf
        heads.W_K[7] += 0.3
    export(twin, tmp_path / "edited.safetensors")
    for masks in ("explicit", "weights"):
        got = run(tmp_path / "edited.safetensors", tokens, masks=masks)
        assert (got - logits(twin, tokens)).abs().max() < 1e-6


def test_shared_weights_are_stored_once(pure):
    twin, path = pure("llama")
    with safe_open(path, "pt") as file:
        numbers = sum(file.get_slice(name).get_shape() and file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    own = sum(parameter.numel() for parameter in twin.original_model.parameters())
    values = sum(bank.d_mlp * bank.gates.heads * twin.cfg.d_model for bank in twin.banks)
    # Beside the model's own weights: values of neuron heads with their coefficients, repeated keys and values of
    # ordinary heads, bias keys.
    assert own < numbers < own + values + 3 * 2 * 2 * 32 * 8 * 2 + 3 * 64 * 30


def test_the_runner_needs_torch_and_safetensors_only(pure, tokens):
    _, path = pure("gpt2")
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("runner", {str(runner.__file__)!r})
runner = importlib.util.module_from_spec(spec); sys.modules["runner"] = runner; spec.loader.exec_module(runner)
import torch
print(float(runner.run({str(path)!r}, torch.tensor({tokens[0].tolist()})).sum()))
assert not {{"allheads", "transformers", "transformer_lens", "einops", "jaxtyping"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(run(path, tokens[0]).sum()), abs=1e-9)


def damaged(path: Path, target: Path, change) -> Path:
    data = bytearray(path.read_bytes())
    target.write_bytes(change(data))
    return target


def flipped(data: bytearray) -> bytes:
    data[-5] ^= 0x10
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: bytes(data[:-100]), "Expected a file written by"),
        (lambda data: b"not a model", "Expected a file written by"),
        (flipped, "does not have its checksum"),
    ],
    ids=["truncated", "foreign", "flipped bit"],
)
def test_damaged_files_are_refused(pure, tokens, tmp_path, change, reason):
    _, path = pure("gpt2")
    with pytest.raises(ValueError, match=reason):
        run(damaged(path, tmp_path / "damaged.safetensors", change), tokens)


def test_a_changed_header_is_refused(pure, tokens, tmp_path):
    """A scale of 9.0 for 1.0 is as good a number as that, and a shape the other way round as good a shape."""
    _, path = pure("gpt2")
    good = path.read_bytes()
    for old, new in ((b'\\"scale\\": 0.35', b'\\"scale\\": 9.35'), (b"[64,32]", b"[32,64]"), (b"[96,32]", b"[32,96]")):
        assert old in good
        (tmp_path / "changed.safetensors").write_bytes(good.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"does not have its checksum"):
            run(tmp_path / "changed.safetensors", tokens)


def test_a_header_is_bounded_before_it_is_read(tokens, tmp_path):
    for header in ("[" * 1000 + "]" * 1000, "[" + "0," * 5_000_000 + "0]", "9" * 5000, '{"version": 3}'):
        save_file({"x": torch.ones(2)}, tmp_path / "deep.safetensors", {runner.FORMAT: header})
        with pytest.raises(ValueError, match=r"Expected a file written by allheads\.pure\.export"):
            run(tmp_path / "deep.safetensors", tokens)


def test_other_safetensors_files_and_missing_ones_are_refused(tokens, tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no header of version 3"):
        run(tmp_path / "other.safetensors", tokens)
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        run(tmp_path / "nowhere.safetensors", tokens)


def step(model: dict[str, Any], name: str) -> dict[str, Any]:
    return next(step for step in model["sublayers"] if step["name"] == name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.pop("beginnings"), "beginnings"),
        (lambda model: step(model, "L0.A")["heads"][0].update(mask_kind="causal"), "mask_kind"),
        (lambda model: step(model, "L0.A")["heads"][0].update(W_K=model["unembed"]), "W_K of L0.A has shape"),
        (lambda model: model["beginnings"][0]["rows"].update(tensor="gone"), "gone"),
        (lambda model: model.update(unembed=model["beginnings"][1]["rows"]), "unembed has shape"),
        (lambda model: step(model, "L0.N")["heads"][0].update(mask="sideways"), "sideways"),
        (lambda model: step(model, "L0.N")["heads"][0].update(mask=["causal"]), "mask of a Heads"),
        (lambda model: step(model, "L0.A")["heads"][0].update(scale="1.0"), "scale of a Heads is '1.0'"),
        (lambda model: step(model, "L0.A")["heads"][0].update(window=0.5), "window of a Heads"),
        (lambda model: step(model, "L0.A").update(heads=3), "heads of a Sublayer"),
        (lambda model: step(model, "L0.A").update(heads=[3]), "W_O|attribute"),
        (lambda model: model.update(sublayers=[None]), "attribute"),
        (lambda model: model.update(n_ctx="64"), "n_ctx of a Pure"),
        (lambda model: model.update(n_ctx=10**9), "positions has shape"),
        (lambda model: step(model, "end")["norm"].update(gain=model["unembed"]), "a norm of end has shape"),
        (lambda model: step(model, "end").update(norm=step(model, "x0")), "norm of a Sublayer"),
        (lambda model: model["beginnings"][0].update(rows=3), "rows of a Beginning"),
        (lambda model: model.clear(), "attribute"),
    ],
)
def test_headers_that_name_no_model_are_refused(pure, tokens, tmp_path, change, reason):
    _, path = pure("gpt2")
    with pytest.raises(ValueError, match=reason):
        run(rewritten(path, tmp_path / "changed.safetensors", change), tokens)


@pytest.mark.parametrize(
    ("tokens", "options", "reason"),
    [
        (torch.tensor([96]), {}, "ids below 96"),
        (torch.tensor([-1]), {}, "ids below 96"),
        (torch.zeros(65, dtype=torch.long), {}, "1 to 64 positions"),
        (torch.zeros(0, dtype=torch.long), {}, "1 to 64 positions"),
        (torch.zeros(3), {}, "of torch.float32"),
        (torch.tensor([1]), {"pattern_dtype": torch.bfloat16}, "float32 or torch.float64"),
        (torch.tensor([1]), {"masks": "none"}, "'explicit' or 'weights'"),
    ],
)
def test_bad_input_to_run(pure, tokens, options, reason):
    _, path = pure("gpt2")
    with pytest.raises(ValueError, match=reason):
        run(path, tokens, **options)


def test_what_is_not_a_twin_is_refused(tiny, tmp_path):
    with pytest.raises(ah.AllHeadsError, match="an attention-only twin"):
        export(tiny("gpt2"), tmp_path / "x.safetensors")


@pytest.mark.parametrize(("part", "name"), [("attn", "L1.A with values"), ("mlp", "L1.N, which writes")])
def test_a_part_that_is_not_attention_is_named_and_nothing_is_written(tiny, tmp_path, part, name):
    twin = ah.convert(tiny("llama"))
    inner = twin.blocks[1].attn.original_component.v_proj if part == "attn" else twin.blocks[1].mlp.heads
    inner.register_forward_hook(lambda module, args, out: out * 1.01)
    with pytest.raises(ah.AllHeadsError, match=name):
        export(twin, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(tiny, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(ah.convert(tiny("gpt2")), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_and_a_device_are_refused(tiny, tmp_path):
    with pytest.raises(ah.AllHeadsError, match="a folder that exists"):
        export(ah.convert(tiny("gpt2")), tmp_path / "no" / "x.safetensors")
    with pytest.raises(ah.AllHeadsError, match="a device, pipe or socket"):
        export(ah.convert(tiny("gpt2")), "/dev/null")
    assert Path("/dev/null").is_char_device()
