"""U6: checkpoints, factories and folders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class CheckpointUnreadable(Diagnostic):
    """The checkpoint is missing, truncated, or not a state dict.

    Example: ``unitify convert half-downloaded.safetensors --model my_package:build -o out``.
    Fix: pass a ``.safetensors`` file, a ``.pt`` state dict, a folder of shards or of
    ``torch.distributed.checkpoint``, or a Hugging Face folder.
    """

    code: ClassVar[str] = "U601"
    why: ClassVar[str] = "{path}: {problem}"
    fix: ClassVar[str] = "Pass a .safetensors file, a .pt state dict or a Hugging Face folder"
    path: str
    problem: str


@dataclass(frozen=True)
class UnsafeCheckpoint(Diagnostic):
    """The checkpoint needs code that is in it, which unitify does not run.

    Pickled objects, exported programs (``.pt2``), and models whose code is in their folder do.

    Example: a ``.pt`` file written by ``torch.save(model)`` instead of its state dict.
    Fix: load it where you trust it, and save its state dict as safetensors. For a pickle that you
    trust, ``unitify convert --unsafe-load REASON`` runs the code in it; ``plan.json`` holds the
    reason. For a model with code of its own, pass your factory with ``--model``.
    """

    code: ClassVar[str] = "U602"
    why: ClassVar[str] = "{path} needs code that is in it ({problem})"
    fix: ClassVar[str] = "{advice}"
    path: str
    problem: str
    advice: str = (
        "Save model.state_dict() with safetensors and convert that; "
        "where you trust the file, --unsafe-load REASON runs its code"
    )


@dataclass(frozen=True)
class KeysDiffer(Diagnostic):
    """The names, shapes or types of the checkpoint are not those of the model.

    Names are compared as torch loads them: after the hooks by which modules take over older names.

    Example: a checkpoint of a 12-layer model, and a factory that builds 6 layers.
    Fix: use the factory that belongs to the checkpoint. What ``unitify convert`` may leave as the
    factory made it, or leave out of the checkpoint, is named by ``--allow-missing 'head.*'`` and
    ``--allow-unexpected 'loss.*'``.
    """

    code: ClassVar[str] = "U603"
    why: ClassVar[str] = "the checkpoint does not fit the model: {problem}"
    fix: ClassVar[str] = "{advice}"
    problem: str
    advice: str = "Use the factory that belongs to the checkpoint"


@dataclass(frozen=True)
class FactoryFailed(Diagnostic):
    """The function given by ``--model`` or ``--inputs`` cannot be used.

    Example: ``--model my_package.models:Bulid``.
    Fix: it must be importable as ``package.module:name`` and callable without arguments; a
    model factory returns an ``nn.Module``, an inputs function a tensor, a tuple, a dict or a list
    of tuples and dicts.
    """

    code: ClassVar[str] = "U604"
    why: ClassVar[str] = "{target}: {problem}"
    fix: ClassVar[str] = (
        "Name a callable without arguments as package.module:name, in the folder of the package"
    )
    target: str
    problem: str


@dataclass(frozen=True)
class OutputExists(Diagnostic):
    """The output exists already; nothing is ever overwritten.

    Example: ``unitify convert`` run twice with the same ``-o out``.
    Fix: choose another name, or remove it.
    """

    code: ClassVar[str] = "U605"
    why: ClassVar[str] = "{path} exists already"
    fix: ClassVar[str] = "Choose another name, or remove it"
    path: str


@dataclass(frozen=True)
class OutputInUse(Diagnostic):
    """Another process is writing the output folder; two would write into each other's files.

    Example: two runs of ``unitify convert`` at one time with the same ``-o out``.
    Fix: wait for the other run, or choose another folder.
    """

    code: ClassVar[str] = "U617"
    why: ClassVar[str] = "another process is writing {path}"
    fix: ClassVar[str] = "Wait for it, or choose another folder"
    path: str


@dataclass(frozen=True)
class NotWritten(Diagnostic):
    """The output folder could not be written; what was begun has been removed.

    Example: ``-o`` below a folder without write permission, or a full disk.
    Fix: choose a place that can be written and has room for the weights.
    """

    code: ClassVar[str] = "U606"
    why: ClassVar[str] = "{path} cannot be written: {problem}"
    fix: ClassVar[str] = "Choose a place that can be written and has room for the weights"
    path: str
    problem: str


@dataclass(frozen=True)
class FolderDamaged(Diagnostic):
    """A converted folder is incomplete, or its contents are not those that were written.

    ``plan.json`` holds a SHA-256 of every file that decides what the module computes.

    Example: ``unitify.load("out", model)`` after ``out/model.safetensors`` was edited.
    Fix: convert the checkpoint again.
    """

    code: ClassVar[str] = "U607"
    why: ClassVar[str] = "{path} is not an intact converted folder: {problem}"
    fix: ClassVar[str] = "Convert the checkpoint again"
    path: str
    problem: str


@dataclass(frozen=True)
class BaselineUnreadable(Diagnostic):
    """The baseline of known findings cannot be read.

    Example: ``unitify-baseline.json`` with the markers of an unresolved merge in it.
    Fix: repair it, or write a new one with ``unitify check TARGET --update-baseline``.
    """

    code: ClassVar[str] = "U608"
    why: ClassVar[str] = "{path} is not a baseline: {problem}"
    fix: ClassVar[str] = "Repair it, or write a new one with --update-baseline"
    path: str
    problem: str


@dataclass(frozen=True)
class ReadingsUnreadable(Diagnostic):
    """The file of readings is missing, or is not what ``unitify.monitor`` writes.

    Example: ``unitify report my_package:build --drift train.log``.
    Fix: pass the file that ``unitify.monitor(module, path=…)`` was given.
    """

    code: ClassVar[str] = "U609"
    why: ClassVar[str] = "{path}: {problem}"
    fix: ClassVar[str] = "Pass the file that unitify.monitor(module, path=...) wrote"
    path: str
    problem: str


@dataclass(frozen=True)
class NotPickled(Diagnostic):
    """A transformed module cannot be pickled: its graph is code, and so would be the pickle.

    Example: ``torch.save(module, "module.pt")``, or a module sent to another process.
    Fix: save ``(module.state_dict(), module.plan)``, which are plain data, and rebuild the module
    from the model with ``unitify.rebuild``; or write a folder with ``unitify convert``.
    """

    code: ClassVar[str] = "U610"
    why: ClassVar[str] = "a transformed module cannot be pickled"
    fix: ClassVar[str] = "Save (module.state_dict(), module.plan) and use unitify.rebuild"


@dataclass(frozen=True)
class AdapterAlone(Diagnostic):
    """The folder holds an adapter of PEFT, and not the model that it adapts.

    Example: ``unitify convert my-lora -o out``, where ``my-lora`` has an ``adapter_config.json``.
    Fix: merge the adapter into its base model, save that, and convert what was saved.
    """

    code: ClassVar[str] = "U611"
    why: ClassVar[str] = "{path} holds an adapter for {base}, and no model"
    fix: ClassVar[str] = (
        "Merge it: peft.PeftModel.from_pretrained(base_model, path).merge_and_unload()"
        ".save_pretrained(merged), then convert that"
    )
    path: str
    base: str


@dataclass(frozen=True)
class CheckpointAdapted(Diagnostic):
    """A checkpoint was changed to fit its model.

    This is a note, not an error. It names a prefix that was removed, an entry of a nested
    checkpoint, FP8 codes that were multiplied by their scales, or allowed differences of names.

    Example: a checkpoint of a model inside ``DistributedDataParallel``, with ``module.`` before
    every name.
    Fix: nothing is wrong; check that the change is what you want.
    """

    code: ClassVar[str] = "U612"
    why: ClassVar[str] = "the checkpoint was adapted: {what}"
    fix: ClassVar[str] = "Check that this is what you want"
    what: str


@dataclass(frozen=True)
class SeveralStateDicts(Diagnostic):
    """The checkpoint holds several state dicts that fit the model.

    Example: ``{"model": ..., "ema": ...}``, with weights and their moving average.
    Fix: save the one that you want by itself.
    """

    code: ClassVar[str] = "U613"
    why: ClassVar[str] = "{path} holds several state dicts that fit the model: {entries}"
    fix: ClassVar[str] = (
        "Save the one that you want by itself, such as "
        "torch.save(torch.load(path, weights_only=True)[{first!r}], new_path)"
    )
    path: str
    entries: str
    first: str


@dataclass(frozen=True)
class NotFolded(Diagnostic):
    """A change that the recipe makes to the numbers cannot be written as scales of the format.

    A runtime runs its own code of the model on codes and scales. These hold casts of a linear
    layer's operands by constant powers of two. Everything else that a recipe does is refused.

    Example: ``unitify convert gpt2 -o out --recipe fp8 --format compressed-tensors``: the layers
    of GPT-2 are no ``nn.Linear``, and its head shares the weight of its embedding.
    Fix: leave it out of the recipe (``--recipe fp8,exclude=lm_head``), or write the format
    ``unitify``, which holds everything.
    """

    code: ClassVar[str] = "U614"
    why: ClassVar[str] = "{value} does not fold into the scales of a format: {problem}"
    fix: ClassVar[str] = "Leave it out of the recipe (--recipe NAME,exclude={value})"
    value: str
    problem: str


@dataclass(frozen=True)
class ReaderDiffers(Diagnostic):
    """A written folder, opened by its reader, does not compute what the source computes.

    The folder is removed. The bound is ``min_sqnr`` of the recipe, or 6 dB.

    Example: a model whose activations the recipe's format cannot hold.
    Fix: another recipe (``fp8-ptq``, or with ``exclude``); compare with ``unitify report``.
    """

    code: ClassVar[str] = "U615"
    why: ClassVar[str] = "{path}: {problem}"
    fix: ClassVar[str] = "Choose another recipe, or exclude what it harms"
    path: str
    problem: str


@dataclass(frozen=True)
class WeightsCast(Diagnostic):
    """A folder holds codes of the weights, from which the original weights do not follow.

    Example: ``unitify convert converted -o back --to original``, where ``converted`` was written
    with ``--recipe fp8``.
    Fix: keep the original checkpoint beside it; a folder without a recipe holds it whole.
    """

    code: ClassVar[str] = "U616"
    why: ClassVar[str] = "{path} holds codes of {count} weights in place of the weights"
    fix: ClassVar[str] = "Keep the original; a folder without a recipe holds it whole"
    path: str
    count: int


@dataclass(frozen=True)
class LoadsWrongly(Diagnostic):
    """A folder in the layout of ModelOpt opens in ``transformers`` without an error, and is wrong.

    ``transformers`` ignores the scales, and reads codes as numbers. The runtimes that this layout
    is for (vLLM, SGLang, TensorRT-LLM) read it right.

    Example: ``unitify convert CKPT -o out --recipe fp8 --format modelopt``.
    Fix: ``--format compressed-tensors`` for a folder that ``transformers`` opens, too.
    """

    code: ClassVar[str] = "U619"
    why: ClassVar[str] = "transformers opens the layout modelopt without an error, but wrongly"
    fix: ClassVar[str] = "For a folder that it reads, take --format compressed-tensors"


@dataclass(frozen=True)
class NotOnnx(Diagnostic):
    """``torch.onnx.export`` does not take the transformed module.

    Example: a model with a part that stays in Python, or with an operator that ONNX lacks.
    Fix: the message of torch names the operator. Export a model without it, or write the format
    ``unitify``.
    """

    code: ClassVar[str] = "U620"
    why: ClassVar[str] = "the module does not export to ONNX: {problem}"
    fix: ClassVar[str] = "Export a model without that operator, or take --format unitify"
    problem: str
