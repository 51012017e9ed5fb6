"""circuit: a head or a neuron by its label, read through the embeddings."""

from __future__ import annotations

import torch

from allheads.errors import AllHeadsError
from allheads.twin.labels import Label
from allheads.twin.twin import TwinBridge, require_twin
from allheads.twin.wiring import read_wiring
from allheads.weights.head import HeadCircuit, head_circuit
from allheads.weights.neuron import NeuronCircuit, neuron_circuits

#: What `circuit` gives.
Circuit = NeuronCircuit | HeadCircuit


@torch.no_grad()
def circuit(twin: TwinBridge, label: str, *, k: int = 10) -> Circuit:
    r"""What a neuron (``L3.N812``) or an ordinary head (``L3.A5``) reads and writes, in tokens; weights only.

    With ``x(t) = norm(W_E[t])`` the input of the part's layer if the stream were one token's embedding, and
    ``U = gain W_U``, less its mean over the vocabulary, the logits per unit of the final norm's scale:

        neuron   opens, closes      x(t) w_gate + b_gate        raises, lowers    x(t) w_in + b_in
                 promotes, suppresses                           w_out U
        head     attends            scale (x(t) W_Q + b_Q) R(offset) (x(t') W_K + b_K)
                 promotes, suppresses                           (x(t) W_V + b_V) W_O U

    Of a plain neuron there is no value side: what opens it is its value. Norms inside a head, of queries, keys, values
    or of the latent that these are made of, are run on the token. A head that multiplies what it carries by gates is
    read with gates of 1, and says that it is ``gated``. Streams deeper in the network are sums of many
    writes: these are directions that the part reads and writes, and predictions for no prompt. An expert's neuron is
    read without its router's weight. Where one end of the stream is something else, such as the patches of an image,
    the other end is read: sides are then empty, or are refused when they are asked for.

    Args:
        twin: from `ah.convert`.
        label: of a whole neuron or an ordinary head.
        k: how many tokens, or pairs of tokens, for each side.

    Returns:
        A `NeuronCircuit`, or a `HeadCircuit` whose sides are computed when they are asked for.

    Raises:
        AllHeadsError: an unknown label, or weights that cannot be read this way: attention that writes something else,
            edited neurons, a stream that neither begins with tokens nor ends in logits.

    >>> import allheads as ah
    >>> len(ah.weights.circuit(twin, "L3.N812", k=3).opens)
    3
    >>> promotes, suppresses = ah.weights.circuit(twin, "L3.A5", k=3).of(" Paris")
    """
    if not isinstance(k, int) or k < 1:
        raise AllHeadsError("k of 1 or more", repr(k), "It is how many tokens to show for each side.")
    require_twin(twin).index.heads(label)
    wanted = Label.parse(label)
    if wanted.part is not None:
        raise AllHeadsError("a whole neuron or an ordinary head", label, f"Read {wanted.neuron}.")
    wiring = read_wiring(twin)
    branch = wiring.branch(wanted)
    if wanted.kind != "N":
        return head_circuit(wiring, branch, wanted.index, k)
    return neuron_circuits(wiring, branch, [wanted.index], k)[0]
