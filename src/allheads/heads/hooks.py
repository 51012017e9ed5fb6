"""The hook points of a bank, named as TransformerLens names those of its attention layers."""

from __future__ import annotations

from torch import nn
from transformer_lens.hook_points import HookPoint


class HeadHooks(nn.Module):
    """Where a bank can be watched and edited, in the order of the computation.

    ===================== ========================== ======================================================
    name                  shape                      what
    ===================== ========================== ======================================================
    hook_query_in         batch pos d_model          the stream, as the preactivation's projection reads it
    hook_value_in         batch pos d_model          the same for the value projection of gated neurons
    hook_pre              batch pos d_mlp            preactivation t (gated: g), shared by a neuron's heads
    hook_pre_linear       batch pos d_mlp            value input u of a gated neuron
    hook_q                batch pos head d_head      queries
    hook_v                batch pos head d_head      values
    hook_attn_scores      batch head pos slot        scores: slot 0 the token itself, then the bias tokens
    hook_pattern          batch head pos slot        softmax of the scores
    hook_pattern_self     batch head pos             pattern on self: the gate
    hook_z                batch pos head d_head      pattern on self times value
    hook_result           batch pos head d_model     what each head writes
    hook_post             batch pos d_mlp            sum of z over a neuron's heads: its activation
    ===================== ========================== ======================================================

    In a twin, ``hook_pre``, ``hook_pre_linear`` and ``hook_post``, and what projections read, are hook points of the
    MLP's projections: ``gate.hook_out``, ``in.hook_out``, ``out.hook_in`` ... They fire while the heads of a neuron
    share the source's projections; a bank whose heads were edited has them per head only. Where hooks change both
    results and ``hook_post``, the changes add up. ``d_head`` is 1; per-head tensors are in the dtype of the patterns.
    """

    #: A hook here needs the heads one by one, so the ``closed`` evaluation steps aside.
    PER_HEAD = (
        "hook_q",
        "hook_v",
        "hook_attn_scores",
        "hook_pattern",
        "hook_pattern_self",
        "hook_z",
        "hook_result",
    )

    #: What is frozen with the gates.
    PATTERNS = ("hook_attn_scores", "hook_pattern", "hook_pattern_self")

    #: Large: a cache without a names filter leaves these out.
    ON_REQUEST = ("hook_q", "hook_v", "hook_attn_scores", "hook_pattern", "hook_z", "hook_result")

    def __init__(self) -> None:
        super().__init__()
        self.hook_query_in = HookPoint()
        self.hook_value_in = HookPoint()
        self.hook_pre = HookPoint()
        self.hook_pre_linear = HookPoint()
        self.hook_q = HookPoint()
        self.hook_v = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_pattern_self = HookPoint()
        self.hook_z = HookPoint()
        self.hook_result = HookPoint()
        self.hook_post = HookPoint()

    def get_hooks(self) -> dict[str, HookPoint]:
        """All points by name, as TransformerLens asks its components for them."""
        return {name: point for name, point in self.named_children() if isinstance(point, HookPoint)}

    @property
    def any_watched(self) -> bool:
        """Is a hook attached to any point at all?"""
        return self.watched(*self._modules)

    def watched(self, *names: str) -> bool:
        """Is a hook, forward or backward, attached to any of these points?"""
        return any(getattr(self, name).has_hooks() for name in names)
