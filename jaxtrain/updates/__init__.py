"""Stage 5 of 7. Batches in, Learner out.

A *fit* is a number of updates, fixed before it begins, from a stream of batches; an *update* is one
jitted, pure step `(base, learner, batch, learning_rate) -> (learner, info)`, sharded over the mesh;
only what the learner holds is trained, over a base that stays as it is.

What is learnt is an *objective*, one line of a table for either network (`prm.OBJECTIVES`,
`policy.OBJECTIVES`): a pure function from what the network says of a batch, and the rows of the
batch, to a loss, with what it asks of head, rows and batches. Networks and data know no objective.
"""

from jaxtrain.updates import fits, policy, prm
from jaxtrain.updates.config import LoraConfig, UpdatesConfig
from jaxtrain.updates.fits import FitConfig, LearnerConfig
from jaxtrain.updates.policy import PolicyConfig
from jaxtrain.updates.prm import PrmConfig

# the tables of both networks
OBJECTIVES = {"policy": policy.OBJECTIVES, "prm": prm.OBJECTIVES}
