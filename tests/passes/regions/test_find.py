"""Which regions are found in stacks of layers."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph

from innerq_compile.passes.graph.reading import called_name
from innerq_compile.passes.regions import find_regions
from innerq_compile.passes.regions.cuts import body_of
from tests.helpers.stacks import Layer, Other, Stack, always_cut, captured

IDS = torch.randint(0, 11, (2, 5))


def kinds_of(program, *inputs, **options) -> list[int]:
    """The kinds of all regions, in order; none for a graph that is left whole."""
    gm, _ = captured(program, *inputs, **options)
    with always_cut():
        found = find_regions(gm.graph)
    if found.regions:
        assert sorted(node for region in found.regions for node in region.nodes) == sorted(body_of(gm.graph))
        check_inputs_and_outputs(found.regions)
    return [region.kind for region in found.regions]


def check_inputs_and_outputs(regions) -> None:
    """What a region takes was there before, and what others take, it returns."""
    known = set()
    for region in regions:
        assert all(node.op in ("placeholder", "get_attr") or node in known for node in region.inputs)
        known |= set(region.outputs)
    for kind in {region.kind for region in regions}:
        same = [region for region in regions if region.kind == kind]
        assert len({(len(one.nodes), len(one.inputs), len(one.outputs), len(one.symbols)) for one in same}) == 1


@pytest.mark.parametrize("layers", [3, 4, 8])
def test_equal_layers(layers):
    """The first region ends where the first product begins, so the last layer ends in the middle of one."""
    assert kinds_of(Stack([Layer() for _ in range(layers)]), IDS) == [0, *[1] * (layers - 1), 2]


def test_in_words():
    gm, _ = captured(Stack([Layer() for _ in range(12)]), IDS)
    assert str(find_regions(gm.graph)) == "13 regions of 3 kinds"


def test_alternating_layers():
    kinds = kinds_of(Stack([Layer(), Other()] * 4), IDS)
    assert len(set(kinds)) == 4 and kinds[1:-1] == [1, 2] * 3 + [1]


def test_five_and_one():
    kinds = kinds_of(Stack([*[Layer() for _ in range(5)], Other()] * 3), IDS)
    assert len(set(kinds)) <= 6 and len(kinds) >= 17


def test_another_last_layer():
    kinds = kinds_of(Stack([*(Layer() for _ in range(6)), Other()]), IDS)
    assert kinds[1:-1] == [1] * 5


@pytest.mark.parametrize("changed", [Layer(eps=1e-5), Layer().half().float().double()], ids=["eps", "dtype"])
def test_one_layer_with_another_constant(changed):
    layers = [Layer() for _ in range(8)]
    layers[3] = changed
    stack = Stack(layers)
    if changed.weight.dtype == torch.float64:
        stack.layers[3].register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        stack.layers[3].register_forward_hook(lambda module, inputs, output: output.float())
    kinds = kinds_of(stack, IDS)
    assert kinds.count(1) >= 5 and len(set(kinds)) > 3, "a region ends with the norm of the next layer"


def test_layers_that_share_weights():
    layer = Layer()
    assert kinds_of(Stack([layer] * 6), IDS) == [0, *[1] * 5, 2]


def test_what_the_first_layer_computes_for_all():
    class Lazy(Layer):
        def forward(self, x, shared):
            y = self.up(x)
            if not shared:
                shared.append(torch.arange(5.0)[:, None].sin())
            return super().forward(x + y.mean() * shared[0])

    class Model(Stack):
        def forward(self, ids):
            return super().forward(ids, [])

    kinds = kinds_of(Model([Lazy() for _ in range(6)]), IDS)
    assert kinds[:2] == [0, 1] and len(set(kinds)) <= 4 and kinds.count(1) >= 5


def test_lengths_of_their_own():
    class Cached(Layer):
        def forward(self, x, cache):
            return super().forward(x + cache.mean()), cache[:, 1:]

    class Model(Stack):
        def forward(self, ids, caches):
            x, new = self.embed(ids), []
            for layer, cache in zip(self.layers, caches, strict=True):
                x, cache = layer(x, cache)
                new.append(cache)
            return self.head(x), new

    caches = [torch.ones(2, 4 + index) for index in range(6)]
    for cache in caches:
        torch._dynamo.mark_dynamic(cache, 1)
    assert kinds_of(Model([Cached() for _ in range(6)]), IDS, caches).count(1) == 5


def test_symbolic_floats():
    """With ``dynamic=True`` the epsilon of each layer is a symbol of its own."""
    assert kinds_of(Stack([Layer() for _ in range(6)]), IDS, dynamic=True) == [0, *[1] * 5, 2]


def test_layers_without_products():
    def program(x, *weights):
        for weight in weights:
            x = (x.sin() * weight).tanh() + x.cos()
        return x

    kinds = kinds_of(program, torch.ones(4), *(torch.ones(4) * n for n in range(6)))
    assert len(kinds) >= 6 and len(set(kinds)) <= 3


def reason(program, *inputs) -> str:
    gm, _ = captured(program, *inputs)
    return find_regions(gm.graph).reason


def test_left_whole():
    assert reason(lambda x: x.sin().cos(), torch.ones(4)) == "no computation is repeated"
    assert reason(lambda x: x.sin().sin(), torch.ones(4)) == "too little of it is repeated"
    assert reason(Stack([Layer()]), IDS) != ""
    assert reason(Stack([Layer(), Other()]), IDS) != ""


def test_empty():
    graph = Graph()
    graph.output(())
    assert find_regions(graph).reason == "no computation is repeated"


def test_memory_of_the_residual_stream_leaves_it_whole():
    class InPlace(Layer):
        def forward(self, x):
            x += super().forward(x)
            return x

    assert kinds_of(Stack([InPlace() for _ in range(6)]), IDS) == []


def test_data_dependent_sizes_are_no_error():
    class Experts(Layer):
        def forward(self, x):
            y = super().forward(x)
            return y + torch.nonzero(y > 0).sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        kinds_of(Stack([Experts() for _ in range(4)]), IDS)


def test_the_last_layer_has_the_outputs_of_its_kind():
    """The others pass something on that the last one has no use for."""

    class Passing(Layer):
        def forward(self, x, earlier):
            y = super().forward(x + earlier)
            return y, y.tanh()

    class Model(Stack):
        def forward(self, ids):
            x = self.embed(ids)
            earlier = x.tanh()
            for layer in self.layers:
                x, earlier = layer(x, earlier)
            return self.head(x)

    gm, _ = captured(Model([Passing() for _ in range(6)]), IDS)
    with always_cut():
        found = find_regions(gm.graph)
    assert [region.kind for region in found.regions] == [0, *[1] * 5, 2]
    assert called_name(found.regions[-1].nodes[-1]) == "linear"
