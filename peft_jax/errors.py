"""The one exception that bad input raises."""


class InputError(ValueError):
    """Something that the user gave cannot be used: a field, a file, a tensor, a target.

    The message says what was given, where, and what would be right. The command line prints it
    alone and leaves with exit code 2; nothing was trained or overwritten before it was raised.
    """
