"""What every search does alike: draw steps into rows, extend paths, and hand the rows on as a Tree.

A row is a step that was drawn, and its number the address of everything about it: a search keeps
what it needs to choose, the reader keeps the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxtrain.structs import (
    Array,
    Cost,
    Kind,
    Memory,
    Params,
    Path,
    Prompts,
    Proposal,
    Reader,
    Tree,
)


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
    """Steps behind W prefixes, as rows [B W A K], and as the reader proposed them."""

    rows: Rows
    proposal: Proposal
    memory: Memory


# (memory, path [B W], keys [B W 2], is_live [B W], row [B W A K]) -> Drawn
DrawFn = Callable[[Memory, Path, Array, Array, Array], Drawn]


def make_draw(reader: Reader, params: tuple[Params, Params], temperature: Array) -> DrawFn:
    """Make the function that draws steps into given rows: as many lanes and steps as those have."""

    def draw(memory: Memory, path: Path, keys: Array, is_live: Array, row: Array) -> Drawn:
        num_lanes, max_steps = row.shape[2:]
        proposal = reader.propose(
            params,
            memory,
            path,
            keys,
            is_live,
            temperature,
            num_lanes=num_lanes,
            max_steps=max_steps,
        )
        chex.assert_equal_shape([row, proposal.score, proposal.is_ended, proposal.steps.length])

        # A lane's first step stands behind the prefix, each other one behind the step before.
        first = jnp.broadcast_to(last_row(path)[..., None, None], (*row.shape[:3], 1))
        parent = jnp.concatenate([first, row[..., :-1]], axis=-1)
        steps = proposal.steps
        is_step = steps.length > 0
        rows = Rows(
            parent=jnp.where(is_step, parent, -1),
            kind=jnp.where(is_step, int(Kind.CANDIDATE), int(Kind.EMPTY)),
            length=steps.length,
            score=jnp.where(is_step, proposal.score, 0.0),
            is_finished=steps.is_finished,
            is_ended=proposal.is_ended,
        )
        return Drawn(rows, proposal, reader.keep(memory, proposal, row))

    return draw


def root_paths(num_problems: int, width: int, depth: int) -> Path:
    """Make the paths of the prompts themselves, with room for `depth` steps."""
    rows = jnp.full((num_problems, width, depth), -1, jnp.int32)
    return Path(rows, jnp.zeros((num_problems, width), jnp.int32))


def extend(path: Path, row: Array) -> Path:
    """Take a step [B W] further. What a path has no room for can never be a prefix: it is dropped."""
    is_here = jnp.arange(path.rows.shape[-1]) == path.depth[..., None]
    return Path(jnp.where(is_here, row[..., None], path.rows), path.depth + 1)


def last_row(path: Path) -> Array:
    """Find where each prefix ends: [B W] int32, -1 at the prompt."""
    is_last = jnp.arange(path.rows.shape[-1]) == path.depth[..., None] - 1
    return jnp.max(jnp.where(is_last, path.rows, -1), axis=-1, initial=-1)


def pick(x: Array, index: Array) -> Array:
    """Take x[b, index[b]]: x [B A ...], index [B] or [B n] give [B ...] or [B n ...]."""
    return jax.vmap(lambda row, i: row[i])(x, index)


def clip(score: Array) -> Array:
    """Turn a raw score into a value. Scores are ranked raw, so that clipping ties nothing."""
    return jnp.clip(score, 0.0, 1.0)


def first_copies(tokens: Array, length: Array) -> Array:
    """Mark, among candidates [B A S], those that no earlier sibling equals. Returns [B A] bool."""
    same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1) & (
        length[:, :, None] == length[:, None]
    )
    return ~jnp.any(jnp.tril(same, k=-1), axis=-1)


def make_tree(
    prompts: Prompts, rows: Rows, tokens: Array, cost: Cost, decided: Array, **fields: Array
) -> Tree:
    """Put rows [B R] into a Tree; it answers with row `decided` [B], or else the best finished one.

    tokens are [B R S]; `fields` are those of the Tree that a method counts itself.
    """
    num_problems, num_rows = rows.kind.shape
    chex.assert_shape([tokens, decided], [(num_problems, num_rows, None), (num_problems,)])
    is_real, is_row = prompts.problem_id >= 0, rows.kind != Kind.EMPTY

    # The raw score ranks: values are clipped, which ties.
    is_answer = rows.is_finished & (rows.kind != Kind.DUPLICATE)
    best = jnp.argmax(jnp.where(is_answer, rows.score, -jnp.inf), axis=1)
    best = jnp.where(jnp.any(is_answer, axis=1), best, -1)
    value = jnp.where(is_row, fields.pop("value"), 0.0)
    return Tree(
        problem_id=prompts.problem_id,
        **rows._asdict(),
        tokens=tokens,
        value=value,
        visits=jnp.where(is_row, fields.pop("visits"), 0),
        chosen=jnp.where(decided >= 0, decided, best).astype(jnp.int32),
        policy_tokens=cost.policy_tokens,
        prm_tokens=cost.prm_tokens,
        lane_tokens=jnp.where(is_real, cost.lane_tokens, 0).astype(jnp.int32),
        **fields,
    )
