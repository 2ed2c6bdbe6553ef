"""The one exception for everything that the person at the keyboard can fix."""


class UserError(ValueError):
    """Bad input from outside (a file, a prompt, a flag). Its text is one line that says what to do;
    the commands print it as ``minilava: error: ...`` and exit with status 2."""
