"""MCTS* (Algorithm 2 of ReST-MCTS*) over a toy world, in plain Python: what the search on the
accelerator must equal. The settings say what differs from the paper: candidates that are distinct,
ended leaves that are closed, nodes that widen, a budget of tokens.

No array library and no shared code on purpose, so a mistake there cannot hide here. One tree at a
time, nodes are objects, arithmetic is Python's 64-bit float. The accelerator computes in 32-bit, so
a decision between two numbers closer than its rounding could fall either way: `Search.closest`
remembers the narrowest such decision, and a comparison leaves out the trees where it is below
`ROUNDING`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads small integers before they are mixed
LIKELY = 0x5BD1E995  # tells the hash of a log-probability from that of a score
# 0 is a token like any other: only lengths tell where a step ends
NEWLINE, END, FIRST_WORD = 0, 1, 2
ROUNDING = 4e-6  # some 30 float32 roundings of a number near 1
NUM_NUMBERS, NUM_TRIES = 64, 12  # candidates behind a prefix at most, and numbers tried for each


@dataclass(frozen=True)
class Step:
    """A step as the world draws it."""

    tokens: tuple[int, ...]
    is_finished: bool
    is_cut: bool


class World(Protocol):
    """What a search may ask; both answers depend on tokens alone."""

    def draw(self, prefix: tuple[int, ...], candidate: int) -> Step: ...

    def score(self, prefix: tuple[int, ...]) -> float: ...

    def form(self, tokens: tuple[int, ...]) -> tuple[int, ...]: ...


def mix(value: int) -> int:
    """Return the 32-bit finalizer of MurmurHash3."""
    value ^= value >> 16
    value = value * 0x85EBCA6B & MASK
    value ^= value >> 13
    value = value * 0xC2B2AE35 & MASK
    return value ^ value >> 16


def fingerprint(tokens: Sequence[int]) -> int:
    """Return a hash of tokens and their places; a sum, so that a step is added to a prefix without
    reading it again.
    """
    return (
        sum(mix((token + GOLDEN * (place + 1)) & MASK) for place, token in enumerate(tokens)) & MASK
    )


def log_prob(prefix: Sequence[int]) -> float:
    """Return the log-probability of the last step of a prefix: a multiple of 1/8 in [-4, 0]."""
    return -(mix(fingerprint(prefix) ^ LIKELY) >> 8 & 31) / 8


@dataclass(frozen=True)
class HashWorld:
    """A world without a plan: steps and scores are hashes of what stands before them.

    A small vocabulary makes duplicate siblings common, a coarse score grid makes ties common.
    """

    max_step_tokens: int = 3
    num_words: int = 2  # different tokens inside a step
    finished_of_16: int = 3  # share of steps that end with the end token
    cut_of_16: int = 1  # share of steps that the step limit cuts
    # scores are multiples of 1 / grid; at most 2^24, so that float32 holds them exactly
    grid: int = 64
    overshoot: float = 0.0  # how far raw scores reach below 0 and above 1, as a linear head's do
    commutes: bool = False  # steps are the same where their tokens are, in whatever order

    def draw(self, prefix: tuple[int, ...], candidate: int) -> Step:
        """Return candidate step number `candidate` of a prefix."""
        bits = mix((fingerprint(prefix) + GOLDEN * (candidate + 1)) & MASK)
        lot = bits % 16
        words = tuple(
            FIRST_WORD + (bits >> (8 + 2 * i)) % self.num_words for i in range(self.max_step_tokens)
        )
        if self.finished_of_16 <= lot < self.finished_of_16 + self.cut_of_16:
            return Step(words, is_finished=False, is_cut=True)
        is_finished = lot < self.finished_of_16
        num_words = (bits >> 4) % self.max_step_tokens
        return Step(
            (*words[:num_words], END if is_finished else NEWLINE), is_finished, is_cut=False
        )

    def score(self, prefix: tuple[int, ...]) -> float:
        """Return the raw score of a prefix."""
        share = (mix(fingerprint(prefix) ^ GOLDEN) >> 8) % (self.grid + 1) / self.grid
        return share * (1 + 2 * self.overshoot) - self.overshoot

    def form(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return what steps that are the same share."""
        return tuple(sorted(tokens)) if self.commutes else tokens


