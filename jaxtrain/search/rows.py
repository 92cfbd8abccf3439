"""What every search does alike: draw steps into rows, extend paths, hand the rows on as a Tree.

A row is a step that was drawn, and its number the address of everything about it: a search keeps
what it needs to choose, the reader keeps the text.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxtrain.structs import Array, Cost, Kind, Memory, Params, Path, Prompts, Reader, Steps, Tree


class Job(NamedTuple):
    """What a search is given, whatever its method."""

    prompts: Prompts
    keys: Array  # [B 2] uint32, one a problem
    params: tuple[Params, Params]  # policy, PRM
    temperature: Array  # []
    reader: Reader
    max_steps: int  # D


class Rows(NamedTuple):
    """What a search knows of its rows; all fields have one shape."""

    parent: Array  # int32, the row before, -1: the prompt, or no row
    kind: Array  # int32, a Kind
    length: Array  # int32, tokens
    score: Array  # float32, raw
    is_finished: Array  # bool
    is_ended: Array  # bool


def empty_rows(*shape: int) -> Rows:
    """Make rows in which no step lies."""
    ints, no = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    return Rows(ints - 1, ints, ints, jnp.zeros(shape), no, no)


class Drawn(NamedTuple):
    """Steps behind W prefixes, A lanes each, K steps a lane."""

    rows: Rows  # [B W A K]
    is_ok: Array  # [B] bool
    cost: Cost
    memory: Memory  # with the steps in it


def draw(
    job: Job,
    memory: Memory,
    path: Path,
    keys: Array,
    is_live: Array,
    row: Array,
    is_distinct: bool = False,
) -> Drawn:
    """Draw steps behind paths [B W] into rows `row` [B W A K]: as many as those are.

    keys [B W 2]; nothing is drawn where a prefix is not live [B W]. With is_distinct, a lane that
    repeats an earlier one behind the same prefix is a duplicate.
    """
    # Ask the reader.
    ask, (lanes, steps) = job.reader.propose, row.shape[2:]
    proposal = ask(job.params, memory, path, keys, is_live, job.temperature, lanes, steps)
    length, score = proposal.steps.length, proposal.score
    chex.assert_equal_shape([row, length, score, proposal.is_ended, proposal.steps.is_finished])
    # What each row is.
    is_step = length > 0
    kind = jnp.where(is_step, int(Kind.CANDIDATE), int(Kind.EMPTY))
    if is_distinct:
        kind = jnp.where(is_step & is_repeated(path, proposal.steps), int(Kind.DUPLICATE), kind)

    # A lane's first step stands behind the prefix, each other one behind the step before.
    first = jnp.max(path[..., -1:], axis=-1, initial=-1)[..., None, None]
    first = jnp.broadcast_to(first, (*row.shape[:3], 1))
    parent = jnp.where(is_step, jnp.concatenate([first, row[..., :-1]], axis=-1), -1)
    score = jnp.where(is_step, score, 0.0)
    rows = Rows(parent, kind, length, score, proposal.steps.is_finished, proposal.is_ended)
    # The reader keeps the text under the same numbers.
    memory = job.reader.keep(memory, proposal, row)
    return Drawn(rows, proposal.is_ok, proposal.cost, memory)


def is_repeated(path: Path, steps: Steps) -> Array:
    """Mark the lanes [B W A 1] that say what an earlier lane behind an equal prefix says."""
    num_problems, width, num_lanes = steps.length.shape[:3]
    # A lane says its prefix, its length and its tokens.
    text = jnp.concatenate([steps.length[..., None], steps.tokens], axis=-1)
    text = text.reshape(num_problems, width * num_lanes, -1)
    text = jnp.concatenate([jnp.repeat(path, num_lanes, axis=1), text], axis=-1)
    # Compare each lane with those before it.
    is_same = jnp.all(text[:, :, None] == text[:, None], axis=-1)
    return jnp.any(jnp.tril(is_same, k=-1), axis=-1).reshape(num_problems, width, num_lanes, 1)


def extend(path: Path, row: Array) -> Path:
    """Take a step [B W] further. A path that has no room for it will never be a prefix."""
    return jnp.concatenate([path, row[..., None]], axis=-1)[..., 1:]


def pick(x: Array, index: Array) -> Array:
    """Take x[b, index[b]]: x [B A ...], index [B] or [B n] give [B ...] or [B n ...]."""
    return jax.vmap(lambda row, i: row[i])(x, index)


def clip(score: Array) -> Array:
    """Turn a raw score into a value. Scores are ranked raw, so that clipping ties nothing."""
    return jnp.clip(score, 0.0, 1.0)


def make_tree(
    job: Job,
    rows: Rows,
    tokens: Array,
    visits: Array,
    value: Array,
    cost: Cost,
    decided: Array,
    **counts: Array,
) -> Tree:
    """Put rows [B R] into a Tree; it answers with row `decided` [B], or else the best finished one.

    tokens are [B R S]; counts, and `is_ok`, are [B].
    """
    chex.assert_equal_shape([rows.kind, visits, value])
    chex.assert_shape(tokens, (*rows.kind.shape, None))
    is_row = rows.kind != Kind.EMPTY

    # The raw score ranks: values are clipped, which ties.
    is_answer = rows.is_finished & (rows.kind != Kind.DUPLICATE)
    best = jnp.argmax(jnp.where(is_answer, rows.score, -jnp.inf), axis=1)
    best = jnp.where(jnp.any(is_answer, axis=1), best, -1)
    is_real = job.prompts.problem_id >= 0
    return Tree(
        problem_id=job.prompts.problem_id,
        **rows._asdict(),
        tokens=tokens,
        visits=jnp.where(is_row, visits, 0),
        value=jnp.where(is_row, value, 0.0),
        chosen=jnp.where(decided >= 0, decided, best).astype(jnp.int32),
        **cost._replace(lane_tokens=jnp.where(is_real, cost.lane_tokens, 0))._asdict(),
        **counts,
    )
