"""Undocumented API that ``internals/templates.py`` uses. Without one of them no lowering is registered."""

from __future__ import annotations

from .entry import Internal

_CALLS = "No lowering is registered: the operators stay calls, and nothing is fused with them."


def _needed(module: str, *names: str, why: str, on_objects: bool = False) -> Internal:
    return Internal(module, names, why, _CALLS, on_objects, needs="triton")


ENTRIES = (
    _needed(
        "torch._inductor.lowering",
        "register_lowering(type_promotion_kind)",
        "lowerings",
        why="Inductor asks for the lowering of an operator by its overload; the table is written back where one of "
        "ours cannot be registered.",
    ),
    _needed(
        "torch._inductor.lowering",
        "fallback_handler(add_to_fallback_set)",
        why="A call that no template takes stays a call of the operator.",
    ),
    _needed(
        "torch._inductor.lowering",
        "expand",
        "permute",
        "view",
        why="Views of arguments and results, which Inductor fuses into what reads them.",
    ),
    _needed(
        "torch._inductor.ir",
        "ExternKernel.realize_input",
        "ExternKernel.require_contiguous",
        "FixedLayout",
        "FlexibleLayout.contiguous_strides",
        "IRNode",
        "Layout",
        "TensorBox",
        "is_contiguous_strides_for_shape",
        why="A template reads buffers, with the strides that they will have, and says what its result is like.",
    ),
    _needed(
        "torch._inductor.config",
        "cpu_backend",
        "max_autotune",
        "triton.enable_pdl",
        why="Whether Inductor makes Triton kernels, times choices, and launches kernels before the one in front ends.",
    ),
    _needed(
        "torch._inductor.select_algorithm",
        "TritonTemplate.__init__(name, grid, source)",
        "TritonTemplate.maybe_append_choice(input_nodes, layout, call_sizes, num_warps, num_stages)",
        "TritonTemplate.kernel_type",
        "SymbolicGridFn",
        "autotune_select_algorithm(input_gen_fns)",
        why="Templates of Triton code. What follows such a kernel is fused into it, and with max_autotune the "
        "fastest of several is taken. torch 2.11 returns a node, later ones a node and its choice.",
    ),
    _needed(
        "torch._inductor.select_algorithm",
        "AlgorithmSelectorCache.benchmark_example_value",
        why="Tensors to time choices on: packed codes and lengths are no random numbers.",
    ),
    _needed(
        "torch._inductor.select_algorithm",
        "TritonTemplateKernel.jit_lines",
        "TritonTemplateKernel._register_extra_template_env_fns",
        why="The partial kernel stores three results in one buffer itself, and may have fewer registers than it "
        "asks for.",
    ),
    _needed(
        "triton.runtime.jit",
        "ConstexprFunction",
        why="Generated code holds a copy of every function that a kernel calls, under the decorator that it has.",
    ),
    _needed(
        "torch._inductor.virtualized",
        "V",
        why="The graph that is being lowered.",
    ),
    _needed(
        "torch._inductor.graph",
        "no_fuse_buffer_names",
        "mutated_buffers",
        "graph_inputs",
        "constants",
        "sizevars",
        on_objects=True,
        why="Which buffers may not be fused with others, and which are written before a kernel reads them.",
    ),
    _needed(
        "torch._inductor.sizevars",
        "shape_env",
        why="Symbolic sizes as Python's arithmetic takes them, and their bounds.",
        on_objects=True,
    ),
    _needed(
        "torch.fx.experimental.symbolic_shapes",
        "ShapeEnv.create_symintnode(hint)",
        "ShapeEnv.bound_sympy",
        why="Symbolic sizes as Python's arithmetic takes them, and their bounds.",
    ),
)
