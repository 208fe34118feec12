"""What a user calls: innerq, torch.compile(backend="innerq"), its options, its errors, generate()."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from innerq_compile import InnerQConfig, InnerQError, InnerQTensor, clear_reports, compiled_graphs, innerq
from innerq_compile.compile_error import CompileError
from tests.helpers.programs import TinyAttention
from tests.helpers.without_inductor import as_it_is, without_inductor

WIDTH = 32  # of TinyAttention


def new_tokens(count: int) -> torch.Tensor:
    return torch.randn(1, count, WIDTH)


@torch.no_grad()
def decode(model, prompt: torch.Tensor, token: torch.Tensor):
    """A prefill and one step of decoding: the output of the step and the cache."""
    _, cache = model(prompt)
    return model(token, cache)


def twin_of(model: TinyAttention, head_dim: int = 16) -> TinyAttention:
    """Another model with the same weights."""
    twin = TinyAttention(model.heads, model.kv_heads, head_dim)
    twin.load_state_dict(model.state_dict())
    return twin


def run_python(program: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- innerq -------------------------------------------------------------------------------------------------------


@innerq
class BareClass(TinyAttention):
    pass


@innerq(preset="lossless", sink=4)
class ClassWithOptions(TinyAttention):
    pass


def function_of(model: nn.Module, decorate):
    @decorate
    def run(x, past=None):
        return model(x, past)

    return run


LOSSLESS = InnerQConfig.preset("lossless")
FORMS = {
    "instance": lambda model: innerq(model),
    "instance, preset": lambda model: innerq(model, preset="lossless"),
    "instance, config": lambda model: innerq(model, LOSSLESS),
    "instance, fields": lambda model: innerq(model, key_mode="none", value_mode="none", centre_keys=False, recent=8),
    "instance, decorator": lambda model: innerq(preset="lossless")(model),
    "function": lambda model: function_of(model, innerq),
    "function, preset": lambda model: function_of(model, innerq(preset="lossless")),
    "function, fullgraph": lambda model: function_of(model, innerq(config=LOSSLESS, fullgraph=True, dynamic=True)),
    "class": lambda model: BareClass(),
    "class, options": lambda model: ClassWithOptions(),
    "torch.compile": lambda model: torch.compile(model, backend="innerq"),
    "torch.compile, options": lambda model: torch.compile(model, backend="innerq", options={"preset": "lossless"}),
}


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_runs_with_a_quantized_cache(form):
    plain = TinyAttention()
    model = FORMS[form](twin_of(plain))
    if "class" in form:
        model.load_state_dict(plain.state_dict())
    prompt, token = new_tokens(50), new_tokens(1)
    clear_reports()
    out, cache = decode(model, prompt, token)
    expected, dense = decode(plain, prompt, token)
    assert [type(side) for side in cache] == [InnerQTensor, InnerQTensor]
    assert [side.shape for side in cache] == [side.shape for side in dense]
    # 51 tokens are all in the windows, so that base is exact too, up to the rounding of normalized keys
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert [(report.kind, report.rewritten) for report in compiled_graphs()] == [("prefill", 1), ("decode", 1)]
    lossless = form not in ("instance", "function", "class", "torch.compile")
    assert cache[0].format.mode == ("none" if lossless else "steered")


@pytest.mark.usefixtures("graphs_as_they_are")
def test_models_of_other_sizes_run_the_same_code():
    """Dynamo makes symbols of sizes that it sees change, but never of heads and head_dim, which the format needs."""
    clear_reports()
    for kv_heads, head_dim in ((1, 16), (2, 32), (3, 48)):
        plain = TinyAttention(heads=2 * kv_heads, kv_heads=kv_heads, head_dim=head_dim)
        width = 2 * kv_heads * head_dim
        prompt, token = torch.randn(2, 40, width), torch.randn(2, 1, width)
        out, cache = decode(innerq(twin_of(plain, head_dim), preset="lossless"), prompt, token)
        assert isinstance(cache[0], InnerQTensor)
        torch.testing.assert_close(out, decode(plain, prompt, token)[0])
    assert {report.rewritten for report in compiled_graphs()} == {1}


def test_an_instance_is_compiled_in_place():
    model = TinyAttention()
    assert innerq(model) is model and model._compiled_call_impl is not None


def test_a_class_stays_the_class():
    assert BareClass.__name__ == "BareClass" and issubclass(BareClass, TinyAttention)
    assert isinstance(BareClass(), BareClass) and BareClass(heads=4).heads == 4

    class Derived(BareClass):
        def __init__(self):
            super().__init__()
            self.more = nn.Linear(2, 2)

    assert Derived()._compiled_call_impl is not None and BareClass()._compiled_call_impl is not None
    assert TinyAttention()._compiled_call_impl is None


@pytest.mark.parametrize("target", [None, 3, "model", int, InnerQConfig(), torch.zeros(2)], ids=lambda t: str(t)[:15])
def test_a_wrong_target(target):
    with pytest.raises(InnerQError, match="is not allowed"):
        innerq(target)


WRONG_OPTIONS = {
    "preset": ({"preset": "huge"}, "preset='huge' is unknown: allowed are base, small"),
    "field": ({"key_bits": 1}, "key_bits=1 is not allowed"),
    "option": ({"key_bit": 3}, "option 'key_bit' is unknown: allowed are preset, key_bits.*options of Inductor"),
    "mode": ({"mode": "fastest"}, "mode='fastest' is unknown: allowed are default, .*reduce-overhead"),
}


@pytest.mark.parametrize("target", [(), (TinyAttention(),), (TinyAttention,), (decode,)], ids=["later", "m", "c", "f"])
@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_a_wrong_option_fails_at_once(target, name):
    options, message = WRONG_OPTIONS[name]
    with pytest.raises(InnerQError, match=message):
        innerq(*target, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": LOSSLESS, "preset": "base"}, "config and preset='base' exclude each other"),
        ({"config": LOSSLESS, "recent": 3}, "config and recent exclude each other"),
        ({"config": "base"}, "config='base' is not allowed.*preset="),
    ],
    ids=["preset", "field", "type"],
)
def test_config_and_other_options_exclude_one_another(options, message):
    with pytest.raises(InnerQError, match=message):
        innerq(TinyAttention(), **options)


# --- torch.compile(backend="innerq") --------------------------------------------------------------------------------

NO_IMPORT_OF_OURS = """
import sys
import torch
import torch.nn.functional as F


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(16, 48)

    def forward(self, x, past=None):
        q, k, v = self.qkv(x).view(1, -1, 3, 1, 16).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        return F.scaled_dot_product_attention(q, k, v, is_causal=past is None), (k, v)


