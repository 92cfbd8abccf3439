"""The command: `python -m jaxtrain.solve --workdir W "Use 3, 7, 8 to make 29"`, or `--file FILE`,
with [--method M] [--budget 4k] [--json] [--iteration K] [--to DIR] [--config.section.key=value].

Asks the networks of a run, or with `--model` a Hugging Face folder or hub id, or a GGUF file (and
with `--prm` its PRM), and prints the reasoning, the PRM's score of every step, and the answer. FILE
has a problem on every line: as text, or in .jsonl as an object with a question. No gold answer is
known, so nothing is judged. Answers, trees and the pages of the first ones are left in DIR.
"""

import json
import math
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.commands import Parser, home_path
from jaxtrain.commands.evaluate import change
from jaxtrain.compilation import keep_compiled
from jaxtrain.config import Config, check_checks
from jaxtrain.errors import UserError, explained, require
from jaxtrain.evaluation import STRATEGIES, Strategy, budgets, last_rows, read_choice, read_samples
from jaxtrain.files import write_atomic
from jaxtrain.flags import load, override, read_flags
from jaxtrain.hub import open_pretrained
from jaxtrain.progress import Progress
from jaxtrain.prompts import fix_date
from jaxtrain.report.samples import read_path, read_step
from jaxtrain.report.tree import render_tree
from jaxtrain.report.values import visible
from jaxtrain.runs import Loaded, load_pretrained, open_run
from jaxtrain.search.config import RULES, SearchConfig
from jaxtrain.search.rows import rank
from jaxtrain.search.work import born, sized, tokens_of_turn
from jaxtrain.sharding import make_mesh
from jaxtrain.structs import Prompts, Tree, Verdict
from jaxtrain.tasks import make_task
from jaxtrain.tasks.jsonl import JsonlTask
from jaxtrain.trees import Place, TreeFiles

