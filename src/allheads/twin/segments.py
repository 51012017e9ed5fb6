"""Which writes a part of the network reads as they are: the stream, found by gradients.

The twin is run once on random input and cut wherever something is computed: what heads, neurons, norms and embeddings
give is a leaf of the graph. What lies between the leaves and what the next of them reads is then the stream alone, and
a gradient shows it: of ``x . v``, for a random v and what is read x, it is v again, times a positive factor, at every
leaf that x has in it as a summand. A leaf that reaches x in another way, through what is not cut, shows another vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allheads.heads.mixture import MixtureBank
from allheads.models.compat import wrappers
from allheads.models.norms import Norm, known_norm, norm_modules
from allheads.models.observe import Inputs, evaluating, probe_inputs, run_bridge
from allheads.twin.sites import Site, by_head, sites
from allheads.twin.twin import TwinBridge

#: What the last of all reads: the unembedding, or whoever asked.
END = "end"


@dataclass
class CutRun:
    """One run of a twin in segments: by name, what is read and what is a leaf.

    Heads of a sublayer read ``{name}.Q`` and ``{name}.V``, which differ where they look at another stack; a mixture's
    experts are one leaf, named after the first of them. ``seen`` are other activations, by hook point.
    """

    twin: TwinBridge
    inputs: Inputs
    reads: dict[str, Tensor] = field(default_factory=dict)
    leaves: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    #: Values, and what heads carry before it is cut, in the graph, by hook point.
    carried: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Norm | None] = field(default_factory=dict)
    #: The modules of these norms, and how wide what they read is.
    normed: dict[str, tuple[nn.Module, int]] = field(default_factory=dict)
    #: Embeddings of tokens: their table, and its factor in the leaf.
    tables: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    #: The leaf of every sublayer; the tolerance that the dtype leaves.
    parts: dict[str, str] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)
    tolerance: float = 1e-4

    def read(self, name: str, x: Tensor) -> None:
        """Note what is read. What is called again is not one part of the network."""
        if name in self.reads:
            self.twice.add(name)
        self.reads[name] = x

    def reader(self, name: str) -> Callable[..., None]:
        """A hook that notes what passes as read under this name."""
        return lambda x, hook: self.read(name, x)

    def keeper(self, name: str) -> Callable[..., None]:
        """A hook that keeps what passes."""
        return lambda x, hook: self.seen.update({name: x.detach()})

    def leaf(self, name: str, value: Tensor) -> Tensor:
        """The same value, without what it was made of."""
        self.leaves[name] = value.detach().requires_grad_()
        return self.leaves[name].clone()  # some layers add to it in place


def cut_run(twin: TwinBridge) -> CutRun:
    """Run a twin on two rows of random input, cut into segments."""
    run = CutRun(twin, two_rows(twin))
    with torch.inference_mode(False), torch.enable_grad(), evaluating(twin), _cut(run):
        result = run_bridge(twin, run.inputs)
    # Measured when hooks are gone, which would otherwise watch that as well.
    run.norms |= {name: known_norm(*normed) for name, normed in run.normed.items()}
    run.reads.setdefault(END, result)
    run.tolerance = max(1e-4, 4 * torch.finfo(result.dtype).eps)
    return run


def summands(run: CutRun, name: str, writes: Callable[[str], Tensor | None]) -> dict[str, float]:
    """The leaves that are summands of what is read under this name, with their factors.

    ``writes`` gives the output weights ``[head d_head d_model]`` of a leaf that shows what heads carry.
    """
    x = run.reads[name]
    if not x.requires_grad:
        return {}
    v = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0)).to(x)
    with torch.inference_mode(False), torch.enable_grad():
        leaves = list(run.leaves.values())
        gradients = torch.autograd.grad((x * v).sum(), leaves, retain_graph=True, allow_unused=True)
    found: dict[str, float] = {}
    for leaf, gradient in zip(run.leaves, gradients, strict=True):
        if gradient is not None:
            factor = _factor(gradient.double(), v.double(), writes(leaf), run.tolerance)
            found |= {} if factor is None else {leaf: factor}
    return found


def two_rows(twin: TwinBridge) -> dict[str, Tensor]:
    """Two rows of random input, as the bridge takes it."""
    body: Any = twin.original_model
    names = {getattr(body, "main_input_name", "input_ids"): "input", "decoder_input_ids": "decoder_input"}
    rows = {names.get(name, name): value for name, value in probe_inputs(body, twin.cfg).items()}
    return {
        name: torch.cat([row, 0.5 * row.flip(-1) if row.is_floating_point() else row.roll(1, -1).flip(-1)])
        for name, row in rows.items()
    }


def _factor(gradient: Tensor, v: Float[Tensor, " d_model"], W_O: Tensor | None, tolerance: float) -> float | None:
    """What each row of a gradient is of the expected one, if it is a positive multiple of it; the mean of rows."""
    if W_O is not None:
        gradient = by_head(gradient, len(W_O))
        expected = W_O.to(v) @ v if W_O.shape[-1] == len(v) else v.new_zeros(0)
        rows = gradient.flatten(-2).flatten(0, -2) if gradient.ndim == 4 else gradient.flatten(0, -2)
        expected = expected.flatten()
    else:
        rows, expected = gradient.flatten(0, -2), v
    if rows.shape[-1] != len(expected):
        return None
    rows = rows[rows.norm(dim=-1) > 0]
    factors = rows @ expected / expected.square().sum().clamp_min(1e-300)
    off = (rows - factors[:, None] * expected).norm(dim=-1)
    if not len(rows) or not bool(((factors > 0) & (off <= tolerance * rows.norm(dim=-1))).all()):
        return None
    return float(factors.mean())


@contextmanager
def _cut(run: CutRun) -> Iterator[None]:
    twin, network = run.twin, run.twin.original_model
    with ExitStack() as stack:
        for module, hook in _module_hooks(run, network):
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        hooks: list[tuple[str, Callable[..., Tensor | None]]] = []
        known = twin.hook_dict
        for site in sites(twin):
            if site.kind != "N":
                hooks += _attention_hooks(run, site)
        hooks += [("unembed.hook_in", run.reader(END)), ("unembed.hook_out", run.keeper("unembed.hook_out"))]
        stack.enter_context(twin.hooks(fwd_hooks=[(name, hook) for name, hook in hooks if name in known]))
        yield


def _attention_hooks(run: CutRun, site: Site) -> list[tuple[str, Callable[..., Tensor]]]:
    """Cut what heads carry; note what they read, and what they attend to."""
    prefix, known = site.location.prefix, run.twin.hook_dict
    run.parts[site.name] = site.name

    def reader(name: str) -> Callable[..., Tensor]:
        def note(x: Tensor, hook: object) -> Tensor:
            run.read(name, x)
            return x

        return note

    def keep(x: Tensor, hook: Any) -> Tensor:
        run.seen[hook.name] = x.detach()
        return x

    def carry(v: Tensor, hook: Any) -> Tensor:
        run.carried[f"{prefix}hook_v"] = v
        return v

    def cut(z: Tensor, hook: Any) -> Tensor:
        run.seen[f"{prefix}hook_z"], run.carried[f"{prefix}hook_z"] = z.detach(), z
        return run.leaf(site.name, z)

    projected = all(f"{prefix}{side}.hook_in" in known for side in "qv")
    points = {"Q": f"{prefix}q.hook_in", "V": f"{prefix}v.hook_in"} if projected else {}
    if not projected and site.kind == "A":
        points = dict.fromkeys("QV", f"{prefix}hook_in")
    reads = [(point, reader(f"{site.name}.{side}")) for side, point in points.items()]
    return [*reads, (f"{prefix}hook_v", carry), (f"{prefix}hook_pattern", keep), (f"{prefix}hook_z", cut)]


def _module_hooks(run: CutRun, network: nn.Module) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Cut what banks, norms and embeddings give."""
    components = wrappers(network)
    names = {id(layer.bank): f"{layer.location.stem}.N" for layer in run.twin.layers}
    mixed = set()
    for module in network.modules():
        if isinstance(module, MixtureBank):
            inner = [names[id(bank)] for bank in module]
            run.parts |= dict.fromkeys(inner, inner[0])
            mixed |= {id(bank) for bank in module}
            yield module, _part_hook(run, inner[0])
    for layer in run.twin.layers:
        if id(layer.bank) not in mixed:
            run.parts[names[id(layer.bank)]] = names[id(layer.bank)]
            yield layer.bank, _part_hook(run, names[id(layer.bank)])
    for path, module in norm_modules(network):
        yield components.get(id(module), module), _norm_hook(run, path, module)
    for path, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            yield module, _embedding_hook(run, path, module)


