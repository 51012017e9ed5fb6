r"""A transformer that is attention and nothing else, run from one file. Needs torch and safetensors, no other package.

The file holds beginnings (rows of embeddings), an unembedding and a list of sublayers. A sublayer reads a weighted sum
of what beginnings and earlier sublayers gave, and gives

    sum_heads softmax(scale q k^T + offsets, masked) v W_O,      q, k, v = norm(x) W_{Q,K,V} + b_{Q,K,V},

or, without heads, norm(x) itself: a stream is a sum that others read, ``x' = x + heads(norm(x))``. In cross-attention,
k and v read another stream. So nothing acts on a position but matrix products, softmax and norms. Where a model has
them, queries and keys are normed and turned, scores and logits capped by a tanh, and a router chooses among experts,
whose neurons are heads. Every head, ordinary or once a neuron, goes through `attend`, which computes its pattern
literally over all positions.

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

FORMAT, VERSION = "allheads.pure", 3
#: Bytes of a header that are read: more than the largest models need.
HEADER = 2**23
#: Numbers worked on at a time by a few heads: a quarter of a gigabyte in float64.
CHUNK = 2**25
#: Who is seen, by how many positions ahead of the key the query is.
MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "self": lambda ahead: ahead == 0,
    "causal": lambda ahead: ahead >= 0,
    "all": lambda ahead: ahead == ahead,
}


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
    distance_offsets: Tensor | None = None  # [head 2*n_ctx-1], added to scores; n_ctx - 1 is a query's own position
    norm_Q: Norm | None = None  # of the queries of each head, or, if it is as wide as these, of all heads together
    norm_K: Norm | None = None
    rotary: Tensor | None = None  # [half] frequencies: coordinate i turns with i + half, or 2 i with 2 i + 1
    interleaved: bool = False  # the latter
    turned_first: bool = False  # queries and keys turn before their norms, not after
    mask: str = "self"  # or "causal" or "all"
    window: int | None = None  # a mask may end so many positions away
    scale: float = 1.0
    rotary_scale: float = 1.0
    cap: float | None = None  # scores become cap tanh(score / cap), before offsets
    expert: int | None = None  # of which expert these are neurons: a router weighs what they write

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
class Router:
    """Weighs experts: those of the ``top`` largest ``gate(x W + bias) + correction``, by their gates."""

    W: Tensor  # [d_model expert]
    bias: Tensor | None = None  # [expert], as the correction
    correction: Tensor | None = None
    gate: str = "softmax"  # or "sigmoid"
    top: int = 1
    normalised: bool = False  # weights add up to scale
    scale: float = 1.0


@dataclass(frozen=True)
class Sublayer:
    """Heads that read the same normed sum; without heads, that sum is what others read."""

    name: str
    heads: list[Heads] = field(default_factory=list)
    norm: Norm | None = None
    reads: dict[str, float] = field(default_factory=dict)  # factors of what beginnings and sublayers gave, by name
    other: str | None = None  # what keys and values read instead, in cross-attention
    router: Router | None = None  # of heads that are experts' neurons

    @property
    def sources(self) -> set[str]:
        """Whatever it reads, by name."""
        return {*self.reads} if self.other is None else {*self.reads, self.other}


@dataclass(frozen=True)
class Beginning:
    """What a stream begins with: a row for each token or position; without rows, `run` takes it in place of tokens."""

    name: str
    rows: Tensor | None = None  # [d_vocab d_model], or [n_ctx d_model]
    by: str = "token"  # or "position"
    decoder: bool = False  # of the decoder's tokens, or positions


@dataclass(frozen=True)
class Pure:
    """A whole model: what the last sublayer gives, unembedded by ``unembed [d_model d_vocab]`` if there is one.

    ``position`` is the only one that is unembedded, ``cap`` turns logits into ``cap tanh(logits / cap)``. ``refused``
    are tokens that mean something else than their embeddings, such as padding.
    """

    name: str
    n_ctx: int
    d_model: int
    beginnings: list[Beginning]
    sublayers: list[Sublayer]
    unembed: Tensor | None = None
    unembed_bias: Tensor | None = None
    position: int | None = None
    cap: float | None = None
    refused: list[int] = field(default_factory=list)

    def begins(self, decoder: bool) -> list[Beginning]:
        """The beginnings of the decoder's stream, or of the other."""
        return [each for each in self.beginnings if each.decoder == decoder]


