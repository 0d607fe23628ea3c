"""Mixing inside a compiled model: one graph, whatever a step holds."""

from __future__ import annotations

import torch
from torch import nn

from asterism.serve.vllm import ops


def test_a_compiled_model_calls_what_a_place_does_now():
    held = {"factor": 2.0}
    place = ops.placed(lambda x, bias: x @ torch.ones(3, 4) * held["factor"] + bias, lambda x: x.new_empty(x.shape[0], 4))
    bias = nn.Parameter(torch.arange(4.0), requires_grad=False)
    graphs = []

    def kept(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = torch.compile(lambda x: ops.run(place, x, bias) + 1, backend=kept, fullgraph=True, dynamic=True)
    for factor, rows in ((2.0, 5), (3.0, 5), (4.0, 7)):
        held["factor"] = factor
        x = torch.randn(rows, 3)
        torch.testing.assert_close(model(x), x @ torch.ones(3, 4) * factor + bias + 1)
    assert len(graphs) == 1


def test_what_a_place_gives_back_unchanged_is_a_tensor_of_its_own():
    place = ops.placed(lambda x, _: x, torch.empty_like)
    x = torch.ones(2, 2)
    assert ops.mixed(x, None, place).data_ptr() != x.data_ptr()
    assert ops.run(place, x) is x
