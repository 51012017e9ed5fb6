"""Small settings for any model: a table of sizes by field name, and a rule for what differs from layer to layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

#: Tokens in a vocabulary, and positions a model knows.
VOCABULARY, POSITIONS = 96, 64
#: The id that stands for (a part of) an image; no random text has it.
IMAGE_ID = 95


def _same(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


#: What every configuration is given that has a field of this name. Widths differ where they may, so that no two
#: axes are mistaken for each other.
SMALL: dict[str, Any] = {
    **_same(32, "hidden_size d_model n_embd word_embed_proj_dim attention_hidden_size lru_width projection_dim"),
    **_same(32, "out_hidden_size projector_hidden_size output_proj_dims projector_input_dim projector_output_dim"),
    **_same(48, "intermediate_size n_inner ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff ffn_hidden_size"),
    **_same(40, "intermediate_size_mlp"),
    **_same(24, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size"),
    **_same(24, "moe_shared_expert_intermediate_size"),
    **_same(2, "num_hidden_layers n_layer n_layers num_layers num_decoder_layers encoder_layers decoder_layers depth"),
    **_same(4, "num_attention_heads n_head n_heads num_heads attention_heads"),
    **_same(4, "encoder_attention_heads decoder_attention_heads"),
    **_same(2, "num_key_value_heads num_kv_heads"),
    **_same(8, "head_dim d_kv kv_channels"),
    **_same(VOCABULARY, "vocab_size decoder_vocab_size vocab_size_per_layer_input"),
    **_same(POSITIONS, "max_position_embeddings n_positions n_ctx max_seq_len context_length"),
    **_same(POSITIONS, "max_encoder_position_embeddings max_decoder_position_embeddings"),
    # Shorter than a text, so that it matters.
    **_same(4, "sliding_window window_size attention_window_size local_attention attention_chunk_size"),
    # Mixtures of experts.
    **_same(4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_same(2, "num_experts_per_tok moe_k top_k_experts"),
    **_same(1, "n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers"),
    **_same(1, "n_group topk_group"),
    # Attention through low ranks, and its indexers.
    **_same(16, "q_lora_rank kv_lora_rank o_lora_rank"),
    **_same(4, "qk_rope_head_dim rotary_dim"),
    **_same(8, "qk_nope_head_dim v_head_dim index_head_dim"),
    **_same(2, "index_n_heads o_groups"),
    **_same(4, "index_topk"),
    # State spaces and linear attention.
    **_same(8, "mamba_n_heads mamba_num_heads mamba_d_head mamba_head_dim n_mamba_heads mamba_d_state ssm_state_size"),
    **_same(8, "state_size mamba_chunk_size chunk_size time_step_rank mamba_dt_rank"),
    **_same(8, "linear_key_head_dim linear_value_head_dim"),
    **_same(2, "linear_num_key_heads mamba_n_groups mamba_ngroups n_groups"),
    **_same(4, "linear_num_value_heads"),
    **_same(64, "mamba_d_ssm"),
    # Images and sounds.
    **_same(16, "image_size"),
    **_same(4, "patch_size"),
    **_same(16, "num_position_embeddings num_mel_bins max_source_positions"),
    # Special tokens.
    **_same(0, "pad_token_id"),
    **_same(1, "bos_token_id decoder_start_token_id"),
    **_same(2, "eos_token_id forced_eos_token_id"),
    **_same(IMAGE_ID, "image_token_id image_token_index"),
    **_same(94, "video_token_id video_token_index"),
    **_same(93, "audio_token_id audio_token_index"),
    **_same(92, "boi_token_id boi_token_index image_start_token_id vision_start_token_id"),
    **_same(91, "eoi_token_id eoi_token_index image_end_token_id vision_end_token_id"),
    **_same(90, "boa_token_id eoa_token_id eoa_token_index video_start_token_id audio_bos_token_id"),
    **_same(89, "video_end_token_id audio_eos_token_id cls_token_id sep_token_id eod_token_id"),
}
#: Fields where None turns something off: it stays off.
SWITCHES = frozenset(
    (
        *("sliding_window", "moe_intermediate_size", "num_experts", "top_k_experts", "q_lora_rank", "n_group"),
        *("topk_group", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
        "forced_eos_token_id",
    )
)


def small(default: PretrainedConfig, changes: Mapping[str, Any]) -> PretrainedConfig:
    """The smallest configuration of the kind of ``default``: the table's sizes, then ``changes``.

    Changes of a configuration inside this one are a mapping under its name; a configuration there replaces it.

    >>> from transformers import LlamaConfig
    >>> config = small(LlamaConfig(), {"mlp_bias": True})
    >>> config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.mlp_bias
    (2, 32, 48, True)
    """
    before = vars(default)
    inner = {name: value for name, value in before.items() if isinstance(value, PretrainedConfig)}
    replaced = {name: value for name, value in changes.items() if isinstance(value, PretrainedConfig)}
    known = {field.name for field in dataclasses.fields(default)} - set(changes)
    settings = {
        name: SMALL[name]
        for name in sorted(known & SMALL.keys())
        if name not in SWITCHES or before.get(default.attribute_map.get(name, name)) is not None
    }
    settings |= _layers(default, known)
    settings |= {name: value for name, value in changes.items() if name not in inner}
    settings |= {name: small(inner[name], changes.get(name, {})) for name in inner.keys() - replaced.keys()}
    config = type(default)(**settings)
    # Past the constructor, which insists on the kind it knows.
    vars(config).update(replaced)
    return config


def _layers(default: PretrainedConfig, known: set[str]) -> dict[str, Any]:
    """One layer of every kind, where lists in the configuration tell layers apart, and at least two."""
    count = vars(default).get("num_hidden_layers")
    lists = {
        name: value
        for name, value in vars(default).items()
        # Numbers that are all different are the indices of layers, not their kinds.
        if name in known and isinstance(value, list) and len(value) == count and len(set(value)) < len(value)
    }
    if not lists:
        return {}
    kinds = list(dict.fromkeys(zip(*lists.values(), strict=True)))
    kinds += kinds[-1:] * (2 - len(kinds))
    columns = zip(*kinds, strict=True)
    return {"num_hidden_layers": len(kinds)} | {name: list(column) for name, column in zip(lists, columns, strict=True)}
