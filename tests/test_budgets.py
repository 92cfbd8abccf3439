"""Every method at the same budgets: figures against sums by hand, and the command on a tiny run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_evaluation import make_tree

from jaxtrain.errors import UserError
from jaxtrain.evaluation import Answered
from jaxtrain.evaluation.budgets import (
    Lengths,
    compare,
    is_met,
    lengths,
    read_budgets,
    read_methods,
    require_one_sample,
    share_early,
)
from jaxtrain.intervals import mean_interval
from jaxtrain.main import main
from jaxtrain.report import methods as tables
from jaxtrain.search import SearchConfig
from jaxtrain.search.config import RULES, WideningConfig
from jaxtrain.search.frontier_rules import BestFirstConfig
from jaxtrain.search.mcts_star import MctsStarConfig
from jaxtrain.search.work import sized

CONFIG = """
from jaxtrain.configs.base import get_config as base

def get_config():
    c = base()
    c.tasks.countdown.max_number = 4
    c.tasks.countdown.max_target = 12
    c.tasks.num_dev = c.tasks.num_test = 8
    c.tasks.num_demonstrations = 80
    c.model.num_layers, c.model.width, c.model.mlp_width = 1, 16, 32
    c.trace.max_steps, c.trace.max_step_tokens = 2, 12
    c.prompts.batch_size = c.updates.policy.batch_size = c.updates.prm.batch_size = 8
    c.prompts.max_prompt_tokens = 12
    c.prompts.num_first_problems = 8
    c.search.num_simulations = c.search.num_candidates = 2
    c.evaluation.search.num_candidates = 2
    c.updates.policy.warm_start.num_updates = c.updates.prm.warm_start.num_updates = 2
    c.evaluation.num_problems = 8
    c.evaluation.strategies = ("greedy",)
    c.loop.num_iterations = 0
    return c
