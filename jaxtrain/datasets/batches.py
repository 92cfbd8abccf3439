"""Batches of training rows: shuffled, balanced, of like length, of at most four widths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import jax
import numpy as np

from jaxtrain.structs import Examples, TokenRows

POOL = 8  # batches that are grouped by length together


def batches(
    examples: Examples,
    num_updates: int,
    batch_size: int,
    rng: np.random.Generator,
    balance_outcomes: bool = False,
    group_by_length: bool = False,
) -> Iterator[TokenRows]:
    """Yield batches for a fixed number of updates; none if there are no rows.

    Rows are shuffled anew for every epoch; each comes once before any comes again. A batch is as
    wide as a quarter, a half, three quarters or all of L, whichever its longest row needs, so at
    most four programs are compiled.

    With balance_outcomes, half of each batch (the smaller half of an odd one) are rows that end
    correct and the rest are others, each kind shuffled by itself; if one kind is missing, all comes
    from the other. With group_by_length, every POOL batches are sorted by length, split anew and
    shuffled, across the ends of epochs too; balanced halves are sorted each by itself.
    """
    # The kinds of rows, and how many of a batch are of each.
    is_correct = examples.is_correct
    kinds, sizes = [np.arange(len(is_correct))], [batch_size]
    if balance_outcomes and is_correct.any() and not is_correct.all():
        kinds = [np.flatnonzero(is_correct), np.flatnonzero(~is_correct)]
        sizes = [batch_size // 2, batch_size - batch_size // 2]
    # Each kind comes in an order of its own.
    streams = [
        _epochs(rows, num_updates, size, rng) for rows, size in zip(kinds, sizes, strict=True)
    ]
    length = (examples.rows.segment > 0).sum(axis=1)
    for picked in _joined(streams, length if group_by_length else None, rng):
        yield _batch(examples.rows, picked, int(length[picked].max()))


def _epochs(
    rows: np.ndarray, num_updates: int, batch_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    waiting = rows[:0]
    for _ in range(num_updates if len(rows) else 0):
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(rows)])
        yield waiting[:batch_size]
        # What is left over begins the next batch.
        waiting = waiting[batch_size:]


def _joined(
    streams: Sequence[Iterator[np.ndarray]], length: np.ndarray | None, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Join the streams' parts to batches; with `length`, by row, every POOL batches hold rows of
    like length each.

    A row that a pool holds twice comes again behind the others: it must not stand beside itself.
    """
    joined = zip(*streams, strict=True)
    while pool := list(islice(joined, POOL)):
        # Sorted by length, the rows of a pool are dealt out anew, and its batches shuffled.
        order = np.arange(len(pool))
        if length is not None:
            rows = [np.concatenate(parts) for parts in zip(*pool, strict=True)]
            ordered = [row[np.lexsort((length[row], _turns(row)))] for row in rows]
            pool = list(zip(*(np.split(row, len(pool)) for row in ordered), strict=True))
            order = rng.permutation(len(pool))
        yield from (np.concatenate(pool[k]) for k in order)


def _turns(rows: np.ndarray) -> np.ndarray:
    """Count for every entry how many before it are the same."""
    return np.array([np.sum(rows[:k] == row) for k, row in enumerate(rows)])


def _batch(rows: TokenRows, picked: np.ndarray, length: int) -> TokenRows:
    """Take rows without the columns that none of them reaches, by quarters: L is for the longest,
    most batches are far shorter.
    """
    quarter = -(-rows.tokens.shape[1] // 4)
    width = quarter * -(-length // quarter)
    return jax.tree.map(lambda x: x[picked, :width] if x.ndim == 2 else x[picked], rows)
