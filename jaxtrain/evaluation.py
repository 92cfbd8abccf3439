"""Stage 7 of 7. State in, accuracy against compute out.

Two questions, answered on problems that nobody trained on. *Does search pay?* `accuracy_table` sets
search beside what the same tokens buy otherwise: vote, best-of-k and weighted vote get as many
samples as cost what search was measured to cost, on the same problems, with an interval on every
share and on the paired differences. *Does the PRM know anything?* `prm_report` sets it beside
predictors that have read no text, `samples_report` says how it ranks what best-of-k chooses from.

The models stay outside. Trees come in, with the verdicts on them and a function that reads answers;
metrics go out, as plain floats and lists. Host numpy throughout: the arrays are small and the votes
are over strings.

A token counts once for each network that computed it, the prompt included. A problem set aside
(`is_ok` False) or left without an answer counts as wrong: it stays in the denominator, so all
methods are judged on the same problems.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import chex
import jax
import numpy as np

from jaxtrain import trees
from jaxtrain.errors import UserError, require_at_least, require_one_of
from jaxtrain.intervals import auroc, auroc_interval, mean, mean_interval, wilson
from jaxtrain.structs import Array, Kind, Labels, Tree, Verdict

# problem id, tokens of a finished trace -> what it answers
AnswerFn = Callable[[int, np.ndarray], str | None]
Metrics = dict[str, Any]  # a plain number, or a list of rows of them

# methods whose mean costs differ by no more than this share count as equally dear
BUDGET_TOLERANCE = 0.05
CLOSE = 0.1  # a value this near to its target is right (Eq. 38 of the paper)


@dataclass(frozen=True)
class EvaluationConfig:
    """What every iteration is scored on."""

    split: str = "test"  # test: to report; dev: to tune
    # all; greedy: that alone, at a small part of the cost, and nothing about the PRM
    methods: str = "all"
    num_problems: int = 512  # the first ones of the split: the same for every iteration and method
    # traces per problem, the largest k of vote, best-of-k, weighted vote and pass@k
    num_samples: int = 16
    temperature: float = 0.7  # of these traces; greedy means 0
    num_simulations: int = 16  # of the search that answers
    num_candidates: int = 4  # of the search that answers

    def __post_init__(self):
        require_one_of("evaluation", self, split=("test", "dev"), methods=("all", "greedy"))
        require_at_least(
            1,
            "evaluation",
            self,
            "num_problems",
            "num_samples",
            "num_simulations",
            "num_candidates",
        )
        if self.temperature <= 0:
            raise UserError(
                f"--config.evaluation.temperature={self.temperature}: must be above 0, or all traces agree"
            )


@dataclass(frozen=True)
class Answered:
    """What a method made of B problems: K traces each, in the order sampled.

    Greedy and search have K = 1.
    """

    problem_id: np.ndarray  # [B] int
    answer: list[list[str | None]]  # [B][K], None: unfinished or unparsable
    is_correct: np.ndarray  # [B K] bool
    score: np.ndarray  # [B K] float, the PRM's value at the last step
    policy_tokens: np.ndarray  # [B K] int, tokens the policy computed for the first k + 1 traces
    prm_tokens: np.ndarray  # [B K] int, tokens the PRM computes to score them


def read_samples(tree: Tree, verdict: Array, prompt_length: Array, answer_fn: AnswerFn) -> Answered:
    """Take the independent traces out of a tree of method `sample`.

    `verdict [B R]` int, a Verdict for every row; `prompt_length [B]` int. A trace is a chain of
    rows, and traces are ordered by their first rows. Both networks read the prompt once and every
    trace. Padding problems (id -1) are dropped; a problem with fewer than K traces is filled up
    with unanswered ones that cost nothing.
    """
    chex.assert_equal_shape([tree.kind, verdict])
    chex.assert_equal_shape([tree.problem_id, prompt_length])
    tree, verdict, prompt_length = _keep(
        np.asarray(tree.problem_id) >= 0, (tree, verdict, prompt_length)
    )
    rows = [_last_rows(parent, kind) for parent, kind in zip(tree.parent, tree.kind, strict=True)]
    last = np.full((len(rows), max([1, *map(len, rows)])), -1)
    for lanes, lane_rows in zip(last, rows, strict=True):
        lanes[: len(lane_rows)] = lane_rows
    answer, is_correct, score, length = _read(tree, verdict, last, answer_fn)
    num_tokens = np.asarray(prompt_length)[:, None] + np.cumsum(length, axis=1)
    return Answered(np.asarray(tree.problem_id), answer, is_correct, score, num_tokens, num_tokens)


def read_choice(tree: Tree, verdict: Array, answer_fn: AnswerFn) -> Answered:
    """Take the answer of a search, its `chosen` row, and the tokens the search was measured to
    cost.

    `verdict [B R]` int, a Verdict for every row. Padding problems (id -1) are dropped.
    """
    chex.assert_equal_shape([tree.kind, verdict])
    tree, verdict = _keep(np.asarray(tree.problem_id) >= 0, (tree, verdict))
    answer, is_correct, score, _ = _read(tree, verdict, np.asarray(tree.chosen)[:, None], answer_fn)
    policy_tokens, prm_tokens = (
        np.reshape(x, (-1, 1)) for x in (tree.policy_tokens, tree.prm_tokens)
    )
    return Answered(
        np.asarray(tree.problem_id), answer, is_correct, score, policy_tokens, prm_tokens
    )


def share_in_tree(tree: Tree, verdict: Array) -> float:
    """Return the share of problems whose tree holds a correct answer anywhere, NaN where there is
    no problem.

    What search misses here, no better PRM would find. `verdict [B R]` int; padding problems (id -1)
    are dropped.
    """
    verdict = _keep(np.asarray(tree.problem_id) >= 0, verdict)
    return float((verdict == Verdict.CORRECT).any(axis=1).mean()) if len(verdict) else math.nan


def vote(answered: Answered, k: int) -> np.ndarray:
    """Return the trace `[B]` int with the commonest answer among the first k (self-consistency), -1
    without any.

    Of the traces that give the winning answer it is the first; a tie goes to the answer seen first.
    """
    return np.array([_plurality(answer[:k], np.ones(k)) for answer in answered.answer], int)


def weighted_vote(answered: Answered, k: int) -> np.ndarray:
    """Vote as `vote` does, each trace with the weight of its last-step value, clipped to [0, 1]."""
    weight = np.clip(answered.score[:, :k], 0, 1)
    return np.array(
        [_plurality(answer[:k], w) for answer, w in zip(answered.answer, weight, strict=True)], int
    )


def best_of_k(answered: Answered, k: int) -> np.ndarray:
    """Return the trace `[B]` int that answers with the highest last-step value among the first k,
    -1 without any.

    A tie goes to the earlier trace. The value is not clipped here: it only ranks, and clipping
    would tie the best.
    """
    has_answer = np.array(
        [[a is not None for a in answer[:k]] for answer in answered.answer]
    ).reshape(-1, k)
    best = np.argmax(np.where(has_answer, answered.score[:, :k], -np.inf), axis=1)
    return np.where(has_answer.any(axis=1), best, -1)


SELECT_FNS = {"self_consistency": vote, "best_of_k": best_of_k, "weighted_vote": weighted_vote}
# the others never call the PRM and do not pay for it
PRM_METHODS = ("best_of_k", "weighted_vote", "mcts")


def accuracy_table(
    greedy: Answered, sampled: Answered | None = None, searched: Answered | None = None
) -> Metrics:
    """Compare the methods at the mean cost that search had, and each with itself along k.

    For each method `evaluation/<method>/` accuracy, low, high (Wilson), num_problems, tokens (mean
    per problem) and outcomes (1 where right, 0 where not, in the order of the problems: runs can be
    compared in pairs); for those that draw samples also k and curve, a list of [tokens, accuracy,
    low, high, k]. The k of a selecting method is the one whose mean cost is nearest to search's
    without passing it by more than 5 %; is_budget_short is 1 where even all samples cost over 5 %
    less. Without `searched`, and for the oracle pass_at_k always, k is K. Without `sampled` the
    table is greedy's, and search's where it is given. `evaluation/mcts_minus_<method>`, _low and
    _high: difference of accuracy, bootstrapped over problems. Raises ValueError where the methods
    did not see the same problems in the same order.
    """
    methods = {"greedy": greedy} if searched is None else {"greedy": greedy, "mcts": searched}
    for name, answered in (("samples", sampled), ("search", searched)):
        if answered is not None and not np.array_equal(answered.problem_id, greedy.problem_id):
            raise ValueError(f"greedy and the {name} answer different problems")
    metrics: Metrics = {}
    solved = {}
    for name, answered in methods.items():
        solved[name] = answered.is_correct[:, 0]
        metrics |= _named(name, _row(solved[name], _mean_costs(name, answered)[0]))
    if sampled is None:
        return metrics
    budget = None if searched is None else _mean_costs("mcts", searched)[0]
    for name in (*SELECT_FNS, "pass_at_k"):
        costs = _mean_costs(name, sampled)
        k = len(costs)
        if name in SELECT_FNS and budget is not None:
            k = _matched_k(costs, budget)
            metrics |= _named(
                name, {"is_budget_short": int(costs[-1] < budget * (1 - BUDGET_TOLERANCE))}
            )
        solved[name] = is_solved(name, sampled, k)
        metrics |= _named(
            name, {**_row(solved[name], costs[k - 1]), "k": k, "curve": curve(name, sampled, costs)}
        )
    if searched is not None:
        for rival in ("self_consistency", "best_of_k"):
            gain = solved["mcts"].astype(float) - solved[rival]
            metrics |= _with_interval(f"evaluation/mcts_minus_{rival}", gain, sampled.problem_id)
    return metrics


@dataclass(frozen=True)
class Baseline:
    """Two predictors of a step's value that read no text; what a PRM must beat to have learnt
    anything.
    """

    constant: float  # the mean target, NaN if there was none
    # [D] float, the mean target of the steps at a depth; the constant where there was none
    by_depth: np.ndarray

    def predict(self, depth: np.ndarray) -> np.ndarray:
        """Return the mean target `[n]` at each `depth [n]`; the constant below the deepest one
        fitted.
        """
        return np.append(self.by_depth, self.constant)[np.minimum(depth, len(self.by_depth))]


def fit_baseline(target: np.ndarray, depth: np.ndarray) -> Baseline:
    """Fit the baseline to training steps: `target [n]` float, `depth [n]` int, 0 for the first step
    of a trace.
    """
    target, depth = np.asarray(target, float), np.asarray(depth, int)
    constant, size = mean(target), np.bincount(depth)
    return Baseline(
        constant, np.where(size > 0, np.bincount(depth, target) / np.maximum(size, 1), constant)
    )


def row_depth(parent: Array) -> np.ndarray:
    """Return the number of steps before each row `[B R]` int, 0 for a first step; `parent [B R]` as
    in Tree.
    """
    parent = np.asarray(parent)
    depth = np.zeros(parent.shape, int)
    problem = np.arange(len(parent))
    for row in range(parent.shape[1]):  # a parent precedes its children, so its own depth is known
        depth[:, row] = np.where(parent[:, row] >= 0, depth[problem, parent[:, row]] + 1, 0)
    return depth


def prm_report(tree: Tree, labels: Labels, baseline: Baseline) -> Metrics:
    """Measure the PRM's scores on held-out trees: as a ranking of finished leaves and as values of
    labelled steps.

    Keys `evaluation/prm/<name>`; x stands for a quantity with its _low and _high, bootstrapped over
    problems: auroc (x) of correct against wrong leaves; auroc_within (x), the mean AUROC of the
    num_mixed problems that have both, which easy and hard problems cannot lift; squared_error (x)
    of the clipped score, squared_error_constant and _depth of the baseline; skill_constant and
    skill_depth (x), baseline's squared error less the PRM's; within, within_constant and
    within_depth, the share within 0.1 of the target (Eq. 38); calibration, a list of [mean
    prediction, mean target, count] for the tenths of [0, 1] that occur; auroc_by_depth, a list of
    [depth, AUROC, count] of labelled steps that reach a correct answer against those that do not,
    at depths that have both; num_leaves, num_steps, num_trees. Unparsable leaves are wrong ones;
    duplicates, verifier errors, padding and problems set aside are left out.
    """
    chex.assert_equal_shape([tree.kind, labels.target])
    tree, labels = _keep(
        (np.asarray(tree.problem_id) >= 0) & np.asarray(tree.is_ok), (tree, labels)
    )
    problem = np.broadcast_to(tree.problem_id[:, None], tree.kind.shape)
    is_usable = trees.is_usable(tree)
    leaf = (
        is_usable
        & tree.is_finished
        & np.isin(labels.verdict, (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE))
    )
    step = is_usable & labels.is_labelled
    score, target = np.asarray(tree.score, float), np.asarray(labels.target, float)
    is_correct = np.asarray(labels.verdict) == Verdict.CORRECT
    leaf_metrics = _leaf_metrics(score[leaf], is_correct[leaf], problem[leaf])
    value, depth = np.clip(score, 0, 1), row_depth(tree.parent)
    step_metrics = _step_metrics(value[step], target[step], depth[step], problem[step], baseline)
    by_depth = [(d, step & (depth == d)) for d in np.unique(depth[step])]
    rows = [
        [int(d), auroc(score[at], np.asarray(labels.is_correct)[at]), int(at.sum())]
        for d, at in by_depth
    ]
    step_metrics["auroc_by_depth"] = [row for row in rows if np.isfinite(row[1])]
    return _named("prm", {**leaf_metrics, **step_metrics, "num_trees": len(tree.problem_id)})


def samples_report(sampled: Answered) -> Metrics:
    """Measure the PRM's scores of independent traces that give an answer, as a ranking: what
    best-of-k goes by.

    Keys `evaluation/prm/samples/<name>` with auroc (x), auroc_within (x), num_mixed and num_leaves
    of `prm_report`.
    """
    has_answer = np.array([[text is not None for text in texts] for texts in sampled.answer], bool)
    at = np.nonzero(has_answer.reshape(sampled.score.shape))
    return _named(
        "prm/samples",
        _leaf_metrics(sampled.score[at], sampled.is_correct[at], sampled.problem_id[at[0]]),
    )


def _leaf_metrics(score: np.ndarray, is_correct: np.ndarray, problem: np.ndarray) -> Metrics:
    low, high = auroc_interval(score, is_correct, problem)
    within = {p: auroc(score[problem == p], is_correct[problem == p]) for p in np.unique(problem)}
    mixed = {p: value for p, value in within.items() if np.isfinite(value)}
    return {
        "auroc": auroc(score, is_correct),
        "auroc_low": low,
        "auroc_high": high,
        **_with_interval("auroc_within", np.array(list(mixed.values())), np.array(list(mixed))),
        "num_mixed": len(mixed),
        "num_leaves": len(score),
    }


def _step_metrics(
    value: np.ndarray,
    target: np.ndarray,
    depth: np.ndarray,
    problem: np.ndarray,
    baseline: Baseline,
) -> Metrics:
    error = (value - target) ** 2
    metrics: Metrics = _with_interval("squared_error", error, problem)
    metrics["within"] = _share_close(value, target)
    for name, guess in (
        ("constant", np.full(target.shape, baseline.constant)),
        ("depth", baseline.predict(depth)),
    ):
        guess_error = (guess - target) ** 2
        metrics[f"squared_error_{name}"] = mean(guess_error)
        metrics |= _with_interval(f"skill_{name}", guess_error - error, problem)
        metrics[f"within_{name}"] = _share_close(guess, target)
    tenth = np.minimum((value * 10).astype(int), 9)
    rows = [(value[tenth == i], target[tenth == i]) for i in np.unique(tenth)]
    metrics["calibration"] = [[mean(v), mean(t), len(v)] for v, t in rows]
    metrics["num_steps"] = len(target)
    return metrics


def _share_close(value: np.ndarray, target: np.ndarray) -> float:
    # Scores and targets are float32: 0.9 against 0.8 must be within 0.1.
    return mean(np.abs(value - target) <= CLOSE + 1e-6) if np.isfinite(value).all() else math.nan


def _with_interval(name: str, values: np.ndarray, group: np.ndarray) -> Metrics:
    low, high = mean_interval(values, group)
    return {name: mean(values), f"{name}_low": low, f"{name}_high": high}


def _named(name: str, metrics: Metrics) -> Metrics:
    return {f"evaluation/{name}/{key}": value for key, value in metrics.items()}


def _keep(is_kept: np.ndarray, arrays):
    """Bring a pytree with leading axis B to the host and keep the problems of `is_kept [B]`."""
    return jax.tree.map(lambda x: np.asarray(x)[is_kept], arrays)


def _last_rows(parent: np.ndarray, kind: np.ndarray) -> list[int]:
    """The last row of every trace of one problem, traces ordered by their first rows."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for row in np.flatnonzero(kind != Kind.EMPTY).tolist():
        above = int(parent[row])
        first[row] = row if above < 0 else first[above]
        # a parent precedes its child, so the last one written is the deepest
        last[first[row]] = row
    return list(last.values())


