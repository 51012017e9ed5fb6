"""The twin: a TransformerLens bridge in which every MLP, and every expert, is a bank of attention heads."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any

import torch

from allheads.errors import AllHeadsError
from allheads.heads.alone import alone, passing
from allheads.heads.bank import HeadBank
from allheads.heads.evaluate import Evaluation
from allheads.heads.hooks import HeadHooks
from allheads.models.attention import attention_layers
from allheads.models.bridge import TransformerBridge, give_memory
from allheads.models.compat import points_hidden, weights_processed
from allheads.models.locations import Location
from allheads.models.origin import Origin, origin_of
from allheads.models.read_mlps import untouched_modules
from allheads.twin.domain import Domain
from allheads.twin.heads import Head, HeadIndex
from allheads.twin.labels import Label
from allheads.twin.points import HookPoints, hook_points
from allheads.twin.state import edited_as_in, left_out


@dataclass(frozen=True)
class Layer:
    """One MLP, or one expert, of a twin: where it is, its neurons as heads, and the domain their gates hold on."""

    location: Location
    bank: HeadBank
    domain: Domain


class TwinBridge(TransformerBridge):
    """An attention-only twin: a `TransformerBridge` in which every MLP and every expert is a bank of heads.

    ``layers`` are in the order of the network: in a decoder whose layers have one MLP each, ``layers[l].bank`` is that
    of layer l, ``blocks.{l}.mlp`` in the bridge. ``untouched`` names what else has matrices in the layers and stays as
    it is: routers, mixers that are not attention. ``tolerance`` is the certified error of the scalar activation.

    >>> import allheads as ah
    >>> twin = ah.convert(ah.load("smollm2-135m"))
    >>> sum(head.of_neuron for head in twin.heads()), twin.layers[3].location.stem
    (8192, 'L3')
    """

    layers: tuple[Layer, ...]
    tolerance: float
    untouched: tuple[str, ...]
    origin: Origin
    #: The options of `process_weights`, once it has been called.
    processing: dict[str, bool] | None = None

    @classmethod
    def of(
        cls, bridged: TransformerBridge, layers: Sequence[Layer], tolerance: float, source: TransformerBridge
    ) -> TwinBridge:
        """Make a bridge whose MLPs have been replaced into a twin: the only place that sets what a twin has."""
        bridged.__class__ = cls  # the builder of bridges names its class; ours only adds to it
        bridged.layers, bridged.tolerance = tuple(layers), tolerance
        bridged.untouched = tuple(untouched_modules(bridged))
        bridged.origin = origin_of(bridged, source)
        return bridged

    @property
    def banks(self) -> list[HeadBank]:
        """The banks of all layers."""
        return [layer.bank for layer in self.layers]

    @cached_property
    def index(self) -> HeadIndex:
        """Which heads there are, by label; built once."""
        return HeadIndex.of(attention_layers(self), self.layers)

    def heads(self) -> Iterator[Head]:
        """Every head, layer by layer: the ordinary ones, then those of the neurons, a neuron's one after the other.

        ``L0.A0, L0.A1, ..., L0.N0.0, L0.N0.1, L0.N1.0, ...``
        """
        return iter(self.index)

    def head(self, label: str | Label) -> Head:
        """One head by its label, ``L3.A5`` or ``L3.N812.0``.

        Raises `AllHeadsError` for a label that is malformed, points outside the twin, or names a whole neuron.

        >>> twin.head("L3.A5").W_Q.shape
        torch.Size([48, 8])
        """
        return self.index.head(label)

    def neuron(self, label: str | Label) -> list[Head]:
        """The heads of one neuron, ``L3.N812``.

        Raises `AllHeadsError` for a label that is malformed, points outside the twin, or names something else.

        >>> [str(head) for head in twin.neuron("L3.N812")]
        ['L3.N812.0', 'L3.N812.1']
        """
        return self.index.neuron(label)

    def points(self) -> HookPoints:
        """Every hook point, what passes there, and its names in TransformerLens, nnsight, nnterp and interp-engine.

        >>> table = twin.points().to_dataframe().set_index("point")
        >>> table.nnsight["blocks.3.hook_mlp_out"], table.interp_engine["blocks.3.hook_mlp_out"]
        ('model.layers[3].mlp.output', 'cache["mlp_out", 3]')
        """
        return hook_points(self)

    def require_one_stack(self, what: str) -> None:
        """Refuse ``what`` for encoder-decoders, towers and mixtures, whose banks are not one for each of ``blocks``.

        Raises `AllHeadsError`.
        """
        names = [layer.location.name for layer in self.layers]
        if not names or names != [f"blocks.{layer}.mlp" for layer in range(len(names))]:
            stems = ", ".join(dict.fromkeys(layer.location.stem for layer in self.layers))
            raise AllHeadsError(
                f"one stack of layers with one MLP each, to {what}",
                f"banks at {stems}"[:200] if names else "attention alone",
                "Look at single heads with twin.heads() and ah.plots.attention.",
            )

    @contextmanager
    def evaluated(self, evaluation: Evaluation, pattern_dtype: torch.dtype | None = None) -> Iterator[TwinBridge]:
        """Evaluate all banks in another way for a while, with patterns in ``pattern_dtype``.

        Raises `AllHeadsError` for patterns below float32: gates cancel, and need its precision.
        """
        if pattern_dtype not in (None, torch.float32, torch.float64):
            raise AllHeadsError("patterns in float32 or float64", str(pattern_dtype), "Leave it out for the default.")
        before = [(bank, bank.evaluation, bank.pattern_dtype) for bank in self.banks]
        try:
            for bank, *_ in before:
                bank.evaluation, bank.pattern_dtype = evaluation, pattern_dtype
            yield self
        finally:
            for bank, name, dtype in before:
                bank.evaluation, bank.pattern_dtype = name, dtype

    def process_weights(self, *args: Any, **kwargs: Any) -> None:
        """As in TransformerLens: fold norms, centre what is written and read out. The source keeps its weights.

        Neurons keep their preactivations, so gates and domains hold as before. Raises `AllHeadsError` for edited heads.
        """
        self._require_shared_banks()
        if weights_processed(self):  # TransformerLens warns, and leaves them as they are
            return super().process_weights(*args, **kwargs)
        give_memory(self)  # some foldings write in place
        super().process_weights(*args, **kwargs)
        options = inspect.signature(super().process_weights).bind(*args, **kwargs).arguments
        self.processing = {name: value for name, value in options.items() if name != "verbose"}

    def enable_compatibility_mode(
        self, disable_warnings: bool = False, no_processing: bool = False, **kwargs: Any
    ) -> None:
        """As in TransformerLens. Raises `AllHeadsError` for edited heads, unless with ``no_processing=True``."""
        if not no_processing:
            self._require_shared_banks()
        super().enable_compatibility_mode(disable_warnings, no_processing, **kwargs)

    def _require_shared_banks(self) -> None:
        for layer in self.layers:
            layer.bank.require_shared(
                "neurons that share their MLP's weights, to process these",
                layer.location.stem,
                "Process the weights first and edit after, or use enable_compatibility_mode(no_processing=True).",
            )

    def state_dict(self, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """As in TransformerLens, and what that leaves out of the neurons: experts' weights, and edited heads.

        Those have their names in the network: ``model.layers.3.mlp.heads.edited.W_Q``.
        """
        state = super().state_dict(destination, prefix, keep_vars)
        if destination is None and not prefix:
            for name, parameter in left_out(self.original_model, state):
                state[name] = parameter if keep_vars else parameter.detach()
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in TransformerLens. Layers whose edited heads are in the state become edited.

        Raises `AllHeadsError` for a state without the edits of a layer that is edited, and what TransformerLens raises
        for the state of another model.
        """
        with edited_as_in(self.original_model, state_dict, strict):
            return super().load_state_dict(state_dict, strict, assign)

    def run_with_cache(  # the signature of TransformerLens
        self,
        input: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As in TransformerLens. Without a filter, the large activations of neuron heads are left out.

        Ask for them by name: ``names_filter="blocks.3.mlp.hook_pattern"``.
        """
        if names_filter is None:
            large = {id(getattr(bank.hooks, name)) for bank in self.banks for name in HeadHooks.ON_REQUEST}
            with alone(self, *self.banks), points_hidden(self, large):
                return super().run_with_cache(input, return_cache_object, remove_batch_dim, **kwargs)
        kwargs["names_filter"] = names_filter
        with alone(self, *self.banks), self._close_matches():
            return super().run_with_cache(input, return_cache_object, remove_batch_dim, **kwargs)

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens; the `KeyError` for a name that is no hook point has names that are like it."""
        with self._close_matches():
            return super().run_with_hooks(*args, **kwargs)

    @contextmanager
    def hooks(self, *args: Any, **kwargs: Any) -> Iterator[TransformerBridge]:
        """As in TransformerLens. Raises `AllHeadsError` where another thread uses the twin, and there meanwhile."""
        with alone(self, *self.banks), super().hooks(*args, **kwargs):
            yield self

    @wraps(TransformerBridge.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens. Raises `AllHeadsError` where another thread hooks, caches or freezes the twin."""
        with passing(self):
            return super().forward(*args, **kwargs)

    @contextmanager
    def _close_matches(self) -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            # TransformerLens quotes the name, or a list of names.
            for name in re.findall(r"'([^']+)'", str(error.args[0])):
                if close := difflib.get_close_matches(name, self.hook_dict, 3):
                    error.add_note(f"Names like {name}: {', '.join(close)}. twin.hook_dict has all.")
            raise


def require_twin(model: Any) -> TwinBridge:
    """The model, if it is a twin; `AllHeadsError` if not."""
    if not isinstance(model, TwinBridge):
        raise AllHeadsError("an attention-only twin", type(model).__name__, "Make one with ah.convert(source).")
    return model
