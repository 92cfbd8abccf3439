"""What the evaluation measured: accuracy against compute, method by method, and what the PRM knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxtrain.intervals import mean_interval
from jaxtrain.report.charts import Point, Series, line_chart, log_ticks
from jaxtrain.report.markup import (
    NONE,
    Row,
    format_number,
    get_row,
    interval,
    is_number,
    iteration_name,
    number,
    table,
)

Gain = tuple[float, float, float]  # a difference of accuracies, and its interval

# Key, name, colour class. An oracle picks by the gold answer, which no method can: an upper bound,
# not a rival.
METHODS = (
    ("greedy", "greedy", "c0"),
    ("self_consistency", "self-consistency", "c1"),
    ("best_of_k", "best-of-k", "c2"),
    ("weighted_vote", "weighted vote", "c3"),
    ("mcts", "MCTS", "c4"),
    ("pass_at_k", "pass@k (oracle)", "c5"),
)
ORACLE = "pass_at_k"
# Key, name, style, and whether it comes with _low and _high.
PRM_ROWS = (
    ("auroc", "AUROC of finished leaves", "decimal", True),
    ("auroc_within", "AUROC within a problem", "decimal", True),
    ("squared_error", "squared error of the PRM", "decimal", True),
    ("squared_error_constant", "&emsp;of a constant", "decimal", False),
    ("squared_error_depth", "&emsp;of the depth alone", "decimal", False),
    ("skill_constant", "better than the constant by", "signed", True),
    ("skill_depth", "better than the depth by", "signed", True),
    ("within", "within 0.1 of the target", "percent", False),
    ("within_constant", "&emsp;a constant", "percent", False),
    ("within_depth", "&emsp;the depth alone", "percent", False),
    ("num_leaves", "finished leaves", "count", False),
    ("num_steps", "labelled steps", "count", False),
    ("num_trees", "trees", "count", False),
    ("num_mixed", "trees with both outcomes", "count", False),
    ("samples/auroc", "AUROC of independent samples", "decimal", True),
    ("samples/auroc_within", "&emsp;within a problem", "decimal", True),
    ("samples/num_leaves", "&emsp;finished samples", "count", False),
    ("samples/num_mixed", "&emsp;problems with both outcomes", "count", False),
)


def tell_accuracy(row: Row) -> str:
    """Return a line for the terminal: an iteration's accuracies as far as measured, no oracle's."""
    found = [
        f"{name} {row[f'evaluation/{key}/accuracy']:.1%}"
        for key, name, _ in METHODS
        if key != ORACLE and _has(row, key)
    ]
    if found:
        found.append(f"{row['evaluation/greedy/num_problems']:,} problems")
    return f"iteration {row['iteration']}: {' | '.join(found) or 'no problem was scored'}"


def paired(ours: Sequence[int] | None, theirs: Sequence[int] | None) -> Gain | None:
    """Return the difference of two accuracies and its 95 % interval, bootstrapped over problems.

    `ours` and `theirs` are outcomes, 1 or 0 a problem; None where they cannot be paired.
    """
    if not ours or not theirs or len(ours) != len(theirs) or len(ours) < 2:
        return None
    difference = np.subtract(ours, theirs)
    return float(difference.mean()), *mean_interval(difference, np.arange(len(difference)))


def is_beyond_noise(gain: Gain) -> bool:
    """Return whether the interval leaves 0 out."""
    _, low, high = gain
    return low > 0 or high < 0


def tell_difference(gain: Gain) -> str:
    """Return "+4.4 points (+2.3 to +6.7)", and that it is noise where the interval holds 0."""
    difference, low, high = (format_number(value, "points") for value in gain)
    told = f"<b>{difference} points</b> ({low} to {high})"
    return told if is_beyond_noise(gain) else f"{told}: no difference beyond noise"


def render_accuracy(history: list[Row]) -> str:
    """Return the accuracy table (methods by iterations) and its two figures."""
    scored = [
        row for row in history if any(f"evaluation/{key}/accuracy" in row for key, _, _ in METHODS)
    ]
    if not scored:
        return "<section><h2>Accuracy</h2><p>No iteration has been scored yet.</p></section>"
    body = [
        [_swatch(name, colour), *(_accuracy_cell(row, key) for row in scored)]
        for key, name, colour in METHODS
        if any(f"evaluation/{key}/accuracy" in row for row in scored)
    ]
    last = scored[-1]
    return f"""<section>
