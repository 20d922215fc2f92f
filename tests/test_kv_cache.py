"""A cache of codes: in the recorded graph, in generation, in a folder for runtimes."""

from __future__ import annotations

import copy
import json
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from slow import some_slow
from torch import Tensor, nn
from torch.nn import functional as F

import unitify
from unitify.capture.inputs import infer_inputs
from unitify.checkpoint.files import mapped_weights
from unitify.diagnostics import UnitifyError, UnitifyWarning
from unitify.formats.table import E4M3, quantize
from unitify.module.assembly import parts_in
from unitify.recipe.choices import Choice, choose, flop_share
from unitify.recipe.reader import read_recipe
from unitify.rulebook.rule_table import load_rules
from unitify.serve.cached import cached
from unitify.serve.checked import check_folder
from unitify.serve.export import export
from unitify.serve.mapped import mapped_model

#: Nothing but keys and values.
ALONE = "fp8,exclude=*weight,kv_cache=e4m3"
#: Grouped keys; a fused projection; a sliding window of three.
NAMES = ("llama", "gpt2", "mistral")


@lru_cache
def built(name: str) -> tuple[Any, dict[str, Any]]:
    model, _, kwargs = zoo.build(name)
    model.generation_config.use_cache = True
    model.generation_config.eos_token_id = None
    return model.eval(), kwargs


@lru_cache
def transformed(name: str, recipe: str = ALONE) -> Any:
    model, kwargs = built(name)
    return unitify.transform(model, (), kwargs, recipe=recipe, verify=False)


@pytest.mark.parametrize("name", some_slow(NAMES, {"gpt2", "mistral"}.__contains__))
def test_a_cache_computes_what_the_graph_does(name: str) -> None:
    (model, kwargs), module = built(name), transformed(name)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UnitifyWarning)
        expected = module(**kwargs).logits
        cache = unitify.kv_cache(module)
        found = module(kwargs["input_ids"], past_key_values=cache, use_cache=True).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, model(**kwargs).logits)
    assert cache.clipped == 0
    assert all(x.dtype == torch.uint8 for each in cache.layers for x in (each.keys, each.values))


class Rounded(transformers.DynamicCache):
    """Keys and values, rounded at scales of one's own."""

    def __init__(self, scales: list[tuple[float, float]]) -> None:
        super().__init__()
        self.scales = scales

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        key, value = self.scales[layer_idx]
        rounded = (quantize(x / s, E4M3) * s for x, s in ((key_states, key), (value_states, value)))
        held: tuple[Tensor, Tensor] = super().update(*rounded, layer_idx, *args, **kwargs)
        return held


@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"do_sample": True}])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_generates_what_the_model_does_with_rounded_keys(name: str, way: Any) -> None:
    (model, kwargs), module = built(name), transformed(name)
    scales = [(each.key, each.value) for each in cached(parts_in(module), load_rules())]
    made = []
    for target, cache in ((model, Rounded(scales)), (module, unitify.kv_cache(module))):
        torch.manual_seed(1)
        ids = kwargs["input_ids"]
        made.append(target.generate(ids, max_new_tokens=5, past_key_values=cache, **way))
    assert torch.equal(*made)


def test_what_is_out_of_range_is_counted() -> None:
    module = transformed("llama")
    cache = unitify.kv_cache(module)
    scale = cache.scales[0].key
    given = torch.tensor([449.0, 448.0, -500.0, 0.0]).reshape(1, 1, 4, 1) * scale
    keys, values = cache.update(given, torch.zeros_like(given), 0)
    assert (keys.flatten() / scale).tolist() == [448.0, 448.0, -448.0, 0.0]
    assert not values.any()
    assert cache.clipped == 2 / 8


def test_without_the_cache_the_casts_are_missed() -> None:
    (_, kwargs), module = built("llama"), copy.deepcopy(transformed("llama"))
    with pytest.warns(UnitifyWarning, match="U117"):
        module.generate(kwargs["input_ids"], max_new_tokens=2)


