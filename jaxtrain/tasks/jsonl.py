"""Word problems from a file, in the form of GSM8K or near it. Stands below the seven stages.

One JSON object a line, in one array, in parquet or in a folder that Hugging Face's `datasets` has
saved, with a question and an answer: lines of reasoning and then `#### ` with the gold, a text with
the gold in a box, or the gold alone. The
prompt is the question between two short marks; a response is lines, the last of which gives the
answer after `####`. A row that breaks the form is skipped, named and counted, and only a file with
too many of them is refused. From scratch bytes are the tokens, so no text is out of the vocabulary.
"""

import contextlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jaxtrain.errors import Count, Section, Share, UserError, explained, one_of, require
from jaxtrain.structs import Tokenizer, Verdict
from jaxtrain.tasks.base import (
    NUM_NAMED,
    Demonstration,
    Problem,
    Row,
    WordTask,
    close_sizes,
    draw_sets,
)
from jaxtrain.tokenizers import byte_tokenizer
from jaxtrain.verifiers.numerals import BOX, MARKER, extract_answer, read_number
from jaxtrain.verifiers.worker import MATH, Worker

if TYPE_CHECKING:
    from jaxtrain.tasks import TasksConfig

ANNOTATION = re.compile("<<[^<>]*>>")
NO_TEXT = re.compile("[\0\ud800-\udfff]")
CHOICE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
NAMED = re.compile(r"^[A-Za-z]\w* ?= ?(?!.*=)")  # the name that an expression is given, as in x = 5
MAX_EXPRESSION = 256  # characters
REASONS = {
    "too_long": "longer than --config.tasks.jsonl.max_row_bytes",
    "not_utf8": "not valid UTF-8",
    "empty": "empty line or empty question",
    "not_json": "not JSON",
    "no_fields": "not an object with --config.tasks.jsonl.question_field and answer_field as texts",
    "not_text": "a NUL or half of a surrogate pair in the text",
    "no_gold": f"no gold of --config.tasks.jsonl.answer_kind behind {MARKER}, in a box or alone",
    "duplicate": "the question stands in an earlier line",
}
MAX_FIELDS = 80  # characters of the names of a row's fields in a message


def key_of(row: Row) -> str:
    """Return what rows are compared by: white space does not make another question."""
    return " ".join(row.question.split())


def write_rational(text: str) -> str | None:
    """Return a number in lowest terms, None for anything else."""
    number = read_number(text)
    return None if number is None else str(number)


def write_choice(text: str) -> str | None:
    """Return the letter that stands alone or in brackets, as a capital; None for anything else."""
    match = CHOICE.fullmatch(text.strip())
    return match and match[1].upper()


def write_text(text: str) -> str | None:
    """Return a text of one line with single spaces, None for an empty or a longer one."""
    return None if "\n" in text.strip() else " ".join(text.split()) or None


def write_math(text: str) -> str | None:
    """Return an expression without dollar signs, closing period and the name it is given, a number
    in lowest terms; None for an empty or a longer one.
    """
    bare = NAMED.sub("", " ".join(text.strip().rstrip(".").strip("$").split()))
    return write_rational(bare) or (bare if 0 < len(bare) <= MAX_EXPRESSION else None)


# How an answer is written so that equal ones are the same text; None where it is none of the kind.
Write = Callable[[str], str | None]
KINDS: dict[str, Write] = {"number": write_rational, "choice": write_choice}
KINDS |= {"text": write_text, "math": write_math}


@dataclass(frozen=True)
class JsonlConfig(Section, at="tasks.jsonl"):
    """Which files, and what stands in their rows."""

    path: str = ""  # the train file: JSON lines, a JSON array, .parquet, or a folder of datasets
    test_path: str = ""  # the test file; empty: the test problems are held out of the train file
    question_field: str = "question"  # the field of a row with its question
    answer_field: str = "answer"  # its gold, bare, boxed, or behind reasoning and ####
    # number | choice (a letter) | text (as it is) | math (an expression, by math-verify)
    answer_kind: Annotated[str, one_of(*KINDS)] = "number"
    is_annotated: bool = False  # keep the calculator annotations <<...>> in the demonstrations
    max_row_bytes: Count = 16384  # a longer line is a bad row
    max_bad_share: Share = 0.01  # skip bad rows up to this share of a file, then refuse the file

    def check(self) -> None:
        for name in ("path", "test_path"):  # found again from any folder
            if path := getattr(self, name):
                object.__setattr__(self, name, os.path.abspath(path))


