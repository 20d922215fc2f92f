"""State dicts of a transformed module: true weights, or stored ones with a fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from unitify.diagnostics import KeysDiffer, UnitifyError
from unitify.module.fingerprint import KEY, check_fingerprint, fingerprint
from unitify.module.tied import check_ties, ties_of
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.recipe.choices import Choice, Choices


class HoldsWeights(nn.Module):
    """The part of a transformed module that saves and loads its weights."""

    plan: ScalePlan
    is_inference: bool = False
    _casts: tuple[Choice, ...] = ()
    _tree: nn.Module

    @property
    def casts(self) -> Choices:
        """The choice of the recipe for every value, and why; empty without a recipe. Prints."""
        return Choices(self._casts)

    def _fingerprint(self) -> torch.Tensor | None:
        """The fingerprint for stored weights and codes; None for true weights."""
        if self.is_inference:
            return fingerprint(self.plan, self.casts)
        return fingerprint(self.plan) if self.plan.weights == "stored" else None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        held = self._fingerprint()
        if held is not None:
            destination[prefix + KEY] = held

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        """Load the tensors of this module itself; torch calls it for each submodule in turn.

        Raises ``UnitifyError``: U017 or U018 for weights that need other scales.
        """
        own = dict(self.named_parameters()) if self.is_inference else {}
        names = self.plan.parameters.keys() - own.keys()
        check_fingerprint(self._fingerprint(), state_dict, prefix, names)
        ties = ties_of(self._tree)
        if local_metadata.get("assign_to_params_buffers"):
            check_ties(ties, state_dict, prefix)
        held = {first: self._tree.get_parameter(first) for first in ties.values()}
        self.__dict__["_tied"] = ties, held
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def original_state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the true weights and buffers under the original's names.

        With true weights ``state_dict`` holds the same. With a scheme, the original is the true
        model of the scheme, ``capture.model``.

        Raises ``UnitifyError`` (U603) after ``to_inference``, where weights are codes.
        """
        self._check_weights()
        return {
            name: tensor * self._scale(name).fwd if self._is_scaled(name) else tensor.clone()
            for name, tensor in self.state_dict().items()
            if name != KEY
        }

    def load_original_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], strict: bool = True
    ) -> None:
        """Load true weights and buffers, as the original would.

        With true weights ``load_state_dict`` does the same.

        Raises ``UnitifyError`` (U603) where names or shapes differ, and after ``to_inference``.
        """
        self._check_weights()
        stored = {
            name: tensor / self._scale(name).fwd if self._is_scaled(name) else tensor
            for name, tensor in state_dict.items()
        }
        held = self._fingerprint()
        if held is not None:
            stored[KEY] = held
        try:
            self.load_state_dict(stored, strict=strict)
        except RuntimeError as error:
            problem = " ".join(str(error).split())
            raise UnitifyError(KeysDiffer(problem=problem)) from None

    def _check_weights(self) -> None:
        if self.is_inference:
            problem = "to_inference made this module, and its weights are codes"
            raise UnitifyError(KeysDiffer(problem=problem))

    def _is_scaled(self, name: str) -> bool:
        return self._scale(name).fwd != 1.0

    def _scale(self, name: str) -> Scale:
        return self.plan.parameters.get(name, Scale())
