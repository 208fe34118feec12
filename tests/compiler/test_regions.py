"""Graphs compiled region by region compute what they compute as a whole, with fewer functions to compile."""

from __future__ import annotations

import contextlib
import copy
import logging
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from innerq_compile import compiled_graphs, innerq
from innerq_compile.compiler import backend as compiler_backend
from innerq_compile.compiler import regions
from innerq_compile.compiler.analysis import analyse
from innerq_compile.compiler.regions import compile_regions
from innerq_compile.passes import PIPELINE
from innerq_compile.passes.graph.reading import outputs
from innerq_compile.passes.regions import find_regions
from tests.helpers.families import Family
from tests.helpers.generation import models
from tests.helpers.models import generate, prompt, tiny_llama
from tests.helpers.stacks import WIDTH, Layer, Other, Stack, always_cut, captured, counted, in_regions, uncompiled
from tests.helpers.without_inductor import as_it_is, through_autograd, without_inductor

IDS = torch.randint(0, 11, (2, 5))


def check(program, *calls: Any, run=through_autograd, dynamic=None, exact=True):
    """The program, compiled in regions, does in each call what it does eagerly, to its inputs as well."""
    inductor = contextlib.nullcontext() if run is None else uncompiled(run)
    torch._dynamo.reset()
    with inductor, torch.no_grad():
        made = in_regions(program, dynamic)
        for inputs in calls:
            made_inputs: list[Any] = [inputs() if callable(inputs) else copy.deepcopy(inputs) for _ in range(2)]
            ours, theirs = made_inputs
            torch.manual_seed(3)
            expected = program(*theirs)
            torch.manual_seed(3)
            tolerance = 0.0 if exact and run is not None else 1e-9
            torch.testing.assert_close(made.call(*ours), expected, atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    return made


class Each(Stack):
    """Layers with a list of further inputs, one for each, and further results."""

    def forward(self, ids, *lists):
        x, others = self.embed(ids), []
        for layer, *inputs in zip(self.layers, *lists, strict=True):
            x, *more = layer(x, *inputs)
            others.append(more)
        return self.head(x), others


# --- what may not be shared, and what may ---------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [None, True])
def test_equal_layers(dynamic):
    calls = [(IDS,), (torch.randint(0, 11, (3, 7)),), (torch.randint(0, 11, (4, 2)),)]
    made = check(Stack([Layer() for _ in range(6)]), *calls, dynamic=dynamic)
    assert {str(found) for found in made.found} == {"7 regions of 3 kinds"} and set(made.functions) == {3}


def test_compiled_by_inductor():
    made = check(Stack([Layer() for _ in range(5)]).double(), (IDS,), run=None)
    assert made.functions == [3]


def test_kinds_of_layers():
    made = check(Stack([Layer(), Layer(), Other()] * 3), (IDS,))
    assert len(made.found[0].regions) > 6


class WritesOneReadsOther(Layer):
    def forward(self, x, written, read):
        written.add_(x.mean())
        return (super().forward(x + read[0]),)


def aliased():
    apart = [torch.zeros(4) for _ in range(6)]
    read = [torch.zeros(4) for _ in range(6)]
    read[2] = apart[2].view(2, 2).view(4)
    read[4] = apart[4][1:]
    return IDS, apart, read


def test_caches_that_share_memory():
    """A function that was compiled for two tensors would not see that one is written through the other."""
    made = check(Each([WritesOneReadsOther() for _ in range(6)]), aliased)
    assert made.functions[0] > 3


class ReturnsView(Layer):
    def forward(self, x, cache):
        view = cache.t()[1:]
        return super().forward(x), view


@pytest.mark.parametrize("dynamic", [None, True])
def test_views_of_inputs_that_begin_elsewhere(dynamic):
    def inputs():
        stacked = torch.arange(6 * 12.0).view(6, 3, 4)
        return IDS, [stacked[index] for index in range(6)]

    assert check(Each([ReturnsView() for _ in range(6)]), inputs, dynamic=dynamic).functions[0] == 3


class Narrows(Layer):
    def forward(self, x, cache, number):
        part = cache.narrow(0, number, 2)
        return (super().forward(x) + part.sum(),)


def test_symbolic_offsets():
    caches = [torch.randn(9, 4) for _ in range(6)]
    calls = [(IDS, caches, [number] * 6) for number in (3, 4, 5)]
    assert check(Each([Narrows() for _ in range(6)]), *calls).functions == [3, 3]


class Grows(Layer):
    """A layer with a cache of its own length, of which it reads a part whose size depends on that."""

    def forward(self, x, cache):
        size = cache.shape[1]
        x = super().forward(x + cache[:, : size // 2].mean())
        new = x.mean((0, 1)).expand(cache.shape[0], 1, -1)
        return x, torch.cat([cache, new], 1), size + 1


def of_lengths(*lengths):
    caches = [torch.randn(2, length, WIDTH) for length in lengths]

    def inputs():
        copies = [cache.clone() for cache in caches]
        for cache in copies:
            torch._dynamo.mark_dynamic(cache, 1)
        return IDS, copies

    return inputs


def test_lengths_that_differ_between_layers():
    """Also in later calls, and where the length of one layer is a special case (3 // 2 = 1, which broadcasts)."""
    calls = (
        of_lengths(4, 5, 6, 7, 8),
        of_lengths(9, 4, 12, 30, 6),
        of_lengths(9, 3, 12, 30, 4),
        of_lengths(8, 8, 8, 8, 8),
    )
    made = check(Each([Grows() for _ in range(5)]), *calls, exact=False)
    assert made.functions[0] == 3


@pytest.mark.parametrize("context", ["autocast", "no_grad", "sdpa_kernel"])
def test_contexts(context):
    contexts = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "no_grad": torch.no_grad,
        "sdpa_kernel": lambda: sdpa_kernel(SDPBackend.MATH),
    }

    class Within(Layer):
        def forward(self, x):
            y = self.up(x)
            with contexts[context]():
                x = F.scaled_dot_product_attention(x, x, super().forward(x)).float()
                return x + self.down(y).float()

    before = torch.nn.attention._cur_sdpa_kernel_backends()
    made = check(Stack([Within() for _ in range(5)]), (IDS,))
    assert torch.nn.attention._cur_sdpa_kernel_backends() == before
    assert bool(made.found[0].regions) == (context != "sdpa_kernel")


@pytest.mark.parametrize("run", [through_autograd, None])
def test_the_caller_keeps_its_grad_mode(run):
    """Also where the code comes from a cache on the disk, which remembers the mode that a graph leaves."""

    class Frozen(Stack):
        def forward(self, ids):
            with torch.no_grad():
                x = super().forward(ids)
            return x * 2

    program = Frozen([Layer() for _ in range(5)]).requires_grad_(False)
    for _ in range(2):
        torch._dynamo.reset()
        with without_inductor(run) if run else contextlib.nullcontext():
            made = in_regions(program)
            made.call(IDS)
            assert torch.is_grad_enabled()
            torch.testing.assert_close(made.call(IDS), program(IDS), atol=1e-2, rtol=1e-3)
        assert made.functions == [3]


class Shares(Layer):
    """The first layer computes something that all use."""

    def __init__(self, compute) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x, table, shared):
        y = self.up(x)
        if not shared:
            shared.extend(self.compute(table))
        return super().forward(x + self.down(y) * shared[0].mean()) + shared[-1].sum()


def in_autocast(table):
    with torch.autocast("cpu", torch.bfloat16):
        return (table @ table,)


@pytest.mark.parametrize(
    "compute",
    [
        lambda table: (table.cos(),),
        lambda table: (table * 2).chunk(2),
        lambda table: (F.dropout(table, 0.3),),
        lambda table: (table[1:], table.shape[0] + table),
        in_autocast,
    ],
    ids=["tensor", "tuple", "random", "view", "autocast"],
)
def test_what_the_first_layer_computes_for_all(compute):
    class Model(Stack):
        def forward(self, ids, table):
            return super().forward(ids, table, [])

    check(Model([Shares(compute) for _ in range(5)]), (IDS, torch.randn(4, 4)))


def test_writes_to_memory_of_the_graph_and_of_its_inputs():
    class Writes(Layer):
        def forward(self, x, buffer, cache):
            cache[:, 1:] = cache[:, :-1] + x.mean()
            cache.mul_(0.5)
            buffer[0] += 1
            y = super().forward(x)
            y += cache.sum() + buffer[0]
            view = y[0]
            view.mul_(2)
            return y, cache[0], view

    class Model(Each):
        def forward(self, ids, buffer, caches):
            return super().forward(ids, [buffer] * len(caches), caches), buffer

    def inputs():
        return IDS, torch.ones(4), [torch.ones(2, 3) * index for index in range(5)]

    check(Model([Writes() for _ in range(5)]), inputs)


def test_outputs_of_all_sorts():
    class Returns(Layer):
        def forward(self, x, cache):
            y = super().forward(x)
            return y, cache, cache, cache[1:], y.view(-1), None, 3, y.shape[0], cache.shape

    check(Each([Returns() for _ in range(5)]), (IDS, [torch.randn(3, 2) for _ in range(5)]))
    check(Each([Returns() for _ in range(5)]), (IDS, [torch.randn(3, 2) for _ in range(5)]), dynamic=True)


def test_views_among_outputs_share_memory():
    class Returns(Layer):
        def forward(self, x, cache):
            y = super().forward(x)
            return y, y[0], cache[1:]

    program = Each([Returns() for _ in range(5)])
    caches = [torch.zeros(3, 2) for _ in range(5)]
    with uncompiled(through_autograd):
        _, others = in_regions(program).call(IDS, caches)
    for (_, view), cache in zip(others, caches, strict=True):
        view.fill_(7)
        assert cache[1:].eq(7).all() and cache[0].eq(0).all()


def test_constants_and_attributes_as_outputs():
    """Dynamo's graphs may hold tensors as attributes."""

    class Model(Stack):
        def __init__(self, layers):
            super().__init__(layers)
            self.register_buffer("constant", torch.ones(3))

        def forward(self, ids):
            return super().forward(ids), self.constant

    gm, examples = captured(Model([Layer() for _ in range(4)]), IDS)
    gm.register_buffer("constant", torch.arange(3.0))
    returned = gm.graph.output_node()
    with gm.graph.inserting_before(returned):
        attribute = gm.graph.get_attr("constant")
    attribute.meta["example_value"] = torch.empty(3, device="meta")
    returned.args = ((*outputs(gm.graph), attribute, None, 4),)
    with always_cut(), torch.no_grad(), without_inductor(as_it_is):
        found = find_regions(gm.graph)
        results = compile_regions(gm, found, examples, {})(*examples)
    assert torch.equal(results[-3], torch.arange(3.0)) and list(results[-2:]) == [None, 4]


def test_symbolic_constants_and_numbers_between_regions():
    class Model(Stack):
        def forward(self, ids):
            x, number = self.embed(ids), ids.shape[0] + 1
            for layer in self.layers:
                x = layer(x) / number
                number = number + 1
            return self.head(x), number, ids.shape[1]

    made = check(Model([Layer() for _ in range(5)]), (IDS,), (IDS[:, :3],), (IDS[:1],), dynamic=True)
    assert made.found[0].regions


def test_random_operations_follow_each_other():
    class Drops(Layer):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.4, True) + torch.rand_like(x)

    check(Stack([Drops() for _ in range(5)]), (IDS,))
    torch._dynamo.reset()
    with torch.no_grad():  # Inductor's own numbers: each call has its own, the same ones from the same seed
        call = in_regions(Stack([Drops() for _ in range(5)])).call
        torch.manual_seed(1)
        first, second = call(IDS), call(IDS)
        torch.manual_seed(1)
        assert torch.equal(call(IDS), first) and not torch.equal(first, second)


