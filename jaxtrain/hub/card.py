"""What an exported folder says of itself: origin, use and scores, in the form of `card.md`."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jaxtrain.hub.pretrained import Pretrained

TEXTS = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEXTS.filters |= {"repr": repr, "json": json.dumps}

EXAMPLE = "Question: what is 3 + 4?\nAnswer:\n", "3 + 4 = 7\n"


def model_card(
    network: str,
    iteration: int,
    manifest: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    boundary: str,
    pretrained: Pretrained | None,
    is_adapter: bool = False,
    num_outputs: int = 1,
    calculator: bool = False,
    example: tuple[str, str] = EXAMPLE,
) -> str:
    """Write the README.md of a network: what it is, how to use it, numbers and hashes of its run.

    rows: the metrics of its iteration. boundary, calculator: of its steps. num_outputs: of the PRM.
    example: a prompt and a step that it can read.
    """
    metrics = {key: x for row in rows for key, x in row.items() if key.startswith("evaluation/")}

    # The lines of the base's own card that name its license.
    own = Path(pretrained.where) / "README.md" if pretrained else Path()
    text = own.read_text("utf-8", errors="replace") if own.is_file() else ""
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    license_lines = r"^license(?:_name|_link)?: .*$"

    # The card.
    return TEXTS.get_template("card.md").render(
        is_prm=network == "prm",
        iteration=iteration,
        manifest=manifest,
        scores=[(key, x) for key, x in sorted(metrics.items()) if isinstance(x, int | float)],
        boundary=boundary,
        pretrained=pretrained,
        example=example,
        name=pretrained.name if pretrained else "random weights",
        license=re.findall(license_lines, front[1], re.MULTILINE) if front else [],
        is_rounded=pretrained and pretrained.dtypes and not is_adapter,
        is_adapter=is_adapter,
        num_outputs=num_outputs,
        calculator=calculator,
    )
