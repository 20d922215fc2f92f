"""One call's inputs for every pretrained net, from real data.

What a net's weights tell of its activations (the statistics of a batch norm, a language model's
outliers) holds for the data that it was trained for, and not for random numbers. See
``examples.evaluation`` for the packages that the data comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from examples import evaluation
from examples.nets import NETS


def _smollm2() -> dict[str, Tensor]:
    tokens = evaluation.wikipedia_tokens()[:2, :32].clone()
    return {"input_ids": tokens, "labels": tokens.clone()}


def _g2p() -> dict[str, Tensor]:
    letters, phonemes = evaluation.pronunciations()[0]
    return {"letters": letters[:16].clone(), "phonemes": phonemes[:16, :-1].clone()}


#: Net → inputs. MiniLM's own (``examples.nets``) are sentences.
_INPUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "smollm2": _smollm2,
    "mobilenet_v2": lambda: {"x": evaluation.photographs()[::8].clone()},
    "speaker_encoder": lambda: {"mels": evaluation.utterances(1)[:8].flatten(0, 1).clone()},
    "crepe": lambda: {"x": evaluation.tones()[1][:4].clone()},
    "g2p": _g2p,
}


def load(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A pretrained net in eval mode, and keyword inputs of one call with real data."""
    model, inputs = NETS[name].load()
    if name in _INPUTS:
        with torch.no_grad():
            inputs = _INPUTS[name]()
    return model, inputs