def test_higher_order_operators():
    class Branches(Layer):
        def forward(self, x):
            y = super().forward(x)
            return torch.cond(y.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (y,))

    check(Stack([Branches() for _ in range(4)]), (IDS,))


def test_sizes_that_depend_on_data():
    class Counts(Layer):
        def forward(self, x):
            y = super().forward(x)
            return y + torch.nonzero(y > 0).sum() * (y > 0).sum().item()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        check(Stack([Counts() for _ in range(4)]), (IDS,))


@pytest.mark.parametrize("inline", [True, False])
def test_parameters_as_attributes(inline):
    with torch._dynamo.config.patch(inline_inbuilt_nn_modules=inline):
        check(Stack([Layer() for _ in range(4)]), (IDS,))


# --- random programs ------------------------------------------------------------------------------------------------


class Step(nn.Module):
    """A layer made of random pieces, some of which make cuts difficult."""

    def __init__(self, pieces: list[str]) -> None:
        super().__init__()
        self.pieces = pieces
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x, cache, shared, kept):
        for piece in self.pieces:
            match piece:
                case "one":
                    x = x + self.one(x).tanh()
                case "two":
                    x = self.two(x.cos())
                case "in place":
                    x += self.two(x) * 0.1
                case "own memory":
                    y = x.clone()
                    y[..., 0] = 1
                    x = self.one(y)
                case "write":
                    cache[0] = x.mean((0, 1))[:4]
                case "read":
                    x = x + cache.sum()
                case "view":
                    kept.append(cache[1:])
                case "late view":
                    x = x + (kept[0].sum() if kept else 0)
                case "shared":
                    if not shared:
                        shared.append(cache.shape[0] * self.two.weight.mean())
                    x = x * shared[0]
                case "split":
                    a, b = x.chunk(2, -1)
                    x = torch.cat([b, self.one(x)[..., :1], a[..., 1:]], -1)
                case "autocast":
                    with torch.autocast("cpu", torch.bfloat16):
                        x = x + self.one(x).float()
                case "size":
                    x = x * (x.shape[0] + cache.shape[0])
                case "return":
                    kept.append(x[0])
        return x


