"""Stage 7 of 7. State in, accuracy against compute out.

Two questions, answered on problems that nobody trained on. *Does search pay?* `accuracy_table` sets
search beside what the same tokens buy otherwise: vote, best-of-k and weighted vote get as many
samples as cost what search was measured to cost, on the same problems, with an interval on every
share and on the paired differences. *Does the PRM know anything?* `prm_report` sets it beside
predictors that have read no text, `samples_report` says how it ranks what best-of-k chooses from.

The models stay outside. Trees come in, with the verdicts on them and a function that reads answers;
metrics go out, as plain floats and lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxtrain.evaluation.prm import Baseline, check_report, count_false, prm_report, samples_report
from jaxtrain.evaluation.strategies import (
    STRATEGIES,
    TREES,
    Answered,
    AnswerFn,
    RankFn,
    Strategy,
    by_score,
    is_solved,
    last_rows,
    read_choice,
    read_samples,
    share_in_tree,
)
from jaxtrain.evaluation.table import Metrics, accuracy_table, curve, named
from jaxtrain.structs import CheckFn, Shard


def measure(
    found: Mapping[str, Shard],
    strategies: Sequence[str],
    baseline: Baseline,
    answer_fn: AnswerFn,
    rank_fn: RankFn = by_score,
    check: CheckFn | None = None,
    costs: Mapping[str, float] | None = None,
) -> Metrics:
    """Turn judged trees, by their kind, into the accuracy table and the PRM's report.

    Its steps and leaves are those of the search that answers, or else of the samples. rank_fn: how
    best-of-k ranks what it chooses from; check: that of the task's steps; costs: what a false step
    has cost the scores of the trees of a kind.
    """
    answered = {kind: read(kind, shard, answer_fn, rank_fn) for kind, shard in found.items()}
    metrics = accuracy_table(answered, strategies)
    if "samples" in found:
        metrics |= samples_report(answered["samples"])
    if "search" in found:
        _, tree, judged = found["search"]
        metrics["evaluation/search/in_tree"] = share_in_tree(tree, judged.verdict)
    for name in [name for name in ("search", "samples") if name in found][:1]:
        _, tree, judged = found[name]
        if check is not None:
            num_false, cost = count_false(tree, check), (costs or {}).get(name, 0.0)
            # The PRM's own word.
            tree = replace(tree, score=tree.score + cost * num_false)
            metrics |= check_report(tree, judged, num_false, cost or 1.0)
        metrics |= prm_report(tree, judged, baseline)
    return metrics


def read(kind: str, shard: Shard, answer_fn: AnswerFn, rank_fn: RankFn = by_score) -> Answered:
    """Take out of the trees of a kind what they answer."""
    prompts, tree, judged = shard
    if kind == "search":
        return read_choice(tree, judged.verdict, answer_fn)
    return read_samples(tree, judged.verdict, prompts.length, answer_fn, rank_fn)