<h2>Accuracy</h2>
<p>On problems that nobody trained on, the same for every method. Below each accuracy: its 95% interval (Wilson), the
number of problems, and the mean tokens per problem, policy and PRM together. The oracle picks by the gold answer: a
bound, not a rival.</p>
{table(["", *map(iteration_name, scored)], body, "wide")}
{_best(last)}
<div class="pair">
<div><h3>By iteration</h3>{_by_iteration(scored)}</div>
<div><h3>Against tokens, iteration {last["iteration"]}</h3>{_by_tokens(last)}</div>
</div>
</section>"""


def _swatch(name: str, colour: str) -> str:
    return f'<i class="dot {colour}"></i>{name}'


def _accuracy_cell(row: Row, method: str) -> str:
    key = f"evaluation/{method}"
    if not is_number(row.get(f"{key}/accuracy")):
        return NONE
    costs = [
        f"n {number(row, f'{key}/num_problems', 'count')}",
        f"{number(row, f'{key}/tokens', 'count')} tokens",
    ]
    if f"{key}/k" in row:
        costs.insert(0, f"k {number(row, f'{key}/k', 'count')}")
    spread = interval(row, f"{key}/low", f"{key}/high", "percent")
    accuracy = number(row, f"{key}/accuracy", "percent")
    return f"<b>{accuracy}</b><small>{spread}</small><small>{' &middot; '.join(costs)}</small>"


def _best(row: Row) -> str:
    """Say which method is best at equal tokens, and by how much on the same problems."""
    names = {key: name for key, name, _ in METHODS if key != ORACLE}
    solved = {key: row.get(f"evaluation/{key}/outcomes") for key in names}
    solved = {key: outcomes for key, outcomes in solved.items() if outcomes}
    rivals = [key for key in solved if key != "greedy"]  # it costs less than they
    if len(rivals) < 2 or "mcts" not in rivals:  # whose tokens the others are given
        return ""

    # The differences from the best.
    best = max(rivals, key=lambda key: np.mean(solved[key]))
    gains = {key: paired(solved[best], solved[key]) for key in solved if key != best}
    gains = {key: gain for key, gain in gains.items() if gain}
    told = "".join(f"<li>{names[key]}: {tell_difference(gains[key])}</li>" for key in gains)

    # The sentence claims no more than the intervals.
    is_clear = all(key in gains and is_beyond_noise(gains[key]) for key in rivals if key != best)
    is_short = any(row.get(f"evaluation/{key}/is_budget_short") for key in rivals)
    tokens = "tokens that are not all equal (see the notices)" if is_short else "equal tokens"
    claim = "Best at" if is_clear else "No method is best beyond noise; the highest at"
    accuracy = number(row, f"evaluation/{best}/accuracy", "percent")
    spread = interval(row, f"evaluation/{best}/low", f"evaluation/{best}/high", "percent")
    in_tree = number(row, "evaluation/mcts/in_tree", "percent")
    return f"""<p>{claim} {tokens}, iteration {row["iteration"]}: <b>{names[best]}, {accuracy}</b>
({spread}).
On the same problems, with 95% intervals, it stands above the others by</p>
<ul>{told}</ul>
<p>Of MCTS's trees {in_tree} hold a correct answer anywhere.</p>"""


def _by_iteration(scored: list[Row]) -> str:
    series = [
        Series(
            name,
            colour,
            [_point(row, key, name) for row in scored if _has(row, key)],
            is_dashed=key == ORACLE,
        )
        for key, name, colour in METHODS
    ]
    step = 1 + len(scored) // 12
    ticks = [(float(row["iteration"]), str(row["iteration"])) for row in scored[::step]]
    return line_chart(series, ticks, "iteration", "accuracy")


