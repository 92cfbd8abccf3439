"""What would a policy solve if its sums were right? Greedy answers, with and without a calculator
at its side.

    python -m jaxtrain.export --workdir W --iteration 2 --to policy
    python -m benchmarks.calculator --workdir W --model policy [--split dev]

The second one needs the extra `parity`.

An answer is cut at its first false sum, that result is replaced by the right one, and the policy
writes on from there; again, until no sum is false. The calculator sees neither the question nor its
answer. Answers have at most --tokens tokens between two corrections, and no limit of steps.
--workdir may be a folder that `jaxtrain.evaluate` left.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtrain.errors import UserError
from jaxtrain.prompts import make_encode
from jaxtrain.runs import open_run
from jaxtrain.structs import Verdict

NUMBER, UNIT = r"[$€£]?(\d[\d,]*(?:\.\d+)?)", r"(?:\s*[a-zA-Z/]+){0,3}\s*"
SUM = re.compile(
    rf"(?<![\d.,]){NUMBER}{UNIT}([-+*/x])\s*{NUMBER}{UNIT}=\s*{NUMBER}(?![.,]?\d|%|\s*[-+*/x]\s*\d)"
)
ENDS_IN_OPERATOR = re.compile(r"[-+*/x]\s*[$€£]?$")
ANSWER = re.compile(r"####[^\n]*")
TOLERANCE = 0.011  # results are rounded to two digits
BATCH_SIZE = 32
MAX_CORRECTIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument(
        "--model", type=Path, required=True, help="a policy that jaxtrain.export wrote"
    )
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    try:
        run = open_run(options.workdir)
        config, task = run.config, run.task
    except UserError as error:
        sys.exit(str(error))
    tokenizer, encode = (
        task.tokenizer,
        make_encode(config.prompts, task.tokenizer, task.demonstrations),
    )
    asked = [
        (p, list(map(int, encode(p))))
        for p in getattr(task, options.split)[: config.evaluation.num_problems]
    ]
    problems, prompts = zip(
        *[(p, row) for p, row in asked if len(row) <= config.prompts.max_prompt_tokens], strict=True
    )
    texts = [""] * len(problems)
    todo = dict(enumerate(texts))  # what stands of an answer that is to be written on
    for number in range(1 + MAX_CORRECTIONS):
        rows = [prompts[i] + list(map(int, tokenizer.encode(text))) for i, text in todo.items()]
        for (i, text), row in zip(
            todo.items(), write_on(options.model, rows, options.tokens), strict=True
        ):
            texts[i] = until_answer(text + tokenizer.decode(row))
        solved = sum(
            task.verify(p, text) == Verdict.CORRECT for p, text in zip(problems, texts, strict=True)
        )
        is_right = [is_right for text in texts for *_, is_right in sums(text)]
        told = f"{is_right.count(False)} of {len(is_right)} sums false"
        print(f"{number} corrections at most: {solved} of {len(texts)} solved, {told}", flush=True)
        todo = {i: mended for i, text in enumerate(texts) if (mended := mend(text)) is not None}
        if not todo:
            break


def sums(text: str) -> Iterator[tuple[int, float, bool]]:
    """Yield every sum of two numbers: (where its result begins, the right result, is it right).

    Percentages and parts of longer sums are passed over.
    """
    for match in SUM.finditer(text):
        a, b, stated = (float(match[group].replace(",", "")) for group in (1, 3, 4))
        if ENDS_IN_OPERATOR.search(text[: match.start()]) or (match[2] == "/" and b == 0):
            continue
        right = {"+": a + b, "-": a - b, "*": a * b, "x": a * b, "/": a / (b or 1)}[match[2]]
        yield match.start(4), right, abs(right - stated) <= TOLERANCE


def mend(text: str) -> str | None:
    """Return the text up to its first false sum, mended; None where all are right."""
    for start, right, is_right in sums(text):
        if not is_right:
            return text[:start] + f"{right:.2f}".rstrip("0").rstrip(".")
    return None


def until_answer(text: str) -> str:
    """Cut what follows the line of the answer."""
    answer = ANSWER.search(text)
    return text[: answer.end()] if answer else text


def write_on(folder: Path, rows: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Continue every row greedily, by transformers; return the new tokens up to the end token."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    written = []
    for start in range(0, len(rows), BATCH_SIZE):
        part = rows[start : start + BATCH_SIZE]
        width = max(map(len, part))
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        out = model.generate(
            tokens, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
        )
        for row in out[:, width:].tolist():
            written.append(
                row[: next((i for i, token in enumerate(row) if token in ends), len(row))]
            )
    return written


if __name__ == "__main__":
    main()
