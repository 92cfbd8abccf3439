"""What the policy does not learn: texts with a step that a check calls false."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxtrain.datasets.collect import Counts, DatasetsConfig, Rounds, RowsFn
from jaxtrain.structs import CheckFn, Examples, Verdict
from jaxtrain.trees import count_false


def without_false_steps(rows_fn: RowsFn, check: CheckFn) -> RowsFn:
    """Make rows as `rows_fn` does, as if no answer had a false step on its way.

    What stands behind a false step is neither judged nor labelled then. Counted are the correct
    traces of the newest round that this costs.
    """

    def make_rows(
        rounds: Rounds, config: DatasetsConfig, max_length: int, seed: int
    ) -> tuple[Examples, Counts]:
        kept, num_dropped = {}, 0
        for i, shards in rounds.items():
            kept[i] = []
            for prompts, tree, labels in shards:
                is_asked = labels.is_labelled | (labels.verdict != Verdict.NONE)
                told = tree.problem_id, tree.parent, tree.tokens, tree.length, is_asked
                is_false = count_false(check, *told) > 0
                is_dropped = is_false & (labels.verdict == Verdict.CORRECT)
                num_dropped += int(is_dropped.sum()) * (i == max(rounds))
                left = replace(
                    labels,
                    verdict=np.where(is_false, Verdict.NONE, labels.verdict),
                    is_correct=labels.is_correct & ~is_false,
                    is_labelled=labels.is_labelled & ~is_false,
                )
                kept[i].append(type(shards[0])(prompts, tree, left))
        examples, counts = rows_fn(kept, config, max_length, seed)
        return examples, counts | {"num_traces_false": num_dropped}

    return make_rows