def _part_hook(run: CutRun, name: str) -> Callable[..., Any]:
    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        run.read(name, next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))
        return run.leaf(name, output)

    return cut


def _norm_hook(run: CutRun, path: str, module: nn.Module) -> Callable[..., Any]:
    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if x is None or not isinstance(output, Tensor) or output.shape != x.shape:
            return None
        name = path if path not in run.reads else f"{path} {len(run.reads)}"  # called again, it is another one
        run.read(name, x)
        run.normed[name] = module, x.shape[-1]
        return run.leaf(name, output)

    return cut


def _embedding_hook(run: CutRun, path: str, module: nn.Embedding) -> Callable[..., Any]:
    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        name = f"{path} {len(run.leaves)}"
        ids = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if ids is None or not isinstance(output, Tensor):
            return output
        tokens = any(ids.shape == given.shape and torch.equal(ids, given) for given in run.inputs.values())
        if tokens and output.shape == (*ids.shape, module.embedding_dim) and int(ids.max()) < module.num_embeddings:
            rows = module.weight.detach()[ids].double()
            factor = float((rows * output.detach().double()).sum() / rows.square().sum())
            if torch.allclose(factor * rows, output.detach().double(), rtol=1e-2, atol=1e-6):
                run.tables[name] = module.weight.detach(), factor
        return run.leaf(name, output)

    return cut
