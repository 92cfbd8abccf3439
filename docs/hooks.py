"""What mkdocs builds besides docs/: a page of all config keys, and pages that stand elsewhere.

Pages link as files of the checkout do, so they can be read there; the links are mended here.
"""

import posixpath
import re
from html import escape
from pathlib import Path

from mkdocs.structure.files import File

from jaxtrain.config import Config
from jaxtrain.flags import list_keys

ROOT = Path(__file__).parents[1]
# places in the checkout, and their places on the site
ELSEWHERE = {
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changes.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/smollm2_gsm.md": "smollm2_gsm.md",
    "benchmarks/smollm2_gsm_iterations.svg": "smollm2_gsm_iterations.svg",
    "benchmarks/smollm2_gsm_tokens.svg": "smollm2_gsm_tokens.svg",
}
KEYS = """# Config keys

Every key, its default and a remark, made from the code when this site was built.
`--config X --help` prints the same with the values of a config. A key is set by
`--config.section.key=value`, or in a Python file ([Commands](commands.md#keys)).
"""
# sections that hold the keys of another one: only what differs is listed
REPEATED = {
    "config.evaluation.samples.": "config.search.",
    "config.evaluation.search.": "config.search.",
}


def on_files(files, config):
    """Add the page of keys, and the pages from elsewhere."""
    files.append(File.generated(config, "keys.md", content=list_all_keys()))
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point the links of a page to where their targets are on the site.

    A link to code, which the site does not hold, becomes its text.
    """
    sources = {place: source for source, place in ELSEWHERE.items()}
    folder = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def move(match):
        text, target, anchor = match.groups(default="")
        target = posixpath.normpath(posixpath.join(folder, target))
        if target not in ELSEWHERE and not target.startswith("docs/"):
            return text.lstrip("!")
        place = ELSEWHERE.get(target, target.removeprefix("docs/"))
        return f"{text}({place}{anchor})"

    return re.sub(r"(!?\[[^\]]*\])\((?!\w+:|#)([^)#]+)(#[^)]*)?\)", move, markdown)


def list_all_keys():
    """Return the page of keys: a table for each section."""
    sections, values = {}, {}
    for line in list_keys(Config()):
        told, remark = re.fullmatch(r"  --(\S+=.*?) {2,}(.*)", line).groups()
        key, value = told.split("=", 1)
        values[key] = value
        same = next((key.replace(a, b) for a, b in REPEATED.items() if key.startswith(a)), None)
        if same is None or values[same] != value:
            rows = sections.setdefault(key.split(".")[1] if key.count(".") > 1 else "run", [])
            shown = escape(value) or "''"
            cells = f"<code>{key.removeprefix('config.')}</code>", f"<code>{shown}</code>"
            rows.append("".join(f"<td>{cell}</td>" for cell in (*cells, escape(remark))))
    head = "<tr><th>key</th><th>default</th><th>what it is</th></tr>"
    tables = [KEYS]
    for section, rows in sections.items():
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        tables.append(f"## {section}\n\n<table>\n{head}\n{body}\n</table>\n")
        if section == "evaluation":
            told = "`evaluation.samples` and `evaluation.search` hold all keys of [search](#search)"
            tables.append(f"{told}; listed are those with another default.\n")
    return "\n".join(tables)
