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
        why="Registers the lowerings of operators; the table is restored if one of them cannot be registered.",
    ),
    _needed(
        "torch._inductor.lowering",
        "fallback_handler(add_to_fallback_set)",
        why="A call that no template supports remains a call of the operator.",
    ),
    _needed(
        "torch._inductor.lowering",
        "expand",
        "permute",
        "view",
        why="Views of arguments and results, which Inductor fuses into their readers.",
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
        why="A template reads buffers with fixed strides, and declares the layout of its result.",
    ),
    _needed(
        "torch._inductor.config",
        "cpu_backend",
        "max_autotune",
        "triton.enable_pdl",
        why="Whether Inductor generates Triton kernels, times choices, and uses programmatic dependent launch.",
    ),
    _needed(
        "torch._inductor.select_algorithm",
        "TritonTemplate.__init__(name, grid, source)",
        "TritonTemplate.maybe_append_choice(input_nodes, layout, call_sizes, num_warps, num_stages)",
        "TritonTemplate.kernel_type",
        "SymbolicGridFn",
        "autotune_select_algorithm(input_gen_fns)",
        why="Templates of Triton code. Pointwise operations after such a kernel are fused into it, and with "
        "max_autotune the fastest of several is used. torch 2.11 returns a node, later versions a node and its choice.",
    ),
    _needed(
        "torch._inductor.select_algorithm",
        "AlgorithmSelectorCache.benchmark_example_value",
        why="Tensors for timing choices: packed codes and lengths must not be random numbers.",
    ),
    _needed(
        "torch._inductor.select_algorithm",
        "TritonTemplateKernel.jit_lines",
        "TritonTemplateKernel._register_extra_template_env_fns",
        why="The partial kernel stores three results in one buffer itself, and its registers are limited.",
    ),
    _needed(
        "torch._inductor.select_algorithm",
        "TritonTemplateKernel.rename_indexing",
        why="A symbolic number that is no size of a tensor becomes an argument of the partial kernel.",
    ),
    _needed(
        "torch._inductor.select_algorithm",
        "call_sizes",
        why="A symbolic number that is no size of a tensor becomes an argument of the partial kernel.",
        on_objects=True,
    ),
    _needed(
        "torch._inductor.codegen.triton",
        "texpr",
        why="Symbolic numbers in the text of a kernel.",
    ),
    _needed(
        "triton.runtime.jit",
        "ConstexprFunction",
        why="Generated code has a copy of each function that a kernel calls, with its decorator.",
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
        why="Symbolic sizes as SymInts, and their bounds.",
        on_objects=True,
    ),
    _needed(
        "torch.fx.experimental.symbolic_shapes",
        "ShapeEnv.create_symintnode(hint)",
        "ShapeEnv.bound_sympy",
        why="Symbolic sizes as SymInts, and their bounds.",
    ),
)
