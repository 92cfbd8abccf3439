"""The report: complete, self-contained, harmless, and equal to the metrics log."""

import json
import math
import re
import shutil
from dataclasses import asdict
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from solver import solutions

from jaxtrain import intervals
from jaxtrain import iteration as iteration_lib
from jaxtrain.boundaries import TraceConfig
from jaxtrain.build import Functions
from jaxtrain.config import Config, EvaluationConfig, LoopConfig
from jaxtrain.evaluation import STRATEGIES, TREES
from jaxtrain.main import main
from jaxtrain.metrics import MetricsLog
from jaxtrain.progress import Progress
from jaxtrain.prompts import PromptsConfig
from jaxtrain.report import (
    PAGES,
    SCRIPT,
    SCRIPT_HASH,
    accounts,
    compare,
    render_comparison,
    render_report,
)
from jaxtrain.report.accounts import explain, tell_nothing_learnt
from jaxtrain.report.charts import HEIGHT, WIDTH, log_ticks
from jaxtrain.report.compare import Side
from jaxtrain.report.scores import paired, tell_accuracy
from jaxtrain.report.values import merge, visible
from jaxtrain.search import SearchConfig
from jaxtrain.structs import Kind, Learner, State, Tree
from jaxtrain.tasks import TasksConfig, digest, make_task
from jaxtrain.tasks.countdown import CountdownConfig
from jaxtrain.tasks.jsonl import REASONS
from jaxtrain.updates import FitConfig, PolicyConfig, PrmConfig, UpdatesConfig
from jaxtrain.workdir import open_workdir

CONFIG = {"seed": 0, "tasks": {"name": "countdown"}, "loop": {"num_iterations": 3}}
MANIFEST = {
    "versions": {"python": "3.11.7", "jax": "0.10.2", "jaxtrain": None},
    "devices": {"kind": "cpu", "count": 2},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "starts": ["2026-11-01T08:30:00+00:00", "2026-11-02T09:00:00+00:00"],
    "command": "python -m jaxtrain.main --config configs/a.py --config.tasks.name='count down'",
}
COMMAND = "python -m jaxtrain.main --config configs/quickstart.py"
HOSTILE = "<script>alert(1)</script></pre><img src=x onerror=alert(2)>&\u202e\x00\ud800"
VOID = {"meta", "img", "br", "hr", "link", "input"}


def wilson(share, n):
    z = 1.96
    middle, root = (
        share + z * z / (2 * n),
        z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)),
    )
    return (middle - root) / (1 + z * z / n), (middle + root) / (1 + z * z / n)


def method_metrics(method, accuracy, tokens, k=None, curve=()):
    low, high = wilson(accuracy, 512)
    metrics = {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "num_problems": 512,
        "tokens": tokens,
    }
    metrics["outcomes"] = [int(i < round(20 * accuracy)) for i in range(20)]
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
    metrics |= method_metrics("search", base + 0.064, 712.5)
    metrics |= {
        "evaluation/num_too_long": 2,
        "evaluation/self_consistency/is_budget_short": 0,
        "evaluation/best_of_k/is_budget_short": 0,
    }
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
    metrics["calibration"] = [
        [0.05 + i / 10, min(0.03 + i / 10.4, 1.0), 1500 - 90 * i] for i in range(10)
    ]
    return {f"evaluation/prm/{key}": value for key, value in metrics.items()}


