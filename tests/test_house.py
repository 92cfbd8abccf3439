"""The house itself: who may import whom, how long things get, and a README that tells the truth
about the files.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "jaxtrain"
README = ROOT / "README.md"
FILES = sorted(HOUSE.rglob("*.py"))

STAGES = ("prompts", "search", "labels", "datasets", "updates", "checkpoints", "evaluation")
# A module imports from the rows above its own only, and a stage nothing but these words and tools.
LAYERS = (
    ("structs", "errors"),
    ("files", "memory", "calculator"),
    (
        "keys",
        "intervals",
        "trees",
        "sharding",
        "tokenizers",
        "boundaries",
        "commuting",
        "verifiers",
        "progress",
        "compilation",
    ),
    ("tasks", "nn"),
    ("workdir",),
    ("hub", "metrics"),
    STAGES,
    ("config", "report"),
    ("build",),
    ("phases",),
    ("learning",),
    ("flags", "iteration", "plan"),
    ("runs",),
    ("commands",),
    ("main",),
    ("__main__", "export", "evaluate", "relabel", "solve", "view"),
)
TOOLS_OF_STAGES = {"structs", "errors", "files", "keys", "intervals", "trees", "boundaries"}
MAX_LINES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 15_998, 400, 80


def room_of(path: Path) -> str:
    """Return the module at the top level of jaxtrain/ that a file is or belongs to; every
    `__main__.py` is a way in.
    """
    if path.name == "__main__.py":
        return "__main__"
    return path.relative_to(HOUSE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Return the top-level modules of jaxtrain/ that a file imports, wherever in it the import
    stands.
    """
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("jaxtrain.")}
    return rooms - {"__version__"}  # of jaxtrain/__init__.py, which imports nothing


def test_imports_are_seen():
    assert imports_of(HOUSE / "metrics.py") == {"errors", "files"}
    assert {"hub", "search", "structs"} <= imports_of(HOUSE / "build.py")


def test_every_module_has_its_layer():
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms == {name for layer in LAYERS for name in layer}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_module_imports_only_from_below(path):
    room = room_of(path)
    if room == "__init__":
        assert imports_of(path) == set()
        return
    height = next(i for i, layer in enumerate(LAYERS) if room in layer)
    below = {name for layer in LAYERS[:height] for name in layer}
    assert imports_of(path) - {room} <= (TOOLS_OF_STAGES if room in STAGES else below)


def test_no_module_shadows_the_standard_library():
    assert [str(path) for path in FILES if path.stem in sys.stdlib_module_names] == []


def test_files_stay_short():
    lines = {str(path): path.read_text("utf-8").count("\n") for path in FILES}
    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_the_library_stays_within_its_budget():
    """Whoever adds takes away: comments and docstrings count as code does."""
    total = sum(path.read_text("utf-8").count("\n") for path in FILES)
    assert total <= MAX_LINES


def test_functions_stay_short():
    """Counted whole: what a function holds inside, closures too, has to be read with it."""
    sizes = {
        f"{path.relative_to(HOUSE)}:{node.lineno}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    }
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


def test_functions_over_a_screen_have_headings():
    """A comment stands above each paragraph of a function of more than thirty lines."""
    bare = []
    for path in FILES:
        lines = path.read_text("utf-8").splitlines()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef) or node.end_lineno is None:
                continue
            first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
            body = lines[first.lineno - 1 : node.end_lineno]
            inner = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            if len(body) > 30 and not inner and not any(re.match(r" *# ", x) for x in body):
                bare.append(f"{path.relative_to(HOUSE)}:{node.lineno}")
    assert bare == []


def test_only_the_commands_print():
    printing = {
        str(path.relative_to(HOUSE))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("print", "eval", "exec")
    }
    assert {name for name in printing if not name.startswith("commands/")} == {"main.py"}


def test_no_comprehension_binds_a_name_of_its_module():
    """Python 3.12 lays comprehensions into their function, and 3.12.1 then takes the one for the
    other.
    """
    clashing = []
    for path in [*FILES, *(ROOT / "benchmarks").glob("*.py")]:
        module = ast.parse(path.read_text("utf-8"))
        defined = {x.name for x in module.body if isinstance(x, ast.FunctionDef | ast.ClassDef)}
        for node in ast.walk(module):
            if isinstance(node, ast.comprehension):
                bound = {x.id for x in ast.walk(node.target) if isinstance(x, ast.Name)}
                clashing += [f"{path.name}: {name}" for name in bound & defined]
    assert clashing == []


def test_a_way_in_is_nothing_but_a_way_in():
    """What a module of the last layer does is asked of a command."""
    for path in (path for path in FILES if room_of(path) in LAYERS[-1]):
        assert imports_of(path) == {"main"}
        tree = ast.parse(path.read_text("utf-8"))
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)


def test_nothing_stands_for_the_sake_of_older_code():
    """No name is kept for who imported it once."""
    shims = [
        f"{path.relative_to(HOUSE)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.alias) and node.asname == node.name)
        or (isinstance(node, ast.Name) and node.id == "DeprecationWarning")
    ]
    assert shims == []


def test_every_module_opens_with_its_place():
    bare = [
        str(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert bare == []
    for number, stage in enumerate(STAGES, start=1):
        path = HOUSE / stage / "__init__.py" if (HOUSE / stage).is_dir() else HOUSE / f"{stage}.py"
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        assert docstring.startswith(f"Stage {number} of 7."), stage


def test_readme_quotes_iterate_as_it_is():
    source = (HOUSE / "iteration.py").read_text("utf-8")
    node = next(
        n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "iterate"
    )
    quoted = ast.get_source_segment(source, node)
    assert quoted is not None
    assert f"```python\n{quoted}\n```" in README.read_text("utf-8")


def test_readme_lists_exactly_the_files():
    """In the block under "## Files", the lines below `jaxtrain/` name its files, then two spaces
    and what they are.
    """
    files = README.read_text("utf-8").split("\n## Files\n")[1].split("```")[1]
    listing = re.search(r"^jaxtrain/.*\n((?:[ \t]+.*\n)+)", files, re.MULTILINE)
    assert listing is not None
    names = [
        name
        for line in listing[1].splitlines()
        for name in re.split(r" {2,}", line.strip())[0].split()
    ]
    expected = {f"{path.name}/" if path.is_dir() else path.name for path in HOUSE.iterdir()}
    assert sorted(names) == sorted(expected - {"__init__.py", "__pycache__/"})


def test_readme_gives_the_two_commands():
    text = README.read_text("utf-8")
    assert "pip install -e . && python -m jaxtrain.main --config configs/quickstart.py" in text
    assert "pip install -e '.[test]' && pytest" in text
