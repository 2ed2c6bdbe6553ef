"""Where the package can be imported from, and that its kernels/ folder never poses as the package "kernels"."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = """
import minilava, minilava_kernels.linear, minilava.model.llava, minilava.generate, minilava._C
import importlib.util as u
kernels = u.find_spec("kernels")
# Nothing, an empty namespace (as seen from the repository root), or the real package: never ours.
print("REAL" if kernels and kernels.origin else "NONE")
"""


def check(python, cwd):
    """Import everything in a fresh interpreter started in ``cwd``; says whether a package "kernels" is there."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, "-c", CHECK], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def add_fake_kernels(folder):
    """A stand-in for Hugging Face's package of that name, with the metadata that transformers looks at."""
    (folder / "kernels").mkdir()
    (folder / "kernels/__init__.py").write_text("__version__ = '0.18.2'\n")
    info = folder / "kernels-0.18.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    (info / "RECORD").write_text("")


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_as_installed_here(tmp_path, where):
    """The suite itself runs on an editable install."""
    assert check(sys.executable, ROOT if where == "root" else tmp_path) == "NONE"


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory):
    """The interpreter of an environment that has the built wheel, and this environment's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    env = {**os.environ, "MINILAVA_CUDA": "0"}
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, env=env, capture_output=True)
    wheel = next(folder.glob("minilava-*.whl"))
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next((venv / "lib").glob("python*")) / "site-packages"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # After the wheel's own folder on sys.path; the editable finder of this environment is not carried along.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return venv / "bin/python", site


@pytest.mark.slow
def test_wheel(wheel_python, tmp_path):
    python, site = wheel_python
    assert check(python, tmp_path) == "NONE"
    done = subprocess.run(
        [python, "-c", "import minilava; print(minilava.__file__)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert str(site) in done.stdout
    # From the repository root the checkout's own minilava/ comes first; it has the editable install's extension.
    assert check(python, ROOT) == "NONE"
    add_fake_kernels(site)
    assert check(python, tmp_path) == "REAL"
    assert check(python, ROOT) == "REAL"


def test_transformers_imports_with_and_without_a_package_called_kernels(tmp_path):
    pytest.importorskip("transformers", reason='needs pip install "minilava[reference]"')
    code = "import minilava_kernels.linear, transformers; transformers.LlavaForConditionalGeneration; print('fine')"
    site = tmp_path / "site"
    site.mkdir()
    for extra in ("", str(site)):
        if extra:
            add_fake_kernels(site)
        env = {**os.environ, "PYTHONPATH": extra}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
        if extra and done.returncode:
            # An incomplete stand-in may be rejected, but then by its own contents, never because it found our folder.
            assert str(site / "kernels") in done.stderr and "minilava" not in done.stderr.splitlines()[-1]
        else:
            assert "fine" in done.stdout, done.stderr
