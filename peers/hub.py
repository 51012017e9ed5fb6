"""Small random models under the names that TransformerLens' tests load: a Hugging Face cache folder without a network.

Architectures, numbers of layers and heads, and sizes of vocabularies are those of the named models where tests ask for
them; widths are small, and every tokenizer is SmolLM2's with the special tokens of its family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from allheads.disk import cache_root, digest, replaced_folder
from allheads.models.reading import no_progress_bars
from allheads.models.sources import find_source
from allheads_labs.zoo.families import CHANGES
from allheads_labs.zoo.settings import small
from allheads_labs.zoo.weights import randomise

_GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 50257, "n_positions": 1024}
_NEO = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "max_position_embeddings": 2048, "vocab_size": 50257}
_NEO |= {"attention_types": [[["global", "local"], 1]], "window_size": 256}
_PYTHIA = {"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 64, "intermediate_size": 256}
_PYTHIA |= {"vocab_size": 50304, "max_position_embeddings": 2048}

#: Name -> the class in transformers, and settings in place of the zoo's.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai-community/gpt2": ("GPT2LMHeadModel", _GPT2 | {"n_layer": 12, "n_head": 12, "n_embd": 96}),
    "distilbert/distilgpt2": ("GPT2LMHeadModel", _GPT2 | {"n_layer": 6, "n_head": 12, "n_embd": 96}),
    "sshleifer/tiny-gpt2": ("GPT2LMHeadModel", _GPT2 | {"n_head": 2}),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", _GPT2),
    "hyper-accel/tiny-random-gpt2": ("GPT2LMHeadModel", _GPT2),
    "Intel/tiny-random-gpt2": ("GPT2LMHeadModel", _GPT2),
    "roneneldan/TinyStories-1M": (
        "GPTNeoForCausalLM",
        _NEO | {"hidden_size": 64, "num_heads": 16, "num_layers": 8, "attention_types": [[["global", "local"], 4]]},
    ),
    "roneneldan/TinyStories-33M": ("GPTNeoForCausalLM", _NEO),
    "EleutherAI/gpt-neo-125M": ("GPTNeoForCausalLM", _NEO),
    "hf-internal-testing/tiny-random-GPTNeoForCausalLM": ("GPTNeoForCausalLM", _NEO),
    "EleutherAI/pythia-70m": ("GPTNeoXForCausalLM", _PYTHIA),
    "EleutherAI/pythia-14m": ("GPTNeoXForCausalLM", _PYTHIA),
    "hf-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", {}),
    "hf-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", {}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", {}),
    "trl-internal-testing/tiny-MistralForCausalLM-0.2": ("MistralForCausalLM", {}),
    "google/gemma-2-2b-it": ("Gemma2ForCausalLM", {}),
    "google/gemma-2-2b": ("Gemma2ForCausalLM", {}),
    "hf-internal-testing/tiny-random-Gemma2ForCausalLM": ("Gemma2ForCausalLM", {}),
    "facebook/opt-125m": ("OPTForCausalLM", {}),
    "hf-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", {}),
    "hf-internal-testing/tiny-random-XGLMForCausalLM": ("XGLMForCausalLM", {}),
    "hf-internal-testing/tiny-random-Olmo2ForCausalLM": ("Olmo2ForCausalLM", {}),
    "allenai/OLMo-2-0425-1B": ("Olmo2ForCausalLM", {}),
    "hf-internal-testing/tiny-random-GraniteForCausalLM": ("GraniteForCausalLM", {}),
    "Qwen/Qwen2-0.5B": ("Qwen2ForCausalLM", {}),
    "Qwen/Qwen2.5-0.5B": ("Qwen2ForCausalLM", {}),
    "Qwen/Qwen2.5-0.5B-Instruct": ("Qwen2ForCausalLM", {}),
    "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5": ("Qwen2ForCausalLM", {}),
    "hyper-accel/ci-random-qwen2-moe-a3b": ("Qwen2MoeForCausalLM", {}),
    "Qwen/Qwen3.5-0.8B": ("Qwen3_5ForConditionalGeneration", {}),
    "trl-internal-testing/tiny-BloomForCausalLM": ("BloomForCausalLM", {}),
    "bigscience/bloom-560m": ("BloomForCausalLM", {}),
    "bigscience/bigscience-small-testing": ("BloomForCausalLM", {}),
    "trl-internal-testing/tiny-CohereForCausalLM": ("CohereForCausalLM", {}),
    "trl-internal-testing/tiny-Cohere2ForCausalLM": ("Cohere2ForCausalLM", {}),
    "trl-internal-testing/tiny-Glm4MoeForCausalLM": ("Glm4MoeForCausalLM", {}),
    "trl-internal-testing/tiny-Llama4ForCausalLM": ("Llama4ForCausalLM", {}),
    "trl-internal-testing/tiny-Qwen3_5MoeForConditionalGeneration-3.6": ("Qwen3_5MoeForConditionalGeneration", {}),
    "trl-internal-testing/tiny-Qwen3_5ForConditionalGeneration": ("Qwen3_5ForConditionalGeneration", {}),
    "trl-internal-testing/tiny-Qwen2AudioForConditionalGeneration": ("Qwen2AudioForConditionalGeneration", {}),
    "optimum-intel-internal-testing/really-tiny-falcon-testing": ("FalconForCausalLM", {}),
    "optimum-intel-internal-testing/tiny-random-ArceeForCausalLM": ("ArceeForCausalLM", {}),
    "optimum-intel-internal-testing/tiny-random-Starcoder2ForCausalLM": ("Starcoder2ForCausalLM", {}),
    "optimum-intel-internal-testing/tiny-random-qwen2.5-vl": ("Qwen2_5_VLForConditionalGeneration", {}),
    "onnx-internal-testing/tiny-random-AfmoeForCausalLM": ("AfmoeForCausalLM", {}),
    "onnx-internal-testing/tiny-random-Gemma3nForConditionalGeneration": ("Gemma3nForConditionalGeneration", {}),
    "badaoui/tiny-random-NemotronForCausalLM": ("NemotronForCausalLM", {}),
    "baidu/ERNIE-4.5-0.3B-PT": ("Ernie4_5ForCausalLM", {}),
    "yujiepan/ernie-4.5-moe-tiny-random": ("Ernie4_5_MoeForCausalLM", {}),
    "yujiepan/smollm3-tiny-random": ("SmolLM3ForCausalLM", {}),
    "yujiepan/llama-4-tiny-random": ("Llama4ForConditionalGeneration", {}),
    "tiny-random/seed-oss": ("SeedOssForCausalLM", {}),
    "tiny-random/minimax-m2": ("MiniMaxM2ForCausalLM", {}),
    "tiny-random/glm-4": ("Glm4ForCausalLM", {}),
    "tiny-random/glm-4.7-flash": ("Glm4MoeLiteForCausalLM", {}),
    "tiny-random/glm-4v": ("Glm4vForConditionalGeneration", {}),
    "tiny-random/mistral-3": ("Mistral3ForConditionalGeneration", {}),
    "tiny-random/qwen3-vl": ("Qwen3VLForConditionalGeneration", {}),
    "tiny-random/qwen3-vl-moe": ("Qwen3VLMoeForConditionalGeneration", {}),
    "tiny-random/gemma-4-dense": ("Gemma4ForConditionalGeneration", {}),
    "zai-org/glm-edge-1.5b-chat": ("GlmForCausalLM", {}),
    "LGAI-EXAONE/EXAONE-4.0-1.2B": ("Exaone4ForCausalLM", {}),
    "LiquidAI/LFM2.5-230M": ("Lfm2ForCausalLM", {}),
    "hmellor/tiny-random-BambaForCausalLM": ("BambaForCausalLM", {}),
    "tiiuae/Falcon-H1-0.5B-Base": ("FalconH1ForCausalLM", {}),
    "tiiuae/Falcon-H1-Tiny-90M-Instruct": ("FalconH1ForCausalLM", {}),
    "tiiuae/falcon-mamba-tiny-dev": ("FalconMambaForCausalLM", {}),
    "state-spaces/mamba-130m-hf": ("MambaForCausalLM", {}),
    "AntonV/mamba2-130m-hf": ("Mamba2ForCausalLM", {}),
    "Zyphra/Zamba2-1.2B": ("Zamba2ForCausalLM", {}),
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": ("NemotronHForCausalLM", {}),
    "microsoft/bitnet-b1.58-2B-4T-bf16": ("BitNetForCausalLM", {}),
    "openai-community/openai-gpt": ("OpenAIGPTLMHeadModel", {}),
    "google-bert/bert-base-cased": (
        "BertForMaskedLM",
        {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 96, "max_position_embeddings": 512},
    ),
    "hf-internal-testing/tiny-random-BertForMaskedLM": ("BertForMaskedLM", {"max_position_embeddings": 512}),
    "distilbert/distilroberta-base": (
        "RobertaForMaskedLM",
        {
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "hidden_size": 96,
        },
    ),
    "google-t5/t5-small": (
        "T5ForConditionalGeneration",
        {"num_layers": 6, "num_heads": 8, "d_model": 64, "d_kv": 8, "d_ff": 256},
    ),
    "google/long-t5-tglobal-base": ("LongT5ForConditionalGeneration", {}),
    "google/pegasus-xsum": ("PegasusForConditionalGeneration", {}),
    "facebook/blenderbot-400M-distill": ("BlenderbotForConditionalGeneration", {"decoder_layers": 12}),
    "ai4bharat/IndicBART": ("MBartForConditionalGeneration", {}),
    "allenai/led-base-16384": ("LEDForConditionalGeneration", {}),
    "stas/tiny-m2m_100": ("M2M100ForConditionalGeneration", {}),
    "hf-internal-testing/tiny-random-M2M100ForConditionalGeneration": ("M2M100ForConditionalGeneration", {}),
    "Helsinki-NLP/opus-mt-nl-en": ("MarianMTModel", {}),
    "Helsinki-NLP/opus-mt-en-de": ("MarianMTModel", {}),
    "facebook/hubert-base-ls960": ("HubertModel", {}),
    "facebook/wav2vec2-base": ("Wav2Vec2Model", {}),
    "google/vit-base-patch16-224": ("ViTForImageClassification", {}),
    "google/vit-base-patch16-224-in21k": ("ViTModel", {}),
    "facebook/deit-small-patch16-224": ("DeiTForImageClassification", {}),
    "facebook/deit-small-distilled-patch16-224": ("DeiTForImageClassificationWithTeacher", {}),
}
#: Other names of the same.
ALSO = {
    "gpt2": "openai-community/gpt2",
    "distilgpt2": "distilbert/distilgpt2",
    "bert-base-cased": "google-bert/bert-base-cased",
    "t5-small": "google-t5/t5-small",
    "distilroberta-base": "distilbert/distilroberta-base",
}
_REVISION = "0" * 40
#: Special tokens by the start of a class's name; the rest has the end of text at both ends, as GPT-2.
_END, _START, _STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_STARTED = ("Llama", "Mistral", "Gemma", "Cohere", "Granite")
_MASKED = ("Bert", "Roberta")


def build() -> Path:
    """Make every model that is not there yet, for these settings; returns what ``HF_HOME`` is to be."""
    home = cache_root() / "peers" / f"models-{digest(Path(__file__))[:16]}"
    home.mkdir(parents=True, exist_ok=True)
    (home / "hub").mkdir(exist_ok=True)
    for name, (kind, changes) in MODELS.items():
        target = folder(home, name).parent.parent
        if not target.exists():
            with replaced_folder(target) as scratch:
                _save(scratch / "snapshots" / _REVISION, kind, changes)
                (scratch / "refs").mkdir()
                (scratch / "refs" / "main").write_text(_REVISION)
    for also, name in ALSO.items():
        link = folder(home, also).parent.parent
        if not link.exists():
            link.symlink_to(folder(home, name).parent.parent.name)
    return home


def folder(home: Path, name: str) -> Path:
    """Where a model is."""
    return home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / _REVISION


def _save(folder: Path, kind: str, changes: Mapping[str, Any]) -> None:
    tokenizer = _tokenizer(kind)
    model_class = getattr(transformers, kind)
    config = small(model_class.config_class(), _with_vocabulary(kind, changes, tokenizer))
    config._attn_implementation = config._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = model_class(config)
        randomise(model)
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _with_vocabulary(kind: str, changes: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The zoo's settings for a class, the tokenizer's ids, and then a model's own settings."""
    default = getattr(transformers, kind).config_class()
    if "text_config" in vars(default):
        words = ("vocab_size", "vocab_size_per_layer_input")
        text = CHANGES.get(kind, {}).get("text_config", {})
        text |= {name: len(tokenizer) for name in words if hasattr(default.text_config, name)}
        return CHANGES.get(kind, {}) | {"text_config": text} | dict(changes)
    given = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id or 0,
        "max_position_embeddings": 512,
    }
    known = {default.attribute_map.get(name, name): value for name, value in given.items() if hasattr(default, name)}
    return CHANGES.get(kind, {}) | known | dict(changes)


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    made = Tokenizer.from_file(str(Path(find_source("smollm2-135m").where) / "tokenizer.json"))
    special = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
    if kind.startswith(_STARTED):
        special = {"bos_token": _START, "eos_token": _STOP, "unk_token": _END, "pad_token": _END}
        made.post_processor = TemplateProcessing(
            single=f"{_START} $A", pair=f"{_START} $A {_START} $B", special_tokens=[(_START, 1)]
        )
    if kind.startswith(_MASKED):
        made.add_special_tokens(["[CLS]", "[SEP]", "[MASK]"])
        ids = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        made.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": _START}
        special |= {"unk_token": _END}
    if "ConditionalGeneration" in kind or "Marian" in kind:
        special = {"eos_token": _STOP, "pad_token": _END, "unk_token": _END}
        made.post_processor = TemplateProcessing(
            single=f"$A {_STOP}", pair=f"$A {_STOP} $B {_STOP}", special_tokens=[(_STOP, 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)
