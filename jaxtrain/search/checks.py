"""Steps that a rule of the task calls false, told while a search goes on.

The rule reads text, so it is asked on the host: once a turn, about the steps that are new. What it
says hangs on a step and those before it alone, so a tree is the same whatever its neighbours.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxtrain.search.rows import Job, Rows
from jaxtrain.structs import Array, Kind
from jaxtrain.trees import count_false


def apply_checks(job: Job, problem: Array, before: Rows, rows: Rows, text: Array) -> Rows:
    """Take from the scores of rows that were empty before [B R] what false steps on their paths
    cost, or filter such rows out.

    problem [B]: which of the M problems; text [B R S]: the tokens of all rows.
    """
    if job.check is None:
        return rows
    at = jnp.minimum(problem, len(job.keys) - 1)
    is_new = (before.kind == Kind.EMPTY) & (rows.kind != Kind.EMPTY)
    shape = jax.ShapeDtypeStruct(is_new.shape, jnp.int32)
    ask = partial(jax.pure_callback, partial(count_false, job.check), shape)
    asked = job.prompts.problem_id[at], rows.parent, text, rows.length, is_new
    # The host is called in turns only that bring something new.
    none = jnp.zeros(is_new.shape, jnp.int32)
    num_false = jax.lax.cond(jnp.any(is_new), ask, lambda *_: none, *asked)
    if job.check_weight is not None:
        return rows._replace(score=rows.score - job.check_weight * num_false)
    is_false = num_false > 0
    return rows._replace(
        kind=jnp.where(is_false, int(Kind.FALSE), rows.kind),
        score=jnp.where(is_false, 0.0, rows.score),
        is_finished=rows.is_finished & ~is_false,
        is_ended=rows.is_ended | is_false,
    )