def _read(
    tree: Tree, verdict: Array, last: np.ndarray, answer_fn: AnswerFn
) -> tuple[list[list[str | None]], np.ndarray, np.ndarray, np.ndarray]:
    """Answer, correctness, score and length in tokens of the traces that end in the rows `last [B
    K]`, -1 for none.
    """
    problem, lane = np.nonzero(last >= 0)
    row = last[problem, lane]
    tokens, num_tokens, _ = trees.sequences(
        tree, problem, trees.row_paths(tree.parent, problem, row)
    )
    is_ok = np.asarray(tree.is_ok)[problem]
    is_correct, score, length = (np.zeros(last.shape, dtype) for dtype in (bool, float, int))
    is_correct[problem, lane] = is_ok & (np.asarray(verdict)[problem, row] == Verdict.CORRECT)
    score[problem, lane] = tree.score[problem, row]
    length[problem, lane] = num_tokens
    answer: list[list[str | None]] = [[None] * last.shape[1] for _ in last]
    for i in np.flatnonzero(is_ok & tree.is_finished[problem, row]):
        answer[problem[i]][lane[i]] = answer_fn(
            int(tree.problem_id[problem[i]]), tokens[i, : num_tokens[i]]
        )
    return answer, is_correct, score, length


def _plurality(answers: Sequence[str | None], weight: np.ndarray) -> int:
    """The index of the first trace whose answer has most weight, -1 if none has an answer."""
    total: defaultdict[str, float] = defaultdict(float)
    for answer, w in zip(answers, weight, strict=True):
        if answer is not None:
            total[answer] += float(w)
    # A dict keeps the order of insertion and `max` the first of equals: ties go to the answer seen
    # first.
    return answers.index(max(total, key=total.__getitem__)) if total else -1


