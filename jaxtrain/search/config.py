"""The config of search: a method, its budget, and a section for each method beside its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtrain.errors import require_at_least, require_one_of, require_share
from jaxtrain.search.beam import BeamConfig, make_beam
from jaxtrain.search.frontier import FrontierRule, make_sample
from jaxtrain.search.mcts_star import MctsStarConfig, make_mcts_star
from jaxtrain.search.tree_loop import TreeRule

# Each makes its method's rule, for traces of D steps.
RULES: dict[str, Callable[[SearchConfig, int], TreeRule | FrontierRule]] = {
    "mcts_star": lambda c, max_steps: make_mcts_star(c.mcts_star, max_steps),
    "sample": lambda c, max_steps: make_sample(c.num_samples, max_steps),
    "beam": lambda c, _: make_beam(c.beam, c.num_candidates),
}


@dataclass(frozen=True)
class SearchConfig:
    """A search method and its budget."""

    # mcts_star: Algorithm 2; sample: independent traces; beam: the best prefixes of every depth
    method: str = "mcts_star"
    num_simulations: int = 16  # T: the root's expansion and T - 1 simulations
    num_candidates: int = 4  # A: steps sampled behind a prefix (b in the paper)
    num_samples: int = 16  # traces a problem, for the method `sample`
    temperature: float = 1.0  # of the policy while it searches
    # l: the value at which a finished leaf decides its tree; None: the whole budget is spent
    end_threshold: float | None = None
    mcts_star: MctsStarConfig = field(default_factory=MctsStarConfig)
    beam: BeamConfig = field(default_factory=BeamConfig)

    def __post_init__(self):
        require_one_of("search", self, method=tuple(RULES))
        require_at_least(1, "search", self, "num_simulations", "num_candidates", "num_samples")
        require_at_least(0, "search", self, "temperature")
        require_share("search", self, "end_threshold")
