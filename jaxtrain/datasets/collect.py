"""Training rows as a view of the trees of the rounds in use."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import chex
import jax
import numpy as np

from jaxtrain import trees
from jaxtrain.errors import Count, Section, one_of
from jaxtrain.keys import Purpose, host_rng
from jaxtrain.structs import JUDGED, Examples, Shard, TokenRows, Verdict

Rounds = Mapping[int, Sequence[Shard]]
Counts = dict[str, Any]


@dataclass(frozen=True)
class DatasetsConfig(Section, at="datasets"):
    """What is kept of the trees, and for how long."""

    # distinct correct traces that a problem gives in one iteration
    max_traces_per_problem: Count = 4
    # PRM paths that a problem gives in one iteration, correct and wrong in turn
    max_paths_per_problem: Count = 16
    traces_rounds: Count = 3  # newest iterations whose traces are learnt from
    # newest iterations whose paths are learnt from; old values are those of an old policy
    paths_rounds: Count = 2
    # where a step that paths share is learnt: once, on the first of them; every, on each of them,
    # and so early steps weigh more
    shared_steps: Annotated[str, one_of("once", "every")] = "once"
    # the PRM learns the task's own solutions of its problems too: each step of K is worth k / K by
    # labels.kind=quality, and 1 by other kinds
    learn_references: bool = False
    # and behind every start of one a wrong step, taken from the solution of another problem; by
    # labels.kind=quality it is worth what the paper's Eq. 22 says, and 0 by other kinds
    learn_wrong_steps: bool = False
    # leave out of what the policy learns all text with a step that its task's check calls false
    drop_false_steps: bool = False
    # half of every PRM batch from paths that end correct, half from the others
    balance_outcomes: bool = True
    # rows of like length in a batch: less padding to compute, batches mixed less
    group_by_length: bool = False
    # none: a row a text. Else columns of rows that hold all texts of a problem, or as many as find
    # room, each shared token once; batch sizes count these rows then
    packed_tokens: Count | None = None


class Step(NamedTuple):
    """A labelled step of a text."""

    row: tuple[int, int, int]  # shard, tree of the shard, row of the tree
    text: bytes  # a hash of its problem and of what is written up to its end
    depth: int  # steps before it
    start: int  # index of its first token
    end: int  # of its last one
    target: float
    weight: float


class Text(NamedTuple):
    """A text from its prompt to a leaf of a tree."""

    problem_id: int
    tokens: np.ndarray  # [length] int32
    prompt_length: int
    score: float = 0.0  # the PRM's of the leaf
    is_correct: bool = False  # verified to end with a correct answer
    steps: tuple[Step, ...] = ()
    is_whole: bool = False  # it ends with a judged answer

    @property
    def key(self) -> tuple[int, bytes]:
        return self.problem_id, self.tokens.tobytes()


class Lesson(NamedTuple):
    """What is learnt at one place of a text, or at several; what a network does not read is 0."""

    places: Any  # an index of its tokens
    target: float = 0.0
    weight: float = 1.0
    group: int = -1  # what it is compared with


Row = tuple[int, Text, Sequence[Lesson]]  # the iteration that made it first
# (rounds, config, L, seed) -> (the policy's examples, counts)
RowsFn = Callable[[Rounds, DatasetsConfig, int, int], tuple[Examples, Counts]]


def num_rounds(config: DatasetsConfig) -> int:
    """Return how many of the newest iterations must have kept their trees."""
    return max(config.traces_rounds, config.paths_rounds)


def num_rows(examples: Examples) -> int:
    """Count the rows; a fit on none is to be skipped, and said to be."""
    return len(examples.problem_id)


def collect(
    rounds: Rounds,
    config: DatasetsConfig,
    max_length: int,
    seed: int,
    rows_fn: RowsFn | None = None,
    references: Sequence[Text] = (),
) -> tuple[Examples, Examples, Counts]:
    """Make the rows of both networks from the labelled trees of the newest rounds.

    rounds: shards by iteration, among them the newest one; a problem may occur in several shards.
    max_length: L; what is longer is left out. seed (not negative) decides, with the iteration and
    the problem id, which paths stay under the cap. rows_fn: what the policy learns from, one of
    `ROWS`; its traces by default. references: what the PRM learns besides.

    Returns the policy's examples, the PRM's, and counts of what was kept and dropped. The host
    holds 24 L bytes a row, and at most rounds x problems x cap rows. In the counts, "new" is of the
    newest iteration, and so is why something was dropped. `value_histogram` is its labelled targets
    in ten bins of 0.1; `targets_by_depth`, [mean, count] for steps 1, 2, ..., is of all values that
    the PRM learns.
    """
    rounds = jax.device_get(rounds)
    for prompts, tree, labels in chain.from_iterable(rounds.values()):
        chex.assert_equal_shape([tree.parent, labels.verdict, labels.target])
        chex.assert_trees_all_equal(prompts.problem_id, tree.problem_id)
    # Both views of the same trees.
    learnt, counts = (rows_fn or traces)(rounds, config, max_length, seed)
    paths, path_counts = _collect_paths(rounds, config, max_length, seed, references)
    # What the newest trees said, learnt or not.
    labelled = [shard.labels.target[shard.labels.is_labelled] for shard in rounds[max(rounds)]]
    labelled = np.concatenate([*labelled, np.zeros(0)])
    counts |= path_counts
    counts["num_values_left_out"] = len(labelled) - path_counts["num_values_new"]
    counts["value_histogram"] = np.histogram(labelled, bins=10, range=(0, 1))[0].tolist()
    return learnt, paths, counts


def demonstrations(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int
) -> tuple[Examples, int]:
    """Make the policy's examples for the warm start, of iteration 0 and problem -1.

    pairs: ids of prompts and of responses, the end id included. Returns the examples and the number
    of demonstrations left out because they are longer than max_length.
    """
    texts = [Text(-1, np.array([*asked, *shown], np.int32), len(asked)) for asked, shown in pairs]
    fitting = [text for text in texts if len(text.tokens) <= max_length]
    examples = make_examples([(0, text, [response(text)]) for text in fitting], max_length)
    return examples, len(texts) - len(fitting)


def traces(
    rounds: Rounds, config: DatasetsConfig, max_length: int, seed: int
) -> tuple[Examples, Counts]:
    """Take the best traces of every problem; a text found again counts for its newest round."""
    rows, counts, seen, num_renewed = [], {}, set(), 0
    for i in newest(rounds, config.traces_rounds):
        found, num_leaves = _read(rounds[i], is_path=False, max_length=max_length)
        # The likeliest first; between equals the shorter one.
        found.sort(key=lambda text: (-text.score, len(text.tokens), text.key))
        groups = _distinct(found)
        chosen = _interleave(groups, config.max_traces_per_problem)
        # What a newer round has given already is not given again.
        fresh = [text for text in chosen if text.key not in seen]
        rows += [(i, text, [response(text)]) for text in fresh]
        seen |= {text.key for text in fresh}
        num_renewed += len(chosen) - len(fresh)
        counts = counts or _fates("traces", num_leaves, len(found), groups, len(chosen))
    counts = {"num_traces": len(rows), **counts, "num_traces_renewed": num_renewed}
    return make_examples(rows, max_length), counts


def reference(
    problem_id: int, prompt: np.ndarray, steps: Sequence[Sequence[int]], targets: np.ndarray
) -> Text:
    """Make the text of a solution that is known to be right, a target for every step."""
    tokens = np.array([*prompt, *chain.from_iterable(steps)], np.int32)
    ends = (len(prompt) + np.cumsum([len(step) for step in steps])).tolist()
    starts = [len(prompt), *ends[:-1]]
    told = zip(starts, ends, targets.tolist(), strict=True)
    labelled = tuple(
        Step((-1, problem_id, k), _hash(problem_id, tokens[:end]), k, start, end - 1, target, 1.0)
        for k, (start, end, target) in enumerate(told)
    )
    return Text(problem_id, tokens, len(prompt), is_correct=True, steps=labelled, is_whole=True)


def _collect_paths(
    rounds: Rounds, config: DatasetsConfig, max_length: int, seed: int, references: Sequence[Text]
) -> tuple[Examples, Counts]:
    """Take paths of every problem for the PRM, a label at the end of every step."""
    chosen, label, counts = choose_paths(rounds, config, max_length, seed, references)
    # Steps of a problem are compared at their depth, and answers with all answers, or the number of
    # steps would tell them apart.
    rows, group, depth = [], {}, {}
    for i, text, own in chosen:
        answer = text.steps[-1] if text.is_whole else None
        ranks = [(text.problem_id, -1 if s == answer else s.depth) for s in own]
        numbers = [group.setdefault(rank, len(group)) for rank in ranks]
        told = zip(own, numbers, strict=True)
        rows.append((i, text, [Lesson(s.end, *label[s.text], number) for s, number in told]))
        depth |= {s.text: s.depth for s in own}
    return make_examples(rows, max_length), {
        "num_paths": len(rows),
        "num_paths_correct": sum(text.is_correct for _, text, _ in rows),
        "num_reference_paths": sum(i < 0 for i, *_ in rows),
        **counts,
        "num_values": len(depth),
        "targets_by_depth": _by_depth((depth[text], label[text][0]) for text in depth),
    }


def choose_paths(
    rounds: Rounds, config: DatasetsConfig, max_length: int, seed: int, references: Sequence[Text]
) -> tuple[list[tuple[int, Text, Sequence[Step]]], dict[bytes, tuple[float, float]], Counts]:
    """Take paths of every problem by chance, without those that say nothing new.

    Equal texts of a problem have one label: the mean of what its trees and references say of it,
    by its weight. Where labels have weights they add up, or else a text counts once.
    Returns (iteration, -1 of a reference; path; the steps that it teaches), the labels (target,
    weight) by text, and counts.
    """
    rows, learnt, counts = [], set(), {}
    told: dict[bytes, list[tuple[float, float]]] = defaultdict(list)

    # A step that paths share is learnt on the first of them, or on each.
    def teach(i: int, texts: Sequence[Text]) -> None:
        for text in texts:
            new = [step for step in text.steps if step.text not in learnt]
            learnt.update(step.text for step in new)
            if new:
                rows.append((i, text, new if config.shared_steps == "once" else text.steps))

    for i in newest(rounds, config.paths_rounds):
        found, num_leaves = _read(rounds[i], is_path=True, max_length=max_length)
        # What every row says of its text, chosen or not.
        for step in dict.fromkeys(chain.from_iterable(text.steps for text in found)):
            told[step.text].append((step.target, step.weight))
        # Which paths of a problem stay is chance; one that another goes on from says nothing more.
        inner = {step.text for text in found for step in text.steps[:-1]}
        longest = [text for text in found if text.steps[-1].text not in inner]
        groups = [_shuffle(group, i, seed) for group in _distinct(longest)]
        chosen = _interleave(groups, config.max_paths_per_problem)
        teach(i, chosen)
        fates = _fates("paths", num_leaves, len(found), groups, len(chosen))
        counts = counts or fates | {"num_values_new": len(learnt)}
    # References come last, so that what they share with a path stands there; now all is heard.
    fitting = [text for text in references if len(text.tokens) <= max_length]
    for step in chain.from_iterable(text.steps for text in fitting):
        told[step.text].append((step.target, step.weight))
    teach(-1, fitting)
    adds_up = any(s.labels.weight is not None for s in chain.from_iterable(rounds.values()))
    heard = {text: tuple(zip(*told[text], strict=True)) for text in learnt}
    label = {text: (fmean(*x), sum(x[1]) if adds_up else 1.0) for text, x in heard.items()}
    return rows, label, counts


def newest(rounds: Rounds, num: int) -> list[int]:
    """The newest iterations that are there, newest first."""
    return [i for i in sorted(rounds, reverse=True) if i > max(rounds) - num]


def _read(shards: Sequence[Shard], is_path: bool, max_length: int) -> tuple[list[Text], int]:
    """Read the texts that fit: those that end correct, or paths to the leaves of what is labelled.

    Returns them and the number of leaves.
    """
    found, num_leaves = [], 0
    for number, (prompts, tree, labels) in enumerate(shards):
        # Where the texts end.
        is_leaf = labels.verdict == Verdict.CORRECT
        if is_path:
            is_leaf = labels.is_labelled.copy()
            above = np.nonzero(labels.is_labelled & (tree.parent >= 0))
            is_leaf[above[0], tree.parent[above]] = False
        problem, row = np.nonzero(is_leaf)
        num_leaves += len(row)
        # Their rows and tokens, all at once.
        rows = trees.row_paths(tree.parent, problem, row)
        tokens, length, step_end = trees.sequences(tree, problem, rows, prompts)

        # plain lists, which are read faster one by one
        weights = labels.is_labelled if labels.weight is None else labels.weight
        is_labelled, target = labels.is_labelled.tolist(), labels.target.tolist()
        weight, score = weights.astype(float).tolist(), tree.score.tolist()
        is_correct = (labels.verdict == Verdict.CORRECT).tolist()
        is_whole = np.isin(labels.verdict, JUDGED).tolist()
        ids, prompt_length = tree.problem_id.tolist(), prompts.length.tolist()
        paths, ends = rows.tolist(), step_end.tolist()

        # a step is read on the first of its paths
        known: dict[tuple[int, int], Step] = {}
        for k in np.flatnonzero(length <= max_length).tolist():
            b, leaf, steps = int(problem[k]), int(row[k]), []
            start = prompt_length[b]
            for depth, (r, end) in enumerate(zip(paths[k], ends[k], strict=True)):
                if r < 0 or not is_path:
                    break
                if is_labelled[b][r] and (b, r) not in known:
                    told = depth, start, end, target[b][r], weight[b][r]
                    known[b, r] = Step((number, b, r), _hash(ids[b], tokens[k, : end + 1]), *told)
                steps += [known[b, r]] if is_labelled[b][r] else []
                start = end + 1
            told = score[b][leaf], is_correct[b][leaf], tuple(steps), is_whole[b][leaf]
            found.append(Text(ids[b], tokens[k, : length[k]], prompt_length[b], *told))
    return found, num_leaves


def _hash(problem_id: int, tokens: np.ndarray) -> bytes:
    return blake2b(b"%d " % problem_id + tokens.tobytes(), digest_size=16).digest()


def _distinct(texts: Sequence[Text]) -> list[list[Text]]:
    """Group texts by their problems, without those that stand in the list before."""
    groups: dict[int, dict[bytes, Text]] = defaultdict(dict)
    for text in texts:
        problem_id, content = text.key
        groups[problem_id].setdefault(content, text)
    return [list(group.values()) for group in groups.values()]


def _shuffle(group: list[Text], iteration: int, seed: int) -> list[Text]:
    """Order paths of a problem at random, correct and wrong in turn, so that a cap keeps both."""
    rng = host_rng(seed, Purpose.PATHS, iteration, group[0].problem_id)
    order = rng.permutation(len(group))
    is_correct = np.array([group[k].is_correct for k in order])
    turn = np.where(is_correct, np.cumsum(is_correct), np.cumsum(~is_correct))
    return [group[order[k]] for k in np.lexsort((~is_correct, turn))]


def _interleave(groups: list[list[Text]], cap: int) -> list[Text]:
    """The first choice of every group, then every second choice, up to cap."""
    return [group[turn] for turn in range(cap) for group in groups if turn < len(group)]


def _fates(
    name: str, num_leaves: int, num_found: int, groups: list[list[Text]], num_chosen: int
) -> Counts:
    """Count what became of the leaves of a round."""
    num_distinct = sum(map(len, groups))
    return {
        f"num_{name}_new": num_chosen,
        f"num_{name}_too_long": num_leaves - num_found,
        f"num_{name}_duplicate": num_found - num_distinct,
        f"num_{name}_over_cap": num_distinct - num_chosen,
    }


def _by_depth(values: Iterable[tuple[int, float]]) -> list[list]:
    """Average targets by their depth: [mean, count] each, the mean None where there is none."""
    targets: dict[int, list[float]] = defaultdict(list)
    for depth, target in values:
        targets[depth].append(target)
    depths = range(max(targets, default=-1) + 1)
    return [[float(np.mean(targets[d])) if targets[d] else None, len(targets[d])] for d in depths]


def response(text: Text, target: float = 0.0) -> Lesson:
    """Let the policy learn all but the prompt."""
    return Lesson(slice(text.prompt_length, len(text.tokens)), target)


def make_examples(rows: Sequence[Row], max_length: int) -> Examples:
    """Make rows of one text each."""
    # A text stands in its row from the first column on.
    length = np.array([len(text.tokens) for _, text, *_ in rows], np.int32)
    place = np.broadcast_to(np.arange(max_length, dtype=np.int32), (len(rows), max_length))
    is_token = place < length[:, None]
    tokens = np.zeros(place.shape, np.int32)
    # Where nothing is learnt the weight is 0.
    target = np.zeros(place.shape, np.float32)
    weight = np.zeros_like(target)
    group = np.full(place.shape, -1, np.int32)
    for k, (_, text, lessons) in enumerate(rows):
        tokens[k, : length[k]] = text.tokens
        for places, *told in lessons:
            target[k, places], weight[k, places], group[k, places] = told
    position, until = np.where(is_token, place, 0), np.where(is_token, length[:, None], 0)
    return Examples(
        rows=TokenRows(tokens, position, until, target, weight, group),
        problem_id=np.array([text.problem_id for _, text, *_ in rows], np.int32),
        iteration=np.array([i for i, *_ in rows], np.int32),
        is_correct=np.array([text.is_correct for _, text, *_ in rows], bool),
    )
