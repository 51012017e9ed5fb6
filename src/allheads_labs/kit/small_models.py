"""Small transformers to be trained here, of classes that `ah.convert` knows, their bridges, and pairs as tokens."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel, MBartConfig, MBartForConditionalGeneration

#: Ids of every small encoder-decoder: padding, the beginning and the end of a sentence.
PAD, START, END = 0, 1, 2


def decoder(d_vocab: int, n_ctx: int, *, d_model: int = 64, n_heads: int = 2, n_layers: int = 2) -> Any:
    """A GPT-2 without positions: their table is zero and stays so. SiLU, because its twin is exact.

    Called with ids ``input_ids [batch pos]``, or with ``inputs_embeds [batch pos d_model]``.

    >>> small = decoder(10, 16)
    >>> sum(p.numel() for p in small.transformer.h.parameters()) == 2 * (12 * 64**2 + 13 * 64)
    True
    """
    config = GPT2Config(
        vocab_size=d_vocab,
        n_positions=n_ctx,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=n_heads,
        activation_function="silu",
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    positions = model.transformer.wpe.weight
    positions.requires_grad_(False)
    nn.init.zeros_(positions)
    return model


def encoder_decoder(d_vocab: int, n_ctx: int, *, d_model: int = 64, n_heads: int = 1, n_layers: int = 2) -> Any:
    """An mBART: norms before sublayers, learned positions, SiLU; each of its attentions has ``n_heads``.

    >>> encoder_decoder(10, 16).config.decoder_attention_heads
    1
    """
    config = MBartConfig(
        vocab_size=d_vocab,
        max_position_embeddings=n_ctx,
        d_model=d_model,
        encoder_layers=n_layers,
        decoder_layers=n_layers,
        encoder_attention_heads=n_heads,
        decoder_attention_heads=n_heads,
        encoder_ffn_dim=4 * d_model,
        decoder_ffn_dim=4 * d_model,
        activation_function="silu",
        init_std=d_model**-0.5,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return MBartForConditionalGeneration(config)


def as_bridge(model: Any, name: str) -> TransformerBridge:
    """A trained model as a bridge, in evaluation mode; eager attention, which shows patterns. Wraps the model in place.

    >>> as_bridge(decoder(10, 16), "small")(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 10])
    """
    model.eval().set_attn_implementation("eager")
    return build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, model_name=name, dtype=torch.float32
    )


class PairEmbedding(nn.Module):
    """Tokens that are a key with a value, embedded as a sum, in place of a transformer's own table.

    Ids: every key with every value, then every key with a question, then, if there is one, a filler.
    """

    def __init__(self, keys: int, values: int, d_model: int, *, filler: bool) -> None:
        super().__init__()
        self.keys, self.values, self.question, self.filler = (
            nn.Parameter(torch.randn(count, d_model)) for count in (keys, values, 1, int(filler))
        )

    def table(self) -> Float[Tensor, "d_vocab d_model"]:
        """A row for every id.

        >>> PairEmbedding(3, 4, 8, filler=True).table().shape
        torch.Size([16, 8])
        """
        return torch.cat([(self.keys[:, None] + self.values).flatten(0, 1), self.keys + self.question, self.filler])

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """What a body reads."""
        return F.embedding(tokens, self.table())


class PairModel(nn.Module):
    """A network, its ``body``, that reads a pair embedding."""

    embed: PairEmbedding
    body: Any

    def trained_parameters(self) -> list[nn.Parameter]:
        """All but a transformer's own table, which the pair embedding replaces, and its positions."""
        idle = ("wte.", "wpe.")
        return [p for name, p in self.named_parameters() if p.numel() and not any(part in name for part in idle)]

    def bridge(self) -> TransformerBridge:
        """The transformer as a bridge that reads ids; its first logits are those of the values. Wraps it in place."""
        with torch.no_grad():
            self.body.transformer.wte.weight.copy_(self.embed.table())
        return as_bridge(self.body, type(self).__name__)
