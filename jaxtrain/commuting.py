"""Steps that are the same though words in them change places: `3+5=8|8 2` and `5+3=8|2 8`.

A task names the characters that *commute*. Words (of letters and digits) with one of them between
may change places, so a step is a row of *runs*, and the order in a run says nothing. The form of a
step is both a text, for the host, and a number, for the device: a search asks for it in every turn,
and a callback would stall the device and keep the compiled program out of the cache.
"""

import re
from collections.abc import Sequence
from itertools import zip_longest

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.structs import Array, FormFn

WORD = "0-9A-Za-z"
GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads small integers before they are mixed
SEEDS = 1, 2  # of numbers of 32 bits each, so that unlike steps share all of them once in 2^64


def in_order(step: str, commuting: str) -> str:
    """Return a step with the words of every run in order, the shorter first: numbers by size.

    >>> in_order("12+3=15", "+*")
    '3+12=15'
    """
    if not commuting:
        return step
    between = f"[{re.escape(commuting)}]"

    def sort(run: re.Match) -> str:
        parts = re.split(f"({between})", run[0])
        parts[::2] = sorted(parts[::2], key=lambda word: (len(word), word))
        return "".join(parts)

    return re.sub(f"(?:[{WORD}]|{between})+", sort, step)


def make_form(token_bytes: Sequence[bytes], commuting: str) -> FormFn:
    """Make the function that tells steps apart on the device; where nothing commutes, by tokens."""
    if not commuting:
        return lambda tokens, length: jnp.concatenate([tokens, length[..., None]], axis=-1)

    # The characters of every token; one without text is a character of its own.
    texts = [list(text) or [256 + i] for i, text in enumerate(token_bytes)]
    spelt = np.array([*zip_longest(*texts, fillvalue=-1)], np.int32).T
    is_word = np.zeros(256 + len(texts), bool)
    is_word[[i for i in range(128) if re.match(f"[{WORD}]", chr(i))]] = True
    is_commuting = np.isin(np.arange(len(is_word)), list(commuting.encode()))

    seed = np.array(SEEDS, np.uint32)

    def read(state: tuple, char: Array) -> tuple[tuple, None]:
        word, run, frame, words = state
        at, is_there = jnp.maximum(char, 0)[..., None], (char >= 0)[..., None]
        new = at.astype(jnp.uint32) * jnp.uint32(GOLDEN)
        is_letter = is_there & jnp.asarray(is_word)[at]
        is_over = is_there & ~is_letter
        # What stands between words keeps its place; the words of a run are a sum.
        words = jnp.where(is_over, words + mix(word ^ run), words)
        word = jnp.where(is_letter, mix(word + new), jnp.where(is_over, seed, word))
        frame = jnp.where(is_over, mix(frame + new), frame)
        run = jnp.where(is_over & ~jnp.asarray(is_commuting)[at], frame, run)
        return (word, run, frame, words), None

    def form(tokens: Array, length: Array) -> Array:
        is_token = jnp.arange(tokens.shape[-1]) < length[..., None]
        chars = jnp.where(is_token[..., None], jnp.asarray(spelt)[tokens], -1)
        chars = jnp.moveaxis(chars.reshape(*length.shape, -1), -1, 0)
        first = jnp.broadcast_to(seed, (*length.shape, len(seed)))
        empty = first, first, first, jnp.zeros_like(first)
        (word, run, frame, words), _ = jax.lax.scan(read, empty, chars, unroll=16)
        return jnp.concatenate([words + mix(word ^ run), frame], axis=-1)

    return form


def mix(value: Array) -> Array:
    """Return the 32-bit finalizer of MurmurHash3, uint32 to uint32."""
    value = (value ^ value >> 16) * jnp.uint32(0x85EBCA6B)
    value = (value ^ value >> 13) * jnp.uint32(0xC2B2AE35)
    return value ^ value >> 16
