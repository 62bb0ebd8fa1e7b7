"""The one exception type that users see as a line of text instead of a traceback."""


class MCNError(Exception):
    """A problem the user can mend: the message names the file or value and says what to do.

    The command line prints it as one line and exits with status 1; library code raises it like
    any other exception.

    >>> raise MCNError("no such folder: clips/ (give the folder that holds the videos)")
    Traceback (most recent call last):
    ...
    mcn.errors.MCNError: no such folder: clips/ (give the folder that holds the videos)
    """