"""


def make_samples(num_problems=40, k=8):
    """Traces of ten tokens behind a prompt of five; the score knows something."""
    rng = np.random.default_rng(0)
    is_correct = rng.random((num_problems, k)) < 0.3
    tokens = np.tile(5 + 10 * np.arange(1, k + 1), (num_problems, 1))
    score = is_correct + rng.normal(size=is_correct.shape)
    return Answered(
        np.arange(num_problems),
        [["yes" if right else "no" for right in row] for row in is_correct],
        is_correct,
        score,
        score,
        tokens,
        tokens,
    )


def make_choice(solved, policy, prm):
    """A search that solved these problems, at so many tokens each."""
    num = len(solved)
    costs = np.full((num, 1), policy), np.full((num, 1), prm)
    zero = np.zeros((num, 1))
    return Answered(np.arange(num), [["a"]] * num, solved[:, None], zero, zero, *costs)


def test_a_search_stands_beside_best_of_k_of_as_many_tokens():
    samples = make_samples()
    solved = np.arange(40) % 3 == 0
    row = compare("puct", make_choice(solved, 30, 40), samples, 100, 0.5, 7.0)
    # 2 * (5 + 10 k) tokens: 70 pay for three traces, whatever the budget was
    best = np.argmax(samples.score[:, :3], axis=1)
    gain = solved.astype(float) - samples.is_correct[np.arange(40), best]
    assert (row["best_of_k"], row["minus_best_of_k"]) == (3, pytest.approx(gain.mean()))
    interval = row["minus_best_of_k_low"], row["minus_best_of_k_high"]
    assert interval == mean_interval(gain, np.arange(40))
    expected = {"tokens": 70, "policy_tokens": 30, "prm_tokens": 40, "flops": 490, "seconds": 0.5}
    assert {key: row[key] for key in expected} == expected
    assert (row["accuracy"], row["k"], row["budget"]) == (solved.mean(), None, 100)


def test_samples_pay_for_the_networks_that_they_use():
    samples = make_samples()
    vote = compare("self_consistency", samples, samples, 65, 0.85, 1.0)
    best = compare("best_of_k", samples, samples, 65, 0.85, 1.0)
    assert (vote["k"], vote["policy_tokens"], vote["prm_tokens"], vote["best_of_k"]) == (
        6,
        65,
        0,
        2,
    )
    assert (best["k"], best["policy_tokens"], best["prm_tokens"]) == (2, 25, 25)
    # the set's time by its share of the tokens: all eight traces are 85
    assert (vote["seconds"], best["seconds"]) == (pytest.approx(0.65), pytest.approx(0.25))
    assert "minus_best_of_k" not in best


def test_greedy_decoding_has_no_budget():
    samples = make_samples()
    row = compare("greedy", make_choice(np.ones(40, bool), 30, 40), samples, None, 0.5, 1.0)
    assert (row["budget"], row["k"], row["tokens"], row["prm_tokens"]) == (None, None, 30, 0)
    heads = dict(zip(tables.HEADS, tables.cells(row), strict=True))
    assert (heads["budget"], heads["tokens"], heads["ended early"]) == ("-", "30", "-")


def test_other_problems_are_an_error():
    samples, other = make_samples(), make_choice(np.ones(40, bool), 30, 40)
    with pytest.raises(AssertionError):
        compare("puct", Answered(other.problem_id + 1, *list(vars(other).values())[1:]), samples,
                100, 0.5, 1.0)  # fmt: skip


def test_one_problem_has_no_interval_and_is_still_json():
    samples = make_samples(1)
    row = compare("puct", make_choice(np.ones(1, bool), 30, 40), samples, 100, float("nan"), 1.0)
    assert (row["minus_best_of_k_low"], row["seconds"]) == (None, None)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert any("[?, ?]" in line for line in tables.lines([row]))


def test_lengths_are_means_over_what_was_drawn():
    # Two traces of 2 + 1 and 3 tokens, one of 2; the padding has none.
    first = [(-1, [1, 2], 0.1, False), (-1, [3, 4, 5], 0.9, True), (0, [6], 0.7, True)]
    tree = make_tree([first, [(-1, [1, 2], 0.1, True)], first], problem_id=np.array([4, 7, -1]))
    found = lengths(np.array([6, 9, 1]), tree)
    assert found == (7.5, 2.0, pytest.approx(8 / 3))
    # 2 * (7.5 + 8/3) is one sample; ten and a tenth more traces fit into twenty times as much
    require_one_sample(21, found, "--budgets", "on average")
    with pytest.raises(UserError, match="20 tokens do not pay for one sample, which costs 21 of"):
        require_one_sample(20, found, "--budgets", "on average")
    assert Lengths(10, 5, 20).num_samples(420, 2) == 12  # (1.1 * 210 - 10) / 20 = 11.05
    assert Lengths(10, 5, 20).sampled(420) == 200


def test_trees_that_ended_early_are_counted():
    tree = make_tree([[(-1, [1, 2], 0.1, True)], [(-1, [1], 0.1, True)], [(-1, [1], 0.1, True)]],
                     problem_id=np.array([1, 2, -1]))  # fmt: skip
    assert [share_early(tree, n) for n in (1, 2, 3, None)] == [0, 0.5, 1, None]
    row = compare("puct", make_choice(np.ones(40, bool), 5, 5), make_samples(), 1000, 1.0, 1.0)
    named = tables.cells(row | {"has_calculator": 1})[1]
    assert named == tables.cells(row)[1] + ", with a calculator"
    told = tables.cells(row | {"share_early": 0.62})
    assert (told[4], told[8]) == ("10 (1%)", "62%")
    # exhausted trees cannot spend more; others can
    cases = (
        (10, 0.62, True),
        (10, 0.0, False),
        (10, None, False),
        (1040, 0.0, True),
        (1060, 0.5, False),
    )
    for tokens, early, expected in cases:
        assert is_met(row | {"tokens": tokens, "share_early": early}) == expected


@pytest.mark.parametrize("method", sorted(RULES.keys() - {"sample"}))
def test_the_size_of_a_search_grows_with_its_tokens(method):
    base = SearchConfig(method, num_candidates=4, temperature=1.3)
    small, large = (sized(base, n, (5, 10), max_steps=2) for n in (200, 2000))
    assert (small.method, small.temperature, small.num_candidates) == (method, 1.3, 4)
    if method in ("beam", "dvts"):  # 4 candidates of ten tokens a place
        assert [getattr(c, method).width for c in (small, large)] == [5, 50]
        assert small.num_tokens is None
    else:  # twenty tokens an expansion and five of a rollout, half of one too many on average
        slack, late = (1 if method == "gumbel" else 2), (12 if method == "mcts_star" else 10)
        assert [c.num_tokens for c in (small, large)] == [200 - late, 2000 - late]
        assert [c.num_simulations for c in (small, large)] == [10 * slack, 100 * slack]


@pytest.mark.parametrize("method", sorted(RULES.keys() - {"sample"}))
def test_a_limit_is_a_turn_below_its_tokens(method):
    """Whatever a turn draws: the places of a frontier, a rollout, what a node widens by."""
    base = SearchConfig(
        method,
        num_candidates=4,
        best_first=BestFirstConfig(3),
        mcts_star=MctsStarConfig(num_rollout_steps=2, num_rollout_candidates=2),
        widening=WideningConfig(16, num_more=7),
    )
    made = sized(base, 1030, (5, 10), max_steps=3, is_limit=True)
    if method in ("beam", "dvts"):
        assert (getattr(made, method).width, made.num_tokens) == (25, None)
    else:
        turn = {"best_first": 60, "mcts_star": 40, "dfs": 20}.get(method, 35)
        assert made.num_tokens == 1030 - turn + 1


def test_gumbel_makes_all_simulations_of_its_halving_below_a_limit():
    """However long the steps are: a turn begins while the tokens are below what ends the search."""
    base = SearchConfig("gumbel", num_candidates=4)
    for limit, num in ((200, 10), (210, 10), (219.5, 10), (220, 11)):
        made = sized(base, limit, (5, 10), max_steps=3, is_limit=True)
        assert made.num_simulations == num
        assert (num - 1) * 20 < made.num_tokens <= limit - 20 + 1


def test_flags_are_read():
    assert read_budgets("4k,1K,1.5k,2m,512") == [512, 1000, 1500, 4000, 2_000_000]
    assert read_budgets("1.001k,1.1m") == [1001, 1_100_000]
    assert read_methods("puct,greedy,puct", RULES) == ["puct", "greedy"]


@pytest.fixture(scope="module")
def root(compile_cache, tmp_path_factory):
    root = tmp_path_factory.mktemp("budgets")
    (root / "tiny.py").write_text(CONFIG)
    how = ["--config", str(root / "tiny.py"), "--workdir", str(root / "run")]
    assert main(["jaxtrain", *how]) == 0
    return root


def test_a_tiny_run_is_compared_and_resumed(root, capsys):
    """Two methods at two budgets; the second start reads all trees and says the same."""
    to = root / "out"
    how = ["--workdir", str(root / "run"), "--to", str(to)]
    how += ["--methods", "self_consistency,mcts_star", "--budgets", "200,100"]
    assert main(["jaxtrain", "evaluate", *how]) == 0
    told, trees = capsys.readouterr().out, sorted(to.glob("methods/*/trees/0/*.npz"))
    found = json.loads((to / "methods.json").read_text())
    rows = found["rows"]
    names = [(row["budget"], row["method"]) for row in rows]
    expected = [(b, name) for b in (100, 200) for name in ("self_consistency", "mcts_star")]
    assert names == expected and all(row["num_problems"] == 8 for row in rows)
    for path in trees:  # of every method the same problems
        with np.load(path) as tree:
            assert len(set(tree["problem_id"].tolist())) == 8
    assert {row["minus_best_of_k"] for row in rows} <= {n / 8 for n in range(-8, 9)}
    # a row of the table for each, and the page shows the same
    for row in rows:
        text = tables.cells(row)[2]
        assert text in told and text in (to / "report.html").read_text()

    # Nothing is grown again, and seconds are those of the first start.
    written = [path.stat().st_mtime_ns for path in trees]
    assert main(["jaxtrain", "evaluate", *how]) == 0
    assert [path.stat().st_mtime_ns for path in trees] == written
    assert json.loads((to / "methods.json").read_text()) == found
    assert capsys.readouterr().out == told

    # Other budgets find the trees of both, and set none aside.
    assert main(["jaxtrain", "evaluate", *how[:-1], "100"]) == 0
    assert main(["jaxtrain", "evaluate", *how]) == 0
    assert [path.stat().st_mtime_ns for path in trees] == written
    assert not list(to.glob("**/damaged"))

    # With a calculator, every line says so.
    capsys.readouterr()
    how = [*how[:3], str(root / "other"), *how[4:-1], "100", "--config.trace.calculator=True"]
    assert main(["jaxtrain", "evaluate", *how]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("100 ")]
    assert len(lines) == 2 and all("with a calculator" in line for line in lines)
    rows = json.loads((root / "other" / "methods.json").read_text())["rows"]
    assert [row["has_calculator"] for row in rows] == [1, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "puct"], "--methods and --budgets go together"),
        (["--methods", "pukt", "--budgets", "1k"], "--methods: pukt is none; there are greedy,"),
        (["--methods", "sample", "--budgets", "1k"], "pass_at_k,mcts_star,beam,"),
        (["--methods", "puct", "--budgets", "1q"], "--budgets=1q: must be tokens a problem,"),
        (["--methods", "puct", "--budgets", "0"], "--budgets=0: must be tokens a problem,"),
        (["--methods", "puct", "--budgets", "9"], "--budgets: 9 tokens do not pay for one sample"),
    ],
)
def test_a_mistake_is_one_line(root, tmp_path, capsys, flags, message):
    how = ["--workdir", str(root / "run"), "--to", str(tmp_path / "out")]
    assert main(["jaxtrain", "evaluate", *how, *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
