"""One expansion: sample candidate steps behind a prefix, score them, roll the best one out. Shared by tree searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from jaxtrain.boundaries import ANSWERS, MAX_BOUNDARY
from jaxtrain.errors import UserError, require_at_least, require_one_of, require_share
from jaxtrain.keys import fold_in
from jaxtrain.structs import Array, Prefix, Steps


@dataclass(frozen=True)
class SearchConfig:
    """A search method and its budget. Constants of `mcts_star` follow the paper's Algorithm 2 and its code."""

    method: str = "mcts_star"  # mcts_star: Algorithm 2; sample: independent traces
    max_steps: int = 8  # D: depth at which an unfinished branch is cut
    max_step_tokens: int = 32  # S: tokens at which an unfinished step is cut
    boundary: str = "\n"  # text that ends a step; "\n\n": a blank line; empty: only an end token or step_tokens
    step_tokens: int = 0  # tokens at which a step ends, whatever its text; 0: never
    answer: str = "end"  # what finishes a trace: end: an end token alone; hash: also the line of ####; boxed: \boxed{}
    num_simulations: int = 16  # T: the root's expansion and T - 1 simulations
    num_candidates: int = 4  # A: steps sampled an expansion (b in the paper)
    num_samples: int = 16  # traces a problem, for the method `sample`
    temperature: float = 1.0  # of the policy while it searches
    exploration: float = 0.7  # eps of UCB1: v + eps * sqrt(ln n_parent / n)
    unvisited_bonus: float = 1.0  # stands for the bonus of a child never visited
    num_rollout_steps: int = 1  # m: steps of the greedy rollout from the best new candidate
    num_rollout_candidates: int = 1  # d: candidates drawn for each of them
    rollout_blend: float = 0.5  # alpha: v = alpha * own value + (1 - alpha) * best value of the rollout
    rollout_floor: str = "paper"  # where the best value starts: paper: 0; self: the child's own value
    stop: str = "never"  # never: spend the budget; threshold: a finished leaf of end_threshold decides the tree
    end_threshold: float = 0.9  # l

    def __post_init__(self):
        at_least_one = ("max_steps", "max_step_tokens", "num_simulations", "num_candidates", "num_samples")
        require_at_least(1, "search", self, *at_least_one, "num_rollout_candidates")
        require_at_least(0, "search", self, "temperature", "exploration", "unvisited_bonus", "num_rollout_steps")
        require_share("search", self, "rollout_blend", "end_threshold")
        methods = ("mcts_star", "sample")
        require_one_of("search", self, method=methods, stop=("never", "threshold"), rollout_floor=("paper", "self"))
        require_one_of("search", self, answer=ANSWERS)
        require_at_least(0, "search", self, "step_tokens")
        if len(self.boundary.encode()) > MAX_BOUNDARY:
            raise UserError(f"--config.search.boundary={self.boundary[:20]!r}...: has more than {MAX_BOUNDARY} bytes")
        if not self.boundary and not self.step_tokens:
            raise UserError("--config.search.boundary='': nothing ends a step; set it, or --config.search.step_tokens")


@struct.dataclass
class Node:
    """What an expansion leaves behind: mctx's embedding, so every field has the leading axis B."""

    prefix: Prefix
    depth: Array  # [B] int32, steps in the prefix
    key: Array  # [B 2] uint32
    tokens: Array  # [B A S] int32, the candidates
    length: Array  # [B A] int32
    score: Array  # [B A] float32, raw
    is_finished: Array  # [B A] bool
    is_ended: Array  # [B A] bool
    is_valid: Array  # [B A] bool, sampled and not an earlier sibling's duplicate
    best: Array  # [B] int32, the candidate rolled out
    best_value: Array  # [B] float32, its value after the rollout is blended in (Eq. 34)
    rollout_tokens: Array  # [B m d S] int32
    rollout_length: Array  # [B m d] int32, 0: not drawn
    rollout_score: Array  # [B m d] float32
    rollout_is_finished: Array  # [B m d] bool
    rollout_is_ended: Array  # [B m d] bool
    rollout_best: Array  # [B m] int32
    is_live: Array  # [B] bool, False: nothing was expanded here
    is_ok: Array  # [B] bool
    policy_tokens: Array  # [B] int32
    prm_tokens: Array  # [B] int32
    lane_tokens: Array  # [B] int32


def pick(x: Array, index: Array) -> Array:
    """Take x[b, index[b]]: x [B A ...], index [B] give [B ...]."""
    return jax.vmap(lambda row, i: row[i])(x, index)


def clip(score: Array) -> Array:
    """Turn a raw score into a value. Scores are ranked raw, so that clipping ties nothing."""
    return jnp.clip(score, 0.0, 1.0)


def append(prefix: Prefix, tokens: Array, length: Array) -> Prefix:
    """Write a step [B S] of `length` [B] behind each prefix; what is beyond L is dropped.

    A prefix that is expanded has D - 1 steps at most, so L = P + (D - 1) * S loses nothing that is read.
    """
    at = jnp.arange(prefix.tokens.shape[1]) - prefix.length[:, None]
    step = jnp.take_along_axis(tokens, jnp.clip(at, 0, tokens.shape[1] - 1), axis=1)
    is_new = (at >= 0) & (at < length[:, None])
    return Prefix(jnp.where(is_new, step, prefix.tokens), prefix.length + length)


