"""Sample traces, step by step, with what the PRM thought and what the labels say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtrain.report.markup import NONE, bar, escape, is_number, table

Sample = dict[str, Any]
MAX_CHARACTERS = 4000  # of one text on the page


def render_samples(samples: Sequence[Sample]) -> str:
    """Return the traces, one card each.

    A sample is a dict with `problem`, `gold`, `method` and `verdict` (text), and `steps`: a list of
    dicts with `text`, `score` (the PRM's), `value` (after back-up) and `target` (the label), each a
    number or None. Any may be missing."""
    if not samples:
        return ""
    cards = "".join(map(_card, samples))
    return f"""<section>
<h2>Sample traces</h2>
<p>Score: what the PRM gives the solution up to this step. Value: the same after the search's back-up. Target: the
label that follows from the verdicts.</p>
{cards}
</section>"""


def _card(sample: Sample) -> str:
    steps = sample.get("steps") or []
    body = [
        [
            f"<pre>{_text(step.get('text'))}</pre>",
            _score(step.get("score")),
            *(_value(step.get(k)) for k in ("value", "target")),
        ]
        for step in steps
    ]
    verdict = sample.get("verdict") or "not judged"
    colour = verdict if verdict in ("correct", "wrong") else "other"
    trace = (
        table(["step", "score", "value", "target"], body, "trace")
        if body
        else "<p>No step was sampled.</p>"
    )
    return f"""<article>
<p class="verdict"><span class="badge {colour}">{escape(verdict)}</span> {escape(sample.get("method") or "")}</p>
<pre class="problem">{_text(sample.get("problem"))}</pre>
<p class="gold">gold answer <code>{_text(sample.get("gold"))}</code></p>
{trace}
</article>"""


def _text(text: object) -> str:
    text = "" if text is None else str(text)
    rest = len(text) - MAX_CHARACTERS
    return (
        escape(text)
        if rest <= 0
        else f"{escape(text[:MAX_CHARACTERS])}<i> and {rest:,} more characters</i>"
    )


def _score(value: Any) -> str:
    return f"{bar(value)} {value:.3f}" if is_number(value) else NONE


def _value(value: Any) -> str:
    return f"{value:.3f}" if is_number(value) else NONE
