"""The only sight of the networks that a search has: paths of rows in, steps and their scores out.

A search knows a prefix by its path, the numbers of its rows. What the rows say, and what the
networks keep of them, lies in a Memory that a search hands on and never opens. The recompute reader
keeps text alone: every proposal reads prompt and path anew, once for all lanes behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxtrain.boundaries import TraceConfig
from jaxtrain.nn.decode import SampleStepsFn, read
from jaxtrain.nn.heads import HEAD, Network
from jaxtrain.structs import Array, Cost, Params, Path, Prefix, Prompts, Proposal, Reader, Steps

ScoreStepsFn = Callable[[Params, Prefix, Steps], Array]  # -> [b lanes K] float32, raw


class Text(NamedTuple):
    """What the recompute reader keeps: the prompts, and the steps of all rows."""

    prompt: Array  # [B P] int32
    prompt_length: Array  # [B] int32
    tokens: Array  # [B R S] int32
    length: Array  # [B R] int32


def recompute_reader(
    sample_steps: SampleStepsFn, score_steps: ScoreStepsFn, trace: TraceConfig
) -> Reader:
    """Make the reader that keeps text alone; see `structs.Reader` for its functions."""

    def open_text(_, prompts: Prompts, num_rows: int) -> Text:
        length = jnp.zeros((len(prompts.length), num_rows), jnp.int32)
        tokens = jnp.zeros((*length.shape, trace.max_step_tokens), jnp.int32)
        return Text(prompts.tokens, prompts.length, tokens, length)

    def propose(params, text, path, keys, is_live, temperature, num_lanes, max_steps) -> Proposal:
        num_problems, width, _ = path.shape
        chex.assert_shape([keys, is_live], [(num_problems, width, 2), (num_problems, width)])
        # The text of the prefixes, and how many steps still fit behind them.
        prefix, depth = read_path(text, path), jnp.sum(path >= 0, axis=2)
        room = jnp.where(is_live, jnp.clip(trace.max_steps - depth, 0, max_steps), 0).reshape(-1)
        keys = keys.reshape(-1, 2)

        # Both networks, one after the other.
        def ask():
            limits = num_lanes, max_steps
            steps, slots = sample_steps(params[0], prefix, keys, room, temperature, *limits)
            return steps, score_steps(params[1], prefix, steps).astype(jnp.float32), slots

        def skip():
            steps, score, slots = jax.tree.map(jnp.zeros_like, jax.eval_shape(ask))
            return steps.replace(is_ok=~steps.is_ok), score, slots

        # Late in a search whole batches have nothing to draw.
        steps, score, slots = jax.lax.cond(jnp.any(room > 0), ask, skip)
        steps, score = jax.tree.map(
            lambda x: x.reshape(num_problems, width, *x.shape[1:]), (steps, score)
        )

        # What every search asks of what was drawn.
        is_step, is_finite = steps.length > 0, jnp.isfinite(score)
        depths = depth[..., None, None] + 1 + jnp.arange(max_steps)
        is_deepest = is_step & (depths >= trace.max_steps)
        # Each network reads a prefix once, and every token behind it.
        num_tokens = jnp.sum(steps.length, axis=(2, 3)) + prefix.length.reshape(depth.shape)
        num_tokens = jnp.sum(jnp.where(is_live, num_tokens, 0), axis=1)
        lane_tokens = jnp.broadcast_to(slots * width, (num_problems,))
        return Proposal(
            steps=steps,
            score=jnp.where(is_finite, score, 0.0),
            is_ended=steps.is_finished | steps.is_cut | is_deepest,
            is_ok=jnp.all(steps.is_ok & (is_finite | ~is_step), axis=(1, 2, 3)),
            cost=Cost(num_tokens, num_tokens, lane_tokens),
        )

    def keep(text: Text, proposal: Proposal, rows: Array) -> Text:
        chex.assert_equal_shape([proposal.score, rows])
        problem = jnp.arange(rows.shape[0])[:, None, None, None]
        return text._replace(
            tokens=text.tokens.at[problem, rows].set(proposal.steps.tokens),
            length=text.length.at[problem, rows].set(proposal.steps.length),
        )

    return Reader(open_text, propose, keep, lambda text: text.tokens)


def read_path(text: Text, path: Path) -> Prefix:
    """Write out prompts and paths [B W D]: prefixes [B*W P+D*S], right-padded."""
    num_problems, width, depth = path.shape
    problem, size = jnp.arange(num_problems)[:, None, None], text.tokens.shape[2]
    tokens = text.tokens[problem, path].reshape(num_problems * width, depth, size)
    length = jnp.where(path >= 0, text.length[problem, path], 0)
    length = length.reshape(num_problems * width, depth)
    # Step by step behind the prompt.
    prompt = jnp.repeat(jnp.pad(text.prompt, ((0, 0), (0, depth * size))), width, axis=0)
    prefix = Prefix(prompt, jnp.repeat(text.prompt_length, width))
    for d in range(depth):
        prefix = append(prefix, tokens[:, d], length[:, d])
    return prefix


def append(prefix: Prefix, tokens: Array, length: Array) -> Prefix:
    """Write a step [b S] of `length` [b] behind each prefix [b L]; what is beyond L is dropped."""
    at = jnp.arange(prefix.tokens.shape[1]) - prefix.length[:, None]
    step = jnp.take_along_axis(tokens, jnp.clip(at, 0, tokens.shape[1] - 1), axis=1)
    is_new = (at >= 0) & (at < length[:, None])
    return Prefix(jnp.where(is_new, step, prefix.tokens), prefix.length + length)


def make_score_steps(model: Network) -> ScoreStepsFn:
    """Make the function that scores steps.

    Returns `score_steps(params, prefix, steps)` -> float32 [B lanes K]: the PRM's raw value of the
    prefix that ends with each step, all steps of a lane read in one causal pass behind the shared
    prefix.
    """

    def score_steps(params: Params, prefix: Prefix, steps: Steps) -> Array:
        num_problems, num_lanes, max_steps, size = steps.tokens.shape
        b = num_problems * num_lanes
        # The prefix is read once for all lanes.
        segment, _ = read(model, params["backbone"], prefix)
        length = steps.length.reshape(b, max_steps)
        # The steps of a lane are one text with gaps, which the mask leaves out.
        mask = (jnp.arange(size) < length[..., None]).reshape(b, max_steps * size)
        positions = jnp.repeat(prefix.length, num_lanes)[:, None] + jnp.cumsum(mask, axis=1) - 1
        tokens = steps.tokens.reshape(b, max_steps * size)
        hidden, _ = model.apply({"params": params["backbone"]}, tokens, positions, mask, (segment,))
        # Values stand at the last tokens of steps.
        ends = jnp.arange(max_steps) * size + jnp.maximum(length - 1, 0)
        at_ends = jnp.take_along_axis(hidden, ends[..., None], axis=1)
        values = HEAD.apply({"params": params["head"]}, at_ends)
        return values.reshape(num_problems, num_lanes, max_steps)

    return score_steps
