"""What a search does, before it is run: the plan's view of a method, and how large it must be."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxtrain.search.config import RULES, SearchConfig
from jaxtrain.search.frontier import FrontierRule


class Work(NamedTuple):
    """What a search does for one problem, at most."""

    num_prefixes: int  # that are opened
    num_rows: int  # steps that are sampled
    num_first: int  # of them, in the first turn
    num_turns: int  # steps that are sampled one after another
    width: int  # prefixes that are open at once
    num_lanes: int  # lanes that write behind them at once
    depth: int  # steps of a prefix, at most
    num_steps: int  # that a lane writes in one go, at most


def work_of(c: SearchConfig, max_steps: int) -> Work:
    """Count what a method does."""
    rule = RULES[c.method](c, max_steps)
    if isinstance(rule, FrontierRule):
        num_prefixes = 1 + rule.width * (rule.num_turns - 1)
        num_lanes = rule.num_writers(c.num_lanes)
        waves = -(-rule.num_lanes // num_lanes)
        return Work(
            num_prefixes=num_prefixes,
            # the prompt is every prefix of the first turn
            num_rows=rule.width * rule.num_turns * rule.num_lanes * rule.num_steps,
            num_first=rule.width * rule.num_lanes,
            num_turns=rule.num_turns * rule.num_steps * waves,
            width=rule.width,
            num_lanes=rule.width * num_lanes,
            depth=max_steps - rule.num_steps,
            num_steps=rule.num_steps,
        )
    num_lanes = rule.num_writers(c.num_lanes or c.num_candidates, c.max_candidates)
    waves = -(-c.num_candidates // num_lanes)
    return Work(
        num_prefixes=c.num_simulations * (1 + rule.num_rounds),
        num_rows=c.num_simulations * (c.max_candidates + rule.num_extra_rows),
        num_first=c.max_candidates + rule.num_extra_rows,
        num_turns=c.num_simulations * (waves + rule.num_rounds * rule.num_steps),
        width=1,
        num_lanes=num_lanes,
        depth=max_steps - 1,
        num_steps=max(1, rule.num_steps),
    )


def born(c: SearchConfig, max_steps: int) -> np.ndarray:
    """Say in which expansion each row of a Tree was drawn, [R] int, and of a search without a tree
    policy in which turn. Where a node widens, this is the expansion that made the node.
    """
    rule = RULES[c.method](c, max_steps)
    if isinstance(rule, FrontierRule):
        size = rule.num_steps * rule.width * rule.num_lanes
        return np.arange(rule.num_turns).repeat(size)
    nodes = np.arange(c.num_simulations)
    return np.concatenate([nodes.repeat(c.max_candidates), nodes.repeat(rule.num_extra_rows)])


def sized(
    c: SearchConfig,
    num_tokens: float,
    lengths: tuple[float, float],
    max_steps: int,
    is_limit: bool = False,
) -> SearchConfig:
    """Size a search for sampled tokens a problem, where steps and traces have such lengths: on
    average, or as a limit, which the steps that are kept never pass where it pays for one turn.
    """
    turn = tokens_of_turn(c, lengths, max_steps)
    # What ends with the depth is as wide as the tokens allow: cut short, it would have no answer.
    if c.method in ("beam", "dvts"):
        width = int(num_tokens // turn) if is_limit else round(num_tokens / turn)
        wide = {c.method: replace(getattr(c, c.method), width=max(1, width))}
        return replace(c, num_tokens=None, **wide)

    # The others end by tokens, at most a turn too late, on average half of one. Problems of short
    # steps take more simulations, and some draw less than a turn may; those of gumbel's halving
    # must be as many as there are. Below a limit the last turn begins that still fits.
    is_tree = not isinstance(RULES[c.method](c, max_steps), FrontierRule)
    num_drawn = c.widening.num_more if c.widening.max_candidates else c.num_candidates
    drawn = num_drawn * lengths[0] if is_tree else turn
    whole, slack = math.floor if is_limit else math.ceil, 1 if c.method == "gumbel" else 2
    end = math.floor(num_tokens - turn) + 1 if is_limit else round(num_tokens - turn / 2)
    return replace(
        c,
        num_tokens=max(1, end),
        num_simulations=max(1, whole(slack * num_tokens / drawn)),
    )


def tokens_of_turn(c: SearchConfig, lengths: tuple[float, float], max_steps: int) -> float:
    """Count what a search samples, at most, before it looks at its tokens again: in a turn, or of a
    search that ends with the depth in each of its places.
    """
    (step, trace), rule = lengths, RULES[c.method](c, max_steps)
    if c.method in ("beam", "dvts"):
        return c.num_candidates * trace
    if isinstance(rule, FrontierRule):
        return rule.width * rule.num_lanes * step
    num_more = c.widening.num_more if c.widening.max_candidates else 0
    return max(c.num_candidates + rule.num_extra_rows, num_more) * step