PIECES = ["one", "two", "in place", "own memory", "write", "read", "view", "late view", "shared", "split", "autocast"]
PIECES += ["size", "return"]
layer_kinds = st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), min_size=1, max_size=2)


class Steps(nn.Module):
    def __init__(self, kinds: list[list[str]], order: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Step(kinds[kind % len(kinds)]) for kind in order)

    def forward(self, x, caches):
        x, shared, kept = x.sin(), [], []
        for index, layer in enumerate(self.layers):
            x = layer(x, caches[index % len(caches)], shared, kept)
        return x, kept, x.mean()


@settings(max_examples=20)
@given(
    kinds=layer_kinds,
    order=st.lists(st.integers(0, 1), min_size=3, max_size=6),
    caches=st.integers(1, 6),
    aliased=st.booleans(),
    symbolic=st.booleans(),
    run=st.sampled_from([as_it_is, as_it_is, as_it_is, through_autograd]),
)
def test_random_programs(kinds, order, caches, aliased, symbolic, run):
    if aliased:  # AOTAutograd fails to return a view of one of several inputs that share memory
        kinds = [[piece for piece in pieces if piece != "view"] for pieces in kinds]
    torch.manual_seed(0)
    program = Steps(kinds, order)

    def inputs():
        torch.manual_seed(1)
        memory = torch.rand(caches + 3, 4)
        rows = [memory[i : i + 3] if aliased else torch.rand(3 + (i if symbolic else 0), 4) for i in range(caches)]
        if symbolic and not aliased:
            for one in rows:
                torch._dynamo.mark_dynamic(one, 0)
        return torch.rand(2, 3, WIDTH), rows

    check(program, inputs, inputs, run=run, exact=False)


