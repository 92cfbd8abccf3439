"""A few answers of a search or of greedy decoding, to be read."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxtrain import trees
from jaxtrain.report.values import is_number
from jaxtrain.structs import Kind, Shard, Verdict
from jaxtrain.tasks import Task

NUM_CARDS = 5  # of each kind of trees


def read_cards(task: Task, shard: Shard, method: str) -> Iterator[dict[str, Any]]:
    """Take the answers to the first problems, each step with its score, value and target."""
    prompt, tree, judged = shard
    for b in np.flatnonzero(prompt.problem_id >= 0)[:NUM_CARDS]:
        # The last step sampled where there is no answer; -1 where there is none, nor a verdict.
        last = tree.chosen[b]
        if last < 0:
            last = max(np.flatnonzero(tree.kind[b] != Kind.EMPTY), default=-1)
        steps = []
        for r in trees.row_paths(tree.parent, np.array([b]), np.array([last]))[0]:
            text = task.tokenizer.decode(tree.tokens[b, r, : tree.length[b, r]].tolist())
            step = {"text": text.rstrip("\n"), "target": None}
            numbers = {key: float(getattr(tree, key)[b, r]) for key in ("score", "value")}
            step |= {key: x if is_number(x) else None for key, x in numbers.items()}
            if judged.is_labelled[b, r]:
                step["target"] = float(judged.target[b, r])
            steps.append(step)
        problem = task.problems[int(prompt.problem_id[b])]
        verdict = Verdict(int(judged.verdict[b, last])).name.lower()
        card = {"problem": problem.prompt, "gold": problem.gold, "steps": steps}
        yield card | {"verdict": verdict, "method": method}
