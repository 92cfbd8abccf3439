"""Exact values of partial responses in Countdown, and the same with noise: a PRM whose quality is
known. `benchmarks.guidance` searches with them, through a reader that tells them.

The value is 1 where the target can still be reached by legal moves and 0 where it cannot, found by
dynamic programming over the numbers that remain. The noise is normal and belongs to the text: the
same prefix gets the same noise whenever it is asked for, whatever else is. Its deviation is chosen
for first moves, inner moves and leaves apart, since a PRM knows leaves best.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from hashlib import blake2b
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.intervals import auroc
from jaxtrain.structs import Array, Cost, Memory, Order, Params, Reader, Written
from jaxtrain.tasks import Problem
from jaxtrain.tasks.countdown import legal_moves, read_move, read_prompt, write_move

NORMAL = NormalDist()
MAX_TEXTS = 1 << 20  # whose values are kept


class Noise(NamedTuple):
    """Standard deviations of the noise by the depth of a step, and the seed of all noise."""

    first: float = 0.0  # behind one move
    inner: float = 0.0  # between the first and the last
    leaf: float = 0.0  # behind the last move, or at the end token
    seed: int = 0

    def depth(self, num_lines: int, num_moves: int, is_finished: bool) -> str:
        """Return which of the three a response is of so many lines; empty where it has none."""
        if num_lines == 0:
            return ""
        if is_finished or num_lines >= num_moves:
            return "leaf"
        return "first" if num_lines == 1 else "inner"


def values(
    prompts: Sequence[str],
    responses: Sequence[str],
    is_finished: Sequence[bool] | None = None,
    noise: Noise | None = None,
) -> np.ndarray:
    """Return the values [N] float32 of the responses so far, exact where there is no noise.

    A response is what the policy has written, each line with its newline; that of the last line may
    be missing, and has to be behind the last move, where a right response ends. `is_finished` says
    which have ended (none: those that are told are taken to go on where moves are left).
    """
    noise = noise or Noise()
    ended = is_finished if is_finished is not None else [False] * len(responses)
    rows = zip(prompts, responses, ended, strict=True)
    return np.array([_value(prompt, text, bool(end), noise) for prompt, text, end in rows], "f4")


@lru_cache(MAX_TEXTS)
def exact_value(prompt: str, response: str, is_finished: bool = False) -> float:
    """Return 1.0 where the target can still be reached, or is, and else 0.0; see `values`."""
    numbers, target = read_prompt(prompt)
    for line in _lines(response):
        move = read_move(line)
        if move is None or move not in legal_moves(numbers):
            return 0.0
        numbers = move.remaining
    if len(numbers) == 1:
        return float(numbers == (target,) and not response.endswith("\n"))
    return float(not is_finished and can_reach(numbers, target))


@cache
def can_reach(numbers: tuple[int, ...], target: int) -> bool:
    """Say whether legal moves lead from numbers, in order, to the target."""
    if len(numbers) == 1:
        return numbers[0] == target
    rest = {move.remaining for move in legal_moves(numbers)}
    return any(can_reach(remaining, target) for remaining in rest)


def standard_noise(seed: int, prompt: str, response: str) -> float:
    """Return the standard normal number of a text, the same on every machine.

    A newline at its end makes no difference.
    """
    text = f"{seed}\n{prompt}{response}".removesuffix("\n").encode()
    number = int.from_bytes(blake2b(text, digest_size=6).digest(), "big")
    return NORMAL.inv_cdf((number + 0.5) / 2**48)


def sigma_of_auroc(area: float) -> float:
    """Return the deviation of the noise at which values of 0 and 1 rank with an AUROC in (0.5, 1].

    Two values that differ by 1 change places with the chance that the difference of two noises
    exceeds it: AUROC = Phi(1 / (sigma sqrt 2)).
    """
    return 1 / (math.sqrt(2) * NORMAL.inv_cdf(area)) if area < 1 else 0.0


def measured_auroc(
    problems: Sequence[Problem], noise: Noise, num_games: int = 64
) -> dict[str, float]:
    """Measure how noisy values rank moves whose exact values are known: AUROC by depth.

    The moves are those of games of random legal moves, so many a problem, each prefix once.
    """
    rng = random.Random(0)
    found: dict[str, list[tuple[float, bool]]] = {}
    for problem in problems:
        numbers = read_prompt(problem.prompt)[0]
        games = [_random_lines(numbers, rng) for _ in range(num_games)]
        prefixes = {tuple(game[:end]) for game in games for end in range(1, len(numbers))}
        for lines in sorted(prefixes):
            text = "\n".join(lines)
            depth = noise.depth(len(lines), len(numbers) - 1, is_finished=False)
            (value,) = values([problem.prompt], [text], noise=noise)
            row = value, exact_value(problem.prompt, text) > 0
            found.setdefault(depth, []).append(row)
    return {depth: auroc(*map(np.array, zip(*rows, strict=True))) for depth, rows in found.items()}


def told_values(reader: Reader, decode: Callable[[Sequence[int]], str]) -> Reader:
    """Let a reader score by the exact value of what was written, with noise.

    The noise stands beside the PRM's parameters, as `noise` [3] float32: deviations of first moves,
    inner moves and leaves.
    """

    def write(
        params: tuple[Params, Params], memory: Memory, order: Order, temperature: Array
    ) -> tuple[Memory, Written, Cost]:
        memory, written, cost = reader.write(params, memory, order, temperature)
        is_told = (order.row >= 0) & (written.length > 0) & ~written.is_live[..., None]
        # Chains of rows, of which those of an order begin with the path of its prefix.
        num_lanes, depth = order.row.shape[2], order.path.shape[2]
        path = jnp.repeat(order.path[:, :, None], num_lanes, axis=2)
        chain = jnp.concatenate([path, order.row], axis=3)
        score = jax.pure_callback(
            partial(score_steps, decode, depth),
            jax.ShapeDtypeStruct(order.row.shape, jnp.float32),
            params[1]["noise"],
            memory.prompt,
            reader.text(memory),
            memory.length,
            chain,
            is_told,
            written.is_finished,
        )
        return memory, written._replace(score=score), cost

    return reader._replace(write=write)


def score_steps(
    decode: Callable[[Sequence[int]], str],
    depth: int,
    noise: Array,
    prompt: Array,
    tokens: Array,
    length: Array,
    chain: Array,
    is_told: Array,
    is_finished: Array,
) -> np.ndarray:
    """Return the noisy values [B W J K] of the steps that are told, on the host; 0 of the others.

    chain [B W J D]: the rows of their paths, `depth` of them before the step that is the first.
    """
    noise, prompt, tokens, length, chain, is_told, is_finished = map(
        np.asarray, (noise, prompt, tokens, length, chain, is_told, is_finished)
    )
    told = list(zip(*np.nonzero(is_told), strict=True))

    def text(b: int, rows: np.ndarray) -> str:
        return decode([i for row in rows[rows >= 0] for i in tokens[b, row, : length[b, row]]])

    score = np.zeros(is_told.shape, np.float32)
    score[is_told] = values(
        [decode(prompt[b].tolist()) for b, *_ in told],
        [text(b, chain[b, w, j, : depth + k + 1]) for b, w, j, k in told],
        [bool(x) for x in is_finished[is_told]],
        Noise(*noise.tolist()),
    )
    return score


def _value(prompt: str, response: str, is_finished: bool, noise: Noise) -> float:
    value = exact_value(prompt, response, is_finished)
    num_moves = len(read_prompt(prompt)[0]) - 1
    depth = noise.depth(len(_lines(response)), num_moves, is_finished)
    sigma = getattr(noise, depth) if depth else 0.0
    return value + sigma * standard_noise(noise.seed, prompt, response) if sigma else value


def _lines(response: str) -> list[str]:
    return response.removesuffix("\n").split("\n") if response else []


def _random_lines(numbers: tuple[int, ...], rng: random.Random) -> list[str]:
    lines = []
    while len(numbers) > 1:
        move = rng.choice(legal_moves(numbers))
        lines.append(write_move(move))
        numbers = move.remaining
    return lines