@dataclass(frozen=True)
class JsonlTask(WordTask):
    """Questions with one answer of a known kind; see the module for the format."""

    kind: str = "number"
    solutions: Mapping[int, Demonstration] = field(default_factory=dict)  # of training problems
    worker: Worker | None = None  # judges what is written otherwise and may be equal

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Compare the answer of a response with the gold. UNPARSABLE if it gives none."""
        answer, gold = self.answer(text), KINDS[self.kind](problem.gold)
        if answer is None or gold is None:
            return Verdict.UNPARSABLE
        is_right: bool | None = answer == gold
        # math-verify takes `8 = 7` for 7
        may_agree = ("=" in answer) == ("=" in gold)
        if self.worker is not None and not is_right and may_agree:
            both_numbers = read_number(answer) is not None and read_number(gold) is not None
            is_right = not both_numbers and self.worker.judge(gold, answer)
        return {True: Verdict.CORRECT, False: Verdict.WRONG, None: Verdict.ERROR}[is_right]

    def solution(self, problem: Problem) -> Demonstration | None:
        """Return what stands in a training problem's row, with reasoning or without."""
        return self.solutions.get(problem.id)

    def answer(self, text: str) -> str | None:
        """Return the answer of a response, numbers in lowest terms; None if it gives none."""
        given = extract_answer(text)
        return None if given is None else KINDS[self.kind](given)


def jsonl_task(config: "TasksConfig", tokenizer: Tokenizer | None = None) -> JsonlTask:
    """Make the task that a config describes from its one or two files.

    Train rows whose question is in the test file are dropped and counted. A problem's id is its
    row's place in the file (the test file's follow the train file's). Raises UserError for a
    missing file, too many bad rows, or fewer rows than the sets ask for.
    """
    # Read the files; what is in the test file is no train row.
    c = config.jsonl
    worker = Worker(MATH, {}) if c.answer_kind == "math" else None
    told = "--config.tasks.jsonl.answer_kind=math: math-verify does not start"
    with explained(told, "needs pip install 'jaxtrain[math]'"):
        if worker:  # or every answer would be an error
            worker.item("1")
    rows, num_lines, counts, skipped = _read_rows("path", c)
    test_rows, num_in_test = [], 0
    if c.test_path:
        test_rows, _, test_counts, test_skipped = _read_rows("test_path", c)
        counts, skipped = counts + test_counts, skipped + test_skipped
        test_keys = set(map(key_of, test_rows))
        fresh = [row for row in rows if key_of(row) not in test_keys]
        rows, num_in_test = fresh, len(rows) - len(fresh)
        test_rows = [row._replace(id=num_lines + row.id) for row in test_rows]
        is_met = max(1, config.num_test or 0) <= len(test_rows)
        why = f"{c.test_path} has {len(test_rows)} good rows; ask for fewer, or none for all"
        config.require(is_met, "num_test", why)
        if config.num_test is not None:
            test_rows = random.Random(config.seed).sample(test_rows, config.num_test)

    # Draw the sets.
    num_test, num_dev, num_demonstrations = close_sizes(config, len(rows))
    sizes = (0 if c.test_path else num_test, num_dev, num_demonstrations, config.num_train)
    what = f"good rows of {c.path} that are not in the test file"
    sets = draw_sets(rows, sizes, config.seed, what)
    parts = sets.train, sets.dev, test_rows or sets.test
    return JsonlTask(
        "jsonl",
        tokenizer or byte_tokenizer(),
        *(tuple(row.problem for row in rows) for rows in parts),  # train, dev, test
        demonstrations=tuple(row.demonstration for row in sets.demonstrations),
        counts={name: counts[name] for name in ("rows", *REASONS)} | {"in_test_file": num_in_test},
        skipped=tuple(skipped),
        kind=c.answer_kind,
        solutions={row.id: row.demonstration for row in sets.train},
        worker=worker,
    )


def _read_rows(key: str, config: JsonlConfig) -> tuple[list[Row], int, Counter[str], list[str]]:
    """Return (good rows of a file, its number of lines, counts by reason, the bad rows named)."""
    path = getattr(config, key)
    lines = _read_lines(path, key)
    rows, counts, skipped, seen = [], Counter(rows=len(lines)), [], set()
    for i, line in enumerate(lines):
        row = _read_row(line, i, config)
        if isinstance(row, Row) and key_of(row) in seen:
            row = "duplicate"
        if isinstance(row, Row):
            seen.add(key_of(row))
            rows.append(row)
        else:
            counts[row] += 1
            there = f"; it has {_fields(line)}" if row == "no_fields" else ""
            skipped.append(f"{path}:{i + 1}: {REASONS[row]}{there}")
    share, first = len(skipped) / max(len(lines), 1), "; ".join(skipped[:NUM_NAMED])
    told = f"{len(skipped)} of {len(lines)} rows ({share:.1%}) are bad, more than"
    most = f"--config.tasks.jsonl.max_bad_share={config.max_bad_share} allows"
    require(share <= config.max_bad_share, path, f"{told} {most}; the first: {first}")
    return rows, len(lines), counts, skipped