model = Attention()
assert not [name for name in sys.modules if name.startswith("innerq_compile")]
options = {"preset": "lossless", "sink": 2, "mode": "default", "max_autotune": False, "epilogue_fusion": True}
compiled = torch.compile(model, backend="innerq", options=options)
with torch.no_grad():
    prompt, token = torch.randn(1, 40, 16), torch.randn(1, 1, 16)
    out, cache = compiled(token, compiled(prompt)[1])
    expected, dense = model(token, model(prompt)[1])
torch.testing.assert_close(out, expected)
torch.testing.assert_close(cache[0] + 0, dense[0])
print(type(cache[0]).__name__, *cache[0].shape)
"""


def test_found_by_name_with_no_import_of_ours(tmp_path):
    script = tmp_path / "program.py"  # Dynamo wants a file to read the source from
    script.write_text(NO_IMPORT_OF_OURS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["InnerQTensor", "1", "1", "41", "16"]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_a_wrong_option_of_torch_compile(name):
    options, message = WRONG_OPTIONS[name]
    compiled = torch.compile(TinyAttention(), backend="innerq", options=options)
    with pytest.raises(InnerQError, match=message) as error, torch.no_grad():
        compiled(new_tokens(3))
    assert type(error.value) is CompileError


@pytest.fixture
def inductor_options(fresh_dynamo):
    """The options of each graph that goes to Inductor."""
    with without_inductor(as_it_is) as options:
        yield options


def run_prefill_and_decode(model) -> None:
    with torch.no_grad():
        _, cache = model(new_tokens(3))
        model(new_tokens(1), cache)


def without_cuda_graphs(options: dict) -> dict:
    """The options of a prefill graph: it runs once, and is not recorded."""
    return {**options, "triton.cudagraphs": False} if options.get("triton.cudagraphs") else options


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {}),
        ({"mode": "default"}, {}),
        ({"mode": "reduce-overhead"}, {"triton.cudagraphs": True}),
        ({"options": {"mode": "reduce-overhead", "preset": "small"}}, {"triton.cudagraphs": True}),
        ({"options": {"max_autotune": True, "recent": 8}}, {"max_autotune": True}),
        ({"options": {"epilogue-fusion": False}}, {"epilogue_fusion": False}),
        (
            {"options": {"mode": "reduce-overhead", "triton.cudagraphs": False, "max_autotune": True}},
            {"triton.cudagraphs": False, "max_autotune": True},
        ),
    ],
    ids=["none", "default", "mode", "mode in options", "inductor option", "with a hyphen", "option over mode"],
)
def test_mode_and_options_reach_inductor(inductor_options, arguments, expected):
    run_prefill_and_decode(torch.compile(TinyAttention(), backend="innerq", **arguments))
    assert inductor_options == [without_cuda_graphs(expected), expected]


def test_mode_and_options_of_innerq_reach_inductor(inductor_options):
    run_prefill_and_decode(innerq(TinyAttention(), mode="reduce-overhead", max_autotune=True, preset="tiny"))
    expected = {"triton.cudagraphs": True, "max_autotune": True}
    assert inductor_options == [without_cuda_graphs(expected), expected]


@pytest.mark.usefixtures("no_inductor")
def test_a_call_that_requires_a_gradient():
    model = innerq(TinyAttention())
    with pytest.raises(InnerQError, match=r"has no gradient.*torch\.no_grad\(\).*backend='inductor'"):
        model(new_tokens(3))
    with torch.no_grad():
        assert isinstance(model(new_tokens(3))[1][0], InnerQTensor)
    frozen = innerq(TinyAttention().requires_grad_(False))
    assert isinstance(frozen(new_tokens(3))[1][0], InnerQTensor)


@pytest.mark.usefixtures("no_inductor")
@pytest.mark.parametrize("strict", [False, True])
def test_a_module_without_attention_compiles_as_it_is(strict):
    clear_reports()
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    x = torch.randn(3, 8, requires_grad=True)
    out = torch.compile(plain, backend="innerq", options={"strict": strict})(x)
    torch.testing.assert_close(out, plain(x))
    out.sum().backward()  # and may be trained
    assert x.grad is not None
    (report,) = compiled_graphs()
    assert (report.kind, report.attentions, report.rewritten) == ("plain", 0, 0)
    assert [str(reason) for reason in report.reasons] == ["no attention was found in the graph"]


class WithoutCache(TinyAttention):
    """Its keys and values do not leave it, so there is no cache to quantize."""

    def forward(self, x):
        return super().forward(x)[0]


@pytest.mark.usefixtures("graphs_as_they_are")
def test_an_attention_that_is_not_rewritten():
    clear_reports()
    model, x = WithoutCache(), new_tokens(3)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="innerq")(x), expected)
    (report,) = compiled_graphs()
    assert (report.attentions, report.rewritten) == (1, 0)
    assert "no cache to quantize" in str(report.reasons[0])
    torch._dynamo.reset()
    with pytest.raises(InnerQError, match=r"strict: .*no cache to quantize"):
        torch.compile(model, backend="innerq", options={"strict": True})(x)


@pytest.mark.usefixtures("graphs_as_they_are")
def test_a_cache_that_cannot_be_quantized():
    """It stays dense, with a warning; only strict raises."""
    model, x = TinyAttention(heads=1, head_dim=584).requires_grad_(False), torch.randn(1, 3, 584)
    expected, past = model(x)
    found, dense = innerq(copy.deepcopy(model))(x)
    torch.testing.assert_close((found, *dense), (expected, *past))
    (report,) = compiled_graphs()
    reason = "a key cache of head_dim 584 cannot be quantized: allowed are 1 to 576"
    assert (report.attentions, report.rewritten) == (1, 0) and reason in str(report.reasons[0])
    with pytest.raises(InnerQError, match=f"strict: .*{reason}"):
        innerq(model, strict=True)(x)


# --- importing ----------------------------------------------------------------------------------------------------


def test_importing_is_cheap():
    heavy = ("torch._dynamo", "torch._inductor", "transformers", "triton")
    program = (
        "import sys, innerq_compile; dir(innerq_compile); "
        f"print([name for name in sys.modules if name.startswith({heavy!r})])"
    )
    loaded = eval(run_python(program))
    assert [name for name in loaded if name.split(".")[0] == "transformers" or name in heavy] == []


def test_all_names_are_there():
    import innerq_compile

    for name in innerq_compile.__all__:
        assert getattr(innerq_compile, name) is not None
        assert name in dir(innerq_compile)
    with pytest.raises(AttributeError, match="no attribute 'inner'"):
        _ = innerq_compile.inner


# --- generate() ----------------------------------------------------------------------------------------------------


@pytest.fixture
def llama(graphs_as_they_are):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=50,
    )
    return LlamaForCausalLM(config).eval()


def generate(model):
    ids = torch.arange(1, 9)[None]
    out = model.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, pad_token_id=0)
    return out.sequences, out.past_key_values.layers[0].keys


def test_generate_of_a_compiled_model_runs_compiled(llama):
    expected, dense = generate(llama)
    compiled = torch.compile(llama, backend="innerq", options={"preset": "lossless"})
    tokens, keys = generate(compiled)
    assert isinstance(keys, InnerQTensor) and keys.shape == dense.shape
    assert torch.equal(tokens, expected)
    # the model itself is as it was, and so is what else is read through the compiled one
    assert type(generate(llama)[1]) is torch.Tensor and llama._compiled_call_impl is None
    assert compiled.config is llama.config and compiled.generate.__name__ == "generate"


def test_generate_of_a_model_compiled_in_place(llama):
    assert isinstance(generate(innerq(llama, preset="lossless"))[1], InnerQTensor)


def test_generate_puts_the_model_back_after_an_error(llama, monkeypatch):
    def fails(self):
        assert self._compiled_call_impl is not None
        raise RuntimeError("on purpose")

    monkeypatch.setattr(type(llama), "generate", fails)
    with pytest.raises(RuntimeError, match="on purpose"):
        torch.compile(llama, backend="innerq").generate()
    assert llama._compiled_call_impl is None


def test_generate_of_other_backends_is_left_alone(llama):
    torch.compile(llama, backend="innerq").generate  # noqa: B018  (the backend has been looked up)
    other = torch.compile(llama, backend="eager")
    assert other.generate == llama.generate
    assert type(generate(other)[1]) is torch.Tensor
    with pytest.raises(AttributeError, match="generate"):
        torch.compile(nn.Linear(2, 2), backend="innerq").generate  # noqa: B018
