"""What searches do alike: rows, paths, and the back-up of those that walk down a tree.

A row is a step that was drawn, and its number the address of everything about it: a search keeps
what it needs to choose, the reader keeps the text.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.errors import NotNegative, Positive, Section
from jaxtrain.structs import Array, CheckFn, Kind, Params, Path, Prompts, Reader

if TYPE_CHECKING:
    from jaxtrain.search.config import SearchConfig

MctxTree = Any  # mctx.Tree, with a View as its extra_data


@dataclass(frozen=True)
class PriorConfig(Section, at="search.prior"):
    """How the policy's probability weighs in: over the candidates of a node it is a matter of
    `prior_rules`, over finished traces of whatever answers. What the policy would hardly write is
    seldom right, and a PRM that saw little of it is easily fooled.
    """

    temperature: Positive = 1.0  # of the prior: below 1 sharper, above 1 flatter
    # whether it is that of a token of the step on average, and long steps are as likely as short
    normalises_length: bool = False
    # of the log-probability of a finished trace beside its score, where one of them is the answer
    weight: NotNegative = 0.0


class Rows(NamedTuple):
    """What a search knows of its rows; all fields have one shape."""

    parent: Array  # int32, the row before, -1: the prompt, or no row
    kind: Array  # int32, a Kind
    length: Array  # int32, tokens
    score: Array  # float32, raw
    log_prob: Array  # float32
    is_finished: Array  # bool
    is_ended: Array  # bool


class Job(NamedTuple):
    """What a search is given, whatever its method: M problems, of which B are searched at once."""

    config: "SearchConfig"
    prompts: Prompts  # [M]
    keys: Array  # [M 2] uint32
    params: tuple[Params, Params]  # policy, PRM
    temperature: Array  # []
    reader: Reader
    max_steps: int  # D
    num_trees: int  # B
    check: CheckFn | None  # of steps, where there is one and it is asked

    def has_spent(self, rows: Rows) -> Array:
        """Say which trees, of rows [B R], have spent their tokens, [B] bool."""
        limit = self.config.num_tokens
        return jnp.sum(rows.length, axis=1) >= (jnp.inf if limit is None else limit)

    def decisive(self, rows: Rows) -> Array:
        """Return which of the rows [B n] is the best leaf where it crosses the threshold, and
        decides its tree: [B] int32, -1: none does.
        """
        scores = jnp.where(rows.is_finished & (rows.kind == Kind.CANDIDATE), rows.score, -jnp.inf)
        best = jnp.argmax(scores, axis=1).astype(jnp.int32)
        threshold, score = self.config.end_threshold, pick(scores, best)
        if threshold is None:
            return jnp.full_like(best, -1)
        return jnp.where((score > -jnp.inf) & (clip(score) >= threshold), best, -1)


def empty_rows(*shape: int) -> Rows:
    """Make rows in which no step lies."""
    ints, no = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    return Rows(ints - 1, ints, ints, jnp.zeros(shape), jnp.zeros(shape), no, no)


def path_to(parent: Array, row: Array, depth: int) -> Path:
    """Return the paths [B n depth] of the prefixes that end with rows [B n], -1: the prompt."""
    path = []
    for _ in range(depth):
        path.append(row)
        row = jnp.where(row >= 0, pick(parent, row), -1)
    empty = jnp.zeros((*row.shape, 0), jnp.int32)
    return jnp.stack(path[::-1], axis=-1) if path else empty


def sum_above(x: Array, parent: Array, depth: int) -> Array:
    """Sum a number of every row [B R] along its path, its own among them; parent [B R]."""
    path = path_to(parent, jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape), depth)
    return jnp.sum(jnp.where(path >= 0, pick(x, path), 0), axis=-1)


def pick(x: Array, index: Array) -> Array:
    """Take x[b, index[b]]: x [B A ...], index [B n] gives [B n ...]; n is any number of axes."""
    return jax.vmap(lambda row, i: row[i])(x, index)


def clip(score: Array) -> Array:
    """Turn a raw score into a value. Scores are ranked raw, so that clipping ties nothing."""
    return jnp.clip(score, 0.0, 1.0)


def rank(config: PriorConfig, score: Array, log_prob: Array, length: Array) -> Array:
    """Return what finished traces are ranked by, the highest answers: the raw score of each, and by
    its weight the log-probability of its tokens (Controlled Decoding, Mudgal et al. 2024).

    All arrays are of one shape, of jax or numpy. Log-probabilities are of the law that was drawn
    from: at a temperature of 0 they are 0, and say nothing.
    """
    if config.normalises_length:
        log_prob = log_prob / (length + (length == 0))
    return score + config.weight * log_prob


@jax.vmap
def back_up(tree: MctxTree, index: Array) -> MctxTree:
    """Walk from node `index` [B] to the root (Eq. 35-36); -1 leaves a tree as it is.

    n += 1; v = sum n_c v_c / sum n_c over visited children where there are any; both copied into
    the parent's slot.
    """

    def step(carry):
        index, n, v, children_n, children_v = carry
        visits = children_n[index]
        total = jnp.sum(visits)
        mean = jnp.sum(visits * children_v[index]) / jnp.maximum(total, 1)
        n = n.at[index].add(1)
        v = v.at[index].set(jnp.where(total > 0, mean, v[index]))
        parent, action = tree.parents[index], tree.action_from_parent[index]
        # At the root the parent is -1: the write is aimed past the end, where scatters drop it.
        slot = jnp.where(parent >= 0, parent, n.shape[0])
        children_n = children_n.at[slot, action].set(n[index], mode="drop")
        children_v = children_v.at[slot, action].set(v[index], mode="drop")
        return parent, n, v, children_n, children_v

    carry = index, tree.node_visits, tree.node_values, tree.children_visits, tree.children_values
    _, n, v, children_n, children_v = jax.lax.while_loop(lambda carry: carry[0] >= 0, step, carry)
    return tree.replace(
        node_visits=n, node_values=v, children_visits=children_n, children_values=children_v
    )
