"""A few answers of a search or of greedy decoding, to be read."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxtrain import trees
from jaxtrain.report.values import is_number
from jaxtrain.structs import Kind, Shard, Tree, Verdict
from jaxtrain.tasks import Task

NUM_CARDS = 5  # of each kind of trees


def read_cards(task: Task, shard: Shard, method: str) -> Iterator[dict[str, Any]]:
    """Take the answers to the first problems, each step with its score, value and target."""
    prompt, tree, judged = shard
    for b in np.flatnonzero(prompt.problem_id >= 0)[:NUM_CARDS]:
        # Without a step there is no verdict either: the last row is empty.
        last, path = read_path(tree, b, tree.chosen[b])
        steps = [read_step(task, tree, b, row) | {"target": None} for row in path]
        for step, row in zip(steps, path, strict=True):
            if judged.is_labelled[b, row]:
                step["target"] = float(judged.target[b, row])
        problem = task.problems[int(prompt.problem_id[b])]
        verdict = Verdict(int(judged.verdict[b, last])).name.lower()
        card = {"problem": problem.prompt, "gold": problem.gold, "steps": steps}
        yield card | {"verdict": verdict, "method": method}


def read_path(tree: Tree, b: int, row: int) -> tuple[int, list[int]]:
    """Return (the row that an answer of tree `b` ends with, the rows down to it); for a row of -1
    the last step that was sampled, without any -1 and none.
    """
    drawn = np.flatnonzero(tree.kind[b] != Kind.EMPTY).tolist()
    last = int(row) if row >= 0 else max(drawn, default=-1)
    return last, trees.row_paths(tree.parent, np.array([b]), np.array([last]))[0].tolist()


def read_step(task: Task, tree: Tree, b: int, row: int) -> dict[str, Any]:
    """Take a step out of tree `b`: its text, its score by the PRM, its value after back-up."""
    text = task.tokenizer.decode(tree.tokens[b, row, : tree.length[b, row]].tolist())
    numbers = {name: float(getattr(tree, name)[b, row]) for name in ("score", "value")}
    told = {name: number if is_number(number) else None for name, number in numbers.items()}
    return {"text": text.rstrip("\n"), **told}
