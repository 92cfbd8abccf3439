"""Batches of rows: in one of `ORDERS`, balanced, of like length, of at most four widths."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import jax
import numpy as np

from jaxtrain.structs import Examples, TokenRows

POOL = 8  # batches that are grouped by length together
# (numbers of rows [n], all examples, rows that stand together, generator) -> the numbers, in order
OrderFn = Callable[[np.ndarray, Examples, int, np.random.Generator], np.ndarray]


def batches(
    examples: Examples,
    num_updates: int,
    batch_size: int,
    rng: np.random.Generator,
    balance_outcomes: bool = False,
    group_by_length: bool = False,
    order: str = "rows",
    num_together: int = 1,
) -> Iterator[TokenRows]:
    """Yield batches for a fixed number of updates; none if there are no rows.

    Rows are shuffled anew for every epoch; each comes once before any comes again. A batch is as
    wide as a quarter, a half, three quarters or all of L, whichever its longest row needs, so at
    most four programs are compiled.

    With balance_outcomes, half of each batch (the smaller half of an odd one) are rows that end
    correct and the rest are others, each kind shuffled by itself; if one kind is missing, or a
    batch is one row, all are shuffled together. With group_by_length, every POOL batches are sorted
    by length, split anew and shuffled, across the ends of epochs too; balanced halves are sorted
    each by itself. Neither is asked of another `order` than "rows", whose rows must stand beside
    others.
    """
    # The kinds of rows, and how many of a batch are of each.
    is_correct = examples.is_correct
    kinds, sizes = [np.arange(len(is_correct))], [batch_size]
    if order != "rows":
        balance_outcomes = group_by_length = False
    if balance_outcomes and batch_size > 1 and is_correct.any() and not is_correct.all():
        kinds = [np.flatnonzero(is_correct), np.flatnonzero(~is_correct)]
        sizes = [batch_size // 2, batch_size - batch_size // 2]
    # Each kind comes in an order of its own.
    streams = [
        _epochs(num_updates, size, partial(ORDERS[order], rows, examples, num_together, rng))
        for rows, size in zip(kinds, sizes, strict=True)
    ]
    length = (examples.rows.until > 0).sum(axis=1)
    for picked in _joined(streams, length if group_by_length else None, rng):
        yield _batch(examples.rows, picked, int(length[picked].max()))


def by_problem(
    rows: np.ndarray, examples: Examples, num_together: int, rng: np.random.Generator
) -> np.ndarray:
    """Put up to num_together rows of a problem side by side, and these bunches in any order.

    A problem's bunches are of like size, and hold like shares of what ends correct.
    """
    rows = rng.permutation(rows)
    problem, is_correct = examples.problem_id[rows], examples.is_correct[rows]
    # Both outcomes of a problem spread evenly over its rows.
    turn, count = _turns(2 * problem.astype(np.int64) + is_correct)
    spread = np.lexsort(((turn + 0.5) / count, problem))
    rows, problem = rows[spread], problem[spread]
    # Its rows cut into bunches.
    turn, count = _turns(problem)
    bunch = problem.astype(np.int64) * len(rows) + turn * -(-count // num_together) // count
    _, bunch = np.unique(bunch, return_inverse=True)
    return rows[np.argsort(rng.permutation(bunch.max(initial=-1) + 1)[bunch], kind="stable")]


ORDERS: dict[str, OrderFn] = {
    "rows": lambda rows, examples, num, rng: rng.permutation(rows),
    # rows 2k and 2k + 1 side by side
    "pairs": lambda rows, examples, num, rng: rng.permutation(rows.reshape(-1, 2)).reshape(-1),
    "problems": by_problem,
}


def _epochs(
    num_updates: int, batch_size: int, order_fn: Callable[[], np.ndarray]
) -> Iterator[np.ndarray]:
    waiting = np.zeros(0, int)
    for _ in range(num_updates):
        while len(waiting) < batch_size:
            epoch = order_fn()
            if not len(epoch):
                return
            waiting = np.concatenate([waiting, epoch])
        yield waiting[:batch_size]
        # What is left over begins the next batch.
        waiting = waiting[batch_size:]


def _joined(
    streams: Sequence[Iterator[np.ndarray]], length: np.ndarray | None, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Join the streams' parts to batches; with `length`, by row, of like length in every POOL.

    A row that a pool holds twice comes again behind the others: it must not stand beside itself.
    """
    joined = zip(*streams, strict=True)
    while pool := list(islice(joined, POOL)):
        # Sorted by length, the rows of a pool are dealt out anew, and its batches shuffled.
        order = np.arange(len(pool))
        if length is not None:
            rows = [np.concatenate(parts) for parts in zip(*pool, strict=True)]
            ordered = [row[np.lexsort((length[row], _turns(row)[0]))] for row in rows]
            pool = list(zip(*(np.split(row, len(pool)) for row in ordered), strict=True))
            order = rng.permutation(len(pool))
        yield from (np.concatenate(pool[k]) for k in order)


def _turns(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count for every entry how many before it are the same, and how many there are in all."""
    _, kind, count = np.unique(values, return_inverse=True, return_counts=True)
    by_kind = np.argsort(kind, kind="stable")
    turn = np.empty(len(values), int)
    turn[by_kind] = np.arange(len(values)) - (np.cumsum(count) - count)[kind[by_kind]]
    return turn, count[kind]


def _batch(rows: TokenRows, picked: np.ndarray, length: int) -> TokenRows:
    """Take rows without the quarters of columns that none reaches: most batches are far shorter."""
    quarter = -(-rows.tokens.shape[1] // 4)
    width = quarter * -(-length // quarter)
    return jax.tree.map(lambda x: x[picked, :width] if x.ndim == 2 else x[picked], rows)
