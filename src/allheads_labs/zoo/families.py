"""What differs from family to family: the class behind a name, what is not built, and unusual settings."""

from __future__ import annotations

from typing import Any

from transformers import SiglipVisionConfig

#: TransformerLens' name -> the class in transformers, where that has another name.
CLASSES = {
    "BloomModel": "BloomForCausalLM",  # old checkpoints name the body; the bridge expects the head too
    "Gemma1ForCausalLM": "GemmaForCausalLM",
    "JetMoEForCausalLM": "JetMoeForCausalLM",
    "MPTForCausalLM": "MptForCausalLM",
    "MinGPTForCausalLM": "GPT2LMHeadModel",  # the same modules under the same names
    "NanoGPTForCausalLM": "GPT2LMHeadModel",
    "NeoForCausalLM": "GPTNeoForCausalLM",
    "NeoXForCausalLM": "GPTNeoXForCausalLM",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "T5WithLMHeadModel": "T5ForConditionalGeneration",
    "Wav2Vec2ForPreTraining": "Wav2Vec2Model",  # the bridge wraps the encoder of such checkpoints
}

_REMOTE = "transformers has no class of this name: its code comes with a checkpoint and would have to be downloaded"
#: Names that nothing here can build, and why.
WITHOUT_CLASS = dict.fromkeys(
    (
        *("BD3LM", "BaiChuanForCausalLM", "BaichuanForCausalLM", "DreamModel", "ExaoneForCausalLM"),
        *("GPT2LMHeadCustomModel", "GiddForDiffusionLM", "HyenaDNAForCausalLM", "InternLM2ForCausalLM"),
        *("LLaDA2MoeModelLM", "LLaDAModelLM", "OpenELMForCausalLM", "OuroForCausalLM", "QwenForCausalLM"),
        *("RWKV7ForCausalLM", "RavenForCausalLM"),
    ),
    _REMOTE,
) | {
    "NeelSoluOldForCausalLM": "it is a format of checkpoints, which TransformerLens loads as TransformerLensNative",
    "TransformerLensPretrain": "it wraps a network of the user's own, and TransformerLens ships none",
}

#: Encoders without a head: their output is the last hidden state.
BARE = frozenset({"DeiTModel", "HubertModel", "ViTModel", "Wav2Vec2ForPreTraining", "Wav2Vec2Model"})

#: Classes whose attention compares with a float32 number, which cannot be as small as their masks in float64.
NOT_IN_FLOAT64 = frozenset({"XGLMForCausalLM"})

#: The one model that TransformerLens builds itself.
NATIVE = "TransformerLensNative"

#: Tokens that one image becomes, for the families whose bridge shows the MLPs that see it.
IMAGE_TOKENS = {
    "Gemma3ForConditionalGeneration": 4,
    "Idefics3ForConditionalGeneration": 4,
    "LlavaForConditionalGeneration": 16,
    # An overview, its tile, and the ends of the tile's rows.
    "LlavaNextForConditionalGeneration": 16 + 16 + 4,
    "LlavaOnevisionForConditionalGeneration": 16 + 16 + 4,
}

_GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.22,
    "logits_scaling": 2.0,
}
_SPEECH = {
    "conv_dim": (32, 32),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
#: Latent attention has as many key as query heads.
_LATENT = {"num_key_value_heads": 4}
#: T5 begins to write with the padding token.
_T5 = {"decoder_start_token_id": 0}
_SPARSE_SECOND = {"mlp_only_layers": [0]}


def _rope(**changes: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0} | changes}


