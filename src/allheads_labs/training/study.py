"""Training and regularisation: does it matter that a neuron is a head? ``allheads lab training``.

The paper leaves open how attention-only transformers train. Here a small transformer learns the next character of
Python's documentation, with its hidden layers in the forms of `allheads_labs.hidden`, always from the same start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allheads.errors import AllHeadsError
from allheads_labs.documentation_text import D_VOCAB, batch, documentation
from allheads_labs.hidden import MLP, Dropout, Form, Heads, hidden_layer

CONTEXT, BATCH, D_MODEL, N_HEADS, D_MLP, N_LAYERS = 64, 16, 64, 4, 256, 2
RATE = 0.1
#: Validation loss is taken this often.
EVERY = 50


class Block(nn.Module):
    """Pre-norm attention and a hidden layer."""

    def __init__(self, hidden: MLP | Heads) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(D_MODEL), nn.LayerNorm(D_MODEL)
        self.qkv, self.out = nn.Linear(D_MODEL, 3 * D_MODEL, bias=False), nn.Linear(D_MODEL, D_MODEL, bias=False)
        self.hidden = hidden

    def mid(self, x: Tensor) -> Tensor:
        """The stream after attention."""
        q, k, v = (t.unflatten(-1, (N_HEADS, -1)).transpose(1, 2) for t in self.qkv(self.ln1(x)).chunk(3, -1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(z.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        """The stream after the block."""
        mid = self.mid(x)
        return mid + self.hidden(self.ln2(mid))


class Transformer(nn.Module):
    """A small language model on bytes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(D_VOCAB, D_MODEL)
            self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, D_MODEL))
            self.blocks = nn.ModuleList(Block(_start()) for _ in range(N_LAYERS))
            self.ln_final, self.unembed = nn.LayerNorm(D_MODEL), nn.Linear(D_MODEL, D_VOCAB, bias=False)

    def with_hidden(self, form: Form, dropout: Dropout, rate: float = RATE) -> Transformer:
        """Turn the hidden layers into another form, with the same weights."""
        for block in self.blocks:
            start: Any = block.hidden
            block.hidden = hidden_layer(form, start, dropout, rate)
        return self

    def stream(self, tokens: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Every block with the stream it reads, and None with the last one."""
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            yield block, x
            x = block(x)
        yield None, x

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy of the next byte, in nats."""
        *_, (_, x) = self.stream(windows[:, :-1])
        return F.cross_entropy(self.unembed(self.ln_final(x)).flatten(0, 1), windows[:, 1:].flatten())


def _start() -> MLP:
    W_in, W_out = torch.randn(D_MODEL, D_MLP) / D_MODEL**0.5, torch.randn(D_MLP, D_MODEL) / D_MLP**0.5
    return MLP(W_in, torch.zeros(D_MLP), W_out, torch.zeros(D_MODEL))


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    form: Form
    dropout: Dropout = "none"
    weight_decay: float = 0.0

    @property
    def name(self) -> str:
        """What it is called in tables."""
        parts = [self.form, f"dropout on {self.dropout}" if self.dropout != "none" else ""]
        return ", ".join(filter(None, [*parts, "weight decay" if self.weight_decay else ""]))


SETTINGS = (
    Setting("mlp"),
    Setting("tied"),
    Setting("untied"),
    Setting("mlp", weight_decay=0.3),
    Setting("untied", weight_decay=0.3),
    Setting("mlp", "hidden"),
    Setting("tied", "pattern"),
    Setting("tied", "key"),
    Setting("untied", "pattern"),
    Setting("untied", "key"),
)


@dataclass(frozen=True)
class Run:
    """What came of one setting and seed; gates are shares of patterns on self over the held-out text."""

    setting: str
    seed: int
    steps: list[int]
    train: list[float]
    held_out: list[float]
    seconds_per_step: float
    gates_mean: float
    gates_shut: float
    gates_open: float
    parted: float

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def train(setting: Setting, seed: int, steps: int, told: Callable[[], None] = lambda: None) -> Run:
    """Train one model; ``told`` is called after every step."""
    if steps < 1:
        raise AllHeadsError("at least one step", str(steps), "The default is 600.")
    text, held_out = documentation()
    model = Transformer(seed).with_hidden(setting.form, setting.dropout)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=2e-3, weight_decay=setting.weight_decay)
    draw, losses, curve, at = torch.Generator().manual_seed(seed), [], [], []
    seconds = 0.0
    for step in range(1, steps + 1):
        started = time.perf_counter()
        loss = model.train().loss(batch(text, BATCH, CONTEXT, draw))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seconds += time.perf_counter() - started
        losses.append(loss.item())
        told()
        if step % EVERY == 0 or step == steps:
            at.append(step)
            curve.append(evaluate(model, held_out))
    recent = [sum(losses[max(0, n - EVERY) : n]) / len(losses[max(0, n - EVERY) : n]) for n in at]
    return Run(
        setting.name, seed, at, recent, curve, seconds / steps, *gate_statistics(model, held_out), parting(model)
    )


@torch.no_grad()
def evaluate(model: Transformer, tokens: Tensor) -> float:
    """Loss on fixed windows of a text."""
    return model.eval().loss(batch(tokens, 64, CONTEXT, torch.Generator().manual_seed(0))).item()


@torch.no_grad()
def gate_statistics(model: Transformer, tokens: Tensor) -> tuple[float, float, float]:
    """Mean of all patterns on self, share below 0.1, share above 0.9."""
    windows = batch(tokens, 16, CONTEXT, torch.Generator().manual_seed(1))[:, :-1]
    gates = [b.hidden.gates(b.ln2(b.mid(x))).flatten() for b, x in model.eval().stream(windows) if b is not None]
    every = torch.cat(gates)
    return every.mean().item(), (every < 0.1).double().mean().item(), (every > 0.9).double().mean().item()


@torch.no_grad()
def parting(model: Transformer) -> float:
    """How far queries and values of the heads have parted: the mean of ``1 - cos(W_Q, W_V)``; 0 where they are tied."""
    off = []
    for block in model.blocks:
        bank = getattr(block.hidden, "bank", None)
        if bank is not None and bank.edited is not None:
            off.append(
                1 - F.cosine_similarity(bank.edited.W_Q[..., 0].double(), bank.edited.W_V[..., 0].double()).mean()
            )
    return float(sum(off) / len(off)) if off else 0.0


def gradient_gap(seed: int = 0) -> float:
    """Largest difference of a gradient of the MLP model and of its tied twin, in float64, relative to the largest.

    >>> gradient_gap() < 1e-10
    True
    """
    windows = batch(documentation()[0], 4, CONTEXT, torch.Generator().manual_seed(seed))
    found = []
    for form in ("mlp", "tied"):
        model = Transformer(seed).double().with_hidden(form, "none")
        model.loss(windows).backward()
        found.append({name.replace("bank.", ""): p.grad for name, p in model.named_parameters()})
    size = max(float(grad.abs().max()) for grad in found[0].values() if grad is not None)
    assert found[0].keys() == found[1].keys()
    pairs = [(found[0][name], found[1][name]) for name in found[0]]
    return max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None) / size
