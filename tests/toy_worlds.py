"""The worlds of `oracle_mcts_star` as the accelerator sees them: a Reader without a network."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle_mcts_star as oracle
from flax import struct

from jaxtrain.boundaries import TraceConfig
from jaxtrain.search import SearchConfig, make_grow
from jaxtrain.structs import Array, Cost, Prompts, Reader, Tree, Written

MAX_PROMPT_TOKENS = 3
FIRST_PROMPT_TOKEN = 100
HEALTHY = np.int32(-1)  # the first token of no prompt
MAX_ORDER = 8  # steps of an order, at most
NUM_NUMBERS, NUM_DRAWS = 64, 12  # candidates behind a prefix, and draws of each, at most


@struct.dataclass
class Prefix:
    """A partial solution: the prompt followed by the steps so far, right-padded."""

    tokens: Array  # [B L] int32
    length: Array  # [B] int32


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


class Step(NamedTuple):
    """One step a lane."""

    tokens: Any  # [b S]
    length: Any  # [b]
    is_finished: Any  # [b] bool
    is_cut: Any  # [b] bool
    is_ok: Any  # [b] bool


class Text(NamedTuple):
    """What the toy reader keeps: the prompts, and the steps of all rows."""

    prompt: Any  # [B P]
    prompt_length: Any  # [B]
    tokens: Any  # [B R S]
    length: Any  # [B R]


def toy_reader(draw_fn, score_fn, trace: TraceConfig, commutes: bool = False) -> Reader:
    """Make a reader that writes an order as a whole, and reads every prefix anew.

    draw_fn(params, prefix [b], keys [b 2], number [b]) -> Step; score_fn(params, prefix [b]) ->
    [b], the value of a text. A step that a sibling has said already is drawn again, under the next
    numbers; where all of NUM_DRAWS repeat, there is none. Steps are the same where their tokens
    are; where it commutes, in whatever order.
    """

    def open_text(_, shape, size) -> Text:
        tokens = jnp.zeros((shape.num_trees, shape.num_rows, trace.max_step_tokens), jnp.int32)
        prompt = jnp.zeros((shape.num_trees, size), jnp.int32)
        return Text(prompt, prompt[:, 0], tokens, tokens[..., 0])

    def renew(_, text: Text, slots, prompts):
        at = jnp.where(slots >= 0, slots, len(text.prompt))
        new = (prompts.tokens, prompts.length, 0, 0)
        text = Text(*(x.at[at].set(y, mode="drop") for x, y in zip(text, new, strict=True)))
        none = jnp.zeros(len(slots), jnp.int32)
        return text, Cost(none, none, none)

    def write(params, text: Text, order, temperature):
        num_trees, width, num_lanes, num_steps = order.row.shape
        b = num_trees * width * num_lanes
        prefix = read_paths(text, order.path)
        prefix = jax.tree.map(lambda x: jnp.repeat(x, num_lanes, axis=0), prefix)
        keys = jnp.repeat(order.key.reshape(-1, 2), num_lanes, axis=0)
        room, number = order.room.reshape(b), order.number.reshape(b)
        is_live = room > 0
        tree = jnp.arange(num_trees)[:, None, None, None]
        said = text.tokens[tree, order.sibling].reshape(b, -1, trace.max_step_tokens)
        said_length = jnp.where(order.sibling >= 0, text.length[tree, order.sibling], -1)
        said_length = said_length.reshape(b, -1)

        # Step by step; what was drawn is scored with all before it.
        steps, scores, log_probs = [], [], []
        for k in range(num_steps):
            step = draw_unsaid(partial(draw_fn, params[0], prefix, keys), number, said, said_length)
            is_live &= ~repeats(step, said, said_length)
            none = jax.tree.map(jnp.zeros_like, step)
            step = jax.tree.map(partial(jax.vmap(jnp.where), is_live), step, none)
            prefix = append(prefix, step.tokens, step.length)
            steps.append(step)
            scores.append(jnp.where(is_live, score_fn(params[1], prefix), 0.0))
            log_probs.append(jnp.where(is_live, log_prob_of(prefix), 0.0))
            is_live &= (k + 1 < room) & ~step.is_finished & ~step.is_cut & step.is_ok
        all_steps = jax.tree.map(
            lambda *x: jnp.stack(x, axis=1).reshape(*order.row.shape, *x[0].shape[1:]), *steps
        )
        score = jnp.stack(scores, axis=1).reshape(order.row.shape)

        # What every search asks of what was drawn.
        length, is_step = all_steps.length, all_steps.length > 0
        row = jnp.where(order.is_new[..., None] & (order.row >= 0), order.row, text.length.shape[1])
        depth = jnp.sum(order.path >= 0, axis=2)[..., None, None] + 1 + jnp.arange(num_steps)
        is_deepest = is_step & (depth >= trace.max_steps)
        is_ok = jnp.all((all_steps.is_ok & jnp.isfinite(score)) | ~is_step, axis=3)
        written = Written(
            is_live=jnp.zeros_like(order.is_new),
            is_ok=is_ok,
            length=length,
            score=jnp.where(jnp.isfinite(score), score, 0.0),
            log_prob=jnp.stack(log_probs, axis=1).reshape(order.row.shape),
            is_finished=all_steps.is_finished,
            is_ended=all_steps.is_finished | all_steps.is_cut | is_deepest,
        )
        before = read_paths(text, order.path).length.reshape(num_trees, width)
        before = jnp.sum(jnp.where(jnp.any(order.room > 0, axis=2), before, 0), axis=1)
        num_read = before + jnp.sum(length, axis=(1, 2, 3))
        slots = jnp.full(num_trees, width * num_lanes * num_steps * trace.max_step_tokens)
        text = text._replace(
            tokens=text.tokens.at[tree, row].set(all_steps.tokens, mode="drop"),
            length=text.length.at[tree, row].set(length, mode="drop"),
        )
        return text, written, Cost(num_read, num_read, slots)

    return Reader(open_text, renew, write, lambda text: text.tokens, partial(form_of, commutes))


def form_of(commutes: bool, tokens, length):
    """Tell steps apart by what they say."""
    tokens = jnp.where(jnp.arange(tokens.shape[-1]) < length[..., None], tokens, -1)
    return jnp.sort(tokens) if commutes else tokens


def draw_unsaid(draw, number, said, said_length) -> Step:
    """Draw the step [b] of the first number that says something new; the last, where none does."""
    if not said.shape[1]:
        return draw(number)
    steps = jax.vmap(draw)(number + NUM_NUMBERS * jnp.arange(NUM_DRAWS)[:, None])
    is_said = jax.vmap(lambda step: repeats(step, said, said_length))(steps)
    first = jnp.where(jnp.all(is_said, axis=0), NUM_DRAWS - 1, jnp.argmin(is_said, axis=0))
    return jax.tree.map(lambda x: x[first, jnp.arange(len(first))], steps)


def repeats(step: Step, said, said_length):
    """Say whether a step [b] is one of those that were said [b A S]."""
    is_same = jnp.all(step.tokens[:, None] == said, axis=2) & (step.length[:, None] == said_length)
    return jnp.any(is_same, axis=1)


def read_paths(text: Text, path) -> Prefix:
    """Write out prompts and paths [B W D]: prefixes [B*W P+(D+1)*S], right-padded."""
    num_problems, width, depth = path.shape
    problem, size = jnp.arange(num_problems)[:, None, None], text.tokens.shape[2]
    tokens = text.tokens[problem, path].reshape(num_problems * width, depth, size)
    length = jnp.where(path >= 0, text.length[problem, path], 0)
    length = length.reshape(num_problems * width, depth)
    prompt = jnp.pad(text.prompt, ((0, 0), (0, (depth + MAX_ORDER) * size)))
    prefix = Prefix(jnp.repeat(prompt, width, axis=0), jnp.repeat(text.prompt_length, width))
    for d in range(depth):
        prefix = append(prefix, tokens[:, d], length[:, d])
    return prefix


def append(prefix: Prefix, tokens, length) -> Prefix:
    """Write a step [b S] of `length` [b] behind each prefix [b L]."""
    at = jnp.arange(prefix.tokens.shape[1]) - prefix.length[:, None]
    step = jnp.take_along_axis(tokens, jnp.clip(at, 0, tokens.shape[1] - 1), axis=1)
    is_new = (at >= 0) & (at < length[:, None])
    return Prefix(jnp.where(is_new, step, prefix.tokens), prefix.length + length)


def draw_step(params, prefix, keys, number, *, world, is_keyed=False) -> Step:
    """Draw a step a lane from a HashWorld.

    `is_keyed` makes it depend on the random key, as a policy's does. `params` is the first token of
    a prompt behind which one step in 16 meets a logit that is not finite.
    """
    start = fingerprint(prefix.tokens, prefix.length, jnp.zeros_like(prefix.length))
    if is_keyed:
        start = mix(start ^ mix(keys[:, 0] ^ mix(keys[:, 1])))
    bits = mix(start + jnp.uint32(oracle.GOLDEN) * (number + 1).astype(jnp.uint32))
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
    is_bad = (prefix.tokens[:, 0] == params) & (bits >> 28 == 0)
    return Step(tokens.astype(jnp.int32), length.astype(jnp.int32), is_finished, is_cut, ~is_bad)


def score_text(params, prefix, *, world):
    """Score texts as a HashWorld does; behind the prompt whose first token is `params`, one in 16
    scores NaN.
    """
    text = fingerprint(prefix.tokens, prefix.length, jnp.zeros_like(prefix.length))
    bits = mix(text ^ jnp.uint32(oracle.GOLDEN))
    share = ((bits >> 8) % (world.grid + 1)).astype(jnp.float32) / world.grid
    score = share * (1 + 2 * world.overshoot) - world.overshoot
    is_poisoned = (prefix.tokens[:, 0] == params) & (bits % 16 == 0)
    return jnp.where(is_poisoned, jnp.nan, score)


def log_prob_of(prefix):
    """Return the log-probability of the last steps of prefixes, as `oracle.log_prob` does."""
    text = fingerprint(prefix.tokens, prefix.length, jnp.zeros_like(prefix.length))
    return -(mix(text ^ jnp.uint32(oracle.LIKELY)) >> 8 & 31).astype(jnp.float32) / 8


def toy_grow(config: SearchConfig, trace: TraceConfig, draw_fn, score_fn, commutes=False):
    """Make a search that draws and scores with two functions."""
    return make_grow(config, trace.max_steps, toy_reader(draw_fn, score_fn, trace, commutes))


@cache
def hash_grow(
    config: SearchConfig, trace: TraceConfig, world: oracle.HashWorld, is_keyed: bool = False
):
    """Compile a search of a HashWorld, once for all tests that ask for the same."""
    draw_fn = partial(draw_step, world=world, is_keyed=is_keyed)
    score_fn = partial(score_text, world=world)
    grow = jax.jit(toy_grow(config, trace, draw_fn, score_fn, world.commutes))

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

    def known(prefix):
        return prefix if oracle.spell(prefix) in world.table else None

    def draw(tokens, length, number):
        drawn = np.zeros((3, len(tokens)), np.int32)
        for b, prefix in enumerate(prefixes(tokens, length)):
            if known(prefix) and number[b] < len(world.table[oracle.spell(prefix)]):
                step = world.draw(prefix, int(number[b]))
                drawn[:, b] = *step.tokens, step.is_finished, step.is_cut
        return drawn

    def score(tokens, length):
        scores = np.zeros(len(tokens), np.float32)
        for b, prefix in enumerate(prefixes(tokens, length)):
            if prefix and known(prefix[:-1]):
                scores[b] = world.score(prefix)
        return scores

    def draw_fn(params, prefix, keys, number):
        shape = jax.ShapeDtypeStruct((3, len(keys)), jnp.int32)
        letter, is_finished, is_cut = jax.pure_callback(
            draw, shape, prefix.tokens, prefix.length, number
        )
        is_ok = jnp.ones(letter.shape, bool)
        length = (letter > 0).astype(jnp.int32)
        return Step(letter[:, None], length, is_finished > 0, is_cut > 0, is_ok)

    def score_fn(params, prefix):
        shape = jax.ShapeDtypeStruct(prefix.length.shape, jnp.float32)
        return jax.pure_callback(score, shape, prefix.tokens, prefix.length)

    grow = jax.jit(toy_grow(config, trace, draw_fn, score_fn))
    prompt = Prompts(np.array([[ord("?")]], np.int32), np.ones(1, np.int32), np.zeros(1, np.int32))
    return jax.tree.map(
        np.asarray, grow((), (), prompt, np.zeros((1, 2), np.uint32), np.float32(1))
    )
