"""Stored trees, and walks over their rows, for every stage that reads one.

The rows of a `Tree` hold single steps; judging, training data and reports need what lies between
the prompt and a row. These are host functions of whole batches of rows.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxtrain.files import set_aside, write_atomic
from jaxtrain.structs import Array, CheckFn, Kind, Labels, Prompts, Tree

Stored = TypeVar("Stored", Tree, Labels)
TRAINING = "search"  # the purpose of trees that a search grew to learn from
LEARNT = (TRAINING, "hint")  # those of all trees that are learnt from


class Damaged(Exception):
    """Say in one line what is wrong with a file that was believed, and where it lies now."""


class Place(NamedTuple):
    """Which shard of trees."""

    iteration: int
    shard: int
    purpose: str = TRAINING


@dataclass(frozen=True)
class TreeFiles:
    """The trees of a run folder, a file for every shard, and their labels, a file for every kind.

    The format is public, for `numpy.load(path)`: an array per field of `structs.Tree` or
    `structs.Labels`, with its name, shape and dtype. The comment of the zip is a hash of the arrays
    and of what the shard is.
    """

    run: Path
    run_key: str  # what training trees depend on
    solve_key: str  # what the trees of evaluations depend on
    is_read_only: bool = False  # whether what is damaged stays where it is

    def path(self, place: Place, kind: str = "") -> Path:
        """Name a file: `trees/<iteration>/<purpose>-<shard>.npz`, or that of its labels of a kind,
        `labels/<iteration>/<purpose>-<shard>.<kind>.npz`.
        """
        folder, end = ("labels", f".{kind}") if kind else ("trees", "")
        name = f"{place.purpose}-{place.shard:05d}{end}.npz"
        return self.run / folder / str(place.iteration) / name

    def training(self) -> list[Place]:
        """List the shards of training trees that are there, in order."""
        paths = (self.run / "trees").glob(f"*/{TRAINING}-*.npz")
        named = [(path.parent.name, path.stem.rpartition("-")[2]) for path in paths]
        return sorted(Place(int(i), int(k)) for i, k in named if (i + k).isdecimal())

    def save(self, place: Place, tree: Tree) -> None:
        """Write one shard of finished trees."""
        self._write(self.path(place), tree, self._about(place))

    def load(self, place: Place) -> Tree | None:
        """Read a shard back as numpy arrays; None where it is absent.

        Raises Damaged where it is not what this run saved: it is set aside, to be grown again.
        """
        about = self._about(place)
        return self._read(self.path(place), Tree, about, "its trees are grown again")

    def save_labels(self, place: Place, tree: Tree, labels: Labels, kind: str) -> None:
        """Write what a shard of trees is worth by one kind of label."""
        self._write(self.path(place, kind), labels, self._about(place, tree, kind))

    def load_labels(self, place: Place, tree: Tree, kind: str) -> Labels | None:
        """Read the labels of a shard back, as `load` does; those of other trees are Damaged too."""
        about = self._about(place, tree, kind)
        return self._read(self.path(place, kind), Labels, about, "its trees are judged again")

    def _about(self, place: Place, tree: Tree | None = None, kind: str = "") -> str:
        """Say what a file is: labels are of one tree."""
        key = self.run_key if place.purpose in LEARNT else self.solve_key
        about = f"{key} {place.iteration} {place.shard} {place.purpose}"
        return about if tree is None else f"{about} {kind} {_digest(_arrays(tree), about)}"

    def _write(self, path: Path, value: Tree | Labels, about: str) -> None:
        buffer, arrays = io.BytesIO(), _arrays(value)
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        with zipfile.ZipFile(buffer, "a") as file:
            file.comment = _digest(arrays, about).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())

    def _read(self, path: Path, form: type[Stored], about: str, instead: str) -> Stored | None:
        if not path.exists():
            return None
        wrong = "is of another run or other settings, or was altered"
        try:
            data = io.BytesIO(path.read_bytes())
            digest = zipfile.ZipFile(data).comment
            with np.load(data, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            value = form(**arrays)
            if digest == _digest(arrays, about).encode():
                return value
        except Exception as error:  # a wrong byte surfaces as any of a dozen types
            wrong = f"cannot be read ({type(error).__name__})"
        if self.is_read_only:
            raise Damaged(f"{path} {wrong}")
        aside = set_aside(path, self.run).relative_to(self.run)
        raise Damaged(f"{path} {wrong}; it is set aside in {aside}, and {instead}")


def _arrays(value: Tree | Labels) -> dict[str, np.ndarray]:
    """Name the arrays of a file; what is None is none of them."""
    return {name: np.asarray(x) for name, x in vars(value).items() if x is not None}


def _digest(arrays: dict[str, np.ndarray], about: str) -> str:
    """Hash the arrays of a file and what it is."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def is_usable(tree: Tree) -> Array:
    """Mark the rows that may be labelled, `[B R]` bool: real steps, once, of good trees."""
    is_step = (tree.kind == Kind.CANDIDATE) | (tree.kind == Kind.ROLLOUT)
    return is_step & (tree.is_ok & (tree.problem_id >= 0))[:, None]


