"""A model that fills the memory: peaks of loading a random Llama of 1.5 billion parameters, and of converting it.

Writes the model into a temporary folder, in shards of 500 MB, and runs each measurement in a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 26,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}


def write(folder: str) -> int:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, dtype="bfloat16")).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")
    return sum(p.numel() for p in model.parameters())


def measure(folder: str, convert: bool) -> dict[str, float]:
    """Peak resident memory in GB and seconds of one process."""
    import allheads as ah

    started = time.perf_counter()
    source = ah.load(folder, dtype=torch.bfloat16)
    loaded = time.perf_counter()
    found = {"load_s": loaded - started}
    if convert:
        twin = ah.convert(source)
        found |= {"convert_s": time.perf_counter() - loaded, "heads": sum(b.d_mlp * b.gates.heads for b in twin.banks)}
    return found | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[2], sys.argv[1] == "convert")))
        return
    with tempfile.TemporaryDirectory() as folder:
        # The writer holds the model itself, so it is a process of its own, too.
        count = subprocess.run(
            [sys.executable, "-c", f"import big; print(big.write({folder!r}))"],
            cwd=sys.path[0],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        runs = {
            what: json.loads(
                subprocess.run(
                    [sys.executable, __file__, what, folder], check=True, capture_output=True, text=True
                ).stdout.splitlines()[-1]
            )
            for what in ("load", "convert")
        }
    ratio = runs["convert"]["peak_gb"] / runs["load"]["peak_gb"]
    print(json.dumps({"parameters": int(count.split()[-1]), **runs, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
