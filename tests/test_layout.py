"""The shape of the repository: who imports whom, one stem per operation, nothing in the wrong place."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = {"csrc", "minilava", "kernels", "bench", "tests", "setup.py", "pyproject.toml", "README.md", "Makefile",
       "LICENSE", "MANIFEST.in", ".ci", ".clang-format", ".gitignore"}  # fmt: skip
CORE = {"torch", "numpy", "safetensors", "tokenizers", "PIL", "tqdm"}
# What each part of the package may import of the package (design: arrows go one way).
ARROWS = {
    "minilava_kernels": {"minilava._C", "minilava._cuda", "minilava_kernels"},
    "minilava.model": {"minilava.config", "minilava.packed", "minilava.model", "minilava_kernels"},
    "minilava.inputs": {"minilava.config", "minilava.packed", "minilava.errors", "minilava.inputs", "minilava_kernels"},
    "minilava.data": {"minilava.config", "minilava.errors", "minilava.tokenizer", "minilava.packed", "minilava.inputs",
                      "minilava.data"},
    "minilava.train": {"minilava.config", "minilava.errors", "minilava.tokenizer", "minilava.packed", "minilava.inputs",
                       "minilava.model", "minilava.checkpoint", "minilava.data", "minilava.train",
                       "minilava.device", "minilava.store"},
    "minilava.eval": {"minilava.config", "minilava.errors", "minilava.inputs", "minilava.runtime", "minilava.data",
                      "minilava.eval", "minilava.generate", "minilava.train.ranks", "minilava.device"},
    "minilava.checkpoint": {"minilava.config", "minilava.errors", "minilava.tokenizer", "minilava.checkpoint",
                            "minilava.inputs.geometry"},
}  # fmt: skip


def tracked():
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [f for f in done.stdout.splitlines() if (ROOT / f).exists()]


def modules():
    """(module name, path) of everything that gets installed."""
    for folder, name in (("minilava", "minilava"), ("kernels", "minilava_kernels")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((name, *parts)).removesuffix(".__init__"), path


def imports(path, top_level_only=False):
    """Names that a file imports: 'a.b' for import a.b and from a.b import x."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{a.name}" if node.module == "minilava" else node.module for a in node.names)


def test_top_level():
    assert {f.split("/")[0] for f in tracked()} <= TOP


def test_import_arrows():
    for name, path in modules():
        for imported in imports(path):
            top = imported.split(".")[0]
            assert top not in ("bench", "tests", "kernels"), f"{name} imports {imported}"
            if top in ("minilava", "minilava_kernels"):
                for part, allowed in ARROWS.items():
                    if name == part or name.startswith(part + "."):
                        assert any(imported == a or imported.startswith(a + ".") for a in allowed), (
                            f"{name}: {imported}"
                        )


def test_optional_packages_are_imported_where_they_are_used():
    """At module level only the standard library and the core dependencies; transformers nowhere at all. The Triton
    kernels are themselves imported where they are used."""
    import sys

    for name, path in modules():
        core = CORE | {"triton"} if name.startswith("minilava_kernels.gpu") else CORE
        assert not any(i.split(".")[0] == "transformers" for i in imports(path)), name
        for imported in imports(path, top_level_only=True):
            top = imported.split(".")[0]
            assert top in sys.stdlib_module_names or top in core | {"minilava", "minilava_kernels"}, (
                f"{name}: {imported}"
            )


def test_one_stem_per_operation():
    for path in (ROOT / "kernels").glob("*.py"):
        assert (ROOT / "tests/kernels" / f"test_{path.stem}.py").exists(), path.stem
    assert not (ROOT / "kernels/__init__.py").exists()  # see pyproject.toml


def test_every_file_says_its_job_first():
    for name, path in modules():
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc or not path.read_text().strip(), f"{name} has no first line"


def test_sizes():
    """Small files, as the design promises; the exceptions would be listed here with their reason."""
    for f in tracked():
        path = ROOT / f
        # One exception: the embedded model's weights, which every first command needs.
        assert path.stat().st_size <= (16_000_000 if f == "minilava/assets/tiny/model.safetensors" else 500_000), f
        if path.suffix in (".py", ".cpp", ".cu", ".h", ".inc"):
            assert len(path.read_text().splitlines()) <= 400, f
