r"""A transformer that is attention and nothing else, run from one file. Needs torch and safetensors, no other package.

The file holds an embedding, an unembedding and a list of sublayers, and every sublayer is

    x  <-  x + sum_heads softmax(scale q k^T + offsets, masked) v W_O,      q, k, v = norm(x) W_{Q,K,V} + b_{Q,K,V},

so that nothing acts on a position but matrix products, softmax and norms. Every head, ordinary or once a neuron, goes
through `attend`, which computes its pattern literally over all positions.

``masks="explicit"``: a mask is a boolean matrix, and bias tokens are further keys (of value zero).
``masks="weights"``: there is no mask, no bias vector and no further key. The stream is augmented by one coordinate per
position, and the bias tokens are real positions of it; see `in_weights`. Norms act on the original coordinates only.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

FORMAT, VERSION = "allheads.pure", 2
#: Bytes of a header that are read: more than the largest models need.
HEADER = 2**23
#: Numbers worked on at a time by a few heads: a quarter of a gigabyte in float64.
CHUNK = 2**25
#: Who is seen, by how many positions ahead of the key the query is.
MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "self": lambda ahead: ahead == 0,
    "causal": lambda ahead: ahead >= 0,
}


@dataclass(frozen=True)
class Heads:
    """Heads of one shape. A tensor that is None is zero; a mask lets a token see bias tokens and whom it names."""

    W_O: Tensor  # [head d_head d_model]
    W_Q: Tensor | None = None  # [head d_model d_head], as W_K and W_V
    W_K: Tensor | None = None
    W_V: Tensor | None = None
    b_Q: Tensor | None = None  # [head d_head], as b_K and b_V
    b_K: Tensor | None = None
    b_V: Tensor | None = None
    bias_keys: Tensor | None = None  # [head token d_head]
    bias_offsets: Tensor | None = None  # [head token], added to scale q . key; minus infinity masks a token
    rotary: Tensor | None = None  # [half] frequencies: coordinate i turns with i + half
    mask: str = "self"  # or "causal"
    window: int | None = None  # a causal mask may end this many positions back
    scale: float = 1.0
    rotary_scale: float = 1.0

    @property
    def tokens(self) -> int:
        """How many bias tokens each head has."""
        return 0 if self.bias_keys is None else self.bias_keys.shape[1]

    def part(self, some: slice) -> Heads:
        """Some of the heads."""
        return replace(self, **{name: tensor[some] for name, tensor in self.tensors().items() if name != "rotary"})

    def to(self, dtype: torch.dtype) -> Heads:
        """The same heads in another dtype."""
        return self.mapped(lambda tensor: tensor.to(dtype))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Heads:
        """The heads with a function applied to every tensor."""
        changed: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def tensors(self) -> dict[str, Any]:
        """The tensors there are, by name."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Norm:
    """``gain * x / rms(x) + shift``, where x is centred first for a LayerNorm."""

    gain: Tensor
    shift: Tensor
    centred: bool
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of the last axis."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return self.gain.to(x) * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() + self.shift.to(x)


@dataclass(frozen=True)
class Sublayer:
    """Heads that read the same normed stream."""

    name: str
    heads: list[Heads]
    norm: Norm | None = None


@dataclass(frozen=True)
class Pure:
    """A whole model: ``embed [d_vocab d_model]``, ``positions [n_ctx d_model]``, ``unembed [d_model d_vocab]``."""

    name: str
    n_ctx: int
    embed: Tensor
    unembed: Tensor
    sublayers: list[Sublayer] = field(default_factory=list)
    positions: Tensor | None = None
    final_norm: Norm | None = None
    unembed_bias: Tensor | None = None


def patterns(x: Tensor, heads: Heads, allowed: Tensor | None = None) -> Tensor:
    """``softmax(scale q k^T + offsets)`` over all positions and bias tokens, ``[head query key]``."""
    score = scores(x, heads)
    return (score if allowed is None else score.masked_fill(~allowed, -torch.inf)).softmax(-1)


def scores(x: Tensor, heads: Heads) -> Tensor:
    """``scale q k^T + offsets`` before any mask, ``[head query key]``."""
    score = heads.scale * (queries(x, heads) @ keys(x, heads).mT)
    if heads.bias_offsets is not None:
        score[:, :, len(x) :] += heads.bias_offsets[:, None]
    return score


def attend(x: Tensor, heads: Heads, allowed: Tensor | None = None, pattern_dtype: torch.dtype | None = None) -> Tensor:
    """What the heads write at every position of ``x [pos d_model]``: the one code path of this file.

    Patterns are computed in ``pattern_dtype``, values and outputs in the dtype of x.
    """
    dtype = pattern_dtype or x.dtype
    pattern = patterns(x.to(dtype), heads.to(dtype), allowed).to(x.dtype)
    return torch.einsum("hqe,hed->qd", pattern @ values(x, heads), heads.W_O)


