"""The sanitizers see what is wrong in the CPU extension; `make fuzz` calls it at random under them.

The sanitized extension takes a minute of one core to build and is kept in build/sanitize/ until csrc/ changes.
"""

import pytest

from tests import sanitize


@pytest.fixture(scope="module")
def library():
    if reason := sanitize.missing():
        pytest.skip(reason)
    return sanitize.build()


@pytest.mark.parametrize("wrong, report", [("overread", "heap-buffer-overflow"), ("misaligned", "misaligned address")])
def test_what_is_wrong_is_reported(library, wrong, report, capfd):
    status, _ = sanitize.fuzz(library, "--control", wrong)
    assert status and report in capfd.readouterr().err