def is_solved(method: str, answered: Answered, k: int) -> np.ndarray:
    """Whether `method` is right on each problem `[B]` with the first k traces."""
    if method == "pass_at_k":
        return np.any(answered.is_correct[:, :k], axis=1)
    selected = SELECT_FNS[method](answered, k)
    return np.where(selected >= 0, answered.is_correct[np.arange(len(selected)), selected], False)


def _mean_costs(method: str, answered: Answered) -> np.ndarray:
    """Mean tokens per problem `[K]` float that `method` spends with k = 1..K."""
    tokens = answered.policy_tokens + (answered.prm_tokens if method in PRM_METHODS else 0)
    return np.array([mean(column) for column in tokens.T])


def _matched_k(costs: np.ndarray, budget: float) -> int:
    """The k whose cost is nearest to `budget` and not above its tolerance; 1 if even one sample
    costs more.
    """
    distance = np.where(costs <= budget * (1 + BUDGET_TOLERANCE), np.abs(costs - budget), np.inf)
    return int(np.argmin(distance)) + 1


def _row(solved: np.ndarray, tokens: float) -> Metrics:
    low, high = wilson(int(solved.sum()), len(solved))
    accuracy = mean(solved)
    row = {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "num_problems": len(solved),
        "tokens": float(tokens),
    }
    return row | {"outcomes": solved.astype(int).tolist()}


def curve(method: str, answered: Answered, costs: np.ndarray) -> list[list[float]]:
    """[tokens, accuracy, low, high, k] at k = 1, 2, 4, ... and K."""
    points = []
    for k in sorted({2**i for i in range(len(costs).bit_length())} | {len(costs)}):
        row = _row(is_solved(method, answered, k), costs[k - 1])
        points.append([row["tokens"], row["accuracy"], row["low"], row["high"], k])
    return points