# --- the backend ----------------------------------------------------------------------------------------------------


@pytest.fixture
def backend(fresh_dynamo):
    """Compiles by the real backend, with AOTAutograd in Inductor's place."""

    def compiled(program, **options):
        return torch.compile(program, backend="innerq", options=options)

    with torch.no_grad(), without_inductor(), always_cut():
        yield compiled


def stack() -> Stack:
    return Stack([Layer() for _ in range(4)])


def test_the_report_says_what_was_done(backend):
    program = stack()
    torch.testing.assert_close(backend(program)(IDS), program(IDS))
    assert [report.regions for report in compiled_graphs()] == ["5 regions of 3 kinds"]


def test_as_a_whole(backend):
    program = stack()
    with counted() as count:
        torch.testing.assert_close(backend(program, regions=False)(IDS), program(IDS))
    assert count() == 1
    assert [report.regions for report in compiled_graphs()] == ["compiled as a whole: regions=False"]


def test_nothing_to_share(backend):
    backend(lambda x: x.sin().cos())(torch.ones(3))
    assert [report.regions for report in compiled_graphs()] == ["compiled as a whole: no computation is repeated"]


def test_gradients(backend):
    program = stack()
    with torch.enable_grad():
        backend(program)(IDS).sum().backward()
        assert program.layers[0].weight.grad is not None
    assert [report.regions for report in compiled_graphs()] == ["compiled as a whole: it computes gradients"]


