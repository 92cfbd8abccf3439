"""What is installed: configs travel with the package, and commands run from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def from_an_empty_folder(home, tmp_path, *arguments):
    """Call `python -m jaxtrain` there, with the package in `home`."""
    command = [sys.executable, "-m", "jaxtrain", *arguments]
    environment = os.environ | {"PYTHONPATH": str(home)}
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel from a copy of the checkout, without a network."""
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building needs setuptools of 77 or newer")
    root = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    for name in ("jaxtrain", "configs"):
        shutil.copytree(
            ROOT / name, root / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        ".",
    ]
    subprocess.run([*command, "."], cwd=root, check=True, capture_output=True, timeout=300)
    (path,) = root.glob("*.whl")
    return path


def test_a_wheel_holds_the_package_and_its_configs_once(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packed = sorted(name for name in names if name.endswith(".py"))
    package = {path.relative_to(ROOT) for path in (ROOT / "jaxtrain").rglob("*.py")}
    configs = {Path("jaxtrain/configs", path.name) for path in (ROOT / "configs").glob("*.py")}
    assert packed == sorted(str(path) for path in package | configs)
    templates = {path.relative_to(ROOT) for path in (ROOT / "jaxtrain/report/templates").iterdir()}
    assert {str(path) for path in templates} | {"jaxtrain/py.typed"} <= set(names)
    scripts = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"jaxtrain = jaxtrain.main:main" in zipfile.ZipFile(wheel).read(scripts)


def test_an_installed_config_is_found_by_its_name(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    done = from_an_empty_folder(
        tmp_path / "site", tmp_path / "empty", "--config", "quickstart", "--help"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config.updates.policy.warm_start.num_updates=5000" in done.stdout


def test_a_config_of_ones_own_starts_from_one_of_ours(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from jaxtrain.configs.tpu_v4 import get_config as base\n\n\n"
        "def get_config():\n    c = base('0.5b')\n    c.seed = 7\n    return c\n"
    )
    done = from_an_empty_folder(ROOT, tmp_path, "--config", "mine.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "--config.seed=7" in done.stdout
        and "--config.hub.pretrained=Qwen/Qwen2.5-0.5B" in done.stdout
    )
