"""What a row is that the policy learns from: one line of `ROWS` each.

Where texts are compared, they are continuations of one prefix: whole answers to a problem, or
sibling steps. Which of them stay under the caps is chance, of the problem and the iteration.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import numpy as np

from jaxtrain import trees
from jaxtrain.datasets.collect import (
    Counts,
    DatasetsConfig,
    Lesson,
    Rounds,
    RowsFn,
    Text,
    choose_paths,
    make_examples,
    newest,
    response,
    traces,
)
from jaxtrain.keys import Purpose, host_rng
from jaxtrain.structs import JUDGED, CheckFn, Examples, Shard, Verdict

NO_ZERO = 1e-4  # beside a deviation that may be 0


def steps(
    rounds: Rounds, config: DatasetsConfig, max_length: int, seed: int
) -> tuple[Examples, Counts]:
    """Take the paths that the PRM learns for the policy, every step by the weight of its label."""
    chosen, label, _ = choose_paths(rounds, config, max_length, seed, ())
    rows = [
        (i, text, [Lesson(slice(s.start, s.end + 1), weight=label[s.text][0]) for s in own])
        for i, text, own in chosen
    ]
    worth = [row for row in rows if any(lesson.weight for lesson in row[2])]
    counts = {"num_weighted_paths": len(worth), "num_worthless_paths": len(rows) - len(worth)}
    return make_examples(worth, max_length), counts


def pairs(
    rounds: Rounds, config: DatasetsConfig, max_length: int, seed: int, is_whole: bool
) -> tuple[Examples, Counts]:
    """Pair right continuations of a text with wrong ones; the chosen row comes before the rejected.

    Whole answers to a problem are right by their verdict. Else sibling steps are paired: one below
    which a correct answer was found, and a labelled one below which none was; the step alone is
    learnt.
    """
    rows, num_new, num_over_cap = [], 0, 0
    for i in newest(rounds, config.traces_rounds):
        # Distinct continuations by the text before them; what was once right is right.
        found: dict[int, dict[bytes, dict[bytes, Text]]] = defaultdict(lambda: defaultdict(dict))
        for text in _texts(rounds[i], max_length, is_whole):
            known = found[text.problem_id][text.tokens[: text.prompt_length].tobytes()]
            if text.is_correct or text.key[1] not in known:
                known[text.key[1]] = text

        # Of every problem some pairs, of which the first are of different prefixes.
        for problem_id, groups in found.items():
            rng = host_rng(seed, Purpose.PAIRS, i, problem_id)
            paired = [_match(list(known.values()), rng) for known in groups.values()]
            turns = zip_longest(*(paired[k] for k in rng.permutation(len(paired))))
            there = [pair for turn in turns for pair in turn if pair is not None]
            kept = there[: config.max_traces_per_problem]
            num_over_cap += len(there) - len(kept)
            rows += [(i, text, [response(text)]) for pair in kept for text in pair]
        num_new = len(rows) // 2 if i == max(rounds) else num_new
    counts = {"num_pairs": len(rows) // 2, "num_pairs_new": num_new}
    return make_examples(rows, max_length), counts | {"num_pairs_over_cap": num_over_cap}


def answers(
    rounds: Rounds, config: DatasetsConfig, max_length: int, seed: int
) -> tuple[Examples, Counts]:
    """Take the answers of the newest round as often as they were given, up to a cap, with their
    advantage as target: (reward - mean) / deviation of the answers to a problem, as GRPO has it.
    Where all are right or all wrong there is no advantage, and no row.
    """
    i, rows, num_undecided, num_over_cap = max(rounds), [], 0, 0
    found: dict[int, list[Text]] = defaultdict(list)
    for text in _texts(rounds[i], max_length, is_whole=True):
        found[text.problem_id].append(text)
    for problem_id, texts in found.items():
        rng = host_rng(seed, Purpose.PAIRS, i, problem_id)
        kept = rng.permutation(len(texts))[: config.max_paths_per_problem]
        num_over_cap += len(texts) - len(kept)
        reward = np.array([texts[k].is_correct for k in kept], float)
        if reward.min() == reward.max():
            num_undecided += 1
            continue
        gain = (reward - reward.mean()) / (reward.std(ddof=1) + NO_ZERO)
        rows += [(i, texts[k], [response(texts[k], a)]) for k, a in zip(kept, gain, strict=True)]
    counts = {"num_answers": len(rows), "num_problems_undecided": num_undecided}
    return make_examples(rows, max_length), counts | {"num_answers_over_cap": num_over_cap}


ROWS: dict[str, RowsFn] = {
    "traces": traces,
    "steps": steps,
    "trace_pairs": partial(pairs, is_whole=True),
    "step_pairs": partial(pairs, is_whole=False),
    "answers": answers,
}


def without_false_steps(rows_fn: RowsFn, check: CheckFn) -> RowsFn:
    """Make rows as `rows_fn` does, as if what stands behind a false step were neither judged nor
    labelled; count the correct traces of the newest round that this costs.
    """

    def sound(shard: Shard) -> Shard:
        prompts, tree, labels = shard
        is_asked = labels.is_labelled | (labels.verdict != Verdict.NONE)
        told = tree.problem_id, tree.parent, tree.tokens, tree.length
        is_sound = trees.count_false(check, *told, is_asked) == 0
        labels = replace(
            labels,
            verdict=np.where(is_sound, labels.verdict, Verdict.NONE),
            is_correct=labels.is_correct & is_sound,
            is_labelled=labels.is_labelled & is_sound,
        )
        return Shard(prompts, tree, labels)

    def make_rows(rounds, config, max_length, seed):
        kept = {i: [sound(shard) for shard in shards] for i, shards in rounds.items()}
        examples, counts = rows_fn(kept, config, max_length, seed)
        before, after = (
            sum(int((shard.labels.verdict == Verdict.CORRECT).sum()) for shard in x[max(rounds)])
            for x in (rounds, kept)
        )
        return examples, counts | {"num_traces_false": before - after}

    return make_rows


def _texts(shards: Sequence[Shard], max_length: int, is_whole: bool) -> Iterator[Text]:
    """Yield the texts that fit; what is not learnt of them counts as their prompt."""
    for prompts, tree, labels in shards:
        # where the texts end, and whether that is right
        is_end, is_right = labels.is_labelled, labels.is_correct
        if is_whole:
            is_end, is_right = np.isin(labels.verdict, JUDGED), labels.verdict == Verdict.CORRECT
        problem, row = np.nonzero(is_end)
        rows = trees.row_paths(tree.parent, problem, row)
        tokens, length, _ = trees.sequences(tree, problem, rows, prompts)
        start = prompts.length[problem] if is_whole else length - tree.length[problem, row]
        for k in np.flatnonzero(length <= max_length):
            own, is_correct = tokens[k, : length[k]], bool(is_right[problem[k], row[k]])
            problem_id = int(tree.problem_id[problem[k]])
            yield Text(problem_id, own, int(start[k]), is_correct=is_correct)


def _match(texts: Sequence[Text], rng: np.random.Generator) -> list[tuple[Text, Text]]:
    """Match right texts with wrong ones by chance, each used once."""
    shuffled = [texts[k] for k in rng.permutation(len(texts))]
    right = [text for text in shuffled if text.is_correct]
    wrong = [text for text in shuffled if not text.is_correct]
    return list(zip(right, wrong, strict=False))