class Broken(Exception):
    pass


def test_a_failure_leaves_the_graph_whole(backend, monkeypatch, caplog):
    def breaking(*args):
        raise Broken("nobody thought of this")

    monkeypatch.setattr(regions, "extract", breaking)
    program = stack()
    with caplog.at_level(logging.ERROR, logger="innerq_compile"), counted() as count:
        torch.testing.assert_close(backend(program)(IDS), program(IDS))
    assert count() == 1
    (report,) = compiled_graphs()
    assert report.regions.startswith("compiled as a whole: ") and "nobody thought of this" in report.regions
    assert [record.exc_info[0] for record in caplog.records] == [Broken]


def test_what_fails_while_another_is_compiled_is_compiled_by_itself(backend, monkeypatch):
    calls, extract = [], regions.extract

    def breaking_once(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Broken("only within another compilation")
        return extract(*args)

    monkeypatch.setattr(regions, "extract", breaking_once)
    program = stack()
    torch.testing.assert_close(backend(program)(IDS), program(IDS))
    assert [report.regions for report in compiled_graphs()] == ["5 regions of 3 kinds"]
    assert len(calls) == 4


def test_a_failure_in_strict_mode(backend, monkeypatch):
    def breaking(*args):
        raise Broken("nobody thought of this")

    monkeypatch.setattr(regions, "find_regions", breaking)

    compiled = innerq(tiny_llama(layers=1, head_dim=16), preset="lossless", strict=True)
    with pytest.raises(Exception, match="nobody thought of this"):
        compiled(**prompt(1, 10), use_cache=True)


def test_a_float_that_has_to_be_a_constant(backend, caplog):
    """AOTAutograd asks Dynamo to trace again, which is no failure."""

    class Scaled(Stack):
        def forward(self, ids, scale):
            return super().forward(ids) * scale

    program = Scaled([Layer() for _ in range(4)])
    compiled = backend(program)
    with caplog.at_level(logging.ERROR, logger="innerq_compile"):
        for scale in (0.5, 0.7, 0.9):
            torch.testing.assert_close(compiled(IDS, scale), program(IDS, scale))
    assert caplog.records == []
    assert {report.regions for report in compiled_graphs()} <= {"5 regions of 3 kinds", ""}


def test_weights_in_another_dtype_are_not_all_made_at_once():
    """Each is freed when its layer has run, as if the graph were compiled as a whole."""
    made: list[weakref.ref] = []
    most = 0

    @torch.library.custom_op("innerq_test_regions::widen", mutates_args=())
    def widen(x: torch.Tensor) -> torch.Tensor:
        nonlocal most
        result = x.to(torch.float32)
        made.append(weakref.ref(result))
        most = max(most, sum(one() is not None for one in made))
        return result

    widen.register_fake(lambda x: torch.empty_like(x, dtype=torch.float32))

    class Short(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randint(-3, 3, (WIDTH, WIDTH), dtype=torch.int8), requires_grad=False)

        def forward(self, x):
            return torch.sigmoid(F.linear(x, widen(self.weight.view(WIDTH, WIDTH))) * 0.1)

    made_of = check(Stack([Short() for _ in range(8)]), (IDS,))
    assert made_of.found[0].regions
    made.clear()
    most = 0
    with uncompiled(through_autograd):
        in_regions(Stack([Short() for _ in range(8)])).call(IDS)
    assert most <= 2


# --- models ---------------------------------------------------------------------------------------------------------


def generated(model, inputs, **options):
    """Tokens and logits of four new tokens."""
    return generate(model, inputs, 4, **options)[:2]


def assert_same(got, expected) -> None:
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], atol=2e-3, rtol=0)