def queries(x: Tensor, heads: Heads) -> Tensor:
    """``x W_Q + b_Q``, turned, ``[head query d_head]``."""
    return _rotated(_projected(x, heads.W_Q, heads.b_Q, heads), heads)


def keys(x: Tensor, heads: Heads) -> Tensor:
    """``x W_K + b_K``, turned, and the keys of the bias tokens, ``[head key d_head]``."""
    real = _rotated(_projected(x, heads.W_K, heads.b_K, heads), heads)
    return real if heads.bias_keys is None else torch.cat([real, heads.bias_keys], 1)


def values(x: Tensor, heads: Heads) -> Tensor:
    """``x W_V + b_V``, and 0 for every bias token, ``[head key d_head]``."""
    return F.pad(_projected(x, heads.W_V, heads.b_V, heads), (0, 0, 0, heads.tokens))


def _projected(x: Tensor, weight: Tensor | None, bias: Tensor | None, heads: Heads) -> Tensor:
    out = x.new_zeros(len(heads.W_O), len(x), heads.W_O.shape[1]) if weight is None else x @ weight
    return out if bias is None else out + bias[:, None]


def _rotated(q: Tensor, heads: Heads) -> Tensor:
    if heads.rotary is None:
        return q
    half = len(heads.rotary)
    angle = torch.arange(q.shape[1])[:, None] * heads.rotary
    cos, sin = angle.cos() * heads.rotary_scale, angle.sin() * heads.rotary_scale
    first, second = q[..., :half], q[..., half : 2 * half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, q[..., 2 * half :]], -1)


def allowed(heads: Heads, length: int) -> Tensor:
    """Which keys each query sees, ``[1|head query key]``: those of the mask, and every bias token."""
    ahead = torch.arange(length)[:, None] - torch.arange(length)
    seen = MASKS[heads.mask](ahead)
    if heads.window is not None:
        seen = seen & (ahead < heads.window)
    seen = F.pad(seen, (0, heads.tokens), value=True)[None]
    if heads.bias_offsets is None:
        return seen
    open_to = F.pad(heads.bias_offsets > -torch.inf, (length, 0), value=True)
    return seen & open_to[:, None]


def in_weights(heads: Heads, seen: Tensor, omega: float, rest: Tensor) -> Heads:
    r"""The same heads without mask, biases and bias keys, on a stream ``[x | one-hot of the position]``.

    Real tokens come first, then the bias tokens, whose normed stream always is ``rest [token d_model]``. The one-hot
    block adds to the score of i and j

        omega * seen[i, j]  (+ the offset of bias token j),

    so that what may not be seen keeps at most ``e^-omega`` times its weight. Bias vectors are rows of the one-hot
    block at real positions. At bias positions the rows take away what the heads read in ``rest`` and hold the bias
    keys: a bias token has value zero, and sees only itself.
    """
    length, count, (n, d_head, d_model) = seen.shape[1], heads.tokens, heads.W_O.shape
    positions = length + len(rest)
    real, bias = slice(d_model, d_model + length), slice(d_model + length, d_model + positions)
    keys = heads.W_O.new_zeros(n, len(rest), d_head)
    block = heads.W_O.new_zeros(n, positions, positions)
    block[:, :length, : length + count] = omega * seen.to(block)
    block[:, length:, length:] += omega * torch.eye(len(rest)).to(block)
    if heads.bias_keys is not None:
        keys[:, :count] = heads.bias_keys
    if heads.bias_offsets is not None:
        offsets = heads.bias_offsets.masked_fill(heads.bias_offsets == -torch.inf, 0.0)
        block[:, :length, length : length + count] += offsets[:, None]

    def augmented(weight: Tensor | None, bias_vector: Tensor | None, at_bias: Tensor, width: int) -> Tensor:
        out = heads.W_O.new_zeros(n, d_model + positions, width)
        out[:, bias, :d_head] = at_bias
        if weight is not None:
            out[:, :d_model, :d_head] = weight
            out[:, bias, :d_head] -= rest @ weight
        if bias_vector is not None:
            out[:, real, :d_head] = bias_vector[:, None]
        return out

    W_Q = augmented(heads.W_Q, heads.b_Q, torch.zeros_like(keys), d_head + positions)
    W_K = augmented(heads.W_K, heads.b_K, keys, d_head + positions)
    W_V = augmented(heads.W_V, heads.b_V, torch.zeros_like(keys), d_head)
    W_Q[:, d_model:, d_head:] = block / heads.scale
    W_K[:, d_model:, d_head:] = torch.eye(positions)
    W_O = F.pad(heads.W_O, (0, positions))
    bare: dict[str, Any] = dict.fromkeys(("b_Q", "b_K", "b_V", "bias_keys", "bias_offsets"))
    return replace(heads, W_Q=W_Q, W_K=W_K, W_V=W_V, W_O=W_O, **bare)


