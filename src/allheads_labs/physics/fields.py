r"""A head as a field over the stream: the scores of its keys, and how they pull at what reads them.

With ``x_i`` the normed input at position i, ``q_i = x_i W_Q + b_Q``, ``k_k = x_k W_K + b_K`` and ``R_i`` the rotation
of position i (none without rotary), an ordinary head has

    s_ik = scale (q_i R_i) . (k_k R_k)                                   scores, a_i = softmax of s_i
    sum_k a_ik ds_ik/dx_i = scale (sum_k a_ik k_k R_k) R_i^T W_Q^T       with all keys held
    a_ii scale q_i W_K^T                                                 more, as x_i makes its own key: R_i R_i^T = 1

A neuron head has one coordinate, ``t = x w + b``; its slots are its own token, of score 0, and bias tokens of scores
``a_j - l_j t``, so that its pull is ``-(sum_j a_j' l_j) w`` with a' the pattern. Edited neuron heads may have a key of
their own: then there is a further term, as in an ordinary head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allheads.weights import Attention, HeadWeights, rotated, slot_scores


@dataclass(frozen=True)
class HeadField:
    """An ordinary head over the keys of ``x``; ``scale`` is 1/sqrt(d_head) in most models."""

    W_Q: Float[Tensor, "d_model d_head"]
    W_K: Float[Tensor, "d_model d_head"]
    b_Q: Float[Tensor, " d_head"]
    b_K: Float[Tensor, " d_head"]
    scale: float
    rotary: Float[Tensor, " half"] | None
    x: Float[Tensor, "*batch pos d_model"]
    visible: Bool[Tensor, "*batch pos key"]

    @classmethod
    def of(cls, read: Attention, number: int, x: Tensor, visible: Tensor) -> HeadField:
        """Head ``number`` of a layer, in the dtype of ``x``."""
        W_Q, W_K = read.W_Q[number].to(x), read.W_K[number].to(x)
        b_Q, b_K = (x.new_zeros(W_Q.shape[1]) if b is None else b[number].to(x) for b in (read.b_Q, read.b_K))
        return cls(W_Q, W_K, b_Q, b_K, read.scale * read.rotary_scale**2, read.rotary, x, visible)

    def scores(self, reading: Tensor, own: Tensor) -> Float[Tensor, "*batch pos key"]:
        """Scores of every key, -inf where it is not seen: queries of ``reading``, their own keys of ``own``."""
        queries, own_keys = self._rotated(self.queries(reading)), self._rotated(own @ self.W_K + self.b_K)
        scores = queries @ self._rotated(self.keys).mT
        diagonal = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
        scores = torch.where(diagonal, (queries * own_keys).sum(-1, keepdim=True), scores)
        return (self.scale * scores).masked_fill(~self.visible, -torch.inf)

    def pull(self, pattern: Tensor) -> Float[Tensor, "*batch pos d_model"]:
        """The mean gradient of the scores in the reader, keys held."""
        return self.scale * self.mean_key(pattern) @ self.W_Q.T

    def own_pull(self, pattern: Tensor) -> Float[Tensor, "*batch pos d_model"]:
        """What is added because the reader makes a key, too."""
        on_self = pattern.diagonal(dim1=-2, dim2=-1)[..., None]
        return self.scale * on_self * self.queries(self.x) @ self.W_K.T

    def mean_key(self, pattern: Tensor) -> Float[Tensor, "*batch pos d_head"]:
        """The keys as the query meets them, averaged over its pattern."""
        return self._rotated(pattern @ self._rotated(self.keys), back=True)

    def queries(self, x: Tensor) -> Float[Tensor, "*batch pos d_head"]:
        """Queries before rotary."""
        return x @ self.W_Q + self.b_Q

    @property
    def keys(self) -> Float[Tensor, "*batch pos d_head"]:
        """Keys before rotary."""
        return self.x @ self.W_K + self.b_K

    def _rotated(self, rows: Tensor, back: bool = False) -> Float[Tensor, "*batch pos d_head"]:
        if self.rotary is None:
            return rows
        sign = -1 if back else 1
        return torch.stack([rotated(rows[..., p, :], [sign * p], self.rotary) for p in range(rows.shape[-2])], -2)


@dataclass(frozen=True)
class NeuronField:
    """One head of a neuron: ``weights`` are its own only, in the dtype of ``x``."""

    weights: HeadWeights
    x: Float[Tensor, "*batch pos d_model"]

    def scores(self, reading: Tensor, own: Tensor) -> Float[Tensor, "*batch pos slot"]:
        """Scores of its slots: its own token, then the bias tokens."""
        query, key = self.query(reading), self._key(own)
        query, key = torch.broadcast_tensors(query, query if key is None else key)
        keys = None if self.weights.W_K is None else key.reshape(-1, 1)
        return slot_scores(self.weights, 0, query.reshape(-1, 1), keys)[..., 0].T.unflatten(0, query.shape)

    def pull(self, pattern: Tensor) -> Float[Tensor, "*batch pos d_model"]:
        """As `HeadField.pull`."""
        slope = pattern[..., 1:] @ self.weights.bias_keys[0, 0, : pattern.shape[-1] - 1].to(pattern)
        key = self._key(self.x)
        slope = slope if key is None else slope + pattern[..., 0] * key
        return slope[..., None] * self.weights.W_Q[0, 0]

    def own_pull(self, pattern: Tensor) -> Float[Tensor, "*batch pos d_model"]:
        """As `HeadField.own_pull`: nothing, unless the head was edited."""
        if self.weights.W_K is None:
            return torch.zeros_like(self.x)
        return (pattern[..., 0] * self.query(self.x))[..., None] * self.weights.W_K[0, 0]

    def query(self, x: Tensor) -> Float[Tensor, "*batch pos"]:
        """The preactivation."""
        t = x @ self.weights.W_Q[0, 0]
        return t if self.weights.b_Q is None else t + self.weights.b_Q[0, 0]

    def _key(self, x: Tensor) -> Float[Tensor, "*batch pos"] | None:
        if self.weights.W_K is None or self.weights.b_K is None:
            return None
        return x @ self.weights.W_K[0, 0] + self.weights.b_K[0, 0]