def assert_in_regions() -> None:
    found = [report.regions for report in compiled_graphs() if report.attentions]
    assert found and all("kinds" in text for text in found), found


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cache", [None, "static"])
def test_generate(graphs_as_they_are, cache):
    """Eight layers cost three functions for the prompt and three for the step, and another prompt costs none."""
    options = {} if cache is None else {"cache_implementation": cache}
    eager, model = models(layers=8)
    inputs, other = prompt(2, 40, (0, 7)), prompt(2, 55, (3, 0))
    with counted("Region") as count:
        assert_same(generated(model, inputs, **options), generated(eager, inputs, **options))
        graphs = len(compiled_graphs())
        assert count() == 3 * graphs
        assert_same(generated(model, other, **options), generated(eager, other, **options))
        assert count() == 3 * len(compiled_graphs())
    assert len(compiled_graphs()) == graphs or cache is not None
    assert_in_regions()
    if cache is None:  # the first layer and the last one are like the others
        assert {report.regions for report in compiled_graphs()[-2:]} == {"10 regions of 3 kinds"}


@pytest.mark.slow
def test_steps_with_a_mask():
    """Two inputs of a padded step are the same size, by a symbol each: layers know the mask's length by only one."""
    model = innerq(tiny_llama(layers=4, head_dim=64, heads=8, dtype=torch.bfloat16))
    generated(model, prompt(2, 160, (0, 5)))
    assert {report.regions for report in compiled_graphs()[-2:]} == {"6 regions of 3 kinds"}


def test_a_mask_with_room_for_the_first_cache(graphs_as_they_are, monkeypatch):
    """Where lengths are moved to a prelude, the mask is as long as the first cache: all layers are alike all the same.

    They share a function that does not rely on the capacity of their own cache being that one.
    """
    found = []

    def analyse_for_a_gpu(gm, config, *others):
        rewritten = PIPELINE.rewrite(gm, config, static_lengths=True)
        found.append((rewritten, find_regions(rewritten.gm.graph)))
        return analyse(gm, config, *others)

    monkeypatch.setattr(compiler_backend, "analyse", analyse_for_a_gpu)
    generated(innerq(tiny_llama(layers=4)), prompt(2, 40, (0, 7)))
    (rewritten, cut) = found[-1]
    assert rewritten.context.prelude is not None
    assert [region.kind for region in cut.regions] == [0, 1, 1, 1, 1, 2]
    first, *others = cut.regions[1:5]
    assert regions._most_general(first, cut.regions) in others
    assert len(set(first.symbols)) < len(set(others[0].symbols))


@pytest.mark.slow
def test_generate_with_windows_in_every_other_layer(graphs_as_they_are):
    kinds = {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3}
    family = Family("Gemma3ForCausalLM", fields=kinds)
    inputs = prompt(2, 40, (0, 7))
    expected = generated(family.build("sdpa"), inputs)
    assert_same(generated(innerq(family.build("sdpa"), preset="lossless"), inputs), expected)
    assert_in_regions()


@pytest.mark.slow
def test_steps_of_several_tokens(graphs_as_they_are):
    eager, model = models(layers=5)
    options = {"prompt_lookup_num_tokens": 3}
    inputs = prompt(1, 40)
    assert torch.equal(generated(model, inputs, **options)[0], generated(eager, inputs, **options)[0])
    assert_in_regions()


@pytest.mark.slow
def test_quantized(graphs_as_they_are):
    """Regions change nothing of what is quantized and how."""
    inputs = prompt(2, 40, (0, 7))
    made = [innerq(tiny_llama(layers=4, head_dim=16), preset="base", regions=regions) for regions in (False, True)]
    whole, cut = (generated(model, inputs) for model in made)
    assert torch.equal(whole[0], cut[0]) and torch.equal(whole[1], cut[1])
