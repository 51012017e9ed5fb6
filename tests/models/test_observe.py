"""Random input for a network, whatever its arguments are called."""

from types import SimpleNamespace

import torch
from torch import nn

from allheads.models.observe import observe, probe_inputs, run_network


class Named(nn.Module):
    """A network of somebody's own: no configuration, its tokens under another name, fewer of them than is said."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, tokens, *, scale=1.0):
        return SimpleNamespace(logits=scale * self.table(tokens))


def test_a_network_may_call_its_tokens_what_it_likes_and_know_fewer_than_its_bridge_says():
    network = Named()
    inputs = probe_inputs(network, SimpleNamespace(d_vocab=100, n_ctx=8))
    activations = observe(network, inputs, ["table"])
    assert torch.equal(activations.result, network.table(inputs["input_ids"]))
    assert len(activations.inputs["table"]) == 1


def test_further_arguments_keep_their_names():
    network, tokens = Named(), torch.tensor([[1, 2]])
    out = run_network(network, {"input_ids": tokens, "scale": torch.tensor(2.0)})
    assert torch.equal(out, 2.0 * network.table(tokens))