def spread(x: Tensor, heads: Heads, seen: Tensor) -> float:
    """By how much a hidden score exceeds the largest seen score of its row; minus infinity if none is hidden."""
    score = scores(x, heads)
    ahead = score.masked_fill(seen, -torch.inf).amax(-1) - score.masked_fill(~seen, -torch.inf).amax(-1)
    return float(ahead.max())


def omega_for(x: Tensor, heads: Heads, seen: Tensor) -> float:
    """An omega with which what is hidden keeps no more weight than the rounding of the dtype."""
    return max(0.0, spread(x, heads, seen)) + math.log(seen.shape[-1] / torch.finfo(x.dtype).eps)


def logits(model: Pure, tokens: Tensor, pattern_dtype: torch.dtype, masks: str) -> Tensor:
    """``[pos d_vocab]`` in float64 for tokens ``[pos]``."""
    length = len(tokens)
    x = model.embed[tokens].double()
    if model.positions is not None:
        x = x + model.positions[:length]
    if masks == "weights":
        count = max((heads.tokens for sublayer in model.sublayers for heads in sublayer.heads), default=0)
        x = torch.cat([x, bias_stream(model).to(x).expand(count, -1)])
    for sublayer in model.sublayers:
        x = x + write(x, length, sublayer, masks, pattern_dtype)
    return final(model, x[:length])


def bias_stream(model: Pure) -> Tensor:
    """Where the stream of a bias token stays: at 0, or, where norms would blow up what leaks into a 0, far from it."""
    stream = torch.zeros(model.embed.shape[1])
    if any(sublayer.norm is not None for sublayer in model.sublayers):
        stream[::2], stream[1::2] = 2.0**14, -(2.0**14)
    return stream


def final(model: Pure, x: Tensor) -> Tensor:
    """From the stream to the logits."""
    out = (x if model.final_norm is None else model.final_norm(x)) @ model.unembed.to(x.dtype)
    return out if model.unembed_bias is None else out + model.unembed_bias.to(x.dtype)


def write(
    x: Tensor, length: int, sublayer: Sublayer, masks: str = "explicit", pattern_dtype: torch.dtype = torch.float64
) -> Tensor:
    """What a sublayer adds to the stream ``x [pos d_model]``; positions from ``length`` on are bias tokens."""
    total = torch.zeros_like(x)
    x = x if sublayer.norm is None else sublayer.norm(x)
    augmented = torch.cat([x, torch.eye(len(x)).to(x)], 1)
    for heads in _chunks(sublayer.heads, *augmented.shape):
        some = heads.to(x.dtype)
        seen = allowed(some, length)
        if masks == "explicit":
            total += attend(x, some, seen, pattern_dtype)
        else:
            omega = omega_for(x[:length].to(pattern_dtype), some.to(pattern_dtype), seen)
            weights = in_weights(some, seen, omega, x[length:])
            total += attend(augmented, weights, None, pattern_dtype)[:, : x.shape[1]]
    return total


