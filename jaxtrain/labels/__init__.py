"""Stage 3 of 7. Tree and verdicts in, Labels out.

`judge` asks the task about every finished trace, on the host. It is the only place where the truth
enters, and it comes after the search, so a search cannot peek. `label` then infers from the shape
of the tree what every step was worth, by one of `TARGETS`. All of this is host numpy: the arrays
are small integers.
"""

from jaxtrain.labels.targets import TARGETS, LabelsConfig, counts, label, of_reference
from jaxtrain.labels.verdicts import VerifyFn, ask, judge