def _read_lines(path: str, key: str) -> list[bytes]:
    if path.endswith(".parquet") or (path and Path(path).is_dir()):
        return _as_lines(_read_tables(path))
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        why = error.strerror if path else "no file is named"
        then = f"name a JSON-lines file with --config.tasks.jsonl.{key}=..."
        raise UserError(f"cannot read '{path}': {why}; {then}") from None
    # Not splitlines: a line of JSON may hold other line separators.
    data = data.removeprefix(b"\xef\xbb\xbf").rstrip()
    lines = data.split(b"\n") if data else []
    if data.lstrip()[:1] == b"[":
        with contextlib.suppress(ValueError, RecursionError):  # lines of arrays are no array
            return _as_lines(json.loads(data))
    return lines


def list_parts(path: str) -> list[Path]:
    """Return the files that hold the rows of a path, in their order."""
    return sorted(Path(path).glob("*.arrow")) if Path(path).is_dir() else [Path(path)]


def _as_lines(rows: list[Any]) -> list[bytes]:
    # Some writers mark no column as text; what is none becomes a bad row.
    how = "utf-8", "surrogateescape"
    plain = partial(json.dumps, default=lambda x: x.decode(*how) if type(x) is bytes else str(x))
    return [plain(row, ensure_ascii=False).encode(errors="backslashreplace") for row in rows]


def _read_tables(path: str) -> list[Any]:
    parts = list_parts(path)
    if not parts:
        raise UserError(f"cannot read '{path}': no *.arrow files; name a part of it, such as train")
    try:
        from pyarrow import ipc, parquet  # pyright: ignore[reportMissingImports]

        if parts == [Path(path)]:
            return parquet.read_table(path).to_pylist()
        tables = [ipc.open_stream(part.read_bytes()).read_all() for part in parts]
        return [row for table in tables for row in table.to_pylist()]
    except ImportError as error:
        raise UserError(f"cannot read '{path}': needs pip install 'jaxtrain[parquet]'") from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"cannot read '{path}': {' '.join(str(error).split())}") from error


def _read_row(line: bytes, i: int, config: JsonlConfig) -> Row | str:
    """Return the row that a line holds, or the reason why it holds none."""
    if len(line) > config.max_row_bytes:
        return "too_long"
    try:
        text = line.decode("utf-8")
        if not text.strip():
            return "empty"
        fields = json.loads(text)
    except UnicodeDecodeError:
        return "not_utf8"
    except (ValueError, RecursionError):
        return "not_json"
    fields = fields if isinstance(fields, dict) else {}
    question, answer = fields.get(config.question_field), fields.get(config.answer_field)
    if type(answer) in (int, float):
        answer = str(answer)
    if not isinstance(question, str) or not isinstance(answer, str):
        return "no_fields"
    if not question.strip():
        return "empty"
    if NO_TEXT.search(question + answer):
        return "not_text"
    reasoning, gold = _split(answer)
    write = KINDS[config.answer_kind]
    # A gold that a response could not give would make every answer wrong.
    given = extract_answer(f"{MARKER} {gold}")
    if write(gold) is None or given is None or write(given) != write(gold):
        return "no_gold"
    reasoning = reasoning if config.is_annotated else ANNOTATION.sub("", reasoning)
    return Row(i, question.strip(), reasoning, gold)


def _fields(line: bytes) -> str:
    """Name the fields of a line of JSON, as literals: a stranger's text may hold controls."""
    fields = json.loads(line)
    named = ", ".join(map(repr, fields))[:MAX_FIELDS] if isinstance(fields, dict) else ""
    return named or "no fields"


def _split(answer: str) -> tuple[str, str]:
    """Split an answer into (reasoning, gold), without its box, so that responses have one form."""
    reasoning, marker, gold = answer.rpartition(MARKER)
    if marker:
        return reasoning, (extract_answer(f"{MARKER}{gold}") or "").strip()
    boxed = extract_answer(answer)
    if boxed is None:
        return "", answer.strip()
    reasoning = answer.replace(f"{BOX}{boxed}}}", boxed)
    return "" if reasoning.strip() == boxed else reasoning, boxed
