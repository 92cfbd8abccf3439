"""What a search does, before it is run: the plan's view of a method."""

from __future__ import annotations

from typing import NamedTuple

from jaxtrain.search.config import RULES, SearchConfig
from jaxtrain.search.frontier import FrontierRule


class Work(NamedTuple):
    """What a search does for one problem, at most."""

    num_prefixes: int  # that are opened
    num_rows: int  # steps that are sampled
    num_turns: int  # steps that are sampled one after another
    width: int  # prefixes that are open at once
    num_lanes: int  # steps sampled behind them at once
    num_held: int  # steps whose keys and values are held at once


def work_of(c: SearchConfig, max_steps: int) -> Work:
    """Count what a method does."""
    rule = RULES[c.method](c, max_steps)
    if isinstance(rule, FrontierRule):
        num_prefixes = 1 + rule.width * (rule.num_turns - 1)
        lanes = rule.width * rule.num_lanes
        # The prompt is every prefix of the first turn: read once, with the lanes of all.
        num_turns = rule.num_turns * rule.num_steps
        return Work(
            num_prefixes, lanes * num_turns, num_turns, rule.width, lanes, lanes * rule.num_steps
        )
    return Work(
        num_prefixes=c.num_simulations * (1 + rule.num_rounds),
        num_rows=c.num_simulations * (c.num_candidates + rule.num_extra_rows),
        num_turns=c.num_simulations * (1 + rule.num_rounds * rule.num_steps),
        width=1,
        num_lanes=c.num_candidates,
        num_held=max(c.num_candidates, rule.num_lanes * rule.num_steps),
    )
