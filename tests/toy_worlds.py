"""The worlds of `oracle_mcts_star` as the accelerator sees them: `sample_steps` and `score_steps`
without a network.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle_mcts_star as oracle

from jaxtrain.boundaries import TraceConfig
from jaxtrain.nn.reader import append, recompute_reader
from jaxtrain.search import SearchConfig, make_grow
from jaxtrain.structs import Prompts, Steps, Tree

MAX_PROMPT_TOKENS = 3
FIRST_PROMPT_TOKEN = 100
HEALTHY = np.int32(-1)  # the first token of no prompt


def mix(value):
    """Return the 32-bit finalizer of MurmurHash3, uint32 to uint32."""
    value = value ^ value >> 16
    value = value * jnp.uint32(0x85EBCA6B)
    value = value ^ value >> 13
    value = value * jnp.uint32(0xC2B2AE35)
    return value ^ value >> 16


def fingerprint(tokens, length, start):
    """Hash tokens [... L] of which `length` count and the first stands at place `start`.

    Both broadcast to [...].
    """
    place = jnp.arange(tokens.shape[-1], dtype=jnp.uint32)
    place_in_prefix = start.astype(jnp.uint32)[..., None] + place
    terms = mix(tokens.astype(jnp.uint32) + jnp.uint32(oracle.GOLDEN) * (place_in_prefix + 1))
    return jnp.sum(
        jnp.where(place < length[..., None].astype(jnp.uint32), terms, 0), axis=-1, dtype=jnp.uint32
    )


def sample_steps(
    params, prefix, keys, room, temperature, num_lanes, max_steps, *, world, is_keyed=False
):
    """Draw steps from a HashWorld: one a lane, or more in a single lane.

    `is_keyed` makes them depend on the random key, as a policy's do. `params` is the first token of
    a prompt behind which one step in 16 meets a logit that is not finite.
    """
    assert max_steps == 1 or num_lanes == 1, "a tree search asks for nothing else"
    drawn, is_live = [], room > 0
    for k in range(max_steps):
        drawn.append(sample_step(params, prefix, keys, is_live, num_lanes, world, is_keyed))
        prefix = append(prefix, drawn[-1].tokens[:, 0], drawn[-1].length[:, 0])
        is_live = (
            is_live
            & (k + 1 < room)
            & ~(drawn[-1].is_finished | drawn[-1].is_cut)[:, 0]
            & drawn[-1].is_ok[:, 0]
        )
    steps = jax.tree.map(lambda *x: jnp.stack(x, axis=2), *drawn)
    steps = steps.replace(
        is_ok=jnp.broadcast_to(jnp.all(steps.is_ok, axis=2, keepdims=True), steps.is_ok.shape)
    )
    return steps, jnp.int32(num_lanes * max_steps * world.max_step_tokens)


def sample_step(params, prefix, keys, is_live, num_lanes, world, is_keyed) -> Steps:
    """Draw one step a lane, fields [B num_lanes ...]."""
    start = fingerprint(prefix.tokens, prefix.length, jnp.zeros_like(prefix.length))
    if is_keyed:
        start = mix(start ^ mix(keys[:, 0] ^ mix(keys[:, 1])))
    # [B A]
    bits = mix(
        start[:, None] + jnp.uint32(oracle.GOLDEN) * jnp.arange(1, num_lanes + 1, dtype=jnp.uint32)
    )
    lot, num_words = bits % 16, (bits >> 4) % world.max_step_tokens
    is_finished = lot < world.finished_of_16
    is_cut = ~is_finished & (lot < world.finished_of_16 + world.cut_of_16)
    place = jnp.arange(world.max_step_tokens, dtype=jnp.uint32)
    words = oracle.FIRST_WORD + (bits[..., None] >> (8 + 2 * place)) % world.num_words
    terminator = jnp.where(is_finished, oracle.END, oracle.NEWLINE).astype(jnp.uint32)[..., None]
    until_end = jnp.where(place < num_words[..., None], words, 0)
    tokens = jnp.where(place == num_words[..., None], terminator, until_end)
    tokens = jnp.where(is_cut[..., None], words, tokens)
    length = jnp.where(is_cut, world.max_step_tokens, num_words + 1)
    lane = is_live[:, None]
    return Steps(
        tokens=jnp.where(lane[..., None], tokens, 0).astype(jnp.int32),
        length=jnp.where(lane, length, 0).astype(jnp.int32),
        is_finished=is_finished & lane,
        is_cut=is_cut & lane,
        is_ok=~((prefix.tokens[:, :1] == params) & (bits >> 28 == 0) & lane),
    )


def score_steps(params, prefix, steps, *, world):
    """Score steps as a HashWorld does; behind the prompt whose first token is `params`, one step in
    16 scores NaN.
    """
    scores = []
    for k in range(steps.length.shape[2]):
        step = jax.tree.map(lambda x, k=k: x[:, :, k], steps)
        scores.append(score_step(params, prefix, step, world))
        # there is one lane where there are more steps
        prefix = append(prefix, step.tokens[:, 0], step.length[:, 0])
    return jnp.stack(scores, axis=2)


def score_step(params, prefix, step, world):
    before = fingerprint(prefix.tokens, prefix.length, jnp.zeros_like(prefix.length))[:, None]
    start = jnp.broadcast_to(prefix.length[:, None], step.length.shape)
    bits = mix((before + fingerprint(step.tokens, step.length, start)) ^ jnp.uint32(oracle.GOLDEN))
    share = ((bits >> 8) % (world.grid + 1)).astype(jnp.float32) / world.grid
    score = share * (1 + 2 * world.overshoot) - world.overshoot
    is_poisoned = (prefix.tokens[:, :1] == params) & (bits % 16 == 0)
    return jnp.where(is_poisoned, jnp.nan, score)


def toy_grow(config: SearchConfig, trace: TraceConfig, sample_fn, score_fn):
    """Make a search that draws and scores with two functions."""
    reader = recompute_reader(sample_fn, score_fn, trace)
    return make_grow(config, trace.max_steps, reader)


@cache
def hash_grow(
    config: SearchConfig, trace: TraceConfig, world: oracle.HashWorld, is_keyed: bool = False
):
    """Compile a search of a HashWorld, once for all tests that ask for the same."""
    sample_fn = partial(sample_steps, world=world, is_keyed=is_keyed)
    score_fn = partial(score_steps, world=world)
    grow = jax.jit(toy_grow(config, trace, sample_fn, score_fn))

    def run(prompts: Prompts, bad_logits=HEALTHY, bad_scores=HEALTHY) -> Tree:
        keys = np.stack([prompts.problem_id, prompts.problem_id + 1], axis=1).astype(np.uint32)
        return jax.tree.map(np.asarray, grow(bad_logits, bad_scores, prompts, keys, np.float32(1)))

    return run


def make_prompts(num: int, seed: int) -> Prompts:
    """Make prompts of 1 to 3 tokens, the first of them different in each."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, MAX_PROMPT_TOKENS + 1, num).astype(np.int32)
    tokens = rng.integers(3, 100, (num, MAX_PROMPT_TOKENS)).astype(np.int32)
    tokens[:, 0] = FIRST_PROMPT_TOKEN + rng.permutation(num)
    tokens[np.arange(MAX_PROMPT_TOKENS) >= length[:, None]] = 0
    return Prompts(tokens, length, np.arange(num, dtype=np.int32))


