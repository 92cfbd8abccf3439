"""The report: complete, self-contained, harmless, and equal to the metrics log."""

import json
import math
from html.parser import HTMLParser

import pytest

from jaxtrain.metrics import MetricsLog
from jaxtrain.report import render_report, write_report
from jaxtrain.report.charts import log_ticks
from jaxtrain.report.markup import escape

CONFIG = {"seed": 0, "tasks": {"name": "countdown"}, "loop": {"num_iterations": 3}}
MANIFEST = {"versions": {"python": "3.11.7", "jax": "0.10.2", "jaxtrain": None}, "devices": {"kind": "cpu", "count": 2}}
HOSTILE = "<script>alert(1)</script></pre><img src=x onerror=alert(2)>&\u202e\x00\ud800"
VOID = {"meta", "img", "br", "hr", "link", "input"}


def wilson(share, n):
    z = 1.96
    middle, root = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - root) / (1 + z * z / n), (middle + root) / (1 + z * z / n)


def method_metrics(method, accuracy, tokens, k=None, curve=()):
    low, high = wilson(accuracy, 512)
    metrics = {"accuracy": accuracy, "low": low, "high": high, "num_problems": 512, "tokens": tokens}
    if k is not None:
        metrics |= {"k": k, "curve": [[t, a, *wilson(a, 512), n] for t, a, n in curve]}
    return {f"evaluation/{method}/{key}": value for key, value in metrics.items()}


def evaluation_metrics(iteration):
    base = (0.0449, 0.2266, 0.2715, 0.3105)[iteration]
    metrics = method_metrics("greedy", base, 41.25)
    gains = {"self_consistency": 0.02, "best_of_k": 0.05, "weighted_vote": 0.055, "pass_at_k": 0.14}
    for method, gain in gains.items():
        curve = [(45.0 * k * 1.8 + 20, base + gain * math.log2(k) / 3, k) for k in (1, 2, 4, 8, 16)]
        metrics |= method_metrics(method, base + gain, curve[3][0], k=8, curve=curve)
    metrics |= method_metrics("mcts", base + 0.064, 712.5)
    metrics |= {
        "evaluation/num_too_long": 2,
        "evaluation/self_consistency/is_budget_short": 0,
        "evaluation/best_of_k/is_budget_short": 0,
    }
    for rival, gain in {"self_consistency": 0.044, "best_of_k": 0.014}.items():
        key = f"evaluation/mcts_minus_{rival}"
        metrics |= {key: gain, f"{key}_low": gain - 0.021, f"{key}_high": gain + 0.023}
    return metrics


def prm_metrics(iteration):
    auroc = (0.71, 0.76, 0.79, 0.812)[iteration]
    metrics = {
        "auroc": auroc,
        "auroc_low": auroc - 0.02,
        "auroc_high": auroc + 0.019,
        "num_leaves": 2210,
        "num_steps": 9114,
    }
    metrics |= {"squared_error": 0.071, "squared_error_low": 0.067, "squared_error_high": 0.075}
    metrics |= {"squared_error_constant": 0.118, "squared_error_depth": 0.092}
    metrics |= {"skill_constant": 0.047, "skill_constant_low": 0.041, "skill_constant_high": 0.053}
    metrics |= {"skill_depth": 0.021, "skill_depth_low": 0.016, "skill_depth_high": 0.026}
    metrics |= {"within": 0.412, "within_constant": 0.118, "within_depth": 0.204}
    metrics["calibration"] = [[0.05 + i / 10, min(0.03 + i / 10.4, 1.0), 1500 - 90 * i] for i in range(10)]
    return {f"evaluation/prm/{key}": value for key, value in metrics.items()}


