"""The base of errors that users can mend."""


class UserError(Exception):
    """The input, the settings or the machine do not allow what was asked; the message says what to do.

    Commands print it and exit with status 2.
    """
