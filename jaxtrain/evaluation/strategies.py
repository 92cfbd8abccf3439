"""How a problem can be answered: one table that evaluation, report, plan and benchmarks read.

A strategy reads trees of one kind and chooses among the traces in them: `greedy` trees hold one
trace, `samples` independent ones, `search` whatever the search that answers has grown. Another
strategy is another line of the table; its trees are grown wherever a config asks for it.

Host numpy throughout: the arrays are small and the votes are over strings. A problem set aside
(`is_ok` False) or left without an answer counts as wrong: it stays in the denominator, so all
strategies are judged on the same problems.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import chex
import jax
import numpy as np

from jaxtrain import trees
from jaxtrain.intervals import mean
from jaxtrain.structs import Array, Kind, Tree, Verdict

# tokens of a finished trace -> what it answers
AnswerFn = Callable[[np.ndarray], str | None]


@dataclass(frozen=True)
class Answered:
    """What a method made of B problems: K traces each, as sampled; of greedy and search one."""

    problem_id: np.ndarray  # [B] int
    answer: list[list[str | None]]  # [B][K], None: unfinished or unparsable
    is_correct: np.ndarray  # [B K] bool
    score: np.ndarray  # [B K] float, the PRM's value at the last step
    rank: np.ndarray  # [B K] float, what the best of them has most of
    policy_tokens: np.ndarray  # [B K] int, tokens the policy computed for the first k + 1 traces
    prm_tokens: np.ndarray  # [B K] int, tokens the PRM computes to score them


# score, log-probability and length in tokens of traces, arrays of one shape -> their ranks
RankFn = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
# answered, k -> the trace [B] int that is chosen among the first k, -1 for none
SelectFn = Callable[[Answered, int], np.ndarray]


def first(answered: Answered, k: int) -> np.ndarray:
    """Return the first trace `[B]` int: the only one, or the one that the search has chosen."""
    return np.zeros(len(answered.answer), int)


def first_correct(answered: Answered, k: int) -> np.ndarray:
    """Return the first of k traces `[B]` int that is right, -1 without any."""
    is_correct = answered.is_correct[:, :k]
    return np.where(is_correct.any(axis=1), np.argmax(is_correct, axis=1), -1)


def vote(answered: Answered, k: int) -> np.ndarray:
    """Return the trace `[B]` int with the commonest answer of the first k, -1 without any.

    Of the traces that give the winning answer it is the first; a tie goes to the answer seen first.
    """
    return _pluralities(answered, np.ones((len(answered.answer), k)))


def weighted_vote(answered: Answered, k: int) -> np.ndarray:
    """Vote as `vote` does, each trace with the weight of its last-step value, clipped to [0, 1]."""
    return _pluralities(answered, np.clip(answered.score[:, :k], 0, 1))


def best_of_k(answered: Answered, k: int) -> np.ndarray:
    """Return the trace `[B]` int that answers with the highest rank of the first k, -1: none.

    A tie goes to the earlier trace. The rank is the last-step value, not clipped, which would tie
    the best, and what `evaluation.samples.prior.weight` adds to it.
    """
    told = [[text is not None for text in answer[:k]] for answer in answered.answer]
    has_answer = np.array(told, bool).reshape(-1, k)
    best = np.argmax(np.where(has_answer, answered.rank[:, :k], -np.inf), axis=1)
    return np.where(has_answer.any(axis=1), best, -1)


def _pluralities(answered: Answered, weight: np.ndarray) -> np.ndarray:
    """The first trace `[B]` int whose answer has most weight [B k], -1 if none has an answer."""
    chosen = []
    for answers, weights in zip(answered.answer, weight, strict=True):
        total: defaultdict[str, float] = defaultdict(float)
        for answer, w in zip(answers[: len(weights)], weights, strict=True):
            if answer is not None:
                total[answer] += float(w)
        # A dict keeps the order of insertion and `max` the first of equals: ties go to the answer
        # seen first.
        chosen.append(answers.index(max(total, key=total.__getitem__)) if total else -1)
    return np.array(chosen, int)


class Strategy(NamedTuple):
    """One way to answer."""

    name: str  # in the names of metrics
    label: str  # on pages
    trees: str  # the kind of trees that it reads
    select: SelectFn
    pays_prm: bool = False  # the others never call the PRM and do not pay for it
    is_oracle: bool = False  # it chooses by the gold answer, which none can: a bound, not a rival


TABLE = (
    Strategy("greedy", "greedy", "greedy", first),
    Strategy("self_consistency", "self-consistency", "samples", vote),
    Strategy("best_of_k", "best-of-k", "samples", best_of_k, pays_prm=True),
    Strategy("weighted_vote", "weighted vote", "samples", weighted_vote, pays_prm=True),
    Strategy("search", "search", "search", first, pays_prm=True),
    Strategy("pass_at_k", "pass@k (oracle)", "samples", first_correct, is_oracle=True),
)
STRATEGIES = {strategy.name: strategy for strategy in TABLE}
TREES = ("greedy", "samples", "search")  # the kinds of trees, in the order in which they are grown
BUDGET = "search"  # the strategy whose mean cost those that sample are given


def is_solved(strategy: Strategy, answered: Answered, k: int) -> np.ndarray:
    """Say whether a strategy is right on each problem `[B]` with the first k traces."""
    selected = strategy.select(answered, k)
    is_correct = answered.is_correct[np.arange(len(selected)), selected]
    return np.where(selected >= 0, is_correct, False)


def mean_costs(strategy: Strategy, answered: Answered) -> np.ndarray:
    """Return the mean tokens per problem `[K]` float that a strategy spends with k = 1..K.

    A token counts once for each network that computed it, the prompt included.
    """
    tokens = answered.policy_tokens + (answered.prm_tokens if strategy.pays_prm else 0)
    return np.array([mean(column) for column in tokens.T])


def by_score(score: np.ndarray, log_prob: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Rank traces by their scores alone."""
    return score


