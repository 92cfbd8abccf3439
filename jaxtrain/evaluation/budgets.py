"""Every way to answer, at the same budgets of tokens: `jaxtrain.evaluate --methods --budgets`.

A budget is tokens of both networks a problem, the prompt included. Strategies over samples take as
many of one set as it pays for, searches are sized for it, and what they really spent is told. Each
method is set beside best-of-k of as many tokens as the method spent, on the same problems.
"""

import math
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import chex
import numpy as np

from jaxtrain.errors import require
from jaxtrain.evaluation.strategies import STRATEGIES, Answered, is_solved, mean_costs
from jaxtrain.evaluation.table import BUDGET_TOLERANCE, Metrics, matched_k, share_row, with_interval
from jaxtrain.intervals import mean
from jaxtrain.structs import Array, Kind, Tree

RIVAL = STRATEGIES["best_of_k"]
SPARE = 1.1  # samples are drawn for so many times the largest budget: searches may pass it
UNITS = {"": 1, "k": 1000, "m": 1_000_000}


class Lengths(NamedTuple):
    """Mean tokens of what there is."""

    prompt: float
    step: float
    trace: float

    def sampled(self, budget: float, num_networks: int = 2) -> float:
        """Return the tokens to sample that a budget leaves where so many networks read them."""
        return budget / num_networks - self.prompt

    def num_samples(self, budget: float, num_networks: int) -> int:
        """Return how many traces a budget pays for."""
        return max(1, math.ceil(self.sampled(SPARE * budget, num_networks) / self.trace))


def lengths(prompt_length: Array, tree: Tree) -> Lengths:
    """Measure prompts `[B]` and the independent traces of a tree of method `sample`."""
    is_real = np.asarray(tree.problem_id) >= 0
    is_step = (np.asarray(tree.kind) != Kind.EMPTY) & is_real[:, None]
    num_tokens, is_first = tree.length[is_step], tree.parent[is_step] < 0
    trace = num_tokens.sum() / max(is_first.sum(), 1)
    return Lengths(mean(prompt_length[is_real]), max(mean(num_tokens), 1), max(trace, 1))


def read_methods(text: str, searches: Collection[str]) -> list[str]:
    """Read `--methods`: names of strategies but search, and of searches. Raises UserError."""
    known = [name for name, strategy in STRATEGIES.items() if strategy.trees != "search"]
    known += [name for name in searches if name != "sample"]
    methods = list(dict.fromkeys(map(str.strip, text.split(","))))
    for name in methods:
        told = f"{name or 'nothing'} is none; there are {','.join(known)}"
        require(name in known, "--methods", told)
    return methods


def read_budgets(text: str, flag: str = "--budgets") -> list[int]:
    """Read the budgets of a flag, ascending. Raises UserError.

    >>> read_budgets("4k,512")
    [512, 4000]
    """
    found = [re.fullmatch(r" *(\d+(?:\.\d+)?)([km]?) *", x) for x in text.lower().split(",")]
    budgets = {round(float(at[1]) * UNITS[at[2]]) if at else 0 for at in found}
    told = "must be tokens a problem, such as 1k,4k,16k"
    require(min(budgets) >= 1, f"{flag}={text}", told)
    return sorted(budgets)


def require_one_sample(budget: int, lengths: Lengths, flag: str, how: str) -> None:
    """Refuse a budget that does not pay for one sample, as long as that. Raises UserError."""
    cost = math.ceil(2 * (lengths.prompt + lengths.trace))
    told = f"{budget:,} tokens do not pay for one sample, which costs {cost:,} of both networks"
    require(budget >= cost, flag, f"{told} {how}, prompt included; begin there")


def compare(
    method: str,
    answered: Answered,
    samples: Answered,
    budget: int | None,
    seconds: float,
    flops: float,
) -> Metrics:
    """Say what a method made of the problems at a budget, and beside best-of-k at what it spent.

    seconds: a problem, of all trees that were read; those of samples are shared by tokens. flops: a
    token in one network. Returns accuracy, low, high, outcomes, num_problems; k of samples; tokens,
    policy_tokens, prm_tokens, flops, seconds of a problem; minus_best_of_k, _low, _high, and its k,
    best_of_k. What is not known is None.
    """
    chex.assert_trees_all_equal(answered.problem_id, samples.problem_id)
    strategy = STRATEGIES.get(method, STRATEGIES["search"])
    costs, is_sampled = mean_costs(strategy, answered), strategy.trees == "samples"
    k = matched_k(costs, budget) if is_sampled and budget else 1
    # What it spent.
    policy, drawn = (mean(answered.policy_tokens[:, at]) for at in (k - 1, -1))
    prm = mean(answered.prm_tokens[:, k - 1]) if strategy.pays_prm else 0.0
    solved = is_solved(strategy, answered, k)
    row: dict[str, Any] = {"method": method, "budget": budget, "k": k if is_sampled else None}
    row |= share_row(solved, costs[k - 1]) | {"policy_tokens": policy, "prm_tokens": prm}
    row |= {"flops": flops * (policy + prm), "seconds": seconds * policy / drawn}

    # Beside best-of-k of as many tokens.
    if strategy is not RIVAL:
        rival_k = matched_k(mean_costs(RIVAL, samples), policy + prm)
        gain = solved.astype(float) - is_solved(RIVAL, samples, rival_k)
        row |= with_interval("minus_best_of_k", gain, samples.problem_id) | {"best_of_k": rival_k}
    is_number = {key: not isinstance(x, float) or math.isfinite(x) for key, x in row.items()}
    return {key: x if is_number[key] else None for key, x in row.items()}


def is_met(row: Metrics) -> bool:
    """Say whether a search spent its budget, or had nothing more to spend it on."""
    missed = row["tokens"] / row["budget"] - 1
    return abs(missed) <= BUDGET_TOLERANCE or (missed < 0 and bool(row["share_early"]))


def share_early(tree: Tree, num_tokens: int | None) -> float | None:
    """Return the share of trees that ended before their sampled tokens did; None without such."""
    if num_tokens is None:
        return None
    is_real = np.asarray(tree.problem_id) >= 0
    return mean(np.asarray(tree.length)[is_real].sum(axis=1) < num_tokens)
