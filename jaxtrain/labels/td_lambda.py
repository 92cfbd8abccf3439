"""Labels by temporal differences: answers below a step, mixed with what the PRM said on the way."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxtrain import trees
from jaxtrain.labels.walks import Target, fold_up, mean_up
from jaxtrain.structs import JUDGED, Tree, Verdict

if TYPE_CHECKING:
    from jaxtrain.labels.targets import LabelsConfig


@dataclass(frozen=True)
class TdLambdaConfig:
    """How far the labels of the kind td_lambda look ahead."""

    # lambda: 1 hears the answers alone, 0 the PRM's scores of the next steps alone
    decay: float = 0.9


def td_lambda(tree: Tree, verdict: np.ndarray, config: "LabelsConfig") -> Target:
    """Give the lambda-return of a step (Sutton, 1988), a mean over the steps drawn behind it.

    With V the PRM's score of a step when the tree was grown, in [0, 1], and G of a judged leaf its
    verdict,

        G(s) = mean over children c of  (1 - lambda) V(c) + lambda G(c);   V alone where c has no G

    A leaf that was judged is heard alone, and a child counts by the probability that the policy
    gave it. What has no judged leaf at or below it has no label.
    """
    is_leaf, decay = np.isin(verdict, JUDGED), config.td_lambda.decay
    own = np.where(is_leaf, verdict == Verdict.CORRECT, np.nan)
    score = np.clip(tree.score, 0, 1, dtype=float)
    weight = np.where(trees.is_usable(tree), np.exp(tree.log_prob, dtype=float), 0)

    def see(value: np.ndarray, row: int) -> np.ndarray:
        mixed = (1 - decay) * score[:, row] + decay * value
        unknown = np.where(np.isnan(value), score[:, row], mixed)
        return np.where(is_leaf[:, row], value, unknown)

    is_followed = fold_up(tree.parent, is_leaf, False, np.logical_or)[:, :-1]
    return Target(mean_up(tree.parent, own, weight, see), is_followed)
