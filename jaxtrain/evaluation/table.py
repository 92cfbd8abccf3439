"""Does search pay? Every strategy on the same problems, at the tokens that search took."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtrain.evaluation.strategies import (
    BUDGET,
    STRATEGIES,
    Answered,
    Strategy,
    is_solved,
    mean_costs,
)
from jaxtrain.intervals import mean, mean_interval, wilson

Metrics = dict[str, Any]  # a plain number, or a list of rows of them

# strategies whose mean costs differ by no more than this share count as equally dear
BUDGET_TOLERANCE = 0.05


def accuracy_table(answered: Mapping[str, Answered], strategies: Sequence[str]) -> Metrics:
    """Compare strategies at the mean cost that search had, and each with itself along k.

    `answered` is what came of each kind of trees. For each strategy `evaluation/<strategy>/`
    accuracy, low, high (Wilson), num_problems, tokens (mean per problem) and outcomes (1 where
    right, 0 where not, in the order of the problems: runs can be compared in pairs); for those that
    read samples also k and curve, a list of [tokens, accuracy, low, high, k]. The k of a strategy
    is the one whose mean cost is nearest to search's without passing it by more than 5 %;
    is_budget_short is 1 where even all samples cost over 5 % less. Without search, and for an
    oracle always, k is K. `evaluation/search_minus_<strategy>`, _low and _high: difference of
    accuracy, bootstrapped over problems. Raises ValueError where the trees are not of the same
    problems in the same order.
    """
    # All strategies answer the same problems.
    problems = [group.problem_id for group in answered.values()]
    if not all(np.array_equal(problems[0], others) for others in problems):
        raise ValueError(f"{' and '.join(answered)} answer different problems")
    # What each costs, and who is compared with search.
    asked = {name: STRATEGIES[name] for name in strategies}
    costs = {name: mean_costs(s, answered[s.trees]) for name, s in asked.items()}
    rivals = [name for name, s in asked.items() if s.trees == "samples" and not s.is_oracle]
    metrics: Metrics = {}
    solved = {}
    # Each strategy, with the k that search's tokens pay for.
    for name, strategy in asked.items():
        key, group, k = f"evaluation/{name}", answered[strategy.trees], len(costs[name])
        if name in rivals and BUDGET in asked:
            budget = costs[BUDGET][0]
            k = matched_k(costs[name], budget)
            is_short = costs[name][-1] < budget * (1 - BUDGET_TOLERANCE)
            metrics |= named(key, {"is_budget_short": int(is_short)})
        solved[name] = is_solved(strategy, group, k)
        metrics |= named(key, share_row(solved[name], costs[name][k - 1]))
        if strategy.trees == "samples":
            metrics |= named(key, {"k": k, "curve": curve(strategy, group, costs[name])})
    # Search against each of them, problem by problem.
    for rival in rivals if BUDGET in asked else ():
        gain = solved[BUDGET].astype(float) - solved[rival]
        metrics |= with_interval(f"evaluation/{BUDGET}_minus_{rival}", gain, problems[0])
    return metrics


def curve(strategy: Strategy, answered: Answered, costs: np.ndarray) -> list[list[float]]:
    """Return [tokens, accuracy, low, high, k] at k = 1, 2, 4, ... and K."""
    points = []
    for k in sorted({2**i for i in range(len(costs).bit_length())} | {len(costs)}):
        row = share_row(is_solved(strategy, answered, k), costs[k - 1])
        points.append([row["tokens"], row["accuracy"], row["low"], row["high"], k])
    return points


def with_interval(name: str, values: np.ndarray, group: np.ndarray) -> Metrics:
    """Name the mean of values, and its interval, bootstrapped over groups."""
    low, high = mean_interval(values, group)
    return {name: mean(values), f"{name}_low": low, f"{name}_high": high}


def named(name: str, metrics: Metrics) -> Metrics:
    """Put a name in front of every key."""
    return {f"{name}/{key}": value for key, value in metrics.items()}


def matched_k(costs: np.ndarray, budget: float) -> int:
    """Return the k whose cost is nearest to `budget` and within its tolerance, or else 1."""
    distance = np.where(costs <= budget * (1 + BUDGET_TOLERANCE), np.abs(costs - budget), np.inf)
    return int(np.argmin(distance)) + 1


def share_row(solved: np.ndarray, tokens: float) -> Metrics:
    """Return accuracy, its interval, outcomes and cost of what was solved `[B]` bool."""
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