def make_rows():
    """A plausible quickstart: a warm start and three iterations, three events each."""
    rows = []
    for i in range(4):
        counts = {"prompts/num_drawn": 512, "prompts/num_too_long": 3, "tasks/num_duplicates": 1}
        counts |= {"search/num_trees": 512, "search/num_set_aside": 0, "search/share_useful_lanes": 0.614}
        counts |= {"search/num_simulations": 8192, "search/num_wasted": 412, "search/num_duplicates": 2210}
        counts |= {"labels/num_correct": 801 + 300 * i, "labels/num_wrong": 2912, "labels/num_unparsable": 77}
        counts |= {"labels/num_trees_without_correct_leaf": 288 - 40 * i, "labels/num_errors": 0}
        counts |= {"datasets/num_traces": 604 + 90 * i, "datasets/num_traces_dropped": 197, "datasets/num_paths": 3100}
        counts |= {"datasets/value_histogram": [2210, 340, 512, 640, 700, 910, 720, 760, 810, 1333]}
        rows.append({"iteration": i} | counts)
        updates = {"updates/policy/loss": 0.61 - 0.05 * i, "updates/policy/num_skipped": 0}
        updates |= {"updates/policy/num_updates": 600, "updates/policy/is_skipped_fit": 0}
        updates |= {"updates/prm/num_updates": 300, "updates/prm/is_skipped_fit": 0}
        rows.append({"iteration": i} | updates)
        times = {
            "time/search": 31.5 + i,
            "time/labels": 1.25,
            "time/updates": 44.0,
            "time/evaluation": 21.5,
            "time/compile": 12.0,
        }
        rows.append({"iteration": i} | evaluation_metrics(i) | prm_metrics(i) | times)
    rows[1]["updates/policy/num_skipped"] = 2
    rows[4] |= {"updates/prm/num_updates": 0, "updates/prm/is_skipped_fit": 1}
    return rows


def make_samples():
    right = [("6*4=24|7 24", 0.42, 0.55, 0.5), ("24+7=31|31", 0.91, 0.96, 1.0)]
    wrong = [("7-6=1|4 1", 0.31, 0.22, 0.25), ("4*1=4|4", 0.12, None, 0.0)]
    traces = []
    for i in range(10):
        steps = [dict(zip(("text", "score", "value", "target"), step, strict=True)) for step in (right, wrong)[i % 2]]
        verdict = ("correct", "wrong")[i % 2]
        problem = f"reach {31 + i} from 4 6 7"
        traces.append({"problem": problem, "gold": str(31 + i), "steps": steps, "verdict": verdict, "method": "mcts"})
    traces[1]["problem"] = HOSTILE
    traces[1]["steps"][0]["text"] = "x" * 5000
    traces[2]["verdict"] = "unparsable"
    return traces