def callback_grow(config: SearchConfig, trace: TraceConfig, world: oracle.TableWorld) -> Tree:
    """Search behind the prompt "?" in a world that answers in Python; slow, for trees worked by
    hand.
    """

    def prefixes(tokens, length):
        return [
            tuple(row[:n].tolist())
            for row, n in zip(np.asarray(tokens), np.asarray(length), strict=True)
        ]

    def draw(tokens, length, is_live, num_lanes):
        drawn = np.zeros((3, len(tokens), num_lanes), np.int32)
        for b, prefix in enumerate(prefixes(tokens, length)):
            if is_live[b]:
                steps = [world.draw(prefix, candidate) for candidate in range(num_lanes)]
                drawn[:, b] = np.array(
                    [(*step.tokens, step.is_finished, step.is_cut) for step in steps]
                ).T
        return drawn

    def score(tokens, length, letters):
        scores = np.zeros(letters.shape, np.float32)
        for b, prefix in enumerate(prefixes(tokens, length)):
            scores[b] = [
                world.score((*prefix, letter)) if letter else 0
                for letter in np.asarray(letters[b]).tolist()
            ]
        return scores

    def sample_fn(params, prefix, keys, room, temperature, num_lanes, max_steps):
        assert max_steps == 1
        shape = jax.ShapeDtypeStruct((3, len(keys), num_lanes), jnp.int32)
        drawn = jax.pure_callback(
            partial(draw, num_lanes=num_lanes), shape, prefix.tokens, prefix.length, room > 0
        )
        letters, is_finished, is_cut = drawn[..., None]
        is_ok = jnp.ones(letters.shape, bool)
        steps = Steps(
            letters[..., None], (letters > 0).astype(jnp.int32), is_finished > 0, is_cut > 0, is_ok
        )
        return steps, jnp.int32(num_lanes)

    def score_fn(params, prefix, steps):
        letters = steps.tokens[:, :, 0, 0]
        shape = jax.ShapeDtypeStruct(letters.shape, jnp.float32)
        return jax.pure_callback(score, shape, prefix.tokens, prefix.length, letters)[..., None]

    grow = jax.jit(toy_grow(config, trace, sample_fn, score_fn))
    prompt = Prompts(np.array([[ord("?")]], np.int32), np.ones(1, np.int32), np.zeros(1, np.int32))
    return jax.tree.map(
        np.asarray, grow((), (), prompt, np.zeros((1, 2), np.uint32), np.float32(1))
    )
