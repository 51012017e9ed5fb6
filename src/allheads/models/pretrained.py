"""Load a pretrained model as a TransformerLens bridge.

1. Where is it? A packaged model, a GGUF file, a model folder or a Hugging Face id, which is fetched into a folder.
2. A GGUF file becomes a model folder in the cache (`allheads.models.sources`, `allheads.models.gguf`).
3. transformers reads the model from its folder, in safetensors only, without custom code and without a network; the
   weights must be complete and finite.
4. TransformerLens wraps it, and text is tokenised as the model's own tokenizer does it.
5. What was read is noted on the bridge, so that a twin of it can be saved without its weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from allheads.disk import named_path
from allheads.errors import AllHeadsError
from allheads.models.compat import offline
from allheads.models.headless import HEADLESS, register_headless
from allheads.models.names import PACKAGED
from allheads.models.origin import mark_loaded
from allheads.models.reading import explained, no_progress_bars, read_model, require_finite
from allheads.models.sources import commit_of, fetched, find_source

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "special_tokens_map.json")


def load(
    name_or_path: str | Path = "smollm2-135m",
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    network: bool = True,
    revision: str | None = None,
) -> TransformerBridge:
    """Load a pretrained model, ready for hooks and for conversion.

    Args:
        name_or_path: a packaged model's short name (``"smollm2-135m"``), a Hugging Face model folder, a
            ``.gguf`` file, or a Hugging Face id ``"org/name"``, the only kind that needs a network.
        dtype: float32, float64, bfloat16 or float16; the weights are cast to it.
        device: where the weights go.
        network: may the Hugging Face Hub be asked? Otherwise a model of it has to be in its cache on this machine.
        revision: the commit of a model of the Hub, if that is in the cache; otherwise the newest.

    Returns:
        The model in evaluation mode. ``to_tokens(text)`` gives the ids that the model's own tokenizer gives,
        so a beginning-of-sequence token is there only if that tokenizer adds one.

    Raises:
        AllHeadsError: there is no such model; it is incomplete, damaged or holds NaN or infinite weights;
            its format is not read here (pickles, custom code, unknown architectures); or the dtype or
            device cannot be used.

    Example:
        >>> model = load()  # doctest: +SKIP
        >>> model.to_str_tokens("Nothing but heads")  # doctest: +SKIP
        ['Nothing', ' but', ' heads']
    """
    _check_target(dtype, device)
    source = find_source(name_or_path)
    folder = Path(source.where) if source.local else fetched(source.name, network, revision)
    with offline(), no_progress_bars():
        model, tokenizer = _read(source.name, folder, dtype)
        require_finite(model)
        bridge = _bridge(folder, model.to(device), tokenizer, dtype)
        bridge.cfg.model_name = source.name
    # A file is found again from any working directory.
    relative = source.local and name_or_path not in PACKAGED
    known_as = str(named_path(name_or_path).resolve() if relative else name_or_path)
    mark_loaded(bridge, known_as, dtype, None if source.local else commit_of(folder))
    return bridge


def _check_target(dtype: torch.dtype, device: str | torch.device) -> None:
    if dtype not in DTYPES:
        raise AllHeadsError(f"a dtype among {', '.join(map(str, DTYPES))}", repr(dtype), "Try torch.float32.")
    with explained("a device that this PyTorch can use", 'Try device="cpu".'):
        torch.empty(1, device=device)


def _read(name: str, folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    options = {"local_files_only": True, "trust_remote_code": False}
    with explained(
        f"a readable model in the folder {name}",
        "A file there may be damaged or incomplete: save or fetch the model again.",
    ):
        config = AutoConfig.from_pretrained(folder, **options)
        # Eager attention is what TransformerLens needs to show patterns.
        model = read_model(
            str(folder),
            config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="eager",
            local_files_only=True,
        )
        if not any(any(folder.glob(name)) for name in _TOKENIZER_FILES):
            return model, None
        return model, AutoTokenizer.from_pretrained(folder, **options)


def _bridge(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype
) -> TransformerBridge:
    register_headless()
    with explained("a model that TransformerLens can wrap", "Its documentation lists the architectures."):
        # Asked of the original: TransformerLens swaps in a tokenizer that always adds the token, and
        # removes it again where the default says so.
        adds_bos = tokenizer is not None and _adds_bos(tokenizer)
        kind = type(model).__name__
        if tokenizer is None or kind in HEADLESS:  # token ids still work; of a headless model the class is believed
            bridge = build_bridge_from_module(model, kind, hf_config=model.config, tokenizer=tokenizer)
        else:
            bridge = TransformerBridge.boot_transformers(
                str(folder), hf_model=model, tokenizer=tokenizer, device=model.device, dtype=dtype
            )
        if tokenizer is not None:
            bridge.cfg.default_prepend_bos = adds_bos
    return bridge


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    first_ids = {tokenizer.bos_token_id, getattr(tokenizer, "cls_token_id", None)} - {None}
    ids = tokenizer("a").input_ids
    return bool(ids) and ids[0] in first_ids
