"""Stage 4 of 7. Stored trees and their labels in, training rows out, and batches of few shapes.

Two datasets come of the same trees. *Traces* teach the policy: distinct, verified correct, capped
per problem, because without a cap the easy problems would dominate. (What else it may learn from,
`ROWS` lists.) *Paths* teach the PRM: one causal pass over a path scores all its prefixes, so labels
are packed by path, and a step that paths share carries its weight on the first of them, or on each.
Both have one form, `structs.TokenRows`; `pack` lays the texts of a problem into one row.

Nothing is kept between iterations: `collect` makes the rows anew from the trees of the rounds in
use, so another kind of label or another cap is another view of the same files. What is
dropped of them is counted. It is all host numpy: texts are compared, and the results are small.
"""

from jaxtrain.datasets.batches import POOL, batches
from jaxtrain.datasets.collect import (
    DatasetsConfig,
    Rounds,
    Text,
    collect,
    demonstrations,
    newest,
    num_rounds,
    num_rows,
    reference,
)
from jaxtrain.datasets.packing import pack
from jaxtrain.datasets.policy_rows import ROWS, without_false_steps