def make_rows():
    """A plausible quickstart: a warm start and three iterations, three events each."""
    rows = []
    for i in range(4):
        counts = {"prompts/num_too_long": 3, "tasks/solvable": 8187}
        counts |= {"search/num_steps": 9000, "search/policy_tokens": 900_000}
        counts |= {"search/share_useful_lanes": 0.614, "search/share_duplicates": 0.02 * i}
        counts |= {"search/policy_tokens_per_sampled": 1.27, "search/tokens_per_sampled": 2.56}
        counts |= {
            "search/num_simulations": 8192,
            "search/num_wasted": 412,
            "search/num_duplicates": 2210,
        }
        counts |= {"labels/num_trees": 512, "labels/num_set_aside": 0, "labels/num_errors": 0}
        counts |= {
            "labels/num_correct": 801 + 300 * i,
            "labels/num_wrong": 2912,
            "labels/num_unparsable": 77,
        }
        counts |= {"labels/num_trees_without_correct": 288 - 40 * i}
        counts |= {"datasets/num_traces": 604 + 90 * i, "datasets/num_traces_over_cap": 197}
        counts |= {"datasets/num_paths": 3100}
        counts |= {"datasets/value_histogram": [2210, 340, 512, 640, 700, 910, 720, 760, 810, 1333]}
        rows.append({"iteration": i} | counts)
        updates = {"updates/policy/loss": 0.61 - 0.05 * i, "updates/policy/num_skipped": 0}
        updates |= {"updates/policy/num_updates": 600, "updates/policy/is_skipped_fit": 0}
        updates |= {"updates/policy/losses": [2.5 - 0.5 * i - 0.0008 * k for k in range(600)]}
        updates |= {"updates/prm/num_updates": 300, "updates/prm/is_skipped_fit": 0}
        updates |= {"updates/prm/losses": [0.2] * 299 + [None]}
        rows.append({"iteration": i} | updates)
        times = {
            "time/search": 31.5 + i,
            "time/policy_updates": 44.0,
            "time/prm_updates": 13.25,
            "time/evaluation": 21.5,
            "time/compile": 61.5 if i == 0 else 0.0,
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
        steps = [
            dict(zip(("text", "score", "value", "target"), step, strict=True))
            for step in (right, wrong)[i % 2]
        ]
        verdict = ("correct", "wrong")[i % 2]
        problem = f"reach {31 + i} from 4 6 7"
        traces.append(
            {
                "problem": problem,
                "gold": str(31 + i),
                "steps": steps,
                "verdict": verdict,
                "method": "search",
            }
        )
    traces[1]["problem"] = HOSTILE
    traces[1]["steps"][0]["text"] = "x" * 5000
    traces[2]["verdict"] = "unparsable"
    return traces


def stub_functions(task):
    """Networks that learn nothing and solve every other problem in two ways."""

    def grow(base, policy, prm, prompts, keys, temperature):
        num_problems, num_rows, num_tokens = len(prompts.problem_id), 4, 32
        zeros, shape = np.zeros(num_problems, np.int32), (num_problems, num_rows)
        tokens, length = np.zeros((*shape, num_tokens), np.int32), np.zeros(shape, np.int32)
        for b, problem_id in enumerate(prompts.problem_id.tolist()):
            for r, text in enumerate(games.get(problem_id, [])[2 * (problem_id % 2) :][:num_rows]):
                ids = [*task.tokenizer.encode(text), task.tokenizer.end_id]
                tokens[b, r, : len(ids)], length[b, r] = ids, len(ids)
        is_step = np.ones(shape, bool)
        score = np.tile(np.linspace(0.8, 0.2, num_rows, dtype=np.float32), (num_problems, 1))
        return Tree(
            problem_id=prompts.problem_id,
            parent=np.full(shape, -1, np.int32),
            kind=np.full(shape, Kind.CANDIDATE, np.int32),
            tokens=tokens,
            length=length,
            score=score,
            log_prob=score,
            visits=np.ones(shape, np.int32),
            value=score,
            is_ended=is_step,
            is_finished=is_step,
            chosen=zeros,
            is_ok=np.ones(num_problems, bool),
            num_simulations=zeros + 1,
            num_wasted=zeros,
            num_closed=zeros,
            num_exhausted=zeros,
            policy_tokens=zeros + 9,
            prm_tokens=zeros + 9,
            lane_tokens=zeros + 9,
        )

    def update(base, learner, batch, rate):
        info = {"loss": np.float32(0.12345678), "grad_norm": np.float32(1)}
        return learner, info | {"is_skipped": np.bool_(False)}

    def init(_):
        zero = np.zeros(1, np.float32)
        return Learner({"w": zero}, {"m": zero}, np.zeros((), np.int32))

    games = {}  # of every problem two that are won, two that are lost and two that are none
    for problem in (*task.train, *task.test):
        numbers, target = problem.prompt.split("=")
        numbers, target = tuple(map(int, numbers.split())), int(target)
        lost = [game for t in range(1, 13) if t != target for game in solutions(numbers, t)]
        games[problem.id] = [*solutions(numbers, target)[:2], *lost[:2], "+", "1"]
    return Functions(
        init_base=dict,
        **dict.fromkeys(("init_policy", "init_prm"), init),
        grow=dict.fromkeys(("train", *TREES), grow),
        grow_by=lambda searching: grow,
        **dict.fromkeys(("imitate", "update_policy", "update_prm"), update),
        **dict.fromkeys(("read_log_probs", "read_values"), lambda base, params, rows: rows.weight),
        problem_keys=lambda i, purpose, problem_id: np.zeros((len(problem_id), 2), np.uint32),
        abstract_state=State(np.zeros((), np.int32), {}, init(0), init(0)),
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A real run but for its networks: what no stage writes, the report cannot show."""
    how = dict(warm_start=FitConfig(num_updates=4), fit=FitConfig(num_updates=3), batch_size=2)
    config = Config(
        tasks=TasksConfig(
            countdown=CountdownConfig(max_number=4, max_target=12),
            num_train=8,
            num_dev=0,
            num_test=8,
            num_demonstrations=4,
        ),
        prompts=PromptsConfig(
            num_problems=8,
            num_first_problems=8,
            max_prompt_tokens=9,
            batch_size=4,
        ),
        trace=TraceConfig(max_steps=2, max_step_tokens=32),
        updates=UpdatesConfig(
            policy=PolicyConfig(**how), prm=PrmConfig(**how | {"fit": FitConfig(num_updates=2)})
        ),
        evaluation=EvaluationConfig(
            num_problems=8, samples=SearchConfig(method="sample", num_samples=4, temperature=0.7)
        ),
        loop=LoopConfig(num_iterations=2),
    )
    task, folder = make_task(config.tasks), tmp_path_factory.mktemp("run")
    stream, facts = StringIO(), {"tasks.problems.sha256": digest(task)}
    with (
        pytest.MonkeyPatch.context() as patch,
        open_workdir(folder, asdict(config), facts, COMMAND) as workdir,
        Progress(2, stream) as progress,
    ):

        def build(config, task, progress, pretrained):
            with progress.compiling("nothing"):
                return stub_functions(task)

        patch.setattr(iteration_lib, "build", build)
        iteration_lib.run_loop(config, task, workdir, progress)
    (folder / "terminal.txt").write_text(stream.getvalue())
    return folder


@pytest.fixture(scope="module")
def real_rows(run_folder):
    return MetricsLog(run_folder).read()


class Page(HTMLParser):
    """Reads a page back: its numbers, tags and attributes; fails where a tag is not closed in
    order.
    """

    def __init__(self, text):
        super().__init__()
        self.numbers, self.tags, self.attributes, self.text, self.words = [], [], [], "", ""
        self._open = []
        self.feed(text)
        assert not self._open
        self.words = " ".join(self.words.split())  # the text, blocks apart

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "data":
            found = dict(attrs)
            self.numbers.append(
                (int(found["data-iteration"] or -1), found["data-key"], found["value"])
            )
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self.words += " " * (tag in ("p", "h3", "th", "td", "small", "li"))

    def handle_data(self, data):
        self.text += data
        self.words += data


@pytest.fixture(scope="module")
def page():
    return Page(render_report(CONFIG, make_rows(), make_samples(), MANIFEST))


def test_numbers_equal_those_of_the_metrics_file(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.truncate(-1)
        for row in make_rows():
            log.append(
                row["iteration"], {key: value for key, value in row.items() if key != "iteration"}
            )
        shown = Page(render_report(CONFIG, log.read(), make_samples())).numbers
    logged = {}
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        logged |= {(row["iteration"], key): value for key, value in row.items()}
    assert len(shown) > 300
    for iteration, key, value in shown:
        assert float(value) == logged[iteration, key]
    numeric = {
        place
        for place, value in logged.items()
        if isinstance(value, int | float) and place[1] != "iteration"
    }
    hidden = {key for _, key in numeric - {(iteration, key) for iteration, key, _ in shown}}
    assert {key for key in hidden if not key.endswith("/is_budget_short")} == set()


def test_accuracy_is_shown_with_interval_problems_and_tokens(page):
    low, high = wilson(0.3105, 512)
    assert f"31.1% {low:.1%} to {high:.1%} n 512 \u00b7 41 tokens" in page.words
    assert "pass@k (oracle)" in page.words


def test_made_up_rows_have_the_names_of_a_real_run(real_rows):
    """So that a renamed metric is missed here, and not only by whoever reads a report."""
    assert {key for row in make_rows() for key in row} <= {key for row in real_rows for key in row}


def test_report_of_a_run_has_every_row_that_the_report_knows(run_folder):
    page = Page((run_folder / "report.html").read_text("utf-8"))
    shown = {key for _, key, _ in page.numbers}
    assert {f"evaluation/{key}/accuracy" for key in STRATEGIES} <= shown
    prm_lines = PAGES.get_template("prm.html").make_module({"history": []}).lines
    assert len(prm_lines) > 9
    assert {f"evaluation/prm/{key}" for key, *_ in prm_lines} <= shown
    assert {
        "evaluation/greedy/low",
        "evaluation/search/tokens",
        "evaluation/prm/auroc_low",
    } <= shown
    headings = (
        "Losses",
        "Value targets, iteration 2",
        "Calibration, iteration 2",
        "Steps by depth, iteration 2",
    )
    assert [heading for heading in headings if heading not in page.text] == []


def test_every_count_of_a_run_is_explained(real_rows):
    stages = ("tasks/", "prompts/", "search/", "labels/", "datasets/", "updates/", "time/")
    stages = (*stages, "evaluation/num_")
    counts = {key for row in real_rows for key in row if key.startswith(stages)}
    counts -= {"tasks/notice", "updates/policy/losses", "updates/prm/losses"}  # a sentence, curves
    assert len(counts) > 50
    others = ("pairs", "pairs_new", "pairs_over_cap", "answers", "answers_over_cap")
    others += ("problems_undecided", "weighted_paths", "worthless_paths")
    counts |= {f"datasets/num_{name}" for name in others} | {"time/hints", "tasks/disagreed"}
    assert {key for key in counts if not explain(key)} == set()


@pytest.mark.parametrize(
    "name",
    [*REASONS, "rows", "in_test_file", "repeated", "held_out", "refused", "num_left_out"],
)
def test_every_reason_to_drop_a_row_is_explained(name):
    assert explain(f"tasks/{name}")


def test_no_count_is_explained_twice(page):
    assert page.text.count(explain("datasets/num_traces_over_cap")) == 1


def test_page_tells_what_search_made_of_its_tokens(page, real_rows):
    """In one table of its own, each figure explained, and not again among the counts."""
    _, _, table = page.words.partition("What search made of its tokens")
    table, _, rest = table.partition("Kept and dropped")
    assert "useful lanes" + explain("search/share_useful_lanes") in table
    assert "61.4%" in table and "2.56" in table
    assert "useful lanes" not in rest
    assert {key for key in accounts.THRIFT if not explain(key)} == set()
    logged = {key for row in real_rows for key in row}
    assert {key for key in accounts.THRIFT if "num_" not in key} <= logged


def test_compilation_is_told_beside_the_stages_once_an_iteration(page, real_rows):
    assert "compile" + explain("time/compile") in page.words
    first, *later = [row["time/compile"] for row in real_rows if "time/compile" in row]
    assert (first > 0, later) == (True, [0, 0])


def test_header_has_command_commit_dates_and_config():
    page = Page(render_report(CONFIG, [], [], MANIFEST))
    facts = (MANIFEST["command"], MANIFEST["git_commit"], *MANIFEST["starts"])
    for told in (*facts, '"name": "countdown"'):
        assert told in page.text
    assert {"details", "summary"} <= set(page.tags)
    assert not [value for name, value in page.attributes if name == "open"]


def test_command_reaches_the_report_of_a_run(run_folder):
    assert COMMAND in (run_folder / "report.html").read_text("utf-8")


def test_large_numbers_have_their_intervals(page):
    low, high = wilson(0.3105, 512)
    assert f"greedy accuracy 31.1% {low:.1%} to {high:.1%}" in page.words
    assert "PRM AUROC 0.812 0.792 to 0.831" in page.words


def outcomes_row(**solved):
    """One iteration in which each method solved so many of 100 problems, the first ones."""
    row = {"iteration": 1}
    for method, count in solved.items():
        key = f"evaluation/{method}"
        low, high = wilson(count / 100, 100)
        row |= {f"{key}/accuracy": count / 100, f"{key}/low": low, f"{key}/high": high}
        row[f"{key}/num_problems"] = 100
        row[f"{key}/outcomes"] = [int(i < count) for i in range(100)]
    return row


def test_best_method_is_named_with_its_interval_and_lead():
    row = outcomes_row(greedy=20, self_consistency=30, best_of_k=60, search=40)
    text = Page(render_report({}, [row], [])).words
    low, high = wilson(0.6, 100)
    assert f"Best at equal tokens, iteration 1: best-of-k, 60.0% ({low:.1%} to {high:.1%})" in text
    gain = paired(row["evaluation/best_of_k/outcomes"], row["evaluation/search/outcomes"])
    assert f"search: +20.0 points (+{100 * gain.low:.1f} to +{100 * gain.high:.1f})" in text
    assert gain[1:] == pytest.approx((0.12, 0.28), abs=0.015)
    assert "no difference beyond noise" not in text


def test_lead_within_noise_is_said_to_be_noise():
    row = outcomes_row(greedy=20, self_consistency=30, best_of_k=60, search=59)
    text = Page(render_report({}, [row], [])).words
    assert "No method is best beyond noise; the highest at equal tokens, iteration 1: best" in text
    assert text.count(": no difference beyond noise") == 1
    assert "search: +1.0 points (+0.0 to +3.0): no difference beyond noise" in text


def test_gain_within_noise_is_said_to_be_noise():
    rows = [outcomes_row(greedy=20) | {"iteration": 0}, outcomes_row(greedy=21)]
    text = Page(render_report({}, rows, [])).words
    assert "+1.0 points (+0.0 to +3.0): no difference beyond noise on the same 100 problems" in text


def test_report_opens_with_how_far_the_run_came():
    rows = [
        outcomes_row(greedy=20, search=30) | {"iteration": 0},
        outcomes_row(greedy=60, search=50),
    ]
    text = Page(render_report({}, rows, [])).words
    before, after = (row["evaluation/search/outcomes"] for row in rows)
    gain = paired(after, before)
    told = (
        f"+20.0 points (+{100 * gain.low:.1f} to +{100 * gain.high:.1f}) on the same 100 problems"
    )
    assert f"With search 30.0% \u2192 50.0% from the warm start to iteration 1: {told}" in text
    assert "Greedy accuracy 20.0% \u2192 60.0% from the warm start" in text
    # of another split there are no same problems
    split = [
        row | {"evaluation/split": name} for row, name in zip(rows, ("dev", "test"), strict=True)
    ]
    assert "on the same" not in Page(render_report({}, split, [])).words
    assert "\u2192" not in Page(render_report({}, rows[:1], [])).words


def side(name, rows, split="test", problems="abc", **config):
    manifest = MANIFEST | {"facts": {"tasks.problems.sha256": problems}}
    return Side(name, {"evaluation": {"split": split}, **config}, manifest, merge(rows))


def test_runs_are_compared_over_the_problems_that_both_answered():
    ours, theirs = outcomes_row(search=30), outcomes_row(search=50)
    key = "evaluation/search/outcomes"
    theirs[key] = theirs[key][:80]
    found = compare.gain(side("a", [ours]), side("b", [theirs]), "search")
    assert found == paired(theirs[key], ours[key][:80])
    assert found.difference == 20 / 80
    assert compare.gain(side("a", [ours]), side("b", [theirs], split="dev"), "search") is None
    assert compare.gain(side("a", [ours]), side("b", [theirs], problems="other"), "search") is None
    assert compare.gain(side("a", [ours]), side("b", [theirs]), "greedy") is None


def test_where_prompts_were_too_long_only_the_same_prompts_are_compared():
    row = outcomes_row(search=30) | {"evaluation/num_too_long": 2}
    sides = [side("a", [row], prompts={"style": style}) for style in ("plain", "plain", "chat")]
    assert compare.gain(sides[0], sides[1], "search") is not None
    assert compare.gain(sides[0], sides[2], "search") is None
    sides[1].manifest["facts"]["hub/tokenizer.json.sha256"] = "another"
    assert compare.gain(sides[0], sides[1], "search") is None


def test_comparison_tells_both_runs_to_the_digit_and_what_differs():
    first = side("one", make_rows(), search={"top_p": 1.0, "method": "puct"})
    rows = [row | {"evaluation/greedy/accuracy": 0.123456789} for row in make_rows()]
    other = side(HOSTILE, rows, search={"top_p": 0.8, "method": "puct"})
    page = Page(render_comparison([first, other]))
    assert not {"script", "img"} & set(page.tags) and HOSTILE[:20] in page.text
    known = {
        (row["iteration"], key, value)
        for x in (first, other)
        for row in x.history
        for key, value in row.items()
        if isinstance(value, int | float)
    }
    assert len(page.numbers) > 100
    assert {(i, key, float(value)) for i, key, value in page.numbers} <= known
    assert (3, "evaluation/greedy/accuracy", "0.123456789") in page.numbers
    _, _, differs = page.words.partition("What differs")
    assert "config.search.top_p 1.0 0.8" in differs and "config.search.method" not in differs
    seconds = sum(31.5 + i + 44.0 + 13.25 + 21.5 for i in range(4)) + 61.5
    assert page.words.count(f"{seconds // 60:.0f} min {seconds % 60:.0f} s") == 2


def test_command_makes_the_same_report_again_and_compares_runs(run_folder, tmp_path, capsys):
    page, again = (run_folder / "report.html").read_bytes(), tmp_path / "again.html"
    asked = ["report", "--workdir", str(run_folder)]
    assert main(["jaxtrain", *asked, "--to", str(again)]) == 0
    assert again.read_bytes() == page
    assert main(["jaxtrain", *asked, "--compare", str(run_folder)]) == 0
    assert "2 runs side by side" in (run_folder / "comparison.html").read_text("utf-8")
    told = capsys.readouterr().out.splitlines()
    assert told == [str(again), str(run_folder / "comparison.html")]


@pytest.mark.parametrize(
    "more, told",
    [
        (
            ["--compare", "nowhere"],
            "nowhere: holds no config.json or manifest.json, so it is no run",
        ),
        (["--to", "nowhere/page.html"], "--to nowhere/page.html: there is no folder nowhere"),
    ],
)
def test_a_run_or_folder_that_is_not_there_is_one_line(run_folder, capsys, more, told):
    assert main(["jaxtrain", "report", "--workdir", str(run_folder), *more]) == 2
    assert told in capsys.readouterr().err


def test_time_of_checkpoints_is_told(real_rows):
    assert [row["time/checkpoint"] > 0 for row in real_rows if "time/checkpoint" in row] == [
        True
    ] * 3


def test_unequal_tokens_are_not_called_equal():
    row = outcomes_row(best_of_k=60, search=40) | {"evaluation/best_of_k/is_budget_short": 1}
    assert "Best at tokens that are not all equal" in Page(render_report({}, [row], [])).words


def test_loss_curves_cover_all_updates(page):
    """A point a bucket; none mixes two fits, a loss that was not finite is left out."""
    assert "updates 1 to 41: 2.484 (2.468 to 2.5)" in page.text
    assert "updates 575 to 600: 2.031 (2.021 to 2.041)" in page.text
    assert "updates 601 to 641: 1.984" in page.text
    assert "updates 2,375 to 2,400: " in page.text
    assert "updates 1,195 to 1,200: 0.2 (0.2 to 0.2)" in page.text


def test_losses_of_a_run_are_logged_update_by_update(real_rows):
    losses = [row["updates/policy/losses"] for row in real_rows if "updates/policy/losses" in row]
    assert losses == [[0.123457] * 4, [0.123457] * 3, [0.123457] * 3]


def test_line_for_the_terminal_has_every_method_that_was_measured(run_folder):
    assert tell_accuracy(outcomes_row(greedy=20)) == "iteration 1: greedy 20.0% | 100 problems"
    row = outcomes_row(greedy=20) | {"evaluation/has_calculator": 1}
    assert tell_accuracy(row).startswith("iteration 1, with a calculator: greedy")
    assert tell_accuracy({"iteration": 3}) == "iteration 3: no problem was scored"
    lone = {"iteration": 2, "evaluation/pass_at_k/accuracy": 0.5}
    lone["evaluation/pass_at_k/num_problems"] = 8
    assert tell_accuracy(lone) == "iteration 2: pass@k (oracle) 50.0% | 8 problems"
    lines = (run_folder / "terminal.txt").read_text().splitlines()
    lines = [line for line in lines if ": greedy" in line]
    assert [line.split(":")[0] for line in lines] == ["iteration 0", "iteration 1", "iteration 2"]
    told = [part.rsplit(" ", 1)[0] for part in lines[-1].split(": ")[1].split(" | ")]
    assert told[:-1] == [strategy.label for strategy in STRATEGIES.values()] and told[-1] == "8"


def fit_rows(*iterations):
    """Rows of fits, by iteration: (policy updates, skipped ones, PRM updates, correct traces)."""
    rows = []
    for i, (policy, skipped, prm, correct) in enumerate(iterations):
        rows.append({"iteration": i, "labels/num_correct": correct})
        fit = {"num_updates": policy, "num_skipped": skipped}
        rows.append({"iteration": i} | {f"updates/policy/{key}": n for key, n in fit.items()})
        rows.append({"iteration": i, "updates/prm/num_updates": prm})
    return rows


AFTER = "neither network learnt anything after the warm start: "
NO_TRACE = "no trace was verified, so every fit was skipped"


@pytest.mark.parametrize(
    "rows, told",
    [
        ([], ""),
        ([{"iteration": 2, "evaluation/greedy/accuracy": 0.5}], ""),  # an evaluation alone
        (fit_rows((9, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)), AFTER + NO_TRACE),
        (fit_rows((9, 0, 9, 5), (4, 4, 0, 0)), AFTER + "no update was finite"),
        (fit_rows((9, 0, 9, 5), (0, 0, 0, 0)), AFTER + "every fit was skipped"),
        (fit_rows((9, 0, 0, 0), (0, 0, 0, 0), (4, 0, 0, 1)), ""),
        (fit_rows((9, 0, 0, 0), (0, 0, 3, 1)), ""),
        (fit_rows((9, 0, 0, 0)), ""),
        (
            fit_rows((0, 0, 0, 0)),
            f"neither network learnt anything in the warm start: {NO_TRACE}",
        ),
    ],
)
def test_run_in_which_nothing_was_learnt_says_so(rows, told):
    assert tell_nothing_learnt(rows) == told


def test_run_that_learnt_says_nothing_of_it(real_rows):
    assert tell_nothing_learnt(real_rows) == ""


def test_nothing_learnt_reads_the_names_of_a_run(real_rows):
    """Without their updates the same rows tell of nothing learnt."""
    rows = [row | {key: 0 for key in row if key.endswith("/num_updates")} for row in real_rows]
    assert tell_nothing_learnt(rows) == AFTER + "every fit was skipped"


def test_header_says_how_far_the_run_is(page):
    assert "Self-training on countdown" in page.text
    assert "iteration 3 of 3" in page.words
    assert "2 x cpu" in page.text and "jax 0.10.2" in page.text
    seconds = sum(31.5 + i + 44.0 + 13.25 + 21.5 for i in range(4)) + 61.5
    assert f"{seconds // 60:.0f} min {seconds % 60:.0f} s accounted for" in page.text


def test_notices_name_what_went_wrong_and_only_that():
    rows = make_rows()
    rows.append(
        {
            "iteration": 3,
            "updates/policy/grad_norm": None,
            "evaluation/best_of_k/is_budget_short": 1,
        }
    )
    rows.append({"iteration": 2, "evaluation/num_errors": 5})
    rows.append(
        {"iteration": 2, "labels/num_set_aside": 7, "tasks/notice": "path.jsonl:3 is not JSON"}
    )
    text = render_report(CONFIG, rows, [])
    notices = Page(
        text[text.index('<section class="notices">') : text.index('<section class="tiles">')]
    ).text
    assert "updates: the prm had no data, or no updates to make" in notices
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
    policy = "default-src 'none'; script-src 'none'; style-src 'unsafe-inline'"
    assert ("content", policy) in page.attributes
    assert not [
        value for name, value in page.attributes if name != "content" and "url(" in (value or "")
    ]


def test_report_of_a_run_shows_one_tree_by_the_only_script_that_it_allows(run_folder):
    text = (run_folder / "report.html").read_text("utf-8")
    page = Page(text)
    policy = f"default-src 'none'; script-src '{SCRIPT_HASH}'; style-src 'unsafe-inline'"
    assert ("content", policy) in page.attributes
    assert page.tags.count("script") == 2 and SCRIPT in text
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    # Search and greedy decoding solve the problems with even numbers: the first of them is shown.
    first = next(x for x in trees_of(run_folder, 2) if x % 2 == 0)
    assert f"problem {first} iteration 2 mcts_star 4 steps" in page.words


def trees_of(folder, iteration):
    """The ids of the problems of an evaluation, padding apart."""
    paths = sorted((folder / "trees" / str(iteration)).glob("solve-*.npz"))
    ids = np.concatenate([np.load(path)["problem_id"] for path in paths])
    return [int(x) for x in ids if x >= 0]


def view(folder, *arguments):
    return main(["jaxtrain", "view", "--workdir", str(folder), *arguments])


def test_a_tree_of_a_run_is_viewed_and_nothing_else_is_touched(run_folder, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    problem, to = trees_of(run_folder, 1)[3], tmp_path / "a.html"
    told = ("--problem", str(problem), "--iteration", "1", "--to", str(to))
    assert view(run_folder, *told) == 0
    assert capsys.readouterr().out == f"{to}\n"
    page = Page(to.read_text("utf-8"))
    assert f"problem {problem}" in page.text and "iteration 1" in page.text
    assert view(run_folder, "--kind", "train", "--text") == 0
    assert "PRM 0.800" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}


@pytest.mark.parametrize(
    "asked, told",
    [
        (("--problem", "-1"), "--problem -1: no such tree; there are 8, such as "),
        (("--to", "nowhere/tree.html"), "--to nowhere/tree.html: there is no folder nowhere"),
        (("--kind", "train", "--iteration", "7"), "no train trees of iteration 7; there are train"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(run_folder, capsys, asked, told):
    assert view(run_folder, *asked) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and told in lines[0]


def test_an_altered_tree_is_told_and_stays_where_it_is(run_folder, tmp_path, capsys):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    path = sorted((folder / "trees" / "2").glob("solve-*.npz"))[0]
    path.write_bytes(path.read_bytes()[:-9])
    assert view(folder) == 2
    assert "view another --iteration" in capsys.readouterr().err
    assert path.exists() and not (folder / "damaged").exists()


def test_hostile_text_is_shown_as_text_everywhere():
    rows = [{"iteration": 0, f"search/{HOSTILE}": 1, "updates/notice": HOSTILE, "prompts/num": 1}]
    steps = [{"text": HOSTILE, "score": 0.5, "value": None, "target": 2.0}]
    sample = {
        "problem": HOSTILE,
        "gold": HOSTILE,
        "verdict": HOSTILE,
        "method": HOSTILE,
        "steps": steps,
    }
    config = {"tasks": {"name": HOSTILE}, "seed": HOSTILE, "loop": {"num_iterations": 1}}
    text = render_report(
        config,
        rows,
        [sample],
        {
            "versions": {HOSTILE: HOSTILE},
            "devices": {"count": 1, "kind": HOSTILE},
            "git_commit": HOSTILE,
            "starts": [HOSTILE],
            "command": HOSTILE,
        },
    )
    page = Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert (
        page.text.count(
            "<script>alert(1)</script></pre><img src=x onerror=alert(2)>&\\u202e\\x00\\ud800"
        )
        >= 8
    )
    text.encode("utf-8")


def test_long_text_is_cut_and_says_so(page):
    assert "x" * 4000 + " and 1,000 more characters" in page.text


def test_any_metric_may_be_missing(monkeypatch):
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 20)
    rows = make_rows()[-6:]
    render_report({}, [], [])
    holes = {"datasets/value_histogram": [], "evaluation/prm/calibration": [[None, 0.5, 3]]}
    holes |= {
        "evaluation/best_of_k/accuracy": 0.5,
        "evaluation/best_of_k/curve": [[100, None, None, None, 1]],
    }
    Page(render_report(CONFIG, [{"iteration": 0} | holes], []))
    Page(render_report({}, [{"iteration": 0}], [{}, {"steps": [{}]}]))
    for key in {key for row in rows for key in row if key != "iteration"}:
        without = [{name: value for name, value in row.items() if name != key} for row in rows]
        Page(render_report(CONFIG, without, []))
        Page(
            render_report(
                CONFIG, [row if key not in row else row | {key: None} for row in rows], []
            )
        )
        Page(
            render_report(
                CONFIG, [{"iteration": 1, key: row[key]} for row in rows if key in row], []
            )
        )


def test_samples_show_verdict_score_and_gold(page):
    assert page.tags.count("article") == 10
    assert "correct search reach 31 from 4 6 7 gold answer 31" in page.words
    assert "24+7=31|31 0.910 0.960 1.000" in page.words


def test_charts_keep_every_point_inside(page):
    rows = make_rows()
    rows[-1] |= method_metrics("greedy", 1.0, 1.0) | method_metrics("search", 0.0, 3e6)
    extreme = Page(render_report(CONFIG, rows, []))
    for attributes in (page.attributes, extreme.attributes):
        xs = [float(value) for name, value in attributes if name in ("cx", "x1", "x2")]
        ys = [float(value) for name, value in attributes if name in ("cy", "y1", "y2")]
        assert len(xs) > 50
        assert all(0 <= x <= WIDTH for x in xs)
        assert all(0 <= y <= HEIGHT for y in ys)


@pytest.mark.parametrize(
    "low, high, labels",
    [
        (41, 1460, ["20", "50", "100", "200", "500", "1k", "2k"]),
        (100, 100, ["100"]),
        (1, 5, ["1", "2", "5"]),
    ],
)
def test_log_ticks_bracket_the_range(low, high, labels):
    assert [label for _, label in log_ticks(low, high)] == labels


def test_newlines_and_plain_unicode_stay_as_they_are():
    assert visible("a\nb \u00e9 \u2264 <c>") == "a\nb \u00e9 \u2264 <c>"


def test_every_template_escapes():
    """No template marks text as safe, or turns escaping off."""
    for name in PAGES.list_templates():
        source = PAGES.get_template(name).filename
        assert not re.search(r"\|\s*safe\b|autoescape", Path(source).read_text("utf-8")), name
    assert PAGES.autoescape is True


def test_a_number_that_is_nan_is_as_absent_as_once_it_is_logged():
    rows = [{"iteration": 0, "evaluation/prm/auroc": math.nan}]
    logged = [{"iteration": 0, "evaluation/prm/auroc": None}]
    assert render_report(CONFIG, rows, []) == render_report(CONFIG, logged, [])