def first_copies(tokens: Array, length: Array) -> Array:
    """Mark, among candidates [B A S], those that no earlier sibling equals. Returns [B A] bool."""
    same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1) & (length[:, :, None] == length[:, None])
    return ~jnp.any(jnp.tril(same, k=-1), axis=-1)


def make_expand(config: SearchConfig, sample: Callable, score: Callable) -> Callable:
    """Make `expand(prefix, depth, key, is_live, temperature)` -> Node. Rows that are not live get no lanes."""
    num_rounds, width, alpha = config.num_rollout_steps, config.num_rollout_candidates, config.rollout_blend

    def ask(prefix: Prefix, key, is_live, temperature, num_lanes: int):
        def networks():
            steps, slots = sample(prefix, key, is_live, temperature, num_lanes=num_lanes, max_steps=1)
            return steps, score(prefix, steps), slots

        def nothing():
            steps, scores, slots = jax.tree.map(jnp.zeros_like, jax.eval_shape(networks))
            return steps.replace(is_ok=~steps.is_ok), scores, slots

        # Late in a search whole batches have nothing to expand or roll out.
        return jax.lax.cond(jnp.any(is_live), networks, nothing)

    def draw(prefix: Prefix, depth, key, is_live, temperature, num_lanes: int):
        steps, scores, slots = ask(prefix, key, is_live, temperature, num_lanes)
        one: Steps = jax.tree.map(lambda x: x[:, :, 0], steps)
        scores = scores[:, :, 0].astype(jnp.float32)
        is_ok = jnp.all((one.is_ok & jnp.isfinite(scores)) | (one.length == 0), axis=1) & jnp.all(one.is_ok, axis=1)
        is_ended = one.is_finished | one.is_cut | (depth[:, None] + 1 >= config.max_steps)
        num_tokens = jnp.where(is_live, prefix.length + jnp.sum(one.length, axis=1), 0)
        return one, jnp.where(jnp.isfinite(scores), scores, 0.0), is_ended, is_ok, num_tokens, slots

    def expand(prefix: Prefix, depth, key, is_live, temperature) -> Node:
        steps, scores, is_ended, is_ok, num_tokens, slots = draw(
            prefix, depth, key, is_live, temperature, config.num_candidates
        )
        is_valid = first_copies(steps.tokens, steps.length) & (steps.length > 0)
        best = jnp.argmax(jnp.where(is_valid, scores, -jnp.inf), axis=1).astype(jnp.int32)
        own, is_done = clip(pick(scores, best)), pick(steps.is_finished, best)
        top = jnp.where(is_done | (config.rollout_floor == "self"), own, 0.0)

        at = append(prefix, pick(steps.tokens, best), pick(steps.length, best))
        is_rolling, rounds = is_live & is_ok & ~pick(is_ended, best), []
        for r in range(num_rounds):
            # Children use fold_in(key, action); rounds take the numbers after the actions.
            round_key = fold_in(key, config.num_candidates + r)
            new, values, ended, ok, tokens, more = draw(at, depth + r + 1, round_key, is_rolling, temperature, width)
            choice = jnp.argmax(jnp.where(new.length > 0, values, -jnp.inf), axis=1).astype(jnp.int32)
            top = jnp.where(is_rolling, jnp.maximum(top, clip(pick(values, choice))), top)
            rounds.append((new.tokens, new.length, values, new.is_finished, ended & (new.length > 0), choice))
            at = append(at, pick(new.tokens, choice), pick(new.length, choice))
            is_ok, num_tokens, slots = is_ok & ok, num_tokens + tokens, slots + more
            is_rolling = is_rolling & is_ok & ~pick(ended, choice)

        rolled = [jnp.stack(x, axis=1) for x in zip(*rounds, strict=True)] if rounds else empty_rollout(steps, width)
        return Node(
            prefix=prefix,
            depth=depth,
            key=key,
            tokens=steps.tokens,
            length=steps.length,
            score=scores,
            is_finished=steps.is_finished,
            is_ended=is_ended,
            is_valid=is_valid,
            best=best,
            # alpha * own + (1 - alpha) * top, written so that equal values blend to themselves exactly.
            best_value=top + alpha * (own - top) if num_rounds else own,
            rollout_tokens=rolled[0],
            rollout_length=rolled[1],
            rollout_score=rolled[2],
            rollout_is_finished=rolled[3],
            rollout_is_ended=rolled[4],
            rollout_best=rolled[5],
            is_live=is_live,
            is_ok=is_ok,
            policy_tokens=num_tokens,
            prm_tokens=num_tokens,
            lane_tokens=jnp.broadcast_to(slots, is_live.shape),
        )

    return expand


def empty_rollout(steps: Steps, width: int) -> list[Array]:
    """Shape a rollout of no rounds, m = 0."""
    num_problems, _, size = steps.tokens.shape
    shape = (num_problems, 0, width)
    ints, bools = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    floats, best = jnp.zeros(shape, jnp.float32), jnp.zeros((num_problems, 0), jnp.int32)
    return [jnp.zeros((*shape, size), jnp.int32), ints, floats, bools, bools, best]