def test_choices() -> None:
    """Only keys and values are cast, without gradients; they are no FP8 matmuls."""
    attention = [c for c in transformed("llama").casts if c.is_cast]
    assert [[cast.place[1] for cast in c.casts] for c in attention] == [["key", "value"]] * 2
    assert {c.runs for c in attention} == {"simulated"}
    assert flop_share(transformed("llama").casts) == 0

    def chosen(recipe: str) -> tuple[Choice, ...]:
        held = read_recipe(recipe)
        assert held is not None
        return choose(transformed("llama").capture, held, load_rules())

    def places(choices: tuple[Choice, ...]) -> list[Any]:
        return [[(cast.place, cast.format) for cast in c.casts] for c in choices]

    assert places(chosen(ALONE)) == places(transformed("llama").casts)
    both = chosen("fp8,attention=true,multiple=1,kv_cache=e5m2")
    (first, _) = (c for c in both if c.operation.startswith("aten.scaled_dot"))
    formats = {cast.place[1]: cast.format for cast in first.casts}
    assert formats == {"query": "e4m3", "key": "e5m2", "value": "e5m2", "": "e5m2"}
    excluded = chosen(f"{ALONE},exclude=*weight+*.0.self_attn")
    assert len([c for c in excluded if c.is_cast]) == 1


def test_gradients_pass() -> None:
    """What is kept is rounded; its gradient is not."""
    (_, kwargs), module = built("gpt2"), copy.deepcopy(transformed("gpt2"))
    module(**kwargs).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


class Attention(nn.Module):
    """One that knows of no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(query, key, value)


def test_an_attention_of_ones_own_is_cast_but_has_no_cache() -> None:
    module = unitify.transform(Attention(), torch.randn(2, 5, 8), recipe=ALONE)
    assert [c.forward for c in module.casts if c.is_cast] == ["e4m3"]
    with pytest.raises(UnitifyError, match=r"U408.*has no layer of a cache"):
        unitify.kv_cache(module)


@pytest.mark.parametrize(
    "recipe", ["fp16,kv_cache=e4m3", "fp8,kv_cache=nvfp4", "fp8,kv_cache=bf16"]
)
def test_recipes_that_cannot_have_one(recipe: str) -> None:
    with pytest.raises(UnitifyError, match=r"U402.*kv_cache"):
        read_recipe(recipe)


def test_a_folder_for_runtimes(tmp_path: Path) -> None:
    """Its reader finds the scales, and rounds keys and values as the graph does."""
    pytest.importorskip("compressed_tensors")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, intermediate_size=128, vocab_size=64,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    ))  # fmt: skip
    model.save_pretrained(tmp_path / "source")
    recipe = read_recipe("fp8,kv_cache=e4m3")
    assert recipe is not None
    found = export(tmp_path / "source", tmp_path / "out", recipe, "compressed-tensors")
    assert found.sqnr is not None
    paths = [f"model.layers.{i}.self_attn" for i in (0, 1)]
    assert [each.attention for each in found.caches] == paths
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written["kv_cache_scheme"] == written["config_groups"]["group_0"]["weights"]
    weights = mapped_weights(tmp_path / "out")
    for each in found.caches:
        assert 0.5 < each.key_rms / each.key < 2
        assert 0.5 < each.value_rms / each.value < 2
        for name, scale in (("k_scale", each.key), ("v_scale", each.value)):
            assert weights[f"{each.attention}.{name}"].tolist() == [scale]
    assert check_folder(tmp_path / "out", tmp_path / "source") == len(weights)
    source, _ = mapped_model(tmp_path / "source", mapped_weights(tmp_path / "source"))
    _, given = infer_inputs(source)
    reader = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        with_cache = reader(**given).logits
        for each in found.caches:
            for name in ("k_scale", "v_scale"):
                # A scale that rounds nothing away.
                getattr(reader.get_submodule(each.attention), name).fill_(2.0**-20)
        assert not torch.equal(reader(**given).logits, with_cache)


def test_a_folder_holds_no_other_format(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, intermediate_size=64, vocab_size=32,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )).save_pretrained(tmp_path / "source")  # fmt: skip
    recipe = read_recipe("fp8,kv_cache=e5m2")
    assert recipe is not None
    with pytest.raises(UnitifyError, match="U614"):
        export(tmp_path / "source", tmp_path / "out", recipe, "compressed-tensors")