@dataclass(frozen=True)
class TableWorld:
    """A world written by hand: prefix -> its candidates, each a letter, a score and "", "finished"
    or "cut".
    """

    # a step is one letter, its token the letter's code
    table: dict[str, list[tuple[str, float, str]]]

    def draw(self, prefix: tuple[int, ...], candidate: int) -> Step:
        """Return candidate step number `candidate` of a prefix that the table knows."""
        letter, _, ending = self.table[spell(prefix)][candidate]
        return Step((ord(letter),), ending == "finished", ending == "cut")

    def score(self, prefix: tuple[int, ...]) -> float:
        """Return the score beside a prefix's last letter."""
        word = spell(prefix)
        return next(score for letter, score, _ in self.table[word[:-1]] if letter == word[-1])

    def form(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return tokens


def spell(tokens: Sequence[int]) -> str:
    """Return the word that tokens stand for."""
    return "".join(map(chr, tokens))


@dataclass
class Node:
    """A prefix with its statistics; the root has no step and no parent."""

    prefix: tuple[int, ...]
    depth: int
    parent: Node | None = None
    tokens: tuple[int, ...] = ()
    score: float = 0.0  # raw: candidates are ranked by it
    log_prob: float = 0.0
    value: float = 0.0  # in [0, 1]
    visits: int = 0
    is_ended: bool = False
    is_finished: bool = False
    is_duplicate: bool = False
    is_closed: bool = False  # never selected: it has ended, or nothing is open below it
    is_exhausted: bool = False  # it has no further step
    number: int = 0  # among its siblings
    children: list[Node] = field(default_factory=list)  # empty: not expanded
    # steps drawn from here by a rollout, never searched
    rollout: list[Node] = field(default_factory=list)


# a node, those of its children that may be selected, the settings -> what selection compares
BoundsFn = Callable[[Node, list[Node], Any], list[float]]


@dataclass
class Search:
    """A search that has run; its `settings` had the field names of the configs of search."""

    root: Node
    chosen: Node | None  # the leaf that decided the tree; None: the budget ran out
    num_simulations: int
    num_wasted: int
    num_exhausted: int
    num_tokens: int  # of all steps
    num_read: int  # tokens, a prefix anew whenever lanes begin behind it
    closest: float  # the narrowest decision that rounding could turn


def run(
    world: World, prompt: Sequence[int], settings: Any, bounds_of: BoundsFn | None = None
) -> Search:
    """Grow one tree: T iterations, of which the root's expansion is the first.

    Selection takes the child of the highest bound, by `bounds_of` another than that of the paper.
    """
    root = Node(tuple(prompt), depth=0)
    search = Search(root, None, 0, 0, 0, 0, 0, math.inf)
    while search.num_simulations < settings.num_simulations:
        if settings.num_tokens is not None and search.num_tokens >= settings.num_tokens:
            break
        if root.children and not is_open(root, settings):
            break
        leaf, is_widened = select(search, settings, bounds_of or upper_bounds)
        if settings.end_threshold is not None and leaf.is_finished:
            note(search, abs(leaf.value - settings.end_threshold), is_exact=is_dyadic(leaf.value))
            if leaf.value >= settings.end_threshold:
                search.chosen = leaf
                break
        search.num_simulations += 1
        if leaf.is_ended:
            search.num_wasted += 1
            leaf.visits += 1
            back_up(leaf.parent)
            continue
        num_more = settings.num_more if is_widened else settings.num_candidates
        new = expand(search, world, leaf, num_more, settings)
        if settings.num_rollout_steps > 0 and not is_widened:
            roll_out(search, world, best(leaf.children), settings)
        for child in new:
            if child.is_ended and not child.is_duplicate and settings.ended_leaves == "closed":
                child.is_closed, child.visits = True, max(child.visits, 1)
        back_up(leaf)
        if settings.ended_leaves == "closed":
            close(leaf, settings)
    return search


def close(node: Node | None, settings: Any) -> None:
    """Close the nodes from a node up to the first below which something is open."""
    while node is not None and not is_open(node, settings):
        node.is_closed = True
        node = node.parent


def is_open(node: Node, settings: Any) -> bool:
    """Tell whether a node that was expanded has something to select."""
    return can_widen(node, settings) or any(map(is_selectable, node.children))


def is_selectable(child: Node) -> bool:
    """Tell whether a candidate may be selected."""
    return not child.is_duplicate and not child.is_closed


def can_widen(node: Node, settings: Any) -> bool:
    """Tell whether a node may draw further candidates."""
    most = settings.max_candidates
    return most is not None and len(node.children) < most and not node.is_exhausted


def select(search: Search, settings: Any, bounds_of: BoundsFn) -> tuple[Node, bool]:
    """Walk from the root to a node that is not expanded, by the highest bound, or to one that
    widens: it has no open candidate, or fewer than its visits ask for.
    """
    node = search.root
    while node.children:
        valid = [child for child in node.children if is_selectable(child)]
        if can_widen(node, settings):
            least = settings.num_candidates * node.visits**settings.exponent
            note(search, abs(len(node.children) - least), is_exact=least == settings.num_candidates)
            if not valid or len(node.children) < least:
                return node, True
        bounds = bounds_of(node, valid, settings)
        winner = bounds.index(max(bounds))
        best = valid[winner]
        for child, bound in zip(valid, bounds, strict=True):
            if child is not best:
                is_twin = (child.visits, child.value, bound) == (
                    best.visits,
                    best.value,
                    bounds[winner],
                )
                is_exact = (
                    is_dyadic(child.value)
                    if is_twin
                    else is_dyadic(bound) and is_dyadic(bounds[winner])
                )
                note(search, bounds[winner] - bound, is_exact)
        node = best
    return node, False


def upper_bounds(node: Node, valid: list[Node], settings: Any) -> list[float]:
    """Return the upper confidence bounds of children (Eq. 33); an unvisited one has a fixed bonus
    for an infinite one.
    """
    return [
        child.value + settings.exploration * math.sqrt(math.log(node.visits) / child.visits)
        if child.visits
        else child.value + settings.unvisited_bonus
        for child in valid
    ]


def note(search: Search, gap: float, is_exact: bool) -> None:
    """Remember a narrow decision, unless both sides are numbers that float32 computes without
    rounding.
    """
    if not is_exact:
        search.closest = min(search.closest, gap)


def is_dyadic(value: float) -> bool:
    """Tell whether a value of a coarse grid is still exact: no mean over three has touched it."""
    return value * 4096 == int(value * 4096)


def expand(search: Search, world: World, node: Node, num_more: int, settings: Any) -> list[Node]:
    """Draw the first or further candidates of a node, and return the new ones.

    Lanes begin behind what they find. A step that is the same as another one is marked; where steps
    are to be distinct, it is drawn again, and no lane says what stands there when it begins. But a
    twin, not the same word for word, is drawn again once, and one that has ended is left alone.
    """
    is_distinct, limit = settings.candidates == "distinct", lane_limit(settings)
    width = settings.max_candidates or settings.num_candidates
    num_lanes = min(settings.num_lanes or settings.num_candidates, limit)
    there, round_of = {child.number: child for child in node.children}, {}
    wanted = list(range(len(there), min(len(there) + num_more, width)))
    new, is_short = set(wanted), False

    for attempt in range(1 + limit * is_distinct):
        for first in range(0, len(wanted), num_lanes):
            said = {child.tokens for child in there.values()} if is_distinct else set()
            part = wanted[first : first + num_lanes]
            drawn = [step_of(world, node, n, n + attempt * limit, said, settings) for n in part]
            steps = [child for child in drawn if child is not None]
            search.num_read += len(node.prefix) + sum(len(child.tokens) for child in steps)
            is_short |= len(steps) < len(part)
            there |= {child.number: child for child in steps}
            round_of |= dict.fromkeys(part, attempt)
        # The newer ones of those that are the same.
        repeats = newer(there, round_of, tuple)
        twins = [
            n for n in newer(there, round_of, world.form) if n in repeats or not there[n].is_ended
        ]
        is_short |= attempt == limit and bool(repeats)
        again = [n for n in twins if attempt == 0 and n not in repeats]
        again += repeats if attempt < limit else []
        wanted = sorted(again) if is_distinct else []
        for number in set(twins) - set(wanted):
            there[number].is_duplicate = True
        there = {n: child for n, child in there.items() if n not in wanted}

    if is_distinct and is_short:
        node.is_exhausted = True
        search.num_exhausted += 1
    node.children = [there[number] for number in sorted(there)]
    fresh = [child for child in node.children if child.number in new]
    search.num_tokens += sum(len(child.tokens) for child in fresh)
    return fresh


def lane_limit(settings: Any) -> int:
    """Return how many steps are drawn behind a prefix at most, candidates or those of a rollout."""
    width = settings.max_candidates or settings.num_candidates
    return max(width, settings.num_rollout_candidates)


def step_of(
    world: World, node: Node, number: int, draw: int, said: set[tuple[int, ...]], settings: Any
) -> Node | None:
    """Sample a step behind a node that is not said there, and score it; None: there was none."""
    for attempt in range(NUM_TRIES):
        step = world.draw(node.prefix, draw + NUM_NUMBERS * attempt)
        if step.tokens not in said:
            child = Node(node.prefix + step.tokens, node.depth + 1, node, step.tokens)
            child.number, child.score = number, world.score(child.prefix)
            child.log_prob = log_prob(child.prefix)
            child.value = min(max(child.score, 0.0), 1.0)
            child.is_finished = step.is_finished
            child.is_ended = step.is_finished or step.is_cut or child.depth == settings.max_steps
            return child
    return None


def newer(there: dict[int, Node], round_of: dict[int, int], form: Callable) -> list[int]:
    """Number the candidates that are the same as an older one, a lower number the older."""
    firsts: dict[tuple[int, ...], int] = {}
    those = [n for n in sorted(there) if not there[n].is_duplicate]
    for n in sorted(those, key=lambda n: (round_of.get(n, 0), n)):
        firsts.setdefault(form(there[n].tokens), n)
    return [n for n in those if n != firsts[form(there[n].tokens)]]


def best(nodes: list[Node]) -> Node:
    """Return the best-scored node, the first of equals; `max` keeps the first."""
    return max((node for node in nodes if not node.is_duplicate), key=lambda node: node.score)


def roll_out(search: Search, world: World, start: Node, settings: Any) -> None:
    """Follow the best of `d` draws for up to `m` steps, blend what was seen into the start (Eq.

    34) and visit it. Where d is 1, one lane writes all steps.
    """
    num_draws = settings.num_rollout_candidates
    num_lanes = min(settings.num_lanes or settings.num_candidates, lane_limit(settings))
    num_writes = -(-num_draws // num_lanes)
    highest = start.value if start.is_finished or settings.rollout_floor == "self" else 0.0
    node = start
    for _ in range(settings.num_rollout_steps):
        if node.is_ended:
            break
        steps = [step_of(world, node, n, n, set(), settings) for n in range(num_draws)]
        node.rollout = [step for step in steps if step is not None]
        num_tokens = sum(len(step.tokens) for step in node.rollout)
        is_begun = num_draws > 1 or node is start
        search.num_tokens += num_tokens
        search.num_read += num_tokens + is_begun * num_writes * len(node.prefix)
        node = best(node.rollout)
        highest = max(highest, node.value)
    # alpha * own + (1 - alpha) * highest, in the form that leaves a value blended with itself
    # untouched.
    start.value = highest + settings.rollout_blend * (start.value - highest)
    start.visits += 1


def back_up(node: Node | None) -> None:
    """Count a visit from a node up to the root; each value becomes the mean of its visited children
    (Eq. 35-36).
    """
    while node is not None:
        node.visits += 1
        total = sum(child.visits for child in node.children)
        if total > 0:
            node.value = sum(child.visits * child.value for child in node.children) / total
        node = node.parent


def walk(node: Node, below: Callable[[Node], list[Node]]) -> Iterator[Node]:
    """Yield all nodes below a node, parents first."""
    for child in below(node):
        yield child
        yield from walk(child, below)


def num_closed(search: Search, settings: Any) -> int:
    """Count the nodes below which nothing is open."""
    nodes = [search.root, *candidates(search)]
    return sum(bool(node.children) and not is_open(node, settings) for node in nodes)


def candidates(search: Search) -> list[Node]:
    """List every step that an expansion drew."""
    return list(walk(search.root, lambda node: node.children))


def rollouts(search: Search) -> list[Node]:
    """List every step that a rollout drew."""
    starts = [node for node in candidates(search) if node.rollout]
    return [step for start in starts for step in walk(start, lambda node: node.rollout)]
