"""Undocumented API that ``internals/inductor.py`` uses."""

from __future__ import annotations

from .entry import Internal

ENTRIES = (
    Internal(
        module="torch._inductor.config",
        names=("fx_graph_cache", "force_disable_caches", "get_hash"),
        why="Traces are kept where compiled graphs are, unless these are not kept; and for the same settings.",
        without="Traces are not kept on disk: a new process traces its models.",
    ),
    Internal(
        module="torch._inductor.compile_fx",
        names=("compile_fx(config_patches)",),
        why="Compiles a rewritten graph as backend='inductor' does. torch._inductor.compile is for exported graphs: "
        "it takes no options for one graph without changing those of all.",
        without="Nothing compiles.",
    ),
    Internal(
        module="torch._inductor.async_compile",
        names=("maybe_warm_pool",),
        why="Starts the processes that compile Triton kernels, as backend='inductor' does, while Dynamo still traces.",
        without="Nothing compiles on a GPU.",
    ),
    Internal(
        module="torch._inductor.runtime.triton_compat",
        names=("HAS_TRITON", "triton_key"),
        why="The hash of Triton's files, a second of reading, is begun while Dynamo still traces.",
        without="Nothing compiles on a GPU.",
    ),
    Internal(
        module="torch._inductor.config",
        names=("assert_indirect_indexing",),
        why="Turns off a check for which torch 2.11 generates C++ that does not compile.",
        without="With torch 2.11, prompts of transformers' models do not compile on a CPU.",
    ),
    Internal(
        module="torch._functorch.aot_autograd",
        names=("_boxed_call",),
        on_objects=True,
        why="A compiled layer is called with a list of its inputs, so that it can free them after their last use.",
        without="A prompt needs memory for some more intermediate results.",
    ),
    Internal(
        module="torch._inductor.config",
        names=(
            "pre_grad_custom_pass",
            "joint_custom_pre_pass",
            "joint_custom_post_pass",
            "post_grad_custom_pre_pass",
            "post_grad_custom_post_pass",
        ),
        why="Whether the user has passes of their own, which expect to see a graph as a whole.",
        without="Such a pass sees each kind of layer by itself.",
    ),
    Internal(
        module="torch._inductor.config",
        names=("get_config_copy",),
        why="Which options of torch.compile are Inductor's; unknown options are an error.",
        without="Nothing compiles.",
    ),
    Internal(
        module="torch._inductor.config",
        names=("triton.cudagraphs",),
        why="Whether the process has turned on Inductor's CUDA graphs for all graphs.",
        without="Nothing compiles.",
    ),
    Internal(
        module="torch._inductor",
        names=("list_mode_options",),
        why="torch.compile expands a mode for backend='inductor' only.",
        without="mode='reduce-overhead' and others fail with an ImportError.",
    ),
    Internal(
        module="torch._inductor.cudagraph_trees",
        names=("reset_cudagraph_trees",),
        needs="cuda",
        why="torch.compiler.reset() lets a backend release its CUDA graphs: NCCL cannot shut down while they exist.",
        without="torch.compiler.reset() fails with an ImportError.",
    ),
    Internal(
        module="torch._inductor.codecache",
        names=("PyCodeCache.load_by_key_path",),
        why="The file with Inductor's output code, which a dump copies.",
        without="Dumping graphs fails with an AttributeError.",
    ),
    Internal(
        module="torch._functorch.config",
        names=("patch", "enable_autograd_cache"),
        why="With its cache, AOTAutograd loads the code of a graph at the first call, which is too late for a dump.",
        without="Dumping graphs fails with an AttributeError.",
    ),
    Internal(
        module="torch._inductor.runtime.cache_dir_utils",
        names=("cache_dir", "triton_cache_dir"),
        why="The folder of Inductor's caches, where it is Inductor's default: notices and warm_up name it.",
        without="warm_up fails, and so does the notice of a compilation, with an ImportError.",
    ),
    Internal(
        module="torch._inductor.cpu_vec_isa",
        names=("pick_vec_isa",),
        why="The C++ kernels are generated for the vector width that Inductor's compiler flags allow.",
        without="The C++ kernels do not compile: the operators fail with an ImportError on a CPU.",
    ),
    Internal(
        module="torch._inductor.codecache",
        names=("CppCodeCache.load", "CppCodeCache.load_async(device_type, extra_flags)"),
        why="Inductor's C++ compiler, with its flags, its cache on disk and its locks.",
        without="The C++ kernels do not compile: the operators fail with an ImportError on a CPU.",
    ),
)
