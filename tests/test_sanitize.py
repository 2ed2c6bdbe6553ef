"""A short fuzz of the CPU extension under the sanitizers (`make fuzz` is a long one), and that they see what is wrong.

The sanitized extension takes a minute of one core to build and is kept in build/sanitize/ until csrc/ changes.
"""

import pytest

from tests import sanitize


@pytest.fixture(scope="module")
def library():
    if reason := sanitize.missing():
        pytest.skip(reason)
    return sanitize.build()


def test_nothing_is_reported(library):
    status, last = sanitize.fuzz(library, "--seconds", "5", "--seed", "0")
    assert status == 0, last


@pytest.mark.parametrize("wrong, report", [("overread", "heap-buffer-overflow"), ("misaligned", "misaligned address")])
def test_what_is_wrong_is_reported(library, wrong, report, capfd):
    status, _ = sanitize.fuzz(library, "--control", wrong)
    assert status and report in capfd.readouterr().err
