"""Take out of the GSM8K test file the questions that the templates of reasoning-gym's gsm_symbolic
were made from.

    python -m benchmarks.gsm8k_overlap --path test.jsonl --to test_without_templates.jsonl

GSM-Symbolic was made from questions of that file, so a model trained on its templates has seen
their originals in all but names and numbers. Every sampled item is matched with the test question
that shares most words; the question that most items of a template match is its original, and is
left out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from jaxtrain.verifiers.worker import Worker

# what reasoning-gym adds to every question
SUFFIX = "Give the result as your final answer. Do not include units."


def words_of(text: str) -> frozenset[str]:
    """The words of a question, without its numbers."""
    return frozenset(re.findall(r"[a-z]+", text.lower()))


def nearest(words: frozenset[str], questions: list[frozenset[str]]) -> tuple[float, int]:
    """Return (share of words in common, index) of the question that shares most (Jaccard)."""
    return max((len(words & other) / len(words | other), i) for i, other in enumerate(questions))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", type=Path, required=True, help="the GSM8K test file")
    parser.add_argument("--to", type=Path, required=True, help="the file to write")
    parser.add_argument("--items", type=int, default=1000, help="items to sample")
    options = parser.parse_args()
    lines = options.path.read_text("utf-8").splitlines(keepends=True)
    questions = [words_of(json.loads(line)["question"]) for line in lines]
    worker = Worker("gsm_symbolic", {"seed": 0, "size": options.items})
    matches: defaultdict[str, Counter[int]] = defaultdict(Counter)
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for index in range(options.items):
        item = worker.item(index)
        share, question = nearest(words_of(item["question"].removesuffix(SUFFIX)), questions)
        matches[item["template"]][question] += 1
        shares[item["template"]].append(share)
    originals = {template: counts.most_common(1)[0] for template, counts in matches.items()}
    num_agreed = sum(count for _, count in originals.values())
    dropped = {question for question, _ in originals.values()}
    options.to.write_text(
        "".join(line for i, line in enumerate(lines) if i not in dropped), "utf-8"
    )
    weakest = min(sum(found) / len(found) for found in shares.values())
    print(
        f"{options.items} items of {len(matches)} templates; {num_agreed} match the original of "
        "their template"
    )
    print(
        f"least mean share of words that a template has in common with its original: {weakest:.2f}"
    )
    num_left = len(lines) - len(dropped)
    print(
        f"{len(dropped)} of {len(lines)} test questions left out, {num_left} written to "
        f"{options.to}"
    )


if __name__ == "__main__":
    main()