def is_false(tree: Tree) -> Array:
    """Mark the rows that a search filtered out as false, `[B R]` bool, likewise."""
    return (tree.kind == Kind.FALSE) & (tree.is_ok & (tree.problem_id >= 0))[:, None]


def row_paths(parent: Array, problem: np.ndarray, row: np.ndarray) -> np.ndarray:
    """List the rows from the first step down to each given row.

    parent `[B R]`, problem `[K]` and row `[K]` (indices into B and R). Returns `[K depth]` int32,
    the first step in column 0, -1 past the end.
    """
    parent, upwards, current = np.asarray(parent), [], np.asarray(row, np.int32)
    while (current >= 0).any():
        upwards.append(current)
        current = np.where(current >= 0, parent[problem, current], -1).astype(np.int32)
    if not upwards:
        return np.full((len(row), 0), -1, np.int32)
    rows = np.stack(upwards, axis=1)
    column = (rows >= 0).sum(axis=1)[:, None] - 1 - np.arange(rows.shape[1])
    return np.where(column >= 0, np.take_along_axis(rows, np.maximum(column, 0), axis=1), -1)


def count_false(
    check: CheckFn, problem_id: Array, parent: Array, tokens: Array, length: Array, is_asked: Array
) -> np.ndarray:
    """Count the steps that a check calls false on the path to each row, 0 unasked: `[B R]` int32.

    problem_id `[B]`, tokens `[B R S]`, the others `[B R]`, as in a Tree.
    """
    told = (problem_id, parent, tokens, length, is_asked)
    problem_id, parent, tokens, length, is_asked = map(np.asarray, told)
    found = np.zeros(is_asked.shape, np.int32)
    problem, row = np.nonzero(is_asked & (problem_id >= 0)[:, None])
    for b, r, path in zip(problem, row, row_paths(parent, problem, row), strict=True):
        steps = tuple(tokens[b, k, : length[b, k]].tobytes() for k in path if k >= 0)
        found[b, r] = check(int(problem_id[b]), steps)
    return found


def search_totals(grown: Sequence[Tree]) -> dict[str, Any]:
    """Count what a search cost and how much of it was of use."""
    if not grown:
        return {}
    # what the trees counted themselves
    names = ("num_simulations", "num_wasted", "policy_tokens", "prm_tokens", "lane_tokens")
    totals = {name: int(sum(getattr(t, name).sum() for t in grown)) for name in names}
    # what their rows are
    rows = {kind: sum(int((t.kind == kind).sum()) for t in grown) for kind in Kind}
    num_candidates = rows[Kind.CANDIDATE] + rows[Kind.DUPLICATE]
    num_steps = num_candidates + rows[Kind.ROLLOUT] + rows[Kind.FALSE]
    useful = sum(int(t.length.sum()) for t in grown)
    both = totals["policy_tokens"] + totals["prm_tokens"]
    return totals | {
        "num_steps": num_steps,
        "num_filtered": rows[Kind.FALSE],
        "num_duplicates": rows[Kind.DUPLICATE],
        "num_closed_nodes": sum(int(t.num_closed.sum()) for t in grown),
        "num_exhausted_nodes": sum(int(t.num_exhausted.sum()) for t in grown),
        "sampled_tokens": useful,
        "share_wasted_simulations": totals["num_wasted"] / max(totals["num_simulations"], 1),
        "share_useful_lanes": useful / max(totals["lane_tokens"], 1),
        "share_duplicates": rows[Kind.DUPLICATE] / max(num_candidates, 1),
        "policy_tokens_per_sampled": totals["policy_tokens"] / max(useful, 1),
        "tokens_per_sampled": both / max(useful, 1),
    }


def sequences(
    tree: Tree, problem: np.ndarray, rows: np.ndarray, prompts: Prompts | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concatenate the steps of paths, behind their prompts if these are given.

    problem `[K]`, rows `[K depth]` as `row_paths` gives them. Returns tokens `[K W]` int32 with
    zeros past the end, length `[K]` int32, and step_end `[K depth]` int32, the index of each step's
    last token; past the last step it repeats, so it can always be indexed with. W is the longest
    length.
    """
    all_tokens = np.asarray(tree.tokens)
    step_length = np.where(rows >= 0, np.asarray(tree.length)[problem[:, None], rows], 0)
    start = np.zeros(len(problem), np.int32)
    if prompts is not None:
        start = np.asarray(prompts.length)[problem]
    end = start[:, None] + np.cumsum(step_length, axis=1)
    length = end[:, -1] if rows.shape[1] else start
    tokens = np.zeros((len(problem), length.max(initial=0)), np.int32)
    if prompts is not None:
        _write(tokens, np.zeros_like(start), np.asarray(prompts.tokens)[problem], start)
    for depth in range(rows.shape[1]):
        steps = all_tokens[problem, rows[:, depth]]
        _write(tokens, end[:, depth] - step_length[:, depth], steps, step_length[:, depth])
    return tokens, length.astype(np.int32), (end - 1).astype(np.int32)


def _write(tokens: np.ndarray, start: np.ndarray, pieces: np.ndarray, length: np.ndarray) -> None:
    lane, position = np.nonzero(np.arange(pieces.shape[1]) < length[:, None])
    tokens[lane, start[lane] + position] = pieces[lane, position]
