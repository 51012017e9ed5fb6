"""What passes at a hook point, and what nnterp and interp-engine call it: one dictionary, by kind of point.

The kind is the point's first name without its stack and layer: ``mlp.hook_out`` for ``blocks.3.mlp.hook_out``. ``{}``
stands for the layer. Names of others are there only where the tensor is the same one: what a block's ``hook_mlp_out``
passes is the first name of another point, ``ln2_post.hook_out``, where there is a norm behind the MLP.
"""

from __future__ import annotations

from typing import NamedTuple

STREAM, IDS = "batch pos d_model", "batch pos"
_NEURONS, _PER_HEAD, _HEADS = "batch pos d_mlp", "batch pos head d_head", "batch pos kv_head d_head"
_PATTERN, _SLOTS = "batch head query key", "batch head pos slot"


class Meaning(NamedTuple):
    """What passes, with which axes, and its names elsewhere; empty where there is none."""

    what: str
    shape: str
    nnterp: str = ""
    interp_engine: str = ""


#: Where a stack begins and ends.
_ENDS = {
    "embed.hook_in": Meaning("ids of the tokens", IDS),
    "embed.hook_out": Meaning("embeddings of the tokens", STREAM, "token_embeddings", 'cache["embeddings"]'),
    "pos_embed.hook_in": Meaning("numbers of the positions", IDS),
    "pos_embed.hook_out": Meaning("embeddings of the positions", STREAM),
    "rotary_emb.hook_in": Meaning("the stream before layer 0, asked for its dtype only", STREAM),
    "rotary_emb.hook_out": Meaning("nothing: cosines and sines have points of their own", ""),
    "rotary_emb.hook_cos": Meaning("cosines of the rotation at each position", "1 pos d_rotary"),
    "rotary_emb.hook_sin": Meaning("sines of the rotation at each position", "1 pos d_rotary"),
    "ln_final.hook_out": Meaning("the stream behind the last norm", STREAM, "ln_final.output", 'cache["final_norm"]'),
    "unembed.hook_in": Meaning("what the unembedding reads", STREAM, "lm_head.input", 'cache["final_norm"]'),
    "unembed.hook_out": Meaning(
        "what the unembedding gives", "batch pos d_vocab", "lm_head.output", 'cache["lm_head"]'
    ),
}
#: The stream of a layer, under the names that TransformerLens has for it.
STREAMS = {
    "hook_resid_pre": Meaning("the stream before the layer", STREAM, "layers_input[{}]", 'cache["resid_pre", {}]'),
    "hook_resid_mid": Meaning("the stream between attention and MLP", STREAM, "", 'cache["resid_mid", {}]'),
    "hook_resid_post": Meaning("the stream after the layer", STREAM, "layers_output[{}]", 'cache["resid_post", {}]'),
}
_ATTENTION = {
    "attn.hook_in": Meaning("what attention reads", STREAM, "attentions_input[{}]", 'cache["attn_in", {}]'),
    "attn.q.hook_in": Meaning("what the queries' projection reads", STREAM),
    "attn.q.hook_out": Meaning("queries", _PER_HEAD),
    "attn.k.hook_in": Meaning("what the keys' projection reads", STREAM),
    "attn.k.hook_out": Meaning("keys", _HEADS),
    "attn.v.hook_in": Meaning("what the values' projection reads", STREAM),
    "attn.v.hook_out": Meaning("values", _HEADS, "", 'cache["value", {}]'),
    "attn.hook_rot_q": Meaning("queries, rotated", _PER_HEAD),
    "attn.hook_rot_k": Meaning("keys, rotated", _HEADS),
    "attn.hook_cos": Meaning("cosines of the rotation at each position", "1 pos d_rotary"),
    "attn.hook_sin": Meaning("sines of the rotation at each position", "1 pos d_rotary"),
    "attn.hook_attn_scores": Meaning("scores before the softmax", _PATTERN, "", 'cache["attn_scores", {}]'),
    "attn.hook_pattern": Meaning(
        "attention patterns", _PATTERN, "attention_probabilities[{}]", 'cache["attn_probs", {}]'
    ),
    "attn.o.hook_in": Meaning("values that each head has fetched", _PER_HEAD, "", 'cache["z", {}]'),
    "attn.o.hook_out": Meaning("what the output projection gives", STREAM),
    "attn.hook_result": Meaning(
        "what each head writes, after twin.set_use_attn_result(True)", "batch pos head d_model"
    ),
    "attn.hook_hidden_states": Meaning("what attention gives, where its projections are one; else nothing", STREAM),
    "attn.qkv.hook_in": Meaning("nothing: queries, keys and values have points of their own", ""),
    "attn.qkv.hook_out": Meaning("nothing: queries, keys and values have points of their own", ""),
    "attn.hook_out": Meaning("what attention gives", STREAM, "attentions_output[{}]", 'cache["attn_out", {}]'),
    "ln1_post.hook_out": Meaning("what attention adds to the stream", STREAM, "", 'cache["attn_out_post", {}]'),
}
for _side, _what in (("q", "queries"), ("k", "keys")):
    for _end, _verb in (("in", "reads"), ("out", "gives")):
        _ATTENTION[f"attn.{_side}_norm.hook_{_end}"] = Meaning(
            f"what the norm of the {_what} {_verb}", "", "", f'cache["{_side}_norm_{_end}", {{}}]'
        )
