"""Fixtures for all tests: a fixed seed, no access to the network, no more threads than a worker's share."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import zlib
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["INNERQ_PROGRESS"] = "0"  # whether a compilation takes long depends on the machine

import pytest
import torch

if not torch.cuda.is_available():
    # the Triton kernels run in Triton's interpreter, which has to be asked for before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"
    # Dynamo's cache of what torch's own operators return, from which the package's are exempt: with symbolic sizes an
    # entry costs more than the operator, a third of all tracing. `make slow` has it, and tests on a GPU.
    os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

from hypothesis import HealthCheck, settings

from tests.helpers import fast_interpreter
from tests.helpers.torch_threads import threads
from tests.helpers.without_inductor import Runner, as_it_is, forget_graphs, through_autograd, without_inductor

if "TRITON_INTERPRET" in os.environ:
    fast_interpreter.install()

# pytest listens to loggers that do not propagate, and torch writes a trace of all that it compiles once anybody listens
logging.getLogger("torch.__trace").propagate = True

SEED = 20260223

# Examples are few and always the same, so that a failure in CI is reproducible. HYPOTHESIS_PROFILE=thorough
# searches at random.
settings.register_profile(
    "default", max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", max_examples=500, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

if "PYTEST_XDIST_WORKER" in os.environ:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # for the processes that tests start


def pytest_report_header() -> list[str]:
    """Says which versions do not go together, where many tests would fail with an error that does not say it."""
    if not fast_interpreter.fits_numpy():
        problem = (
            "Triton's interpreter before 3.7 fails with numpy 2.4 or newer, and most tests of the Triton kernels too"
        )
        return [f"{problem}: pip install 'numpy<2.4'"]
    return []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``sampled(n)``, one in n cases runs by default, always the same ones; the others are slow."""
    families: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") is not None:
            families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for family in families.values():
        of = family[0].get_closest_marker("sampled").args[0]
        # sorted by a checksum of the name, which spreads the sample over all parameters and does not depend on the file
        family.sort(key=lambda item: zlib.crc32(item.name.encode()))
        for item in family[-(-len(family) // of) :]:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """The garbage collector leaves alone what has been imported, which it would walk through again and again.

    Compiling makes many objects, so that it also looks less often: otherwise it is a sixth of what the tests take.
    """
    from innerq_compile.kernels.collector import sparing_old_objects

    gc.collect()
    _SESSION.enter_context(sparing_old_objects())  # as a compilation does, which then need not count what is frozen
    gc.set_threshold(10_000, 10, 10)


def pytest_sessionfinish() -> None:
    _SESSION.close()  # or Triton's bindings, whose objects nobody would have freed, complain at exit


#: What is undone at the end.
_SESSION = contextlib.ExitStack()


@pytest.fixture(autouse=True, scope="session")
def guards_are_not_timed() -> Iterator[None]:
    """Dynamo measures for its log how long the guards of each graph take, and empties the processor's cache for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._dynamo.guards.profile_guard_manager", lambda *args: 0.0, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def cpu_kernels_are_optimized_less() -> Iterator[None]:
    """The C++ of a format compiles in two thirds of the time. Results do not depend on it (``kernels/cpu/build.py``).

    `tests/kernels/cpu`, the processes that tests start and `make slow` have the flags of the product.
    """
    from innerq_compile.kernels.cpu import build

    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("TORCH_FAKE_TENSOR_DISPATCH_CACHE") != "1":
            patch.setattr(build, "FLAGS", (*build.FLAGS, LESS))
        yield


#: Placed last, so that it overrides Inductor's ``-O3``.
LESS = "-O1"


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state."""
    torch.manual_seed(SEED)
    return SEED


@pytest.fixture(autouse=True)
def no_pass_fails(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if a pass fails. Without this the backend leaves the pass out, and the program is still right."""
    failed: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: failed.append(record.getMessage())
    log = logging.getLogger("innerq_compile.passes")
    log.addHandler(handler)
    yield
    log.removeHandler(handler)
    if failed and request.node.get_closest_marker("passes_fail") is None:
        pytest.fail(failed[0])


@pytest.fixture(autouse=True)
def own_traces(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A test finds the traces on disk that it has left there itself, not those of other tests and of earlier runs."""
    from innerq_compile.compiler.traces import store

    _TESTS.append(None)
    folder = tmp_path_factory.getbasetemp() / f"traces{len(_TESTS)}"  # made where a trace is kept
    monkeypatch.setattr(store, "root", lambda: folder)


#: One for each test that has run.
_TESTS: list[None] = []


@pytest.fixture(scope="module")
def plain_torch() -> Iterator[None]:
    """The operators run in plain torch, because compiling C++ for every format of a file would take long."""
    from innerq_compile.kernels import cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "available", lambda: False)
        yield


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Dynamo has compiled nothing, there are no reports of graphs, and what the test compiles is forgotten."""
    with _fresh_dynamo():
        yield


@pytest.fixture
def no_inductor(request: pytest.FixtureRequest, fresh_dynamo: None) -> Iterator[None]:
    """Graphs are traced by AOTAutograd and run operator by operator.

    For tests of what becomes of the package's operators there: it is two thirds of what a small graph costs. Where a
    file has it, a test that asks for `graphs_as_they_are` does without.
    """
    with without_inductor(as_it_is if "graphs_as_they_are" in request.fixturenames else through_autograd):
        yield


@pytest.fixture
def graphs_as_they_are(fresh_dynamo: None) -> Iterator[None]:
    """Graphs run as the passes left them, which is faster still: for tests of what the passes do, and when."""
    with without_inductor(as_it_is):
        yield


@pytest.fixture(scope="module")
def no_inductor_in_module() -> Iterator[None]:
    """As `no_inductor`, for a whole file: a test uses graphs of earlier tests where their guards hold."""
    with _module_without_inductor(through_autograd):
        yield


@pytest.fixture(scope="module")
def graphs_as_they_are_in_module() -> Iterator[None]:
    """As `graphs_as_they_are`, for a whole file."""
    with _module_without_inductor(as_it_is):
        yield


@contextlib.contextmanager
def _module_without_inductor(run: Runner) -> Iterator[None]:
    with _fresh_dynamo(), without_inductor(run):
        yield


@contextlib.contextmanager
def _fresh_dynamo() -> Iterator[None]:
    forget_graphs()
    yield
    torch._dynamo.reset()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes in one thread: for matrices as small as the test's that is fastest."""
    with threads(1):
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a Llama of two layers and random weights, and a tokenizer whose tokens are characters."""
    import string

    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.helpers.models import tiny_llama

    folder = tmp_path_factory.mktemp("tiny_model")
    model = tiny_llama(layers=2)
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # it never stops early
    model.save_pretrained(folder)
    characters = ["<unk>", *string.ascii_lowercase, *string.digits, *" .,;:!?-_()[]{}<>/+*=@#'"][:61]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder
