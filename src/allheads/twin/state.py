"""A twin's state dict: TransformerLens', with what that leaves out of the neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager

from torch import Tensor, nn

from allheads.errors import AllHeadsError
from allheads.heads.bank import HeadBank
from allheads.models.compat import network_path


def left_out(network: nn.Module, known: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Parameters of banks that are not among the known ones: experts' weights, and edited heads.

    Names are paths in the network, without the bridge's components.
    """
    memory = {tensor.data_ptr() for tensor in known.values()}
    wanted = {id(parameter) for _, bank in _banks(network) for parameter in bank.everything()}
    for name, parameter in network.named_parameters():
        if id(parameter) in wanted and parameter.data_ptr() not in memory:
            yield network_path(name), parameter


@contextmanager
def edited_as_in(network: nn.Module, state: MutableMapping[str, Tensor], strict: bool) -> Iterator[None]:
    """Give edited heads to the banks that have some in a state, for it to be loaded; undo that if it raises.

    Raises `AllHeadsError` if a bank is edited, and not in the state, unless not ``strict``.
    """
    given = {}
    for path, bank in _banks(network):
        prefix = f"{path}.edited."
        given[bank] = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        if strict and bank.edited is not None and not given[bank]:
            raise AllHeadsError(
                f"a state with edited heads at {path}",
                "one of a model without",
                "Load it into a twin that was not edited there.",
            )
    made = [bank for bank, tensors in given.items() if tensors and bank.edited is None]
    try:
        for bank in made:
            bank.copy_heads().resize_tokens(given[bank])
        yield
    except BaseException:
        for bank in made:
            bank.edited = None
        raise


def _banks(network: nn.Module) -> Iterator[tuple[str, HeadBank]]:
    for path, module in network.named_modules():
        if isinstance(module, HeadBank):
            yield network_path(path), module
