"""Generates text with a module from a folder that ``unitify convert`` wrote.

It uses the folder's own tokenizer and generation settings. Nothing is downloaded, and no code of
the folder runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitify.checkpoint.pretrained import quiet
from unitify.diagnostics import CheckpointUnreadable, UnitifyError
from unitify.documents import first_line, malformed
from unitify.serve.kv_cache import kv_cache


@dataclass(frozen=True)
class Continued:
    """``text`` after a prompt. ``clipped``: the share of elements of the cache of codes that
    saturated; None without such a cache.
    """

    text: str
    clipped: float | None = None


def continued(
    module: Any, folder: Path, prompt: str, max_new_tokens: int, sample: bool
) -> Continued:
    """The text of ``module`` after ``prompt``, by greedy decoding or, for ``sample``, by sampling.

    ``folder``: has the config and tokenizer of its model. Where the recipe has a ``kv_cache``, keys
    and values are kept as codes.

    Raises ``UnitifyError`` (U601) for a model that does not generate, and without a tokenizer.
    """
    import transformers

    if not getattr(module, "can_generate", bool)():
        raise _unusable(folder, f"its model, a {type(module).__name__}, does not generate text")
    try:
        with quiet(transformers):
            with malformed("its tokenizer cannot be read"):
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
            if (folder / "generation_config.json").is_file():
                with malformed("its generation_config.json cannot be read"):
                    settings = transformers.GenerationConfig.from_pretrained(
                        folder, local_files_only=True
                    )
                    module.generation_config = settings
    except ValueError as error:
        raise _unusable(folder, first_line(error)) from error
    given = tokenizer(prompt, return_tensors="pt")
    names = {"input_ids", "attention_mask"}
    has_codes = module.recipe is not None and module.recipe.kv_cache is not None
    cache = kv_cache(module) if has_codes else None
    made = module.generate(
        **{name: tensor for name, tensor in given.items() if name in names},
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        **({"past_key_values": cache} if cache is not None else {}),
    )[0]
    start = 0 if module.config.is_encoder_decoder else given["input_ids"].shape[1]
    text = tokenizer.decode(made[start:], skip_special_tokens=True)
    return Continued(str(text), cache.clipped if cache is not None else None)


def _unusable(folder: Path, problem: str) -> UnitifyError:
    return UnitifyError(CheckpointUnreadable(path=str(folder), problem=problem))