def _by_tokens(row: Row) -> str:
    series = []
    for key, name, colour in METHODS:
        curve = row.get(f"evaluation/{key}/curve")
        if curve:
            points = [
                _curve_point(name, *item) for item in curve if None not in item and item[0] > 0
            ]
        else:
            has_cost = _has(row, key) and (row.get(f"evaluation/{key}/tokens") or 0) > 0
            points = [_point(row, key, name, row[f"evaluation/{key}/tokens"])] if has_cost else []
        series.append(Series(name, colour, points, is_dashed=key == ORACLE))
    tokens = [point.x for line in series for point in line.points]
    if not tokens:
        return "<p>No tokens were counted.</p>"
    ticks = log_ticks(min(tokens), max(tokens))
    return line_chart(
        series, ticks, "tokens per problem, policy and PRM", "accuracy", is_log_x=True
    )


def _has(row: Row, method: str) -> bool:
    return is_number(row.get(f"evaluation/{method}/accuracy"))


def _point(row: Row, method: str, name: str, x: float | None = None) -> Point:
    key = f"evaluation/{method}"
    accuracy = row[f"{key}/accuracy"]
    low, high = (row.get(f"{key}/{end}") for end in ("low", "high"))
    low, high = (accuracy if low is None else low), (accuracy if high is None else high)
    label = f"{name}, iteration {row['iteration']}: {accuracy:.1%} ({low:.1%} to {high:.1%})"
    return Point(row["iteration"] if x is None else x, accuracy, low, high, label)


def _curve_point(
    name: str, tokens: float, accuracy: float, low: float, high: float, k: float
) -> Point:
    label = f"{name}, k = {k:g}, {tokens:,.0f} tokens: {accuracy:.1%} ({low:.1%} to {high:.1%})"
    return Point(tokens, accuracy, low, high, label)


def render_prm(history: list[Row]) -> str:
    """Return the PRM table, and the calibration of the last iteration that has one as table and
    figure.
    """
    rated = [row for row in history if any(key.startswith("evaluation/prm/") for key in row)]
    if not rated:
        return ""
    body = [
        [name, *(_prm_cell(row, f"evaluation/prm/{key}", style, has_interval) for row in rated)]
        for key, name, style, has_interval in PRM_ROWS
        if any(f"evaluation/prm/{key}" in row for row in rated)
    ]
    return f"""<section>
<h2>Process reward model</h2>
<p>On held-out trees. AUROC: the chance that a correct finished leaf outscores a wrong one (0.5 knows nothing). The
constant and the depth alone are predictors that read no text; what the PRM does better than they is what it has
learnt. Intervals are 95%.</p>
{table(["", *map(iteration_name, rated)], body, "wide")}
{_calibration(get_row(rated, "evaluation/prm/calibration"))}
</section>"""


def _prm_cell(row: Row, key: str, style: str, has_interval: bool) -> str:
    spread = interval(row, f"{key}_low", f"{key}_high", style) if has_interval else ""
    return number(row, key, style) + (f"<small>{spread}</small>" if spread else "")


def _calibration(row: Row | None) -> str:
    if row is None:
        return ""
    bins = [item for item in row["evaluation/prm/calibration"] if item[2] and None not in item]
    body = [
        [f"{guess:.3f}", f"{target:.3f}", f"{guess - target:+.3f}", f"{count:,.0f}"]
        for guess, target, count in bins
    ]
    points = [
        Point(
            guess,
            target,
            target,
            target,
            f"predicted {guess:.3f}, target {target:.3f}, {count:,.0f} steps",
        )
        for guess, target, count in bins
    ]
    ideal = Series(
        "perfectly calibrated", "c5", [Point(x, x, x, x, "") for x in (0.0, 1.0)], is_dashed=True
    )
    ticks = [(tenth / 10, f"{tenth / 10:g}") for tenth in range(0, 11, 2)]
    chart = line_chart(
        [ideal, Series("PRM", "c4", points)],
        ticks,
        "mean prediction",
        "mean target",
        is_percent=False,
    )
    bin_table = table(["prediction", "target", "too high by", "steps"], body)
    return f"""<div class="pair">
<div><h3>Calibration, iteration {row["iteration"]}</h3>{bin_table}</div>
<div><h3>Prediction against target</h3>{chart}</div>
</div>"""
