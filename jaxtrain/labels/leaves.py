"""Labels that count the answers at or below a step, as Math-Shepherd, OmegaPRM, OVM, ReST-RL do, or
mix them with what the PRM said on the way (temporal differences).

A leaf is a finished trace that was judged; one without a readable answer is wrong. What has no leaf
at or below it (unfinished, or the verifier failed) has no label. In a tree without a correct answer
every target is 0 but those of td_lambda, so unsolved trees are learnt from too.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxtrain import trees
from jaxtrain.errors import Section, Share
from jaxtrain.labels.walks import Target, above_of, fold_up, mean_up
from jaxtrain.structs import JUDGED, Tree, Verdict

if TYPE_CHECKING:
    from jaxtrain.labels.targets import LabelsConfig


@dataclass(frozen=True)
class TdLambdaConfig(Section, at="labels.td_lambda"):
    """How far the labels of the kind td_lambda look ahead."""

    # lambda: 1 hears the answers alone, 0 the PRM's scores of the next steps alone
    decay: Share = 0.9


def hard(tree: Tree, verdict: np.ndarray, config: "LabelsConfig") -> Target:
    """Give 1 where a correct leaf is at or below a step, else 0 (Math-Shepherd's hard estimate)."""
    _, num_correct, num_leaves = _count(tree, verdict)
    return Target(num_correct > 0, num_leaves > 0)


def omega(tree: Tree, verdict: np.ndarray, config: "LabelsConfig") -> Target:
    """Give 1 where a correct leaf is at or below a step, 0 to the first step of a path below which
    there is none; what stands behind that first error has no label (OmegaPRM, Luo et al. 2024).

    OmegaPRM finds the error by a binary search that draws completions as it goes. A tree holds its
    completions already, so it is looked up.
    """
    _, num_correct, num_leaves = _count(tree, verdict)
    above = np.take_along_axis(num_correct, np.maximum(tree.parent, 0), axis=1)
    is_told = (tree.parent < 0) | (above > 0)
    return Target(num_correct > 0, is_told & (num_leaves > 0))


def soft(tree: Tree, verdict: np.ndarray, config: "LabelsConfig") -> Target:
    """Give the policy's chance to end right, by the steps that were drawn (the soft estimate).

    Math-Shepherd takes the share of N continuations. Here steps are drawn without repeats, so each
    of them counts by the probability that the policy gave it, among those that were followed to an
    end.
    """
    is_leaf, _, num_leaves = _count(tree, verdict)
    own = np.where(is_leaf, verdict == Verdict.CORRECT, np.nan)
    chance = _chance(tree, num_leaves > 0)
    value = mean_up(tree.parent, own, chance, lambda value, _: value)
    return Target(value, np.isfinite(value))


def mc_return(tree: Tree, verdict: np.ndarray, config: "LabelsConfig") -> Target:
    """Give the share of correct leaves; each counts once, however often search visited it."""
    _, num_correct, num_leaves = _count(tree, verdict)
    return Target(num_correct / np.maximum(num_leaves, 1), num_leaves > 0)


def outcome(tree: Tree, verdict: np.ndarray, config: "LabelsConfig") -> Target:
    """Give every step of a trace the verdict on its end, as OVM does.

    What traces share is told all their verdicts: their mean, which counts as often as there are
    traces. So early steps weigh more than with `mc_return`, and values are the same.
    """
    _, _, num_leaves = _count(tree, verdict)
    return mc_return(tree, verdict, config)._replace(weight=num_leaves)


def td_lambda(tree: Tree, verdict: np.ndarray, config: "LabelsConfig") -> Target:
    """Give the lambda-return of a step (Sutton, 1988), a mean over the steps drawn behind it.

    With V the PRM's score of a step when the tree was grown, in [0, 1], and G of a judged leaf its
    verdict,

        G(s) = mean over children c of  (1 - lambda) V(c) + lambda G(c);   V alone where c has no G

    A leaf that was judged is heard alone, and a child counts by the probability that the policy
    gave it. What has no judged leaf at or below it has no label.
    """
    (is_leaf, _, num_leaves), decay = _count(tree, verdict), config.td_lambda.decay
    own = np.where(is_leaf, verdict == Verdict.CORRECT, np.nan)
    score = np.clip(tree.score, 0, 1, dtype=float)
    chance = _chance(tree, trees.is_usable(tree))

    def see(value: np.ndarray, row: int) -> np.ndarray:
        mixed = (1 - decay) * score[:, row] + decay * value
        unknown = np.where(np.isnan(value), score[:, row], mixed)
        return np.where(is_leaf[:, row], value, unknown)

    return Target(mean_up(tree.parent, own, chance, see), num_leaves > 0)


def _count(tree: Tree, verdict: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows are leaves, and how many correct leaves and leaves are at or below: all [B R]."""
    is_leaf = np.isin(verdict, JUDGED)
    num_correct, num_leaves = (
        fold_up(tree.parent, is_own.astype(np.int32), 0, np.add)[:, :-1]
        for is_own in (verdict == Verdict.CORRECT, is_leaf)
    )
    return is_leaf, num_correct, num_leaves


def _chance(tree: Tree, is_heard: np.ndarray) -> np.ndarray:
    """The policy's probability of every row that is heard, beside that of the likeliest one behind
    the same prefix: [B R], 0 of all others. The bare one of a long step would be 0 as well.
    """
    problem, above = above_of(tree.parent)
    log_prob = np.where(is_heard, tree.log_prob, -np.inf).astype(float)
    most = np.full((len(problem), above.shape[1] + 1), np.finfo(float).min)
    np.maximum.at(most, (problem[:, None], above), log_prob)
    return np.exp(log_prob - most[problem[:, None], above])
