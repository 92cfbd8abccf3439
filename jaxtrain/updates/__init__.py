"""Stage 5 of 7. Batches in, Learner out.

A *fit* is a number of updates, fixed before it begins, from a stream of batches; an *update* is one
jitted, pure step `(base, learner, batch, learning_rate) -> (learner, info)`, sharded over the mesh;
only what the learner holds is trained, over a base that stays as it is.

What is learnt is an *objective*, one line of a table for either network (`prm.OBJECTIVES`,
`policy.OBJECTIVES`): a pure function from what the network says of a batch, and the rows of the
batch, to a loss, with what it asks of head, rows and batches. Networks and data know no objective.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtrain.errors import Count, NotNegative, Section, some_of
from jaxtrain.structs import PROJECTIONS
from jaxtrain.updates import fits, policy, prm
from jaxtrain.updates.fits import FitConfig, LearnerConfig
from jaxtrain.updates.policy import PolicyConfig
from jaxtrain.updates.prm import PrmConfig

# the tables of both networks
OBJECTIVES = {"policy": policy.OBJECTIVES, "prm": prm.OBJECTIVES}


@dataclass(frozen=True)
class LoraConfig(Section, at="updates.lora"):
    """Adapters of low rank, trained over weights that stay as they are."""

    rank: Count | None = None  # of the adapters; none: all weights are trained instead
    # the matrices of a block that have an adapter: wq, wk, wv, wo, gate, up, down
    targets: Annotated[tuple[str, ...], some_of(PROJECTIONS)] = PROJECTIONS
    alpha: NotNegative = 16.0  # what adapters give is multiplied by alpha / rank
    dropout: NotNegative = 0.0  # share of their inputs that an update leaves out

    def check(self) -> None:
        self.require(self.dropout < 1, "dropout", "must be below 1")

    @property
    def scale(self) -> float:
        """What adapters give is multiplied by."""
        return self.alpha / (self.rank or 1)


@dataclass(frozen=True)
class UpdatesConfig(Section, at="updates"):
    """Fits of the two networks."""

    policy: PolicyConfig = PolicyConfig()
    prm: PrmConfig = PrmConfig()
    lora: LoraConfig = LoraConfig()
    # updates in a row that are not finite, and so are skipped, before the run stops
    max_skipped: Count = 20