class Page(HTMLParser):
    """Reads a page back: its numbers, tags and attributes; fails where a tag is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.numbers, self.tags, self.attributes, self.text = [], [], [], ""
        self._open = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "data":
            found = dict(attrs)
            self.numbers.append((int(found["data-iteration"] or -1), found["data-key"], found["value"]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page():
    return Page(render_report(CONFIG, make_rows(), make_samples(), MANIFEST))


def test_numbers_equal_those_of_the_metrics_file(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.truncate(-1)
        for row in make_rows():
            log.append(row["iteration"], {key: value for key, value in row.items() if key != "iteration"})
        write_report(tmp_path / "report.html", CONFIG, log.read(), make_samples())
    logged = {}
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        logged |= {(row["iteration"], key): value for key, value in row.items()}
    shown = Page((tmp_path / "report.html").read_text("utf-8")).numbers
    assert len(shown) > 300
    for iteration, key, value in shown:
        assert float(value) == logged[iteration, key]
    numeric = {place for place, value in logged.items() if isinstance(value, int | float) and place[1] != "iteration"}
    hidden = {key for _, key in numeric - {(iteration, key) for iteration, key, _ in shown}}
    assert {key for key in hidden if not key.endswith("/is_budget_short")} <= {
        f"evaluation/mcts_minus_{rival}{end}"
        for rival in ("self_consistency", "best_of_k")
        for end in ("", "_low", "_high")
    }  # shown for the last iteration only


def test_accuracy_is_shown_with_interval_problems_and_tokens(page):
    text = " ".join(page.text.split())
    low, high = wilson(0.3105, 512)
    assert f"31.1%{low:.1%} to {high:.1%}n 512 \u00b7 41 tokens" in text
    assert "pass@k (oracle)" in text
    assert "MCTS minus self-consistency: +4.4 points (+2.3 to +6.7)" in text


def test_header_says_how_far_the_run_is(page):
    assert "Self-training on countdown" in page.text
    assert "iteration 3 of 3" in page.text
    assert "2 x cpu" in page.text and "jax 0.10.2" in page.text
    seconds = sum(31.5 + i + 1.25 + 44.0 + 21.5 + 12.0 for i in range(4))
    assert f"{seconds // 60:.0f} min {seconds % 60:.0f} s accounted for" in page.text


def test_notices_name_what_went_wrong_and_only_that():
    rows = make_rows()
    rows.append({"iteration": 3, "updates/policy/grad_norm": None, "evaluation/best_of_k/is_budget_short": 1})
    rows.append({"iteration": 2, "evaluation/num_errors": 5})
    rows.append({"iteration": 2, "labels/num_set_aside": 7, "tasks/notice": "path.jsonl:3 is not JSON"})
    text = render_report(CONFIG, rows, [])
    notices = Page(text[text.index('<section class="notices">') : text.index('<section class="tiles">')]).text
    assert "updates: the prm had no data, its fit was skipped" in notices
    assert "updates/policy/num_skipped: 2" in notices
    assert "updates/policy/grad_norm was not finite" in notices
    assert "labels/num_set_aside: 7" in notices
    assert "evaluation/num_errors: 5" in notices
    assert "tasks: path.jsonl:3 is not JSON" in notices
    assert "all samples of best-of-k together cost over 5% less" in notices
    assert notices.count("Iteration ") == 7
    clean = [{"iteration": 0, "updates/policy/num_skipped": 0, "updates/prm_squared_error": 0.5}]
    assert "Notices" not in render_report(CONFIG, clean, [])


def test_page_is_self_contained_and_cannot_run_anything(page):
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert not [value for name, value in page.attributes if name != "content" and "url(" in (value or "")]


def test_hostile_text_is_shown_as_text_everywhere():
    rows = [{"iteration": 0, f"search/{HOSTILE}": 1, "updates/notice": HOSTILE, "prompts/num": 1}]
    steps = [{"text": HOSTILE, "score": 0.5, "value": None, "target": 2.0}]
    sample = {"problem": HOSTILE, "gold": HOSTILE, "verdict": HOSTILE, "method": HOSTILE, "steps": steps}
    config = {"tasks": {"name": HOSTILE}, "seed": HOSTILE, "loop": {"num_iterations": 1}}
    text = render_report(
        config, rows, [sample], {"versions": {HOSTILE: HOSTILE}, "devices": {"count": 1, "kind": HOSTILE}}
    )
    page = Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("<script>alert(1)</script></pre><img src=x onerror=alert(2)>&\\u202e\\x00\\ud800") >= 8
    text.encode("utf-8")


def test_long_text_is_cut_and_says_so(page):
    assert "x" * 4000 + " and 1,000 more characters" in page.text


def test_any_metric_may_be_missing():
    rows = make_rows()
    render_report({}, [], [])
    holes = {"datasets/value_histogram": [], "evaluation/prm/calibration": [[None, 0.5, 3]]}
    holes |= {"evaluation/best_of_k/accuracy": 0.5, "evaluation/best_of_k/curve": [[100, None, None, None, 1]]}
    Page(render_report(CONFIG, [{"iteration": 0} | holes], []))
    Page(render_report({}, [{"iteration": 0}], [{}, {"steps": [{}]}]))
    for key in {key for row in rows for key in row if key != "iteration"}:
        without = [{name: value for name, value in row.items() if name != key} for row in rows]
        Page(render_report(CONFIG, without, []))
        Page(render_report(CONFIG, [row if key not in row else row | {key: None} for row in rows], []))
        Page(render_report(CONFIG, [{"iteration": 1, key: row[key]} for row in rows if key in row], []))


def test_samples_show_verdict_score_and_gold(page):
    assert page.tags.count("article") == 10
    text = " ".join(page.text.split())
    assert "correct mcts reach 31 from 4 6 7 gold answer 31" in text
    assert "24+7=31|31 0.9100.9601.000" in text


def test_charts_keep_every_point_inside(page):
    rows = make_rows()
    rows[-1] |= method_metrics("greedy", 1.0, 1.0) | method_metrics("mcts", 0.0, 3e6)
    extreme = Page(render_report(CONFIG, rows, []))
    for attributes in (page.attributes, extreme.attributes):
        xs = [float(value) for name, value in attributes if name in ("cx", "x1", "x2")]
        ys = [float(value) for name, value in attributes if name in ("cy", "y1", "y2")]
        assert len(xs) > 50
        assert all(0 <= x <= 520 for x in xs)
        assert all(0 <= y <= 320 for y in ys)


@pytest.mark.parametrize(
    "low, high, labels",
    [(41, 1460, ["20", "50", "100", "200", "500", "1k", "2k"]), (100, 100, ["100"]), (1, 5, ["1", "2", "5"])],
)
def test_log_ticks_bracket_the_range(low, high, labels):
    assert [label for _, label in log_ticks(low, high)] == labels


def test_escape_keeps_newlines_and_plain_unicode():
    assert escape("a\nb \u00e9 \u2264 <c>") == "a\nb \u00e9 \u2264 &lt;c&gt;"
