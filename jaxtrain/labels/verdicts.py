"""The task's word on finished traces."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxtrain import trees
from jaxtrain.structs import Tree, Verdict

VerifyFn = Callable[[int, np.ndarray], Verdict | bool]

_log = logging.getLogger(__name__)


def judge(tree: Tree, verify_fn: VerifyFn) -> np.ndarray:
    """Ask for a verdict on every finished trace of a batch of trees.

    `verify_fn(problem_id, tokens)` gets the response, the terminators included; it is called once
    for each different text of a problem. Where it raises, or returns neither a verdict on a
    finished trace nor a bool, that is `Verdict.ERROR`. Where all of several texts end so, the
    verifier is at fault, and the first error is raised. Returns `[B R]` int32, a `Verdict`; NONE
    for rows that are unfinished, empty or duplicates, for padding problems and for trees set aside.
    """
    tree = jax.device_get(tree)
    verdict = np.full(tree.parent.shape, Verdict.NONE, np.int32)
    # Every finished trace, and its text.
    problem, row = np.nonzero(trees.is_usable(tree) & tree.is_finished)
    tokens, length, _ = trees.sequences(tree, problem, trees.row_paths(tree.parent, problem, row))
    known: dict[tuple[int, bytes], Verdict] = {}
    failures: list[Exception] = []
    # A text is judged once, however often it was found.
    for k, (b, r) in enumerate(zip(problem, row, strict=True)):
        problem_id, response = int(tree.problem_id[b]), tokens[k, : length[k]]
        key = problem_id, response.tobytes()
        if key not in known:
            known[key] = ask(verify_fn, problem_id, response, failures)
        verdict[b, r] = known[key]
    # Did the answers fail, or the verifier?
    if len(failures) == len(known) > 1:
        raise failures[0]
    if failures:
        first = f"{failures[0]!r}, {failures[0].__notes__[-1]}"
        _log.warning("the verifier failed on %d answers; the first: %s", len(failures), first)
    return verdict


def ask(verify_fn: Callable, problem_id: int, text: Any, failures: list[Exception]) -> Verdict:
    """Ask for a verdict on one answer: ERROR where that fails, and one failure more."""
    try:
        verdict = verify_fn(problem_id, text)
        if isinstance(verdict, bool | np.bool_):
            return Verdict.CORRECT if verdict else Verdict.WRONG
        if not isinstance(verdict, Verdict) or verdict is Verdict.NONE:
            raise TypeError(f"{verdict!r} is no verdict on a finished trace")
        return verdict
    # an answer is hostile input: what it does to a verifier must not end the run
    except Exception as error:
        error.add_note(f"while judging an answer to problem {problem_id}")
        failures.append(error)
        return Verdict.ERROR