def read_samples(
    tree: Tree,
    verdict: Array,
    prompt_length: Array,
    answer_fn: AnswerFn,
    rank_fn: RankFn = by_score,
) -> Answered:
    """Take the independent traces out of a tree of method `sample`.

    `verdict [B R]` int, a Verdict for every row; `prompt_length [B]` int. A trace is a chain of
    rows, and traces are ordered by their first rows. Both networks read the prompt once and every
    trace. Padding problems (id -1) are dropped; a problem with fewer than K traces is filled up
    with unanswered ones that cost nothing.
    """
    chex.assert_equal_shape([tree.kind, verdict])
    chex.assert_equal_shape([tree.problem_id, prompt_length])
    tree, verdict, prompt_length = keep(
        np.asarray(tree.problem_id) >= 0, (tree, verdict, prompt_length)
    )
    last = last_rows(tree)
    answer, is_correct, score, log_prob, length = _read(tree, verdict, last, answer_fn)
    rank = rank_fn(score, log_prob, length)
    num_tokens = prompt_length[:, None] + np.cumsum(length, axis=1)
    return Answered(tree.problem_id, answer, is_correct, score, rank, num_tokens, num_tokens)


def read_choice(tree: Tree, verdict: Array, answer_fn: AnswerFn) -> Answered:
    """Take the answer of a search, its `chosen` row, and the tokens that it was measured to cost.

    `verdict [B R]` int, a Verdict for every row. Padding problems (id -1) are dropped.
    """
    chex.assert_equal_shape([tree.kind, verdict])
    tree, verdict = keep(np.asarray(tree.problem_id) >= 0, (tree, verdict))
    answer, is_correct, score, *_ = _read(tree, verdict, tree.chosen[:, None], answer_fn)
    costs = (tokens[:, None] for tokens in (tree.policy_tokens, tree.prm_tokens))
    return Answered(tree.problem_id, answer, is_correct, score, score, *costs)


def share_in_tree(tree: Tree, verdict: Array) -> float:
    """Return the share of problems whose tree holds a correct answer anywhere, NaN without any.

    What search misses here, no better PRM would find. `verdict [B R]` int; padding is dropped.
    """
    verdict = keep(np.asarray(tree.problem_id) >= 0, verdict)
    return mean((verdict == Verdict.CORRECT).any(axis=1))


def keep(is_kept: np.ndarray, arrays):
    """Bring a pytree with leading axis B to the host and keep the problems of `is_kept [B]`."""
    return jax.tree.map(lambda x: np.asarray(x)[is_kept], arrays)


def last_rows(tree: Tree) -> np.ndarray:
    """Find the last row of every independent trace, from which no row goes on: `[B K]` int, in the
    order of their first rows, -1 where a problem has fewer.
    """
    is_last = tree.kind != Kind.EMPTY
    above = np.nonzero(is_last & (tree.parent >= 0))
    is_last[above[0], tree.parent[above]] = False
    problem, row = np.nonzero(is_last)
    paths, num_traces = trees.row_paths(tree.parent, problem, row), is_last.sum(axis=1)
    order = np.lexsort((paths[:, :1].ravel(), problem))
    last = np.full((len(is_last), max(1, num_traces.max(initial=0))), -1)
    last[np.arange(last.shape[1]) < num_traces[:, None]] = row[order]
    return last


def _read(
    tree: Tree, verdict: Array, last: np.ndarray, answer_fn: AnswerFn
) -> tuple[list[list[str | None]], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Answer, correctness, score, log-probability and tokens of traces: `last [B K]`, -1: none."""
    # Read the traces that are there.
    problem, lane = np.nonzero(last >= 0)
    row = last[problem, lane]
    paths = trees.row_paths(tree.parent, problem, row)
    tokens, num_tokens, _ = trees.sequences(tree, problem, paths)
    steps = np.where(paths >= 0, np.asarray(tree.log_prob)[problem[:, None], paths], 0.0)
    is_ok = np.asarray(tree.is_ok)[problem]
    # A tree that was set aside has no right answer.
    is_correct, score, log_prob, length = (
        np.zeros(last.shape, dtype) for dtype in (bool, float, float, int)
    )
    is_correct[problem, lane] = is_ok & (np.asarray(verdict)[problem, row] == Verdict.CORRECT)
    score[problem, lane] = tree.score[problem, row]
    log_prob[problem, lane] = steps.sum(axis=1)
    length[problem, lane] = num_tokens
    # Only what is finished can be read as an answer; a text that comes again is read once.
    read_answer = cache(lambda text: answer_fn(np.frombuffer(text, tokens.dtype)))
    answer: list[list[str | None]] = [[None] * last.shape[1] for _ in last]
    for i in np.flatnonzero(is_ok & tree.is_finished[problem, row]):
        answer[problem[i]][lane[i]] = read_answer(tokens[i, : num_tokens[i]].tobytes())
    return answer, is_correct, score, log_prob, length
