"""Random weights whose activations are really used.

At the usual initialisation (standard deviation 0.02) preactivations stay below 1, where every activation is nearly
a straight line, and routers decide by rounding. Here every projection keeps the size of what it reads, except the
first ones of MLPs: they make it four times as large, so that activations see [-6, 6] and more.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

#: First projections of MLPs and of experts, by the end of their path.
_FIRST = re.compile(
    r"(gate_proj|up_proj|gate_up_proj|fc1|fc_in|c_fc|wi|wi_0|wi_1|Wi|w1|w3|dense_h_to_4h|intermediate(\.|_)dense"
    r"|input_linear|feed_forward\.key|mlp\.(fc_in|gate|in))$"
)
#: Attention has gates of its own, under the same name.
_NOT_FIRST = re.compile(r"attn|attention|indexer|compressor")
#: Steps and decays of recurrences, and corrections of routers: their own initialisation keeps the model stable.
_SPECIAL = re.compile(r"dt_proj|dt_bias|A_log|rg_lru|linear_attn\.conv|e_score_correction|hc_|altup|parametrizations")
#: How much larger a first projection makes what it reads; standard deviations of biases, gains and embeddings.
STRETCH, BIAS, GAIN, EMBEDDING = 4.0, 0.2, 0.1, 0.5
#: What transformers leaves at zero for checkpoints to fill: mean and standard deviation.
_EMPTY = {
    "cls_token": (0.0, EMBEDDING),
    "distillation_token": (0.0, EMBEDDING),
    "position_embeddings": (0.0, EMBEDDING),
    "correct_output_scale": (1.0, GAIN),
}


def randomise(model: nn.Module) -> None:
    """Draw the weights of every projection, norm and embedding anew; other parameters mostly stay as they are."""
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name in _EMPTY:
                    parameter.normal_(*_EMPTY[name])
                elif parameter.requires_grad and not _SPECIAL.search(f"{path}.{name}"):
                    _draw(path, module, name, parameter)
            if isinstance(table := getattr(module, "tid2eid", None), Tensor):
                # Which experts a word goes to; left alone, all go to the first.
                experts = module.get_parameter("weight").shape[0]
                table.copy_(torch.rand(table.shape[0], experts).argsort(dim=1)[:, : table.shape[1]])


def _draw(path: str, module: nn.Module, name: str, parameter: Tensor) -> None:
    if isinstance(module, nn.Embedding):
        parameter.normal_(std=EMBEDDING)
    elif "Norm" in type(module).__name__ and parameter.ndim == 1:
        # A gain is stored as itself or less 1, and an offset as itself: all three are moved a little.
        parameter.add_(torch.randn_like(parameter), alpha=GAIN)
    elif name.endswith("bias"):
        parameter.normal_(std=BIAS)
    elif name.endswith("weight") or (parameter.ndim == 3 and "experts" in path):
        where = path if name == "weight" else f"{path}.{name}"
        stretch = STRETCH if _FIRST.search(where) and not _NOT_FIRST.search(where) else 1.0
        parameter.normal_(std=stretch / math.sqrt(_fan_in(module, parameter)))


def _fan_in(module: nn.Module, weight: Tensor) -> int:
    if isinstance(module, Conv1D):
        return weight.shape[0]
    if isinstance(module, _ConvNd):
        return weight[0].numel()
    # Stacks of experts have their inputs last, or in the middle: the shorter axis is right in nearly all of them.
    return min(weight.shape[1:]) if weight.ndim == 3 else weight.shape[-1]