def _chunks(groups: list[Heads], positions: int, width: int) -> Iterator[Heads]:
    """A few heads at a time: as many as keep their patterns and augmented weights below `CHUNK` numbers."""
    for heads in groups:
        d_head = heads.W_O.shape[1]
        each = positions * (positions + heads.tokens + 4 * d_head) + 2 * width * (d_head + positions)
        some = max(1, CHUNK // each)
        yield from (heads.part(slice(start, start + some)) for start in range(0, len(heads.W_O), some))


def load(path: str | Path) -> Pure:
    """Read and check a file. Raises ValueError, with the reason, unless it is whole and holds a pure model."""
    try:
        if not Path(path).is_file():  # to read a pipe would be to wait
            raise ValueError("no file")
        with Path(path).open("rb") as file:
            if int.from_bytes(file.read(8), "little") > HEADER:
                raise ValueError(f"a header of more than {HEADER:,} bytes")
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not isinstance(header, dict) or header.get("version") != VERSION:
            raise ValueError(f"no header of version {VERSION}")
        if header.pop("checksum", None) != zlib.crc32(json.dumps(header).encode()):
            raise ValueError("the header does not have its checksum")
        for name, tensor in tensors.items():
            if header["checksums"].get(name) != checksum(tensor):
                raise ValueError(f"{name} does not have its checksum")
        model = _unpacked(header["model"], tensors)
        _check_shapes(model)
    except Exception as error:  # what is no pure model fails in many ways
        raise _refused(path, str(error).partition("\n")[0] or type(error).__name__) from error
    return model


def run(
    path: str | Path, tokens: Tensor, *, pattern_dtype: torch.dtype = torch.float64, masks: str = "explicit"
) -> Tensor:
    """Logits of the model in a file for ``tokens [pos]`` or ``[batch pos]``.

    Args:
        path: a file that `allheads.pure.export` wrote.
        tokens: token ids.
        pattern_dtype: ``torch.float64`` or ``torch.float32``, for queries, keys, scores and patterns. Values and
            the stream are kept in float64: the heads of a neuron cancel, and their values hold large coefficients.
        masks: ``"explicit"``, or ``"weights"`` for attention without masks over an augmented stream.

    Raises:
        ValueError: a damaged or foreign file, token ids or lengths out of range, another dtype or kind of mask.
    """
    if pattern_dtype not in (torch.float32, torch.float64):
        raise ValueError(f"Expected patterns in torch.float32 or torch.float64, got {pattern_dtype}. Gates need those.")
    if masks not in ("explicit", "weights"):
        raise ValueError(f"Expected masks 'explicit' or 'weights', got {masks!r}. The first is the faster.")
    model = load(path)
    rows = torch.atleast_2d(tokens)
    if rows.ndim != 2 or rows.is_floating_point() or not 0 < rows.shape[1] <= model.n_ctx:
        raise ValueError(
            f"Expected token ids [batch pos] with 1 to {model.n_ctx} positions, got {tuple(tokens.shape)} "
            f"of {tokens.dtype}. Split the text."
        )
    if rows.min() < 0 or rows.max() >= len(model.embed):
        raise ValueError(f"Expected token ids below {len(model.embed)}, got {int(rows.min())} to {int(rows.max())}.")
    with torch.inference_mode():
        out = torch.stack([logits(model, row, pattern_dtype, masks) for row in rows])
    return out[0] if tokens.ndim == 1 else out


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's dtype, shape and bytes."""
    start = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, start)


def _refused(path: str | Path, reason: str) -> ValueError:
    return ValueError(f"Expected a file written by allheads.pure.export, got {path} ({reason}). Export it again.")


_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Heads, Norm, Sublayer, Pure)}


def _unpacked(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Objects from the header: a mapping with a kind is one of ours, one with a tensor's name is that tensor."""
    if isinstance(node, list):
        return [_unpacked(child, tensors) for child in node]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        tensor = tensors[node["tensor"]]
        return tensor.mT if node["transposed"] else tensor
    kind = _KINDS[node["kind"]]
    made = kind(**{name: _unpacked(child, tensors) for name, child in node.items() if name != "kind"})
    for name, hint in get_type_hints(kind).items():
        if not isinstance(value := getattr(made, name), list if get_origin(hint) is list else hint):
            raise TypeError(f"{name} of a {kind.__name__} is {value!r:.40}")
    return made


def _check_shapes(model: Pure) -> None:
    d_vocab, d_model = model.embed.shape
    _expect("unembed", model.unembed, (d_model, d_vocab))
    _expect("positions", model.positions, (model.n_ctx, d_model))
    _expect("unembed_bias", model.unembed_bias, (d_vocab,))
    for norm in (model.final_norm, *(sublayer.norm for sublayer in model.sublayers)):
        for part in (norm.gain, norm.shift) if norm else ():
            _expect("a norm", part, (d_model,))
    for sublayer in model.sublayers:
        for heads in sublayer.heads:
            if heads.mask not in MASKS:
                raise TypeError(f"{sublayer.name} has the mask {heads.mask!r}")
            n, d_head, _ = heads.W_O.shape
            _expect(f"W_O of {sublayer.name}", heads.W_O, (n, d_head, d_model))
            for name, tensor in heads.tensors().items():
                shape = {"W": (n, d_model, d_head), "b": (n, d_head)}.get(name[:2].rstrip("_"))
                shape = {"bias_keys": (n, heads.tokens, d_head), "bias_offsets": (n, heads.tokens)}.get(name, shape)
                if name not in ("W_O", "rotary"):
                    _expect(f"{name} of {sublayer.name}", tensor, shape)


def _expect(what: str, tensor: Tensor | None, shape: tuple[int, ...] | None) -> None:
    if tensor is not None and (tuple(tensor.shape) != shape or not tensor.is_floating_point()):
        raise TypeError(f"{what} has shape {tuple(tensor.shape)} in {tensor.dtype}, not {shape}")
