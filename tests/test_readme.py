"""The README says what the result files say, and names only flags and files that exist."""

import re
from pathlib import Path

from bench.readme import README, update
from minilava.generate import parser

TEXT = README.read_text()


def test_table_is_the_newest_result():
    assert update(TEXT) == TEXT


def test_files_exist():
    for name in re.findall(r"`((?:minilava|kernels|csrc|bench|tests)/[\w./]+)`", TEXT):
        assert (Path(README).parent / name).exists(), name


def test_flags_exist():
    known = {o for a in parser()._actions for o in a.option_strings}
    for line in re.findall(r"python -m minilava\.generate (.*)", TEXT):
        assert set(re.findall(r"--[\w-]+", line)) <= known, line