_SPLIT = "the stream before the norm, for each head, after twin.set_use_{}(True)"
_SPLITS = {
    "attn.hook_attn_in": Meaning(_SPLIT.format("attn_in"), "batch pos head d_model"),
    "attn.hook_q_input": Meaning(_SPLIT.format("split_qkv_input"), "batch pos head d_model"),
    "attn.hook_k_input": Meaning(_SPLIT.format("split_qkv_input"), "batch pos kv_head d_model"),
    "attn.hook_v_input": Meaning(_SPLIT.format("split_qkv_input"), "batch pos kv_head d_model"),
    "hook_mlp_in": Meaning("the stream before the MLP's norm, after twin.set_use_hook_mlp_in(True)", STREAM),
}
_MLP = {
    "mlp.hook_in": Meaning("what the MLP reads", STREAM, "mlps_input[{}]", 'cache["mlp_in", {}]'),
    "mlp.gate.hook_in": Meaning("the stream, as the preactivation's projection reads it", STREAM),
    "mlp.gate.hook_out": Meaning("preactivations", _NEURONS, "", 'cache["mlp_pre", {}]'),
    "mlp.in.hook_in": Meaning("the stream, as this projection reads it", STREAM),
    "mlp.in.hook_out": Meaning("preactivations", _NEURONS, "", 'cache["mlp_pre", {}]'),
    "mlp.out.hook_in": Meaning("activations of the neurons", _NEURONS, "", 'cache["mlp_act", {}]'),
    "mlp.out.hook_out": Meaning("what the output projection gives", STREAM),
    "mlp.hook_out": Meaning("what the MLP gives", STREAM, "mlps_output[{}]", 'cache["mlp_out", {}]'),
    "ln2_post.hook_out": Meaning("what the MLP adds to the stream", STREAM, "", 'cache["mlp_out_post", {}]'),
}
#: Of neurons that are gated: what their activation is multiplied by.
GATED_VALUE = Meaning("the value that the activation multiplies", _NEURONS, "", 'cache["mlp_pre_linear", {}]')
#: Of neurons as heads; nobody else has these.
_NEURON_HEADS = {
    "mlp.hook_query_in": Meaning("the stream, as the preactivation's projection reads it", STREAM),
    "mlp.hook_value_in": Meaning("the stream, as the value's projection reads it", STREAM),
    "mlp.hook_pre": Meaning("preactivations", _NEURONS),
    "mlp.hook_pre_linear": Meaning("the value that the activation multiplies", _NEURONS),
    "mlp.hook_q": Meaning("queries of the neurons' heads", _PER_HEAD),
    "mlp.hook_v": Meaning("values of the neurons' heads", _PER_HEAD),
    "mlp.hook_attn_scores": Meaning("scores of the neurons' heads: slot 0 the token itself, then bias tokens", _SLOTS),
    "mlp.hook_pattern": Meaning("patterns of the neurons' heads, the same slots", _SLOTS),
    "mlp.hook_pattern_self": Meaning("patterns on the token itself: the gates", "batch head pos"),
    "mlp.hook_z": Meaning("gate times value, of each head", _PER_HEAD),
    "mlp.hook_result": Meaning("what each head of a neuron writes; large", "batch pos head d_model"),
    "mlp.hook_post": Meaning("activations of the neurons", _NEURONS),
}
#: The last part of a norm's points, whatever the norm is called.
NORMS = {
    "hook_in": Meaning("what the norm reads", STREAM),
    "hook_out": Meaning("what the norm gives", STREAM),
    "hook_normalized": Meaning("the same before the norm's weights", STREAM),
    "hook_scale": Meaning("what the norm divides by", "batch pos 1"),
}
KINDS = _ENDS | _ATTENTION | _SPLITS | _MLP | _NEURON_HEADS