KNOWN = {name: s for name, s in STRATEGIES.items() if not s.is_oracle and s.trees != "search"}
METHODS = (*KNOWN, *(name for name in RULES if name != "sample"))
WITHOUT_PRM = tuple(name for name, strategy in KNOWN.items() if not strategy.pays_prm)
ANSWERS = "answers.jsonl"
NUM_PAGES = 20  # of trees, the first ones
Answer = dict[str, Any]  # what is told of a problem, as --json prints it


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Answer problems, and write their trees. Raises UserError."""
    parser = Parser(__doc__, needs_run=False)
    parser.add_argument("problem", nargs="*", help="what is asked, in the words of the task")
    parser.add_argument("--file", type=home_path, help="a problem a line, as text or .jsonl")
    parser.add_argument("--model", help="in place of a run: a folder, a hub id or a .gguf file")
    parser.add_argument("--prm", default="", help="the PRM of --model: a folder or a hub id")
    parser.add_argument("--config", help="how --model is asked: a config, by default ask")
    parser.add_argument("--method", choices=METHODS, help="by default what the config evaluates")
    parser.add_argument("--budget", help="tokens of both networks a problem, at most, such as 4k")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each problem")
    parser.add_argument("--to", type=home_path, help="a new folder; solved/<number> by default")
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    options = parser.parse_args([x for x in arguments if x not in overrides])

    # The networks, what they are asked, and how.
    progress = leaving.enter_context(Progress(0))
    model = open_asked(options, overrides, progress)
    strategy, searching = choose_method(model.config, options, model.has_prm)
    if not model.has_prm:
        progress.note(f"there is no PRM, so steps have no values; {strategy.label} answers")
    if model.config.trace.calculator:
        progress.note("a calculator writes the results of sums")
    problems = model.task.test
    size = min(len(problems), model.config.prompts.batch_size)
    parts = [problems[start : start + size] for start in range(0, len(problems), size)]
    batches = [model.encode(part, size) for part in parts]

    # Trees of one batch after the other.
    to = choose_folder(options.to, (options.workdir or Path()) / "solved")
    files, answers, decode = TreeFiles(to, "", ""), [], model.task.tokenizer.decode
    when = born(searching, model.config.trace.max_steps)
    with progress.phase(strategy.label, total=len(problems)) as phase:
        for k, batch in enumerate(batches):
            tree, told = read_answers(model, strategy, batch, model.grow(batch, searching))
            files.save(Place(model.iteration, k, "solve"), tree)
            for b, problem in enumerate(parts[k][: max(0, NUM_PAGES - len(answers))]):
                page = render_tree(tree, b, None, decode, problem, when, [searching.method])
                write_atomic(to / f"tree-{problem.id}.html", page.encode())
            answers += told
            tokens = sum(answer["policy_tokens"] + answer["prm_tokens"] for answer in told)
            phase.advance(len(told), tokens=tokens)
    lines = [json.dumps(answer, allow_nan=False) for answer in answers]
    write_atomic(to / ANSWERS, "".join(f"{line}\n" for line in lines).encode())
    progress.note(f"answers and trees are in {to}")
    leaving.close()
    print(*(lines if options.json else map(tell, answers)), sep="\n")


def open_asked(options: Namespace, overrides: Sequence[str], progress: Progress) -> Loaded:
    """Load the networks that are asked, with a task whose test problems are what is asked."""
    ran = options.workdir and open_run(options.workdir)
    is_one = bool(ran) != bool(options.model)
    require(is_one, "--workdir, --model", "name either a run or a model, and not both")
    for flag, given in (("--prm", options.prm), ("--config", options.config)):
        require(not (ran and given), flag, "a run has its own; leave it out")
    is_met = bool(ran) or options.iteration is None
    require(is_met, "--iteration", "a model has none; leave it out")
    if ran:
        config, task, pretrained = change(ran.config, overrides), ran.task, None
    else:
        values = load(options.config or "ask")
        values["hub"] |= {"pretrained": options.model, "prm": options.prm}
        config = override(values, read_flags(overrides))
        config = replace(config, prompts=fix_date(config.prompts, ""))
        pretrained = open_pretrained(config.hub)
        # Whoever asks questions of their own needs no file of them.
        c, tokenizer = config.tasks, pretrained.tokenizer
        is_bare = c.name == "jsonl" and not c.jsonl.path
        words = JsonlTask("", tokenizer, kind=c.jsonl.answer_kind)
        task = words if is_bare else make_task(c, tokenizer)

    # What is asked, in the words of the task.
    texts = [*options.problem, *read_problems(options.file, config.tasks.jsonl.question_field)]
    then = 'write the problem in quotes ("..."), or name a --file'
    require(texts != [], "nothing is asked", then)
    asked = tuple(task.ask(number, text) for number, text in enumerate(texts))
    task = replace(task, train=(), dev=(), test=asked)
    check_checks(config, task, make_mesh(config.sharding))
    progress.note(keep_compiled(config.compilation))
    if ran:
        return ran.load(options.iteration, config, task, progress)
    assert pretrained is not None
    return load_pretrained(config, pretrained, task, progress)


def read_problems(path: Path | None, field: str) -> list[str]:
    """Read a file with a problem on every line. Raises UserError for a line that holds none."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file {path}: cannot be read ({error})") from error
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            text = json.loads(line)[field] if line and path.suffix == ".jsonl" else line
            texts += [text.strip()] if text.strip() else []
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            told = f"{path}:{number}: holds no JSON object with a text in {field}"
            raise UserError(f"{told}; see --config.tasks.jsonl.question_field") from error
    return texts


