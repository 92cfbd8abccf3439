"""The command: `python -m jaxtrain.relabel --workdir W --kind K [--iteration I]`.

Makes labels of another kind from the trees and verdicts that a run has stored, beside those that it
learnt from, and the run goes on as it was. A run that is to learn from such labels is another run:
`--config.labels.kind=K`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from jaxtrain import labels
from jaxtrain.commands import Parser
from jaxtrain.errors import require
from jaxtrain.runs import open_run
from jaxtrain.trees import Damaged
from jaxtrain.workdir import acquire


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Label the training trees of a run anew. Raises UserError where there is nothing to label."""
    parser = Parser(__doc__, iteration="the round of trees; all of them by default")
    parser.add_argument("--kind", choices=labels.TARGETS, required=True, help="the kind of label")
    options = parser.parse_args(arguments)
    path, kind = options.workdir, options.kind
    ran = open_run(path)
    leaving.enter_context(acquire(path))
    config, files = ran.config, ran.trees
    places = files.training()
    rounds = dict.fromkeys(place.iteration for place in places)
    told = f"has no trees; rounds with trees: {', '.join(map(str, rounds)) or 'none'}"
    require(options.iteration in (None, *rounds), f"--iteration {options.iteration}", told)

    # each shard by itself: a run may have been stopped in the midst of a round
    num_done, left_out = 0, []
    for place in (x for x in places if options.iteration in (None, x.iteration)):
        try:
            tree = files.load(place)
            known = tree and files.load_labels(place, tree, config.labels.kind)
        except Damaged as damage:
            left_out.append(str(damage))
            continue
        if tree is None or known is None:
            left_out.append(f"{files.path(place)} is not judged yet")
            continue
        made = labels.label(tree, known.verdict, replace(config.labels, kind=kind))
        files.save_labels(place, tree, made, kind)
        num_done += 1

    for line in left_out:
        print(f"left out: {line}; the run makes up for it when it goes on")
    told = "no trees there that are judged; let the run get that far"
    require(num_done > 0, f"--workdir {path}", told)
    print(f"{num_done} shards labelled by {kind}: {path / 'labels'}")
