"""What the policy does not learn: texts with a step that a check calls false."""

from dataclasses import replace

import numpy as np

from jaxtrain.datasets.collect import RowsFn
from jaxtrain.structs import CheckFn, Shard, Verdict
from jaxtrain.trees import count_false


def without_false_steps(rows_fn: RowsFn, check: CheckFn) -> RowsFn:
    """Make rows as `rows_fn` does, as if what stands behind a false step were neither judged nor
    labelled; count the correct traces of the newest round that this costs.
    """

    def sound(shard: Shard) -> Shard:
        prompts, tree, labels = shard
        is_asked = labels.is_labelled | (labels.verdict != Verdict.NONE)
        told = tree.problem_id, tree.parent, tree.tokens, tree.length
        is_sound = count_false(check, *told, is_asked) == 0
        labels = replace(
            labels,
            verdict=np.where(is_sound, labels.verdict, Verdict.NONE),
            is_correct=labels.is_correct & is_sound,
            is_labelled=labels.is_labelled & is_sound,
        )
        return Shard(prompts, tree, labels)

    def make_rows(rounds, config, max_length, seed):
        kept = {i: [sound(shard) for shard in shards] for i, shards in rounds.items()}
        examples, counts = rows_fn(kept, config, max_length, seed)
        before, after = (
            sum(int((shard.labels.verdict == Verdict.CORRECT).sum()) for shard in x[max(rounds)])
            for x in (rounds, kept)
        )
        return examples, counts | {"num_traces_false": before - after}

    return make_rows
