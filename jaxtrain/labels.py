"""Stage 3 of 7. Tree and verdicts in, Labels out.

`judge` asks the task about every finished trace, on the host. It is the only place where the truth
enters, and it comes after the search, so a search cannot peek. `back_up` then infers from the shape
of the tree what every step was worth (ReST-MCTS*, section 3.2). It is a pure function of arrays:
because a parent's index is smaller than its children's, one reverse pass over the rows carries
anything upwards and one forward pass carries anything downwards.

The sign of Eq. 2 is a trap: its `r` is the probability that a step is *wrong*, here 1 where no
correct answer was found at or below the step and 0 elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain import trees
from jaxtrain.structs import Array, Labels, Tree, Verdict

VerifyFn = Callable[[int, np.ndarray], Verdict | bool]

_log = logging.getLogger(__name__)


def judge(tree: Tree, verify_fn: VerifyFn) -> np.ndarray:
    """Ask for a verdict on every finished trace of a batch of trees.

    `verify_fn(problem_id, tokens)` gets the response, the terminators included; it is called once
    for each different text of a problem. Where it raises, or returns neither a verdict on a
    finished trace nor a bool, that is `Verdict.ERROR`. Where all of several texts end so, the
    verifier is at fault, and the first error is raised. Returns `[B R]` int32, a `Verdict`; NONE
    for rows that are unfinished, empty or duplicates, for padding problems and for trees set aside.
    """
    tree = jax.device_get(tree)
    verdict = np.full(tree.parent.shape, Verdict.NONE, np.int32)
    problem, row = np.nonzero(trees.is_usable(tree) & tree.is_finished)
    tokens, length, _ = trees.sequences(tree, problem, trees.row_paths(tree.parent, problem, row))
    known: dict[tuple[int, bytes], Verdict] = {}
    failures: list[Exception] = []
    for k, (b, r) in enumerate(zip(problem, row, strict=True)):
        problem_id, response = int(tree.problem_id[b]), tokens[k, : length[k]]
        key = problem_id, response.tobytes()
        if key not in known:
            known[key] = _ask(verify_fn, problem_id, response, failures)
        verdict[b, r] = known[key]
    if len(failures) == len(known) > 1:
        raise failures[0]
    if failures:
        first = f"{failures[0]!r}, {failures[0].__notes__[-1]}"
        _log.warning("the verifier failed on %d answers; the first: %s", len(failures), first)
    return verdict


def back_up(tree: Tree, verdict: Array) -> Labels:
    """Infer the value of every step from the verdicts on the finished traces below it; can be
    jitted.

    verdict `[B R]` int32 from `judge`. Branches without a finished and judged trace are pruned (an
    ERROR does not count as judged), and a tree without a correct trace has no labels at all. For
    the rest, with g the gap 1 - v,

        m = fewest further steps to a correct trace; that of the parent where none is reached g =
        min(1, g_parent * (m + 2 r) / (m + 1)),   g of the prompt = 1,   r = 1 where none is
        reached, else 0

    which is Eq. 1 and 2 of the paper. Rows without a label have distance -1 and target 0.
    """
    chex.assert_equal_shape([tree.parent, tree.kind, verdict])
    usable = trees.is_usable(tree)
    verdict = jnp.where(usable, verdict, Verdict.NONE)
    is_right = verdict == Verdict.CORRECT
    is_wrong = (verdict == Verdict.WRONG) | (verdict == Verdict.UNPARSABLE)
    distance, is_correct, is_kept, target = jax.vmap(_back_up_tree)(tree.parent, is_right, is_wrong)
    is_labelled = usable & is_kept & is_right.any(axis=1, keepdims=True)
    return Labels(
        verdict=verdict,
        distance=jnp.where(is_labelled, distance, -1),
        is_correct=is_labelled & is_correct,
        target=jnp.where(is_labelled, target, 0.0),
        is_labelled=is_labelled,
    )


def counts(tree: Tree, labels: Labels) -> dict[str, int]:
    """Count what was judged, labelled, pruned and set aside; padding problems are not counted."""
    tree, labels = jax.device_get((tree, labels))
    is_problem = tree.problem_id >= 0
    is_solved = (labels.verdict == Verdict.CORRECT).any(axis=1)
    return {
        "num_trees": int(is_problem.sum()),
        "num_set_aside": int((is_problem & ~tree.is_ok).sum()),
        "num_trees_solved": int(is_solved.sum()),
        "num_trees_without_correct": int((is_problem & tree.is_ok & ~is_solved).sum()),
        "num_correct": int((labels.verdict == Verdict.CORRECT).sum()),
        "num_wrong": int((labels.verdict == Verdict.WRONG).sum()),
        "num_unparsable": int((labels.verdict == Verdict.UNPARSABLE).sum()),
        "num_errors": int((labels.verdict == Verdict.ERROR).sum()),
        "num_labelled": int(labels.is_labelled.sum()),
        "num_unlabelled": int((trees.is_usable(tree) & ~labels.is_labelled).sum()),
    }


def _back_up_tree(
    parent: jax.Array, is_right: jax.Array, is_wrong: jax.Array
) -> tuple[jax.Array, ...]:
    num_rows = parent.shape[0]
    far = num_rows + 1  # above every distance that a tree of this many rows can have
    # the prompt is one more row, behind the others
    parent = jnp.where(parent < 0, num_rows, parent)
    distance = jnp.append(jnp.where(is_right, 0, far), far)
    is_kept = jnp.append(is_right | is_wrong, False)

    def up(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        distance, is_kept = carry
        row = num_rows - 1 - i
        above = parent[row]
        return distance.at[above].min(distance[row] + 1), is_kept.at[above].max(is_kept[row])

    def down(row: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        distance, gap = carry
        above = parent[row]
        m = jnp.where(is_correct[row], distance[row], distance[above])
        factor = (m + 2 * (1 - is_correct[row])) / (m + 1)
        return distance.at[row].set(m), gap.at[row].set(jnp.minimum(1.0, gap[above] * factor))

    distance, is_kept = jax.lax.fori_loop(0, num_rows, up, (distance, is_kept))
    is_correct = distance < far
    distance, gap = jax.lax.fori_loop(
        0, num_rows, down, (distance, jnp.ones(num_rows + 1, jnp.float32))
    )
    return distance[:-1].astype(jnp.int32), is_correct[:-1], is_kept[:-1], 1 - gap[:-1]


def _ask(verify_fn: VerifyFn, problem_id: int, text: np.ndarray, failures: list) -> Verdict:
    try:
        verdict = verify_fn(problem_id, text)
        if isinstance(verdict, bool | np.bool_):
            return Verdict.CORRECT if verdict else Verdict.WRONG
        if not isinstance(verdict, Verdict) or verdict is Verdict.NONE:
            raise TypeError(f"{verdict!r} is no verdict on a finished trace")
        return verdict
    # an answer is hostile input: what it does to a verifier must not end the run
    except Exception as error:
        error.add_note(f"while judging an answer to problem {problem_id}")
        failures.append(error)
        return Verdict.ERROR
