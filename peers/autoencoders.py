"""SAELens' own autoencoders beside ours: random ones of every kind, saved by SAELens, have to give the same latents.

SAELens needs an older TransformerLens than this project, and fails to import beside it. Its autoencoders alone need a
base class from there, which is lent to them under its former name.

    python peers/autoencoders.py
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from types import ModuleType
from typing import Any

import torch
import transformer_lens

import allheads as ah

# Of this folder.
from packages import installed  # isort: skip

PACKAGE = "sae-lens==6.54.12"
D_MODEL, LATENTS = 16, 64
KINDS = {
    "standard": ("StandardSAE", {}),
    "jumprelu": ("JumpReLUSAE", {}),
    "topk": ("TopKSAE", {"k": 5}),
    "gated": ("GatedSAE", {}),
}
#: Largest difference, relative to the largest number: products are summed in another order.
TOLERANCE = 1e-5


def main() -> int:
    """1 if any latent or reconstruction differs."""
    saes = _theirs()
    failed = 0
    for kind, (name, settings) in KINDS.items():
        for changes in ({}, {"apply_b_dec_to_input": False}):
            error, count = _difference(saes, name, {**settings, **changes})
            failed += error > TOLERANCE
            print(f"{'ok' if error <= TOLERANCE else 'FAILED':8}{kind:10} {changes}: {count} open, off by {error:.0e}")
    return int(failed > 0)


def _difference(saes: ModuleType, name: str, settings: dict[str, Any]) -> tuple[float, int]:
    torch.manual_seed(0)
    config = getattr(saes, f"{name}Config")(d_in=D_MODEL, d_sae=LATENTS, **settings)
    config.metadata.hook_name = "blocks.3.hook_resid_pre"
    theirs = getattr(saes, name)(config)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for parameter in theirs.parameters():
            parameter.normal_()
        theirs.save_model(folder)
        ours = ah.formats.read_autoencoder(folder)
        assert ours.hook_point == "blocks.3.hook_resid_pre"
        x = torch.randn(50, D_MODEL)
        latents = theirs.encode(x).to_dense()
        pairs = ((latents, ours.encode(x)), (theirs.decode(latents), ours.decode(latents)))
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs), int((latents > 0).sum())


def _theirs() -> ModuleType:
    """The room of SAELens that has its autoencoders."""
    target = installed(PACKAGE, PACKAGE)
    package, lent = ModuleType("sae_lens"), ModuleType("transformer_lens.HookedTransformer")
    vars(package).update(__path__=[str(target / "sae_lens")], __version__="", logger=logging.getLogger("sae_lens"))
    vars(lent).update(HookedRootModule=transformer_lens.HookedRootModule, HookedTransformer=object)
    sys.modules |= {module.__name__: module for module in (package, lent)}
    from sae_lens import saes

    return saes


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
