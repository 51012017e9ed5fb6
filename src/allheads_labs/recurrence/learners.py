"""The three that remember: a transformer, an LSTM and a GRU with as many parameters, behind the same embedding."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from allheads_labs.kit.fitting import seeded
from allheads_labs.kit.small_models import PairEmbedding, PairModel, decoder
from allheads_labs.recurrence.task import D_VOCAB, KEYS, VALUES

Kind = Literal["transformer", "lstm", "gru"]
KINDS: tuple[Kind, ...] = ("transformer", "lstm", "gru")
D_MODEL, N_CTX = 64, 4096
#: Hidden units that give each recurrent net the parameters of the transformer's two layers.
HIDDEN = {"lstm": 128, "gru": 151}


class Learner(PairModel):
    """Embedding, body, and logits of the values at the last positions."""

    def __init__(self, kind: Kind, seed: int) -> None:
        super().__init__()
        self.kind = kind
        with seeded(seed):
            self.embed = PairEmbedding(KEYS, VALUES, D_MODEL, filler=True)
            if kind == "transformer":
                self.body = decoder(D_VOCAB, N_CTX, d_model=D_MODEL)
            else:
                make = nn.LSTM if kind == "lstm" else nn.GRU
                self.body = make(D_MODEL, HIDDEN[kind], batch_first=True)
                self.readout = nn.Linear(HIDDEN[kind], VALUES, bias=False)
                _favour(self.body)

    def forward(self, tokens: Int[Tensor, "batch pos"], queries: int = 1) -> Float[Tensor, "batch query value"]:
        """Logits of the values at the queries."""
        return self.read(self.embed(tokens), queries)

    def read(self, embedded: Float[Tensor, "batch pos d_model"], queries: int = 1) -> Tensor:
        """The same from embedded tokens."""
        if self.kind == "transformer":
            hidden = self.body.transformer(inputs_embeds=embedded).last_hidden_state[:, -queries:]
            return hidden @ self.body.lm_head.weight[:VALUES].mT
        return self.readout(self.body(embedded)[0][:, -queries:])

    def size(self) -> int:
        """Parameters in use; of the transformer's unembedding only the rows of values are."""
        idle = (D_VOCAB - VALUES) * D_MODEL if self.kind == "transformer" else 0
        return sum(p.numel() for p in self.trained_parameters()) - idle


@torch.no_grad()
def _favour(body: Any) -> None:
    """The usual help for recurrent nets: orthogonal recurrences, and gates that begin by keeping what is there."""
    for block in body.weight_hh_l0.split(body.hidden_size):
        nn.init.orthogonal_(block)
    # The second gate of both: forget in an LSTM, update in a GRU.
    body.bias_hh_l0[body.hidden_size : 2 * body.hidden_size] += 1.0
