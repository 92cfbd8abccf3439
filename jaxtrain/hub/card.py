"""What an exported folder says of itself: origin, use and scores of its network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtrain.hub.pretrained import Pretrained

USE = {
    "policy": """\
# A policy, made by jaxtrain

A causal language model.

```python
{imports}

folder = "."
{load}
tokenizer = AutoTokenizer.from_pretrained(folder)
tokens = tokenizer("Question: what is 3 + 4?\\nAnswer:\\n", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=100)[0]))
```""",
    "prm": """\
# A process reward model, made by jaxtrain

{labels} Read it at the last token of a step (steps ended at {boundary!r} in training): 1 where the
solution is expected to end right, 0 where it is not.

```python
{imports}

folder = "."
{load}
tokenizer = AutoTokenizer.from_pretrained(folder)
tokens = tokenizer("Question: what is 3 + 4?\\nAnswer:\\n3 + 4 = 7\\n", return_tensors="pt")
print({value})  # at the last step's end, no end token behind it
```""",
}
CALCULATOR = """\
- **with a calculator**: in training and in the scores below the results of sums were computed, and
  not the policy's (`trace.calculator`); transformers does not compute them"""
ONE = (
    "Its one label is the value of a solution up to a token, to be clipped to [0, 1].",
    "model(**tokens).logits[0, -1, 0].clip(0, 1)",
)
SEVERAL = (
    "The softmax of its {num} labels weighs {num} values from 0 to 1, evenly spaced; their mean is "
    "the value of a solution up to a token.",
    "model(**tokens).logits[0, -1].float().softmax(-1) @ torch.linspace(0, 1, {num})",
)
TASKS = {"policy": "text-generation", "prm": "token-classification"}
CLASSES = {"policy": "AutoModelForCausalLM", "prm": "AutoModelForTokenClassification"}
ADAPTER = """\
base = {kind}.from_pretrained({base!r}{labels})
model = PeftModel.from_pretrained(base, folder)"""


def model_card(
    network: str,
    iteration: int,
    manifest: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    boundary: str,
    pretrained: Pretrained | None,
    is_adapter: bool = False,
    num_outputs: int = 1,
    calculator: bool = False,
) -> str:
    """Write the README.md of a network: what it is, how to use it, numbers and hashes of its run.

    rows: the metrics of its iteration. boundary, calculator: of its steps. num_outputs: of the PRM.
    """
    # What the head of a card says to the hub.
    name = pretrained.name if pretrained else "random weights"
    base = [f"base_model: {json.dumps(name)}", *license_of(pretrained)] if pretrained else []
    library = "library_name: peft" if is_adapter else "library_name: transformers"
    head = [*base, library, f"pipeline_tag: {TASKS[network]}", "tags: [jaxtrain]"]

    # How it is loaded.
    kind, labels = CLASSES[network], f", num_labels={num_outputs}" if network == "prm" else ""
    imports = f"from transformers import {kind}, AutoTokenizer"
    if num_outputs > 1:
        imports = f"import torch\n{imports}"
    load = f"model = {kind}.from_pretrained(folder)"
    if is_adapter:
        imports = f"from peft import PeftModel\n{imports}"
        load = ADAPTER.format(kind=kind, base=name, labels=labels)
    told, value = (text.format(num=num_outputs) for text in (SEVERAL if num_outputs > 1 else ONE))
    how = {"boundary": boundary, "imports": imports, "load": load, "labels": told, "value": value}
    use = USE[network].format(**how)

    # Where it comes from, and its scores.
    rounded = ", rounded to the types of the base" if pretrained and pretrained.dtypes else ""
    about = [
        f"- iteration {iteration}, seed {manifest['seed']}, started from {name}",
        f"- weights: trained in float32{'' if is_adapter else rounded}",
        f"- config sha256: `{manifest['config_sha256']}`, commit: `{manifest['git_commit']}`",
        *([CALCULATOR] if calculator else []),
        *(f"- {key}: `{value}`" for key, value in sorted(manifest["facts"].items())),
    ]
    metrics = {key: x for row in rows for key, x in row.items() if key.startswith("evaluation/")}
    scores = [(key, x) for key, x in sorted(metrics.items()) if isinstance(x, int | float)]
    table = [f"| {key} | {x:.4g} |" for key, x in scores]
    table = ["| metric | value |", "| --- | --- |", *table] if table else ["It was not scored."]
    return "\n".join(["---", *head, "---", "", use, "", *about, "", *table, ""])


def license_of(pretrained: Pretrained) -> list[str]:
    """Return the lines of the base's own card that name its license; none where it has no card."""
    path = Path(pretrained.where) / "README.md"
    if not path.is_file():
        return []
    front = re.match(r"---\n(.*?)\n---\n", path.read_text("utf-8", errors="replace"), re.DOTALL)
    return re.findall(r"^license(?:_name|_link)?: .*$", front[1], re.MULTILINE) if front else []
