"""The config of search: a method, its budget, and a section for each method beside its code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from jaxtrain.errors import Count, NotNegative, Section, Share, one_of
from jaxtrain.search import frontier_rules, prior_rules
from jaxtrain.search.frontier import FrontierRule
from jaxtrain.search.mcts_star import MctsStarConfig, make_mcts_star
from jaxtrain.search.rows import PriorConfig
from jaxtrain.search.tree_rule import TreeRule

# Each makes its method's rule, for traces of D steps.
RULES: dict[str, Callable[["SearchConfig", int], TreeRule | FrontierRule]] = {
    "mcts_star": lambda c, max_steps: make_mcts_star(c.mcts_star, max_steps),
    "sample": lambda c, max_steps: frontier_rules.make_sample(c.num_samples, max_steps),
    "beam": lambda c, max_steps: frontier_rules.make_beam(c.beam, c.num_candidates, max_steps),
    "puct": lambda c, _: prior_rules.make_puct(c.puct, c.prior),
    "gumbel": lambda c, _: prior_rules.make_gumbel(c.gumbel, c.prior, c.num_simulations),
    "best_first": lambda c, _: frontier_rules.make_best_first(
        c.best_first, c.num_candidates, c.num_simulations
    ),
    "dvts": lambda c, max_steps: frontier_rules.make_dvts(c.dvts, c.num_candidates, max_steps),
    "dfs": lambda c, _: frontier_rules.make_dfs(c.dfs, c.num_candidates, c.num_simulations),
}


@dataclass(frozen=True)
class WideningConfig(Section, at="search.widening"):
    """Whether a node of a tree search draws further candidates, and when."""

    # that a node may have; None: it has num_candidates, and no more are drawn
    max_candidates: Count | None = None
    num_more: Count = 1  # drawn at once
    # a node of n visits has at least num_candidates * n^exponent; 0: more only when none is open
    exponent: Share = 0.0


@dataclass(frozen=True)
class SearchConfig(Section, at="search"):
    """A search method and its budget."""

    # mcts_star: Algorithm 2; puct, gumbel: tree search with the policy's prior; sample: independent
    # traces; beam: the best prefixes of every depth; dvts: the best of each of several subtrees;
    # best_first: the best prefixes anywhere; dfs: the deepest prefix, and back
    method: Annotated[str, one_of(*RULES)] = "mcts_star"
    # T: the prompt's expansion and T - 1 simulations; turns of best_first and dfs
    num_simulations: Count = 16
    num_candidates: Count = 4  # A: steps sampled behind a prefix (b in the paper)
    num_samples: Count = 16  # traces a problem, for the method `sample`
    # sampled tokens that are kept, at which a search ends, whatever else it has left; None: no such
    # budget, nor has `sample`, which is one turn
    num_tokens: Count | None = None
    temperature: NotNegative = 1.0  # of the policy while it searches
    # how steps behind a prefix are drawn: distinct: without replacement; independent: as in the
    # paper, where repeats are told apart and never searched
    candidates: Annotated[str, one_of("distinct", "independent")] = "distinct"
    # share of the policy's probability at which distinct steps behind a prefix are enough and no
    # more are drawn, by lanes that have not begun: what is unlikely misleads a PRM. At temperature
    # 0 one step is enough; 1: all are drawn, and always of independent ones
    top_p: Share = 1.0
    # leaves that have ended: closed: never selected again; revisited: as in the paper
    ended_leaves: Annotated[str, one_of("closed", "revisited")] = "closed"
    # l: the value at which a finished leaf decides its tree; None: the whole budget is spent
    end_threshold: Share | None = None
    # steps that a rule of the task calls false (a false sum, an illegal move): penalty: each costs
    # its path check_weight; filter: never searched, no answer, worth 0 to the PRM; off: no step is
    # checked. Asked on the host, so such a search is compiled anew at every start
    checks: Annotated[str, one_of("off", "penalty", "filter")] = "off"
    # taken off raw scores; above their range, what stands behind a false step is answered where
    # there is nothing else
    check_weight: NotNegative = 1.0
    widening: WideningConfig = WideningConfig()
    mcts_star: MctsStarConfig = MctsStarConfig()
    puct: prior_rules.PuctConfig = prior_rules.PuctConfig()
    gumbel: prior_rules.GumbelConfig = prior_rules.GumbelConfig()
    prior: PriorConfig = PriorConfig()
    beam: frontier_rules.BeamConfig = frontier_rules.BeamConfig()
    dvts: frontier_rules.DvtsConfig = frontier_rules.DvtsConfig()
    best_first: frontier_rules.BestFirstConfig = frontier_rules.BestFirstConfig()
    dfs: frontier_rules.DfsConfig = frontier_rules.DfsConfig()
    # cached: keys and values of a step are kept; recompute: a prefix is read anew, in less memory
    memory: Annotated[str, one_of("cached", "recompute")] = "cached"
    # trees that a device grows at once, the next when one ends; None: all of a batch
    num_trees: Count | None = None
    # lanes that write behind a prefix; fewer than its candidates wait less; None: one each
    num_lanes: Count | None = None
    chunk_tokens: Count = 16  # tokens that lanes write before they are given something else

    def check(self) -> None:
        is_met, why = self.max_candidates >= self.num_candidates, "is below search.num_candidates"
        self.require(is_met, "widening.max_candidates", why)
        is_met = self.checks != "penalty" or self.check_weight > 0
        self.require(is_met, "check_weight", "costs nothing; raise it, or take checks=off")

    @property
    def chunk(self) -> int | None:
        """Tokens of a chunk where keys and values are kept, None where they are not.

        Whole traces that begin side by side are written in one go: nothing is gone on from.
        """
        is_whole = self.method == "sample" and self.num_lanes is None
        return None if is_whole or self.memory == "recompute" else self.chunk_tokens

    @property
    def max_candidates(self) -> int:
        """How many candidates a node may have."""
        return self.widening.max_candidates or self.num_candidates
