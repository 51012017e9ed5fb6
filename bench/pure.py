"""The pure twin of SmolLM2 on 64 tokens: file size, time, memory and distance from the source, as JSON. 2 threads."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path

import torch

import allheads as ah
from allheads.verification.samples import sample_texts

RUNS = (
    ("explicit", torch.float64),
    ("explicit", torch.float32),
    ("weights", torch.float64),
    ("weights", torch.float32),
)


def main() -> None:
    torch.set_num_threads(2)
    source = ah.load()
    tokens = source.to_tokens(sample_texts()[0])[:, :64]
    with torch.no_grad():
        wanted = source(tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "smollm2.safetensors"
        ah.pure.export(ah.convert(source), path)
        result: dict[str, object] = {"gigabytes": round(path.stat().st_size / 1e9, 3)}
        for masks, dtype in RUNS:
            started = time.perf_counter()
            got = ah.pure.run(path, tokens, pattern_dtype=dtype, masks=masks)
            result[f"{masks}, {str(dtype).removeprefix('torch.')}"] = {
                "seconds": round(time.perf_counter() - started, 1),
                "max_logit_error": float((got - wanted).abs().max()),
                "top1_agreement": float((got.argmax(-1) == wanted.argmax(-1)).double().mean()),
            }
    result["peak_gigabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
