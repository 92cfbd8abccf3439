"""Usage: jaxtrain --config FILE[:ARGUMENT] [--workdir DIR] [--config.section.key=value ...]
[--plan] [--help]

FILE is a Python file, or the name of a config of ours, such as quickstart: --config FILE --help
lists all its keys, each with a remark. The same command resumes, after any interruption. Whatever
you can put right ends as one line and exit code 2, before anything is written.

Commands, each with a --help (`jaxtrain COMMAND ...`):
  run       starts a run, or goes on with it; the name may be left out
  plan      says what a run would need, without running; --plan does the same
  solve     answers problems of yours, with the PRM's score of every step
  evaluate  scores a checkpoint on other problems, or methods at equal tokens
  relabel   makes labels of another kind from the trees of a run
  export    writes a network of a run as a Hugging Face folder
  report    makes the report of a run again, or sets runs side by side
  view      draws one search tree of a run, as a page or as text
"""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace

from jaxtrain.commands import command_line, home_path
from jaxtrain.compilation import keep_compiled
from jaxtrain.config import check
from jaxtrain.flags import list_keys, parse
from jaxtrain.iteration import run_loop
from jaxtrain.progress import Progress
from jaxtrain.prompts import fix_date
from jaxtrain.runs import list_facts, open_model, summary
from jaxtrain.tasks import make_task
from jaxtrain.workdir import open_workdir, read_old

HELP = ("--help", "-help", "-h")


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Run or resume. Raises UserError."""
    if tell_usage(arguments):
        return
    config, path = parse(["jaxtrain", *arguments])
    config, pretrained = open_model(config)
    # A chat template may tell the day: it stays that of the first start.
    prompts_before = read_old(home_path(path))[0].get("prompts")
    date_before = prompts_before.get("date", "") if isinstance(prompts_before, dict) else ""
    config = replace(config, prompts=fix_date(config.prompts, date_before))
    task = make_task(config.tasks, pretrained.tokenizer if pretrained else None)
    check(config, task)
    cache, facts = keep_compiled(config.compilation), list_facts(config, task, pretrained)
    with open_workdir(path, asdict(config), facts, command_line("run", arguments)) as workdir:
        progress = leaving.enter_context(Progress(config.loop.num_iterations))
        # what changed since the last start or is missing, the rows that were skipped, the cache
        for notice in filter(None, (*workdir.notices, task.notice, cache)):
            progress.note(notice)
        run_loop(config, task, workdir, progress, pretrained)
        leaving.close()
    print(summary(workdir))


def tell_usage(arguments: Sequence[str]) -> bool:
    """Tell the usage, behind all keys of a config where one is named; say whether it was asked."""
    others = [argument for argument in arguments if argument not in HELP]
    if len(others) == len(arguments):
        return False
    keys = [*list_keys(parse(["jaxtrain", *others])[0]), ""] if others else []
    print(*keys, inspect.cleandoc(__doc__ or ""), sep="\n")
    return True
