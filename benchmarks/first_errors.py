"""Where does a PRM see the first error? On solutions in ProcessBench's form, any file of it.

    python -m benchmarks.first_errors --workdir runs/NAME --file gsm8k.jsonl
    python -m benchmarks.first_errors --model MODEL --prm PRM --file gsm8k.jsonl

The PRM is a run's, or one that was exported, with the policy whose tokenizer it reads. A line of
the file is a JSON object: `problem`, `steps` (texts) and `label`, the number of the first wrong
step from 0, or -1 where there is none. A PRM names the first step whose value is below a
threshold. F1 is the harmonic mean of two shares: of the wrong solutions those whose first error is
named exactly, of the right ones those that are let pass (Zheng et al., 2024). It is told at 0.5,
and at the threshold that is best on this very file, as ProcessBench does for its PRMs; besides the
AUROC of steps before the first error against the first error, within a solution and over all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxtrain.commands.solve import open_asked
from jaxtrain.errors import UserError, explained, require
from jaxtrain.intervals import auroc, mean
from jaxtrain.progress import Progress
from jaxtrain.prompts import make_encode
from jaxtrain.runs import Loaded
from jaxtrain.structs import TokenRows

BATCH_SIZE = 16
RIGHT = -1  # the label of a solution without an error


class Solution(NamedTuple):
    """A solution in steps."""

    problem: str
    steps: tuple[str, ...]
    label: int  # the first wrong step, or RIGHT


def read_solutions(path: Path) -> list[Solution]:
    """Read a file of JSON lines. Raises UserError that names the first line of another form."""
    with explained(f"--file {path}: cannot be read", "name a file of JSON lines"):
        # JSON may hold other separators of lines
        lines = path.read_text("utf-8-sig").rstrip("\n").split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            problem, steps, label = (fields[key] for key in ("problem", "steps", "label"))
            if not (isinstance(steps, list) and steps and type(label) is int):
                raise ValueError("steps are a list that is not empty, and label is a whole number")
            if not all(isinstance(text, str) for text in (problem, *steps)):
                raise ValueError("the problem and every step are texts")
            if not RIGHT <= label < len(steps):
                raise ValueError(f"label {label} of {len(steps)} steps")
            found.append(Solution(problem, tuple(steps), label))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(
                f"--file {path}:{number}: is no solution ({what}); a line is a JSON object with "
                "problem, steps and label"
            ) from error
    return found


def first_below(values: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """Name the first step of every solution whose value is below a threshold, [n] int, or RIGHT."""
    named = [np.flatnonzero(x < threshold) for x in values]
    return np.array([at[0] if len(at) else RIGHT for at in named], int)


def f1(named: np.ndarray, label: np.ndarray) -> tuple[float, float, float]:
    """Return (F1, share of wrong solutions whose error is named, share of right ones let pass)."""
    is_hit = named == label
    wrong, right = mean(is_hit[label != RIGHT]), mean(is_hit[label == RIGHT])
    return (2 * wrong * right / (wrong + right) if wrong + right else 0.0), wrong, right


def card(values: Sequence[np.ndarray], label: np.ndarray) -> dict[str, float]:
    """Measure the values of the steps of solutions, [steps] each, against their labels [n]."""
    told = dict(zip(("f1", "wrong", "right"), f1(first_below(values, 0.5), label), strict=True))
    # The best threshold lies just above a value, or at 0, where none is named.
    levels = np.nextafter(np.unique(np.concatenate(values)), np.inf)
    levels = np.concatenate([[0.0, 0.5], levels])
    scores = [f1(first_below(values, level), label)[0] for level in levels]
    best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
    told |= {"best_f1": scores[best], "best_threshold": float(levels[best])}
    # Steps that are known to be right or wrong: up to the first error.
    known = [x[: len(x) if k == RIGHT else k + 1] for x, k in zip(values, label, strict=True)]
    is_right = [np.arange(len(x)) != k for x, k in zip(known, label, strict=True)]
    told["auroc"] = auroc(np.concatenate(known), np.concatenate(is_right))
    within = np.array([auroc(x, y) for x, y in zip(known, is_right, strict=True)])
    told["auroc_within"] = mean(within[np.isfinite(within)])
    return told | {
        "num_wrong": int((label != RIGHT).sum()),
        "num_right": int((label == RIGHT).sum()),
    }


def score(model: Loaded, solutions: Sequence[Solution]) -> list[np.ndarray]:
    """Read the PRM's values of the steps of all solutions, each of which is a problem of the task:
    [steps] each, in [0, 1].
    """
    task, boundary = model.task, model.config.trace.boundary
    encode_fn = make_encode(model.config.prompts, task.tokenizer, task.demonstrations)
    # As the PRM has learnt: a step ends with its boundary, and the last one with an end token.
    texts, ends = [], []
    for problem, solution in zip(task.test, solutions, strict=True):
        ids, at = list(encode_fn(problem)), []
        for step in solution.steps[:-1]:
            ids += task.tokenizer.encode(step.strip("\n") + boundary)
            at.append(len(ids) - 1)
        ids += [*task.tokenizer.encode(solution.steps[-1].strip("\n")), task.tokenizer.end_id]
        at.append(len(ids) - 1)
        texts.append(ids)
        ends.append(np.array(at))

    # Of like length together, all batches of few widths.
    found: list[np.ndarray] = [np.zeros(0)] * len(texts)
    order = np.argsort([len(ids) for ids in texts], kind="stable")
    for first in range(0, len(order), BATCH_SIZE):
        part = order[first : first + BATCH_SIZE]
        width = -(-max(len(texts[k]) for k in part) // 128) * 128
        tokens, until = np.zeros((2, BATCH_SIZE, width), np.int32)
        for row, k in enumerate(part):
            size = len(texts[k])
            tokens[row, :size], until[row, :size] = texts[k], size
        place, none = np.arange(width, dtype=np.int32), np.zeros(tokens.shape, np.float32)
        rows = TokenRows(tokens, np.where(until > 0, place, 0), until, none, none, -until)
        values = np.asarray(model.fns.read_values(model.networks.base, model.networks.prm, rows))
        for row, k in enumerate(part):
            found[k] = values[row, ends[k]].clip(0, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, help="a run")
    parser.add_argument("--iteration", type=int, help="of the run; the newest by default")
    parser.add_argument("--model", help="in place of a run: a folder, a hub id or a .gguf file")
    parser.add_argument("--prm", default="", help="the PRM of --model: a folder or a hub id")
    parser.add_argument("--config", help="how --model is asked, a config; ask by default")
    options, overrides = parser.parse_known_args()
    for flag in overrides:
        if flag.startswith("-") and not flag.startswith("--config."):
            parser.error(f"{flag} is unknown")
    try:
        is_one = bool(options.workdir) != bool(options.prm)
        require(is_one, "--prm", "name the PRM of --model, and none with --workdir")
        solutions = read_solutions(options.file)
        asked = vars(options) | {"problem": [x.problem for x in solutions], "file": None}
        with Progress(0, sys.stderr) as progress:
            model = open_asked(argparse.Namespace(**asked), overrides, progress)
            values = score(model, solutions)
    except UserError as error:
        sys.exit(str(error))
    label = np.array([solution.label for solution in solutions])
    print(f"| {options.prm or f'iteration {model.iteration}'} | {options.file.name} |")
    print("| --- | --- |")
    for name, value in card(values, label).items():
        print(f"| {name} | {value:.4g} |")


if __name__ == "__main__":
    main()
