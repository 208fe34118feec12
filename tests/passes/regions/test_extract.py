"""A region as a module of its own computes what it computed in the graph."""

from __future__ import annotations

import torch
from torch.fx import Interpreter

from innerq_compile.kernels.internals.dynamo_graphs import static
from innerq_compile.passes.graph.reading import called_name
from innerq_compile.passes.graph.values import example, has_example
from innerq_compile.passes.regions import extract, find_regions
from tests.helpers.stacks import Layer, Stack, always_cut, captured

IDS = torch.randint(0, 11, (2, 5))


def regions_of(program, *inputs, **options):
    gm, examples = captured(program, *inputs, **options)
    with always_cut():
        found = find_regions(gm.graph).regions
    assert found
    return gm, examples, found


class Values(Interpreter):
    """Runs a graph and keeps all values."""

    def __init__(self, gm):
        super().__init__(gm, garbage_collect_values=False)


@torch.no_grad()
def test_each_region_by_itself():
    gm, examples, found = regions_of(Stack([Layer() for _ in range(4)]), IDS)
    values = Values(gm)
    values.run(*examples)
    for region in found:
        extracted = extract(gm, region, {})
        extracted.gm.graph.lint()
        inputs = [values.env[node] for node in extracted.inputs]
        results = extracted.gm(*inputs)
        assert [id(node) for node in extracted.inputs] == [id(node) for node in region.inputs]
        assert extracted.symbols == [] and len(results) == len(region.outputs) > 0
        for result, node in zip(results, region.outputs, strict=True):
            assert torch.equal(result, values.env[node])


def test_equal_regions_have_equal_code():
    """Their caches on disk are keyed by it."""
    gm, _, found = regions_of(Stack([Layer() for _ in range(4)]), IDS)
    same = [region for region in found if region.kind == 1]
    codes = []
    for region in same:
        made = extract(gm, region, {}).gm
        codes.append([(node.op, node.target) for node in made.graph.nodes])
        assert all(has_example(node) for node in made.graph.nodes if node.op != "output")
    assert len(codes) == 3 and codes[0] == codes[1] == codes[2]


def test_placeholders_keep_what_is_known_of_them():
    gm, _, found = regions_of(Stack([Layer() for _ in range(4)]), IDS)
    for region in found:
        extracted = extract(gm, region, {})
        placeholders = extracted.gm.graph.find_nodes(op="placeholder")
        assert len(placeholders) == len(extracted.inputs)
        for placeholder, node in zip(placeholders, extracted.inputs, strict=True):
            assert example(placeholder) is example(node) and static(placeholder) == static(node)


class Scaled(Layer):
    """Each layer uses a number that all of them share."""

    def forward(self, x, number, cache):
        return super().forward(x) * number + cache[: cache.shape[0] - 1].sum()


class Numbers(Stack):
    def forward(self, ids, caches):
        x, number = self.embed(ids), ids.shape[0] * 2
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, number, cache)
        return self.head(x)


def caches(marked: bool) -> list[torch.Tensor]:
    found = [torch.ones(3 + index, 4) for index in range(4)]
    if marked:
        for cache in found:
            torch._dynamo.mark_dynamic(cache, 0)
    return found


def test_numbers_that_are_constant_are_written_into_the_region():
    gm, _, found = regions_of(Numbers([Scaled() for _ in range(4)]), IDS, caches(False))
    for region in found:
        assert all(torch.is_tensor(example(node)) for node in extract(gm, region, {}).inputs)


def test_symbols_of_sizes_are_further_inputs():
    """A region takes the number that it uses, and the symbols of sizes: guards on others are lost on disk."""
    x = torch.randint(0, 11, (6, 5))
    torch._dynamo.mark_dynamic(x, 0)
    gm, _, found = regions_of(Numbers([Scaled() for _ in range(4)]), x, caches(True))
    sizes = {}
    for node in gm.graph.find_nodes(op="placeholder"):
        value = example(node)
        for size in [value] if not torch.is_tensor(value) else value.shape:
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                sizes[size.node.expr] = size
    for region in found:
        extracted = extract(gm, region, sizes)
        placeholders = extracted.gm.graph.find_nodes(op="placeholder")
        assert len(placeholders) == len(extracted.inputs) + len(extracted.symbols)
        values = [example(node) for node in placeholders]
        seen = {value.node.expr for value in values if isinstance(value, torch.SymInt)}
        for node in extracted.gm.graph.nodes:
            value = example(node) if has_example(node) else None
            for size in value.shape if torch.is_tensor(value) else ():
                free = size.node.expr.free_symbols if isinstance(size, torch.SymInt) else set()
                assert free <= seen, called_name(node)