def choose_method(
    config: Config, options: Namespace, has_prm: bool
) -> tuple[Strategy, SearchConfig]:
    """Choose how to answer and what grows the trees, as a budget allows. Raises UserError."""
    c = config.evaluation
    name = options.method or (c.search.method if has_prm else WITHOUT_PRM[0])
    then = f"name its folder by --prm, or take {' or '.join(WITHOUT_PRM)}"
    is_met, told = has_prm or name in WITHOUT_PRM, "asks a PRM, and there is none"
    require(is_met, f"--method {name}", f"{told}; {then}")
    strategy = KNOWN.get(name, STRATEGIES["search"])
    (searching,) = replace(c, strategies=(strategy.name,)).searches.values()
    if strategy.trees == "search":
        searching = replace(searching, method=name)
    if options.budget is None:
        return strategy, searching

    # The budget is a limit: steps and traces are taken to be as long as they may get.
    require(strategy.trees != "greedy", "--budget", "greedy decoding is one trace; leave it out")
    trace, prompt = config.trace, config.prompts.max_prompt_tokens
    step = trace.max_step_tokens
    limits = budgets.Lengths(prompt, step, trace.max_steps * step)
    budget, *more = budgets.read_budgets(options.budget, "--budget")
    is_met = not more and budget < 2**31
    require(is_met, f"--budget {options.budget}", "must be one number below 2**31, such as 4k")
    budgets.require_one_sample(budget, limits, "--budget", "at most")
    if strategy.trees == "samples":
        tokens = limits.sampled(budget, 2 if strategy.pays_prm else 1)
        searching = replace(searching, num_samples=int(tokens // limits.trace))
    else:
        tokens, how = limits.sampled(budget), (limits[1:], trace.max_steps)
        least = math.ceil(2 * (prompt + tokens_of_turn(searching, *how)))
        told = f"{budget:,} tokens do not pay for one turn of {name}, which takes up to {least:,}"
        then = "of both networks, prompt included; begin there, or take --method best_of_k"
        require(budget >= least, "--budget", f"{told} {then}")
        searching = sized(searching, tokens, *how, is_limit=True)
    return strategy, searching


def choose_folder(asked: Path | None, usual: Path) -> Path:
    """Return the folder that was asked for, or make the next number in the usual one."""
    if asked:
        is_met = not (asked / ANSWERS).exists()
        require(is_met, f"--to {asked}", "holds answers already; choose another folder")
        with explained(f"--to {asked}: can be no folder", "choose another"):
            asked.mkdir(parents=True, exist_ok=True)
        return asked
    numbers = [int(path.name) for path in usual.glob("*") if path.name.isdecimal()]
    path = usual / f"{max(numbers, default=0) + 1:04}"
    try:
        path.mkdir(parents=True)
    except FileExistsError:  # another call was here first
        return choose_folder(asked, usual)
    return path


def read_answers(
    model: Loaded, strategy: Strategy, prompts: Prompts, tree: Tree
) -> tuple[Tree, list[Answer]]:
    """Choose what trees answer. Returns (the trees of problems, with the choice; what is told).

    Where no trace ended with an answer, the last step that was drawn tells how far it came.
    """
    # Problems stand before what fills up their batch.
    task, num_problems = model.task, int((prompts.problem_id >= 0).sum())
    tree = jax.tree.map(lambda x: x[:num_problems], tree)
    length, verdict = prompts.length[:num_problems], np.full(tree.kind.shape, Verdict.NONE)
    if strategy.trees == "search":
        last, answered = tree.chosen[:, None], read_choice(tree, verdict, task.answer_tokens)
    else:
        last, rank_fn = last_rows(tree), partial(rank, model.config.evaluation.samples.prior)
        answered = read_samples(tree, verdict, length, task.answer_tokens, rank_fn)
    selected = strategy.select(answered, last.shape[1])
    chosen = np.where(selected >= 0, last[np.arange(num_problems), selected], -1)
    tree = replace(tree, chosen=chosen.astype(np.int32))

    # What is told: a strategy that does not ask the PRM does not pay for it.
    told, how = [], {"has_calculator": True} if model.config.trace.calculator else {}
    for b, problem_id in enumerate(tree.problem_id.tolist()):
        _, path = read_path(tree, b, chosen[b])
        steps = [read_step(task, tree, b, row) for row in path]
        answer = answered.answer[b][selected[b]] if selected[b] >= 0 else None
        prm_tokens = int(answered.prm_tokens[b, -1]) if strategy.pays_prm else 0
        costs = {"policy_tokens": int(answered.policy_tokens[b, -1]), "prm_tokens": prm_tokens}
        if not model.has_prm:
            steps = [{**step, "score": None, "value": None} for step in steps]
        question = task.problems[problem_id].question
        told.append({"problem": question, "answer": answer, "steps": steps, **costs, **how})
    return tree, told


def tell(answer: Answer) -> str:
    """Write an answer for the terminal, the PRM's score of a step before it. Text is hostile."""
    lines = ["", visible(answer["problem"]), ""]
    for step in answer["steps"]:
        score = "" if step["score"] is None else f"{step['score']:.2f}"
        first, *more = visible(step["text"]).split("\n")
        lines += [f"{score:>6}  {first}", *(f"{'':8}{line}" for line in more)]
    given = "none was found" if answer["answer"] is None else visible(answer["answer"])
    return "\n".join([*lines, "", "answer  " + given.replace("\n", f"\n{'':8}")])