#: Settings by class, in place of the table's. Factors that are 1 by default are not, so that nobody forgets them;
#: layers are of every kind the family has.
CHANGES: dict[str, dict[str, Any]] = {
    "ASTForAudioClassification": {"max_length": 32},
    "AfmoeForCausalLM": {"route_scale": 1.5},
    "BambaForCausalLM": {"attn_layer_indices": [1]},
    # Else it is an encoder, and sees what it has yet to write.
    "BertLMHeadModel": {"is_decoder": True},
    "DeepseekV2ForCausalLM": _LATENT,
    "DeepseekV3ForCausalLM": _LATENT | {"n_group": 2},
    "DeepseekV4ForCausalLM": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "partial_rotary_factor": 0.5,
        "hc_mult": 2,
    },
    "Emu3ForConditionalGeneration": {
        "vocabulary_map": {"<image>": 95, "<|extra_200|>": 94}
        | {f"<|visual token {i:06}|>": 70 + i for i in range(16)},
        "vq_config": {
            "codebook_size": 16,
            "base_channels": 32,
            "channel_multiplier": (1, 1),
            "num_res_blocks": 1,
            "attn_resolutions": (),
            "num_attention_heads": 1,
        },
    },
    "Ernie4_5_MoeForCausalLM": {"moe_layer_end_index": 1},
    "FalconH1ForCausalLM": {
        "mlp_multipliers": [0.7, 1.3],
        "key_multiplier": 0.5,
        "attention_out_multiplier": 0.9,
        "ssm_out_multiplier": 0.8,
        "lm_head_multiplier": 0.5,
    },
    "Florence2ForConditionalGeneration": {
        "vision_config": {
            "depths": (1, 1),
            "patch_size": (7, 3),
            "patch_stride": (4, 2),
            "patch_padding": (3, 1),
            "patch_prenorm": (False, True),
            "embed_dim": (16, 32),
            "num_heads": (2, 4),
            "num_groups": (2, 4),
        }
    },
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "Gemma3nForConditionalGeneration": {
        "text_config": {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "laurel_rank": 8},
        # Its own tower needs the package timm, and no bridge shows it.
        "vision_config": SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=16,
            patch_size=4,
            vocab_size=8,
            vocab_offset=96,
            rms_norm_eps=1e-6,
        ),
        "audio_config": {
            "vocab_size": 8,
            "vocab_offset": 104,
            "conf_num_hidden_layers": 1,
            "conf_num_attention_heads": 4,
            "sscp_conv_channel_size": (8, 4),
        },
    },
    "Gemma3ForConditionalGeneration": {"mm_tokens_per_image": 4},
    # One has experts beside its MLPs, the other layers that share keys and have wider MLPs.
    "Gemma4ForCausalLM": {
        "global_head_dim": 16,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
        "hidden_size_per_layer_input": 0,
    },
    "Gemma4ForConditionalGeneration": {
        "text_config": {
            "global_head_dim": 16,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 8,
        }
    },
    "Gemma4UnifiedForConditionalGeneration": {"text_config": {"global_head_dim": 16}},
    "Glm4MoeLiteForCausalLM": _LATENT,
    "Glm4vForConditionalGeneration": {"text_config": _rope(mrope_section=[1, 1, 2], partial_rotary_factor=1.0)},
    "GlmMoeDsaForCausalLM": _LATENT | {"indexer_types": ["full", "shared"]},
    "GraniteForCausalLM": _GRANITE,
    "GraniteMoeForCausalLM": _GRANITE,
    "GraniteMoeHybridForCausalLM": _GRANITE
    | {"layer_types": ["linear_attention", "full_attention"], "position_embedding_type": "rope"},
    "HubertForCTC": _SPEECH,
    "HubertModel": _SPEECH,
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "LEDForConditionalGeneration": {"attention_window": 4},
    "LagunaForCausalLM": {
        "num_attention_heads_per_layer": [4, 8],
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Llama4ForCausalLM": {"interleave_moe_layer_step": 2},
    "Llama4ForConditionalGeneration": {
        "text_config": {"interleave_moe_layer_step": 2},
        "vision_config": {"vision_output_dim": 32},
    },
    "LlavaForConditionalGeneration": {"vision_feature_layer": -1},
    "LlavaNextForConditionalGeneration": {"vision_feature_layer": -1, "image_grid_pinpoints": [[16, 16]]},
    "LlavaOnevisionForConditionalGeneration": {"image_grid_pinpoints": [[16, 16]]},
    "LongT5ForConditionalGeneration": _T5 | {"local_radius": 3},
    "MT5ForConditionalGeneration": _T5,
    "Mamba2ForCausalLM": {"num_heads": 8},
    "Qwen2MoeForCausalLM": _SPARSE_SECOND,
    "Qwen2_5_VLForConditionalGeneration": {"text_config": _rope(mrope_section=[1, 1, 2])},
    "Qwen3MoeForCausalLM": _SPARSE_SECOND,
    "Qwen3NextForCausalLM": _SPARSE_SECOND,
    "Qwen3VLForConditionalGeneration": {"text_config": _rope(mrope_section=[2, 1, 1])},
    "Qwen3VLMoeForConditionalGeneration": {"text_config": _SPARSE_SECOND | _rope(mrope_section=[2, 1, 1])},
    "RecurrentGemmaForCausalLM": {"block_types": ("recurrent", "attention")},
    "SwitchTransformersForConditionalGeneration": _T5
    | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "T5ForConditionalGeneration": _T5,
    "Wav2Vec2ForCTC": _SPEECH,
    "Wav2Vec2Model": _SPEECH,
    "YoutuForCausalLM": _LATENT,
}