def patterns(x: Tensor, heads: Heads, allowed: Tensor | None = None, other: Tensor | None = None) -> Tensor:
    """``softmax(scale q k^T + offsets)`` over all positions and bias tokens, ``[head query key]``."""
    score = scores(x, heads, other)
    return (score if allowed is None else score.masked_fill(~allowed, -torch.inf)).softmax(-1)


def scores(x: Tensor, heads: Heads, other: Tensor | None = None) -> Tensor:
    """``scale q k^T + offsets`` before any mask, ``[head query key]``."""
    other = x if other is None else other
    score = heads.scale * (queries(x, heads) @ keys(other, heads).mT)
    score = score if heads.cap is None else heads.cap * (score / heads.cap).tanh()
    if heads.distance_offsets is not None:
        distance = torch.arange(len(other)) - torch.arange(len(x))[:, None]
        score[:, :, : len(other)] += heads.distance_offsets[:, distance + heads.distance_offsets.shape[1] // 2]
    if heads.bias_offsets is not None:
        score[:, :, len(other) :] += heads.bias_offsets[:, None]
    return score


def attend(
    x: Tensor,
    heads: Heads,
    allowed: Tensor | None = None,
    pattern_dtype: torch.dtype | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """What the heads write at every position of ``x [pos d_model]``: the one code path of this file.

    Keys and values read x, or ``other``. Patterns are computed in ``pattern_dtype``, values and outputs as x is.
    """
    dtype, other = pattern_dtype or x.dtype, x if other is None else other
    pattern = patterns(x.to(dtype), heads.to(dtype), allowed, other.to(dtype)).to(x.dtype)
    return torch.einsum("hqe,hed->qd", pattern @ values(other, heads), heads.W_O)


def queries(x: Tensor, heads: Heads) -> Tensor:
    """``x W_Q + b_Q``, normed and turned, ``[head query d_head]``."""
    return _compared(_projected(x, heads.W_Q, heads.b_Q, heads), heads.norm_Q, heads)


def keys(x: Tensor, heads: Heads) -> Tensor:
    """``x W_K + b_K``, normed and turned, and the keys of the bias tokens, ``[head key d_head]``."""
    real = _compared(_projected(x, heads.W_K, heads.b_K, heads), heads.norm_K, heads)
    return real if heads.bias_keys is None else torch.cat([real, heads.bias_keys], 1)


def values(x: Tensor, heads: Heads) -> Tensor:
    """``x W_V + b_V``, and 0 for every bias token, ``[head key d_head]``."""
    return F.pad(_projected(x, heads.W_V, heads.b_V, heads), (0, 0, 0, heads.tokens))


def _projected(x: Tensor, weight: Tensor | None, bias: Tensor | None, heads: Heads) -> Tensor:
    out = x.new_zeros(len(heads.W_O), len(x), heads.W_O.shape[1]) if weight is None else x @ weight
    return out if bias is None else out + bias[:, None]


def _compared(q: Tensor, norm: Norm | None, heads: Heads) -> Tensor:
    if heads.turned_first:
        return _normed(_rotated(q, heads), norm)
    return _rotated(_normed(q, norm), heads)


def _normed(q: Tensor, norm: Norm | None) -> Tensor:
    if norm is None or len(norm.gain) == q.shape[-1]:
        return q if norm is None else norm(q)
    together = norm(q.transpose(0, 1).flatten(1))
    return together.unflatten(1, (len(q), -1)).transpose(0, 1)


def _rotated(q: Tensor, heads: Heads) -> Tensor:
    if heads.rotary is None:
        return q
    turning, rest = q[..., : 2 * len(heads.rotary)], q[..., 2 * len(heads.rotary) :]
    angle = torch.arange(q.shape[1])[:, None] * heads.rotary
    cos, sin = angle.cos() * heads.rotary_scale, angle.sin() * heads.rotary_scale
    first, second = (turning[..., ::2], turning[..., 1::2]) if heads.interleaved else turning.chunk(2, -1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.cat([torch.stack(turned, -1).flatten(-2) if heads.interleaved else torch.cat(turned, -1), rest], -1)


def allowed(heads: Heads, length: int, others: int | None = None) -> Tensor:
    """Which of ``others`` keys each query sees, ``[1|head query key]``: those of the mask, and every bias token."""
    others = length if others is None else others
    ahead = torch.arange(length)[:, None] - torch.arange(others)
    seen = MASKS[heads.mask](ahead)
    if heads.window is not None:
        seen = seen & (ahead.abs() < heads.window)
    seen = F.pad(seen, (0, heads.tokens), value=True)[None]
    if heads.bias_offsets is None:
        return seen
    open_to = F.pad(heads.bias_offsets > -torch.inf, (others, 0), value=True)
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
    if heads.distance_offsets is not None:
        at = torch.arange(length) - torch.arange(length)[:, None] + heads.distance_offsets.shape[1] // 2
        block[:, :length, :length] += heads.distance_offsets[:, at]
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
    gone = ("b_Q", "b_K", "b_V", "bias_keys", "bias_offsets", "distance_offsets")
    bare: dict[str, Any] = dict.fromkeys(gone)
    return replace(heads, W_Q=W_Q, W_K=W_K, W_V=W_V, W_O=W_O, **bare)


def spread(x: Tensor, heads: Heads, seen: Tensor) -> float:
    """By how much a hidden score exceeds the largest seen score of its row; minus infinity if none is hidden."""
    score = scores(x, heads)
    ahead = score.masked_fill(seen, -torch.inf).amax(-1) - score.masked_fill(~seen, -torch.inf).amax(-1)
    return float(ahead.max())


def omega_for(x: Tensor, heads: Heads, seen: Tensor) -> float:
    """An omega with which what is hidden keeps no more weight than the rounding of the dtype."""
    return max(0.0, spread(x, heads, seen)) + math.log(seen.shape[-1] / torch.finfo(x.dtype).eps)


def logits(
    model: Pure, tokens: Tensor, pattern_dtype: torch.dtype, masks: str, decoder: Tensor | None = None
) -> Tensor:
    """``[pos d_vocab]`` in float64 for tokens ``[pos]``, or for what the stream begins with, ``[pos d_model]``."""
    count = 0
    if masks == "weights":
        count = max((heads.tokens for sublayer in model.sublayers for heads in sublayer.heads), default=0)
    given: dict[str, Tensor] = {}
    for beginning in model.beginnings:
        ids = decoder if beginning.decoder and decoder is not None else tokens
        given[beginning.name] = torch.cat([_begun(beginning, ids), bias_stream(model, beginning).expand(count, -1)])
    last = {name: number for number, sublayer in enumerate(model.sublayers) for name in sublayer.sources}
    for number, sublayer in enumerate(model.sublayers):
        x = sum((factor * given[name] for name, factor in sublayer.reads.items()), torch.zeros(()).double())
        other = None if sublayer.other is None else given[sublayer.other]
        given[sublayer.name] = write(x, len(x) - count, sublayer, masks, pattern_dtype, other)
        for name in sublayer.sources:
            if last[name] == number:
                del given[name]
    end = given[model.sublayers[-1].name]
    return final(model, end[: len(end) - count])


def _begun(beginning: Beginning, tokens: Tensor) -> Tensor:
    if beginning.rows is None:
        return tokens.double()
    return (beginning.rows[: len(tokens)] if beginning.by == "position" else beginning.rows[tokens]).double()


def bias_stream(model: Pure, beginning: Beginning) -> Tensor:
    """Where the stream of a bias token begins: at 0, or, where norms would blow up what leaks into a 0, far from it."""
    stream = torch.zeros(model.d_model).double()
    if beginning.by == "token" and any(sublayer.norm is not None for sublayer in model.sublayers):
        stream[::2], stream[1::2] = 2.0**14, -(2.0**14)
    return stream


def final(model: Pure, x: Tensor) -> Tensor:
    """From the end of the stream to the logits."""
    x = x if model.position is None else x[model.position][None]
    out = x if model.unembed is None else x @ model.unembed.to(x.dtype)
    out = out if model.unembed_bias is None else out + model.unembed_bias.to(x.dtype)
    return out if model.cap is None else model.cap * (out / model.cap).tanh()


def write(
    x: Tensor,
    length: int,
    sublayer: Sublayer,
    masks: str = "explicit",
    pattern_dtype: torch.dtype = torch.float64,
    other: Tensor | None = None,
) -> Tensor:
    """What a sublayer gives for ``x [pos d_model]``; positions from ``length`` on are bias tokens."""
    x = x if sublayer.norm is None else sublayer.norm(x)
    if not sublayer.heads:
        return x
    other, total = x if other is None else other, torch.zeros_like(x)
    augmented = torch.cat([x, torch.eye(len(x)).to(x)], 1)
    weight = None if sublayer.router is None else routes(x, sublayer.router)
    for heads in _chunks(sublayer.heads, max(len(x), len(other)), augmented.shape[1]):
        some = heads.to(x.dtype)
        if masks == "explicit":
            written = attend(x, some, allowed(some, len(x), len(other)), pattern_dtype, other)
        else:
            seen = allowed(some, length)
            omega = omega_for(x[:length].to(pattern_dtype), some.to(pattern_dtype), seen)
            written = attend(augmented, in_weights(some, seen, omega, x[length:]), None, pattern_dtype)[:, : x.shape[1]]
        total += written if weight is None or some.expert is None else weight[:, some.expert, None] * written
    return total


def routes(x: Tensor, router: Router) -> Tensor:
    """The weight of every expert ``[pos expert]``, 0 for those that are not chosen."""
    score = x @ router.W.to(x.dtype)
    score = score if router.bias is None else score + router.bias.to(x.dtype)
    gates = score.softmax(-1) if router.gate == "softmax" else score.sigmoid()
    chosen = (gates if router.correction is None else gates + router.correction.to(x.dtype)).topk(router.top).indices
    kept = gates * torch.zeros_like(gates).scatter(-1, chosen, 1.0)
    return router.scale * (kept / kept.sum(-1, keepdim=True) if router.normalised else kept)


def _chunks(groups: list[Heads], positions: int, width: int) -> Iterator[Heads]:
    """A few heads at a time: as many as keep their patterns and augmented weights below `CHUNK` numbers.

    Heads whose queries or keys have one norm stay together.
    """
    for heads in groups:
        d_head = heads.W_O.shape[1]
        each = positions * (positions + heads.tokens + 4 * d_head) + 2 * width * (d_head + positions)
        wide = any(norm is not None and len(norm.gain) != d_head for norm in (heads.norm_Q, heads.norm_K))
        some = len(heads.W_O) if wide else max(1, CHUNK // each)
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
        _check(model)
    except Exception as error:  # what is no pure model fails in many ways
        raise _refused(path, str(error).partition("\n")[0] or type(error).__name__) from error
    return model


def run(
    path: str | Path,
    tokens: Tensor,
    decoder: Tensor | None = None,
    *,
    pattern_dtype: torch.dtype = torch.float64,
    masks: str = "explicit",
) -> Tensor:
    """Logits of the model in a file for ``tokens [pos]`` or ``[batch pos]``; the last hidden state if it has none.

    Args:
        path: a file that `allheads.pure.export` wrote.
        tokens: token ids; for a model of images or sounds, what its layers begin with, ``[pos d_model]``.
        decoder: token ids of the decoder, for a model of two streams.
        pattern_dtype: ``torch.float64`` or ``torch.float32``, for queries, keys, scores and patterns. Values and
            the stream are kept in float64: the heads of a neuron cancel, and their values hold large coefficients.
        masks: ``"explicit"``, or ``"weights"`` for attention without masks over an augmented stream.

    Raises:
        ValueError: a damaged or foreign file, token ids or lengths out of range, another dtype or kind of mask, and
            heads that cannot have their masks in weights.
    """
    if pattern_dtype not in (torch.float32, torch.float64):
        raise ValueError(f"Expected patterns in torch.float32 or torch.float64, got {pattern_dtype}. Gates need those.")
    if masks not in ("explicit", "weights"):
        raise ValueError(f"Expected masks 'explicit' or 'weights', got {masks!r}. The first is the faster.")
    model = load(path)
    if masks == "weights":
        _require_masks_in_weights(model)
    if (decoder is None) == bool(model.begins(decoder=True)):
        raise ValueError(
            f"Expected {'no ' if decoder is not None else ''}tokens of a decoder for {model.name}, got "
            f"{'some' if decoder is not None else 'none'}. Pass run(path, tokens, decoder) for a model of two streams."
        )
    rows = [_rows(model, tokens, decoder=False), *([] if decoder is None else [_rows(model, decoder, decoder=True)])]
    if len({len(ids) for ids in rows}) > 1:
        raise ValueError(f"Expected as many texts for the decoder, got {len(rows[1])} for {len(rows[0])}. Pair them.")
    with torch.inference_mode():
        out = torch.stack([logits(model, some[0], pattern_dtype, masks, *some[1:]) for some in zip(*rows, strict=True)])
    return out[0] if len(rows[0]) == 1 and tokens.ndim < rows[0].ndim else out


def _rows(model: Pure, tokens: Tensor, decoder: bool) -> Tensor:
    """Texts ``[batch pos]``, or what streams begin with ``[batch pos d_model]``, checked."""
    tables = [begin.rows for begin in model.begins(decoder) if begin.rows is not None and begin.by == "token"]
    given, what = not tables, "token ids [batch pos]" if tables else f"streams [batch pos {model.d_model}]"
    rows = tokens if tokens.ndim > 1 + given else tokens[None]
    first = 1 + (0 if decoder or model.position is None else model.position)
    fits = (
        rows.ndim == 2 + given and rows.is_floating_point() == given and (not given or rows.shape[2] == model.d_model)
    )
    if not fits or rows.dtype == torch.bool or not (first <= rows.shape[1] <= model.n_ctx and len(rows)):
        raise ValueError(
            f"Expected {what} with {first} to {model.n_ctx} positions, got {tuple(tokens.shape)} of {tokens.dtype}. "
            "Split the text."
        )
    if tables and (rows.min() < 0 or rows.max() >= min(map(len, tables))):
        raise ValueError(
            f"Expected token ids below {min(map(len, tables))}, got {int(rows.min())} to {int(rows.max())}."
        )
    if tables and any(bool((rows == token).any()) for token in model.refused):
        raise ValueError(
            f"Expected tokens other than {model.refused}, which stand for something else than themselves "
            "(padding, an image), got one of them. Leave it out."
        )
    return rows


def _require_masks_in_weights(model: Pure) -> None:
    for sublayer in model.sublayers:
        for heads in sublayer.heads:
            normed = heads.norm_Q is not None or heads.norm_K is not None
            if sublayer.other is not None or normed or heads.cap is not None:
                why = "another stream" if sublayer.other else "normed queries and keys" if normed else "capped scores"
                raise ValueError(
                    f"Expected heads whose masks can be weights, got {sublayer.name} with {why}. Take masks='explicit'."
                )


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's dtype, shape and bytes."""
    start = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, start)


def _refused(path: str | Path, reason: str) -> ValueError:
    return ValueError(f"Expected a file written by allheads.pure.export, got {path} ({reason}). Export it again.")


_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Heads, Norm, Router, Sublayer, Beginning, Pure)}


def _unpacked(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Objects from the header: a mapping with a kind is one of ours, one with a tensor's name is that tensor."""
    if isinstance(node, list):
        return [_unpacked(child, tensors) for child in node]
    if not isinstance(node, dict) or not node.keys() & {"kind", "tensor"}:
        return node
    if "tensor" in node:
        tensor = tensors[node["tensor"]]
        return tensor.mT if node["transposed"] else tensor
    kind = _KINDS[node["kind"]]
    made = kind(**{name: _unpacked(child, tensors) for name, child in node.items() if name != "kind"})
    for name, hint in get_type_hints(kind).items():
        if not isinstance(value := getattr(made, name), get_origin(hint) if get_origin(hint) in (list, dict) else hint):
            raise TypeError(f"{name} of a {kind.__name__} is {value!r:.40}")
    return made


def _check(model: Pure) -> None:
    """Shapes and names: everything that `logits` relies on."""
    d_model = model.d_model
    d_vocab = 0 if model.unembed is None else model.unembed.shape[-1]
    _expect("unembed", model.unembed, (d_model, d_vocab))
    _expect("unembed_bias", model.unembed_bias, (d_vocab,))
    of_decoder: dict[str, bool] = {}
    for beginning in model.beginnings:
        count = model.n_ctx if beginning.by == "position" else 0 if beginning.rows is None else len(beginning.rows)
        _expect(beginning.name, beginning.rows, (count, d_model))
        if beginning.by not in ("token", "position"):
            raise TypeError(f"{beginning.name} is by {beginning.by!r}")
        of_decoder[beginning.name] = beginning.decoder
    for decoder in {False, *of_decoder.values()}:
        kinds = {beginning.rows is None for beginning in model.begins(decoder) if beginning.by == "token"}
        if len(kinds) != 1 or (decoder and kinds == {True}):
            raise TypeError(f"the beginnings are {[beginning.name for beginning in model.begins(decoder)]!r:.60}")
    if not model.sublayers or not all(isinstance(token, int) for token in model.refused):
        raise TypeError(f"there are {len(model.sublayers)} sublayers, and refused tokens {model.refused!r:.40}")
    if not 0 <= (model.position or 0) < model.n_ctx:
        raise TypeError(f"the position is {model.position}")
    for sublayer in model.sublayers:
        if sublayer.name in of_decoder or len({of_decoder[name] for name in sublayer.reads}) != 1:
            raise TypeError(f"{sublayer.name} reads {sorted(sublayer.reads)!r:.60}")
        if sublayer.other is not None and sublayer.other not in of_decoder:
            raise TypeError(f"{sublayer.name} reads {sublayer.other!r:.60}")
        if not all(isinstance(factor, float) and math.isfinite(factor) for factor in sublayer.reads.values()):
            raise TypeError(f"{sublayer.name} reads {sublayer.reads!r:.60}")
        of_decoder[sublayer.name] = of_decoder[next(iter(sublayer.reads))]
        _check_norm(sublayer.norm, sublayer.name, d_model)
        experts = 0 if sublayer.router is None else _check_router(sublayer.router, sublayer.name, d_model)
        for heads in sublayer.heads:
            _check_heads(heads, sublayer.name, model)
            if heads.expert is not None and not 0 <= heads.expert < experts:
                raise TypeError(f"{sublayer.name} has an expert {heads.expert} of {experts}")


def _check_heads(heads: Heads, name: str, model: Pure) -> None:
    if heads.mask not in MASKS:
        raise TypeError(f"{name} has the mask {heads.mask!r}")
    n, d_head, _ = heads.W_O.shape
    _expect(f"W_O of {name}", heads.W_O, (n, d_head, model.d_model))
    shapes = {
        "bias_keys": (n, heads.tokens, d_head),
        "bias_offsets": (n, heads.tokens),
        "distance_offsets": (n, 2 * model.n_ctx - 1),
    }
    for part, tensor in heads.tensors().items():
        shape = {"W": (n, model.d_model, d_head), "b": (n, d_head)}.get(part[:2].rstrip("_"))
        if part not in ("W_O", "rotary"):
            _expect(f"{part} of {name}", tensor, shapes.get(part, shape))
    if heads.rotary is not None:
        _expect(f"rotary of {name}", heads.rotary, (min(len(heads.rotary), d_head // 2),))
    for norm in (heads.norm_Q, heads.norm_K):
        _check_norm(norm, name, d_head, n * d_head)


def _check_router(router: Router, name: str, d_model: int) -> int:
    experts = router.W.shape[-1]
    _expect(f"the router of {name}", router.W, (d_model, experts))
    for part in (router.bias, router.correction):
        _expect(f"the router of {name}", part, (experts,))
    if router.gate not in ("softmax", "sigmoid") or not 0 < router.top <= experts:
        raise TypeError(f"the router of {name} takes {router.top} of {experts} by {router.gate!r}")
    return experts


def _check_norm(norm: Norm | None, name: str, *widths: int) -> None:
    if norm is not None:
        width = next((width for width in widths if width == len(norm.gain)), widths[0])
        for part in (norm.gain, norm.shift):
            _expect(f"a norm of {name}", part, (width,))


def _expect(what: str, tensor: Tensor | None, shape: tuple[int, ...] | None) -> None:
    if tensor is not None and (tuple(tensor.shape) != shape or not tensor.is_floating_point()):
        raise TypeError(f"{what} has shape {tuple(tensor.shape)} in {tensor.dtype}, not {shape}")
