"""The one exception for everything that the person at the keyboard can fix, and how a command ends on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Bad input from outside (a file, a prompt, a flag). Its text is one line that says what to do;
    the commands print it as ``minilava: error: ...`` and exit with status 2."""


def command(body: Callable[[], None]) -> int:
    """Run a command's body and turn its outcome into an exit status: 0, 2 for a UserError and for what the
    system refuses, 130 for Ctrl-C."""
    try:
        if "MINILAVA_SIMD" in os.environ:
            from minilava.device import check_simd  # and torch, which not every command needs

            check_simd()
        body()
    except UserError as e:
        print(f"minilava: error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminilava: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has gone; leave quietly, as other filters do
        sys.stderr.close()
        return 141
    except OSError as e:  # a full disk, a folder that cannot be written
        print(f"minilava: error: {e.filename or 'input or output'}: {e.strerror or e}", file=sys.stderr)
        return 2
    return 0


class Parser(argparse.ArgumentParser):
    """Reports a bad flag like every other user error: one line, status 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")
