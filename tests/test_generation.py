"""Generation by a transformed module, and calls that no recording takes: they are the model's.

Without casts everything is compared bitwise with the model. With casts what a graph computes is
compared with what submodules' graphs compute inside of the model's own code.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
import zoo
from slow import some_slow
from torch import Tensor

import unitify
from unitify.diagnostics import UnitifyError, UnitifyWarning

ARCHITECTURES = (
    "gpt2", "llama", "mistral", "qwen2", "gemma", "phi", "opt", "mixtral", "t5", "bart", "whisper",
    "git",
)  # fmt: skip
#: Those that are not left to `make slow`.
QUICK = ("gpt2", "bart")
#: What of an example is a prompt.
PROMPT = ("input_ids", "attention_mask", "input_features", "pixel_values")
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy without a cache": {"use_cache": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "assisted": {"assistant": True},
}
#: A cache that is made beforehand has a place for text alone.
CANNOT = {("git", "static cache")}


@lru_cache
def built(name: str) -> tuple[Any, dict[str, Any]]:
    model, _, kwargs = zoo.build(name)
    if model.config.is_encoder_decoder and "decoder_input_ids" not in kwargs:
        kwargs["decoder_input_ids"] = kwargs.pop("labels")
    model.generation_config.use_cache = True
    model.generation_config.eos_token_id = None
    return model.eval(), kwargs


@lru_cache
def transformed(name: str, recipe: str | None = None) -> Any:
    model, kwargs = built(name)
    # What is compared here are the results of generation.
    return unitify.transform(model, (), kwargs, recipe=recipe, verify=False)


def prompt(name: str) -> dict[str, Any]:
    return {key: value for key, value in built(name)[1].items() if key in PROMPT}


def generated(module: Any, name: str, **options: Any) -> Any:
    given = prompt(name)
    if options.pop("assistant", False):
        options["assistant_model"] = built(name)[0]
        given = {key: value[:1] for key, value in given.items()}
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnitifyWarning)
        return module.generate(
            **given, max_new_tokens=5, do_sample=options.pop("do_sample", False), **options,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip


def assert_same(a: Any, b: Any) -> None:
    assert torch.equal(a.sequences, b.sequences)
    assert len(a.logits) == len(b.logits) > 0
    assert all(map(torch.equal, a.logits, b.logits))


def matmuls(module: Any) -> list[str]:
    """The paths of the modules whose matmuls have FP8 operands in the recording."""
    return [
        list(node.meta["nn_module_stack"].values())[-1][0]
        for node in module.graph.nodes
        if getattr(node.target, "_opname", "") == "fp8_linear"
    ]


@pytest.mark.parametrize("name", some_slow(ARCHITECTURES, lambda n: n not in QUICK))
def test_tokens_and_logits_are_the_models(name: str) -> None:
    model, module = built(name)[0], transformed(name)
    for way, options in WAYS.items():
        if (name, way) not in CANNOT:
            assert_same(generated(module, name, **options), generated(model, name, **options))
    assert_same(generated(copy.deepcopy(module), name), generated(model, name))


@pytest.mark.parametrize(
    "name", some_slow(["gpt2", "llama", "mixtral", "t5", "bart"], lambda n: n != "gpt2")
)
def test_products_are_cast_in_every_step(name: str) -> None:
    """Each call of the decoder casts the matmuls of its linear layers, as the recording does."""
    model, module = built(name)[0], transformed(name, "fp8,multiple=1")
    counts = []
    for steps in (2, 3):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            module.generate(**prompt(name), max_new_tokens=steps, do_sample=False)
        counts.append(sum(event.name == "unitify::fp8_linear" for event in profile.events()))
    # An encoder runs once, and what the decoder attends to is projected once for all steps.
    once = re.compile(r"encoder\b|(encoder_attn|EncDecAttention)\.[kv]")
    in_each = [path for path in matmuls(module) if not once.search(path)]
    assert counts[1] - counts[0] == len(in_each) > 0
    assert generated(module, name).sequences.shape == generated(model, name).sequences.shape


@pytest.mark.parametrize("name", some_slow(["gpt2", "llama", "mixtral"], lambda n: n not in QUICK))
def test_with_a_cache_the_logits_are_those_of_the_recording(name: str) -> None:
    module = transformed(name, "fp8,multiple=1")
    given = built(name)[1]
    expected = module(**given)
    found = module(**given, use_cache=True)
    assert torch.equal(found.logits, expected.logits)
    assert found.past_key_values.get_seq_length() == given["input_ids"].shape[1]
    assert torch.equal(generated(module, name).logits[0], expected.logits[:, -1])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_codes_generate(name: str) -> None:
    """Those of a head that is the embedding, too, lie at the embedding."""
    module = transformed(name, "fp8,multiple=1")
    assert_same(generated(module.to_inference(), name), generated(module, name))


def forms(ids: Tensor) -> list[dict[str, Tensor]]:
    """What a tokenizer, a collator and a caller may hand over beside the tokens."""
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    places = (mask.cumsum(1) - 1).clamp(0)
    return [
        {"input_ids": ids, **extra}
        for extra in (
            {}, {"attention_mask": mask}, {"labels": ids}, {"position_ids": places},
            {"attention_mask": mask, "labels": ids}, {"use_cache": True},
            {"attention_mask": mask, "position_ids": places, "labels": ids},
        )
    ]  # fmt: skip


def step(module: Any, call: dict[str, Any]) -> list[Tensor]:
    """Logits; loss and gradients where there are labels."""
    module.zero_grad()
    made = module(**call)
    if made.loss is None:
        return [made.logits]
    made.loss.backward()
    return [made.logits, made.loss, *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", some_slow(["gpt2", "llama"], lambda n: n not in QUICK))
@pytest.mark.parametrize("example", [0, 6])
@pytest.mark.filterwarnings("ignore:U118:unitify.UnitifyWarning")
def test_arguments_come_and_go(name: str, example: int) -> None:
    model, calls = built(name)[0], forms(built(name)[1]["input_ids"])
    module = unitify.transform(model, (), calls[example], verify=False)
    for training in (False, True):
        for call in calls:
            torch.manual_seed(1)
            expected = step(model.train(training), call)
            torch.manual_seed(1)
            found = step(module.train(training), call)
            assert len(found) == len(expected)
            assert all(map(torch.equal, found, expected))
    model.eval()


def test_gradients_arrive_at_any_scale() -> None:
    """With casts, recorded or not: a power of two in the loss is one in the gradients, bitwise."""
    ids = built("llama")[1]["input_ids"]
    model = built("llama")[0]
    apart = unitify.transform(model, (), {"input_ids": ids}, recipe="fp8,multiple=1")
    recorded = transformed("llama", "fp8,multiple=1")

    def gradients(module: Any, factor: float) -> Tensor:
        module.zero_grad()
        (module(input_ids=ids, labels=ids).loss * factor).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    true = gradients(model, 1.0)
    for module in (apart, recorded):
        found = gradients(module, 1.0)
        assert not torch.equal(found, true)
        assert torch.equal(gradients(module, 2.0**-30), found * 2.0**-30)


def warned(module: Any, *calls: dict[str, Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for call in calls:
            module(**call)
    return [str(w.message) for w in found if issubclass(w.category, UnitifyWarning)]


@pytest.mark.slow
def test_each_kind_of_call_warns_once() -> None:
    model, calls = built("gpt2")[0], forms(built("gpt2")[1]["input_ids"])
    # Values are not true in its plan: what their rescaling is for is lost in the model's own code.
    module = unitify.transform(model, (), calls[0], weights="stored", verify=False)
    longer = [{key: torch.cat([v, v], 1) for key, v in calls[1].items()}]
    found = warned(module, calls[0], calls[1], *longer, calls[2], calls[1], calls[2])
    assert ["attention_mask" in each for each in found] == [True, False]
    assert ["U118" in each and "labels" in each for each in found] == [False, True]
    # In a plan of true values only casts can be lost: those between layers, with attention's.
    linear = transformed("gpt2", "fp8,multiple=1")
    assert not warned(linear, *calls)
    attention = unitify.transform(
        model, (), calls[0], recipe="fp8,multiple=1,attention=true,simulate=true", verify=False
    )
    (message,) = warned(attention, calls[5], calls[5], calls[0])
    assert message.startswith("U117 [transformer.h.0.attn] transformer.h.0.attn (and 1 more)")


def test_casts_of_all_values_are_not_left_out() -> None:
    model, ids = built("llama")[0], built("llama")[1]["input_ids"]
    module: Any = unitify.transform(model, (), {"input_ids": ids}, recipe="fp16", verify=False)
    with pytest.raises(UnitifyError, match=r"U104.*batches="):
        module.generate(ids, max_new_tokens=2)


@pytest.mark.slow
def test_an_example_with_a_cache() -> None:
    """Its cache is an object that no graph takes; what is inside of the model runs graphs."""
    model, ids = built("llama")[0], built("llama")[1]["input_ids"]
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    with pytest.warns(UnitifyWarning, match="U101"):
        module: Any = unitify.transform(
            model, (), {"input_ids": ids[:, :1], "past_key_values": cache}
        )
    assert cache.get_seq_length() == ids.shape[1]
    assert module.verification.exact
    assert_same(generated(module, "llama"), generated(model, "llama"))


@pytest.mark.parametrize("recipe", [None, "fp8,multiple=1"])
def test_hooks_run_once(recipe: str | None) -> None:
    module = copy.deepcopy(transformed("llama", recipe))
    calls: Counter[str] = Counter()
    for path in ("", "model.layers.0.mlp.up_proj"):
        hooked = module if not path else module.get_submodule(path)
        hooked.register_forward_hook(lambda *_, path=path: calls.update([path]))
    generated(module, "llama")
    assert set(calls.values()) == {5}


@pytest.mark.slow
def test_compiled() -> None:
    module, call = copy.deepcopy(transformed("llama")), forms(built("llama")[1]["input_ids"])[1]
    torch.compiler.reset()
    with pytest.warns(UnitifyWarning, match="U118"):
        found = torch.compile(module, fullgraph=True, backend="eager")(**call).logits
    assert torch.equal(found, built("llama")[0](**call).logits)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "recipe"), [("true", "fp16"), ("stored", None)])
def test_submodules_without_graphs_are_those_of_the_model(weights: Any, recipe: str | None) -> None:
    """A call gives what the model gives, and warns of the casts that it leaves out."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids = torch.randint(1, 64, (2, 7))
    batch = {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    module = unitify.transform(
        model, example_kwargs=batch, weights=weights, recipe=recipe, placement="everywhere"
    ).eval()
    before = module(**batch).logits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [module.encoder(ids)[0] for _ in range(2)]
    assert all(torch.equal(x, model.encoder(ids)[0]) for x in found)
    assert [str(w.message)[:4] for w in caught] == ["U117"] * (recipe is not None)
    assert torch.equal(copy.deepcopy(module)(**batch).logits, before)
    if weights == "stored":
        with pytest.raises(UnitifyError, match="U117"):
            copy.deepcopy(module.encoder)
