"""The distrustful test: SmolLM2 by matrix products, softmax and norms only, every pattern over all positions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from allheads.pure import export, run
from allheads.verification.samples import sample_texts

ACTIVATIONS = (
    "silu", "gelu", "relu", "relu_", "relu6", "sigmoid", "logsigmoid", "tanh", "elu", "celu", "selu", "mish",
    "softplus", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "prelu", "glu", "threshold", "erf", "special_erf",
)  # fmt: skip


def forbid(monkeypatch) -> None:
    """Make every activation function and MLP of torch and transformers raise."""

    def forbidden(*args, **options):
        raise AssertionError("an activation function or an MLP was called")

    for home in (torch, torch.nn.functional, torch.Tensor, torch.special, torch._C._nn):
        for name in (*ACTIVATIONS, *(f"{name}_" for name in ACTIVATIONS)):
            if hasattr(home, name):
                monkeypatch.setattr(home, name, forbidden)
    for module in vars(nn).values():
        if isinstance(module, type) and module.__module__ == "torch.nn.modules.activation":
            monkeypatch.setattr(module, "forward", forbidden)
    for activation in transformers.activations.ACT2CLS.values():
        kind = activation[0] if isinstance(activation, tuple) else activation
        monkeypatch.setattr(kind, "forward", forbidden)
    monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaMLP, "forward", forbidden)


@pytest.fixture(scope="module")
def exported(smollm_twin, tmp_path_factory):
    path = tmp_path_factory.mktemp("pure") / "smollm2.safetensors"
    export(smollm_twin, path)
    return path


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-4), (torch.float32, 5e-4)])
def test_logits_without_any_activation_function(smollm, exported, monkeypatch, dtype, limit):
    tokens = smollm.to_tokens(sample_texts()[1])[:, :64]
    assert tokens.shape[1] == 64
    with torch.no_grad():
        wanted = smollm(tokens)
        with monkeypatch.context() as patched:
            forbid(patched)
            with pytest.raises(AssertionError, match="was called"):
                smollm(tokens)
            got = run(exported, tokens, pattern_dtype=dtype)
    assert (got - wanted).abs().max() <= limit
    assert (got.argmax(-1) == wanted.argmax(-1)).all()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="says how much memory a process has taken")
def test_it_runs_in_little_memory(exported):
    # What getrusage says of a process counts its parent's memory, too, which is large in a long run of tests.
    lines = (
        "import sys, torch",
        "from allheads.pure.runner import run",
        "run(sys.argv[1], torch.arange(64)[None])",
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))",
    )
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines), exported], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 6e6


def test_masks_in_weights_on_a_short_text(smollm, exported):
    tokens = smollm.to_tokens("Nothing but attention")
    explicit, weights = (run(exported, tokens, masks=masks) for masks in ("explicit", "weights"))
    assert (explicit - weights).abs().max() < 1e-7
