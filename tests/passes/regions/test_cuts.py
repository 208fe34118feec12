"""Where graphs may be cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.fx import Graph
from torch.nn.attention import SDPBackend, sdpa_kernel

from innerq_compile.passes.graph.aliases import Writes
from innerq_compile.passes.graph.reading import called_name, outputs
from innerq_compile.passes.graph.values import example
from innerq_compile.passes.regions.cuts import allowed_cuts, body_of, is_constant, is_size, may_cross
from tests.helpers.stacks import captured


def uncut(program, *inputs, grad: bool = False, **options) -> list[str]:
    """What is called by the nodes before which the graph may not be cut."""
    gm, _ = captured(program, *inputs, grad=grad, **options)
    with torch.set_grad_enabled(grad):
        body = body_of(gm.graph)
        allowed = allowed_cuts(body, Writes(gm.graph))
    return [called_name(node) for node, may in zip(body, allowed, strict=True) if not may]


X = torch.ones(4, 4)


def test_tensors_and_sizes_may_cross():
    def program(x):
        return (x.sin() * x.shape[0]).cos()

    assert uncut(program, X) == uncut(program, X, dynamic=True) == []


def test_tuples_may_not():
    def program(x):
        a, b = x.sin().chunk(2)
        return a.cos() + b

    assert uncut(program, X) == ["getitem", "getitem"]


def test_memory_of_the_graph_is_written_in_one_region():
    def program(x):
        y = x.sin()
        y.add_(1)
        view = y[0]
        z = y.cos()
        view.mul_(2)
        return z.tanh() + y

    assert uncut(program, X) == ["add_", "getitem", "cos", "mul_"]


def test_inputs_may_be_written_in_several():
    def program(x):
        x.add_(1)
        y = x.sin()
        x[0] = 2
        return y

    assert uncut(program, X.clone()) == ["sin", "setitem"], "add_ returns what is written later"

    def with_setitem(x):
        x[1] = 1
        y = x.sin()
        x[0] = 2
        return y

    assert uncut(with_setitem, X.clone()) == []


def test_a_view_of_an_input_does_not_cross_a_write():
    def program(x):
        view = x[1:]
        y = view.sin()
        x[0] = 2
        return y.cos() + view.sum()

    assert uncut(program, X.clone()) == ["sin", "setitem"]


def test_autocast_is_not_cut():
    def program(x):
        with torch.autocast("cpu", torch.bfloat16):
            y = x.sin() @ x
        return y.cos()

    assert uncut(program, X) == ["sin", "matmul", "_exit_autocast"]


def test_a_choice_of_kernels_leaves_the_graph_whole():
    def program(x):
        x = x.sin()
        with sdpa_kernel(SDPBackend.MATH):
            x = F.scaled_dot_product_attention(x, x, x)
        return x.cos()

    assert uncut(program, X)[-1] == "cos" and uncut(program, X)[0] == "sin"


def test_grad_mode():
    """The caller would keep the mode of a region that does not restore it."""

    def frozen(x):
        with torch.no_grad():
            y = x.sin()
        return y.cos()

    assert uncut(frozen, X, grad=True) == uncut(frozen, X) == []
    with torch.enable_grad():
        gm, _ = captured(frozen, X, grad=True)
        assert "_set_grad_enabled" not in map(called_name, body_of(gm.graph)), "no gradient is computed"

    def learning(x, weight):
        with torch.enable_grad():
            y = x * weight
        return y.detach().cos()

    weight = torch.ones(4, requires_grad=True)
    assert uncut(learning, X, weight) == ["mul", "_set_grad_enabled"]


def test_numbers_that_nothing_uses_are_left_out():
    def program(x):
        return x.sin(), x.shape[0] + 1

    gm, _ = captured(program, X, dynamic=True)
    assert [called_name(node) for node in body_of(gm.graph)] == ["sin", "add"]
    gm.graph.output_node().args = (outputs(gm.graph)[:1],)
    assert [called_name(node) for node in body_of(gm.graph)] == ["sin"]


def test_sizes_of_the_device_do_not_cross():
    def program(x):
        places = torch.nonzero(x)
        return (places + 1).sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        gm, _ = captured(program, X)
    nodes = {called_name(node): node for node in gm.graph.nodes}
    assert not may_cross(nodes["nonzero"]) and may_cross(nodes["sum"])


@pytest.mark.parametrize("dynamic", [True, False])
def test_sizes_and_constants(dynamic):
    gm, _ = captured(lambda x: x.sin(), X, dynamic=dynamic)
    size = example(gm.graph.find_nodes(op="placeholder")[-1]).shape[0]
    assert is_size(size) == dynamic and is_constant(size) != dynamic
    assert not is_size(4) and is_constant(4) and not is_constant("4")


def test_empty():
    assert body_of(Graph()) == [] and allowed_cuts([], Writes(Graph())) == []
