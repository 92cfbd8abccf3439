"""What the evaluation measured: accuracy against compute, method by method, and what the PRM knows."""

from __future__ import annotations

from jaxtrain.report.charts import Point, Series, line_chart, log_ticks
from jaxtrain.report.markup import NONE, Row, get_row, interval, is_number, iteration_name, number, table

# Key, name, colour class. An oracle picks by the gold answer, which no method can: an upper bound, not a rival.
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


def render_accuracy(history: list[Row]) -> str:
    """Return the accuracy table (methods by iterations) and its two figures."""
    scored = [row for row in history if any(f"evaluation/{key}/accuracy" in row for key, _, _ in METHODS)]
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
{_differences(last)}
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
    costs = [f"n {number(row, f'{key}/num_problems', 'count')}", f"{number(row, f'{key}/tokens', 'count')} tokens"]
    if f"{key}/k" in row:
        costs.insert(0, f"k {number(row, f'{key}/k', 'count')}")
    spread = interval(row, f"{key}/low", f"{key}/high", "percent")
    accuracy = number(row, f"{key}/accuracy", "percent")
    return f"<b>{accuracy}</b><small>{spread}</small><small>{' &middot; '.join(costs)}</small>"


def _differences(row: Row) -> str:
    """Say how search compares with its rivals on the same problems at matched tokens, where that was measured."""
    sentences = []
    for method, name, _ in METHODS:
        key = f"evaluation/mcts_minus_{method}"
        if is_number(row.get(key)):
            spread = interval(row, f"{key}_low", f"{key}_high", "points")
            sentences.append(f"<li>MCTS minus {name}: <b>{number(row, key, 'points')} points</b> ({spread})</li>")
    if is_number(row.get("evaluation/mcts/in_tree")):
        share = number(row, "evaluation/mcts/in_tree", "percent")
        sentences.append(f"<li>a correct answer stands anywhere in MCTS's tree: <b>{share}</b> of the problems</li>")
    if not sentences:
        return ""
    head = f"Same problems, nearest equal mean tokens, iteration {row['iteration']}, 95% interval of the difference:"
    return f"<p>{head}</p><ul>{''.join(sentences)}</ul>"


def _by_iteration(scored: list[Row]) -> str:
    series = [
        Series(name, colour, [_point(row, key, name) for row in scored if _has(row, key)], is_dashed=key == ORACLE)
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
            points = [_curve_point(name, *item) for item in curve if None not in item and item[0] > 0]
        else:
            has_cost = _has(row, key) and (row.get(f"evaluation/{key}/tokens") or 0) > 0
            points = [_point(row, key, name, row[f"evaluation/{key}/tokens"])] if has_cost else []
        series.append(Series(name, colour, points, is_dashed=key == ORACLE))
    tokens = [point.x for line in series for point in line.points]
    if not tokens:
        return "<p>No tokens were counted.</p>"
    ticks = log_ticks(min(tokens), max(tokens))
    return line_chart(series, ticks, "tokens per problem, policy and PRM", "accuracy", is_log_x=True)


def _has(row: Row, method: str) -> bool:
    return is_number(row.get(f"evaluation/{method}/accuracy"))


def _point(row: Row, method: str, name: str, x: float | None = None) -> Point:
    key = f"evaluation/{method}"
    accuracy = row[f"{key}/accuracy"]
    low, high = (row.get(f"{key}/{end}") for end in ("low", "high"))
    low, high = (accuracy if low is None else low), (accuracy if high is None else high)
    label = f"{name}, iteration {row['iteration']}: {accuracy:.1%} ({low:.1%} to {high:.1%})"
    return Point(row["iteration"] if x is None else x, accuracy, low, high, label)


def _curve_point(name: str, tokens: float, accuracy: float, low: float, high: float, k: float) -> Point:
    label = f"{name}, k = {k:g}, {tokens:,.0f} tokens: {accuracy:.1%} ({low:.1%} to {high:.1%})"
    return Point(tokens, accuracy, low, high, label)


def render_prm(history: list[Row]) -> str:
    """Return the PRM table, and the calibration of the last iteration that has one as table and figure."""
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
        [f"{guess:.3f}", f"{target:.3f}", f"{guess - target:+.3f}", f"{count:,.0f}"] for guess, target, count in bins
    ]
    points = [
        Point(guess, target, target, target, f"predicted {guess:.3f}, target {target:.3f}, {count:,.0f} steps")
        for guess, target, count in bins
    ]
    ideal = Series("perfectly calibrated", "c5", [Point(x, x, x, x, "") for x in (0.0, 1.0)], is_dashed=True)
    ticks = [(tenth / 10, f"{tenth / 10:g}") for tenth in range(0, 11, 2)]
    chart = line_chart([ideal, Series("PRM", "c4", points)], ticks, "mean prediction", "mean target", is_percent=False)
    bin_table = table(["prediction", "target", "too high by", "steps"], body)
    return f"""<div class="pair">
<div><h3>Calibration, iteration {row["iteration"]}</h3>{bin_table}</div>
<div><h3>Prediction against target</h3>{chart}</div>
</div>"""
