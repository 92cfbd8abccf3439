"""All texts of a problem in one row: what they share from their beginnings is read once.

Sorted, texts are a tree in preorder: each goes on from the one before where they part. A token that
several texts learn has the sum of their weights, so a loss that is a mean over tokens is that of
the same texts in rows of their own.
"""

import numpy as np

from jaxtrain.structs import Examples, TokenRows


def pack(examples: Examples, width: int, balance_outcomes: bool = False) -> Examples:
    """Lay rows of one text each together, by problem, into rows of `width` columns.

    width is no less than the longest text; where a problem's texts need more, they take several
    rows. balance_outcomes: texts that end correct weigh together as much as all others, which is
    what batches of half of each show on the mean; a row holds both. Texts may stand in any order.
    """
    rows, held = examples.rows, place(examples, width)
    tokens, position, until = np.zeros((3, len(held), width), np.int32)
    target, weight = np.zeros((2, len(held), width), np.float32)
    group = np.full(tokens.shape, -1, np.int32)

    # What a text counts, if both kinds are there.
    count = np.bincount(examples.is_correct, minlength=2)
    is_balanced = balance_outcomes and count.all()
    share = count.sum() / (2 * count[examples.is_correct.astype(int)]) if is_balanced else None

    # Text by text; the later one of a row reaches as far or further.
    for row, texts in enumerate(held):
        for k, columns in texts:
            at, own = (row, columns), slice(len(columns))
            tokens[at], position[at] = rows.tokens[k, own], rows.position[k, own]
            until[at] = columns[-1] + 1
            counted = rows.weight[k, own] * (1 if share is None else share[k])
            weight[at] += counted
            target[at] += counted * rows.target[k, own]
            group[at] = np.maximum(group[at], rows.group[k, own])
    target = np.divide(target, weight, out=target, where=weight > 0)

    # What a row is of, told by its texts.
    numbers = [[k for k, _ in texts] for texts in held]
    return Examples(
        rows=TokenRows(tokens, position, until, target, weight, group),
        problem_id=np.array([examples.problem_id[k[0]] for k in numbers], np.int32),
        iteration=np.array([examples.iteration[k].max() for k in numbers], np.int32),
        is_correct=np.array([examples.is_correct[k].any() for k in numbers], bool),
    )


def place(examples: Examples, width: int) -> list[list[tuple[int, np.ndarray]]]:
    """Say which texts each packed row holds, and in which columns their tokens stand."""
    length = np.count_nonzero(examples.rows.until, axis=1)
    texts = [row[:n] for row, n in zip(examples.rows.tokens, length, strict=True)]
    held, before, columns, size = [], -1, np.zeros(0, int), 0
    for k in sorted(range(len(texts)), key=lambda k: (examples.problem_id[k], texts[k].tolist())):
        # What it shares with the text before it stands there already.
        num_shared = 0
        if held and examples.problem_id[k] == examples.problem_id[before]:
            both = min(length[k], length[before])
            num_shared = int(np.cumprod(texts[k][:both] == texts[before][:both]).sum())
        if not num_shared or size + length[k] - num_shared > width:
            held.append([])
            num_shared = size = 0
        own = np.arange(size, size + length[k] - num_shared)
        columns, before, size = np.concatenate([columns[:num_shared], own]), k, size + len(own)
        held[-1].append((k, columns))
    return held
