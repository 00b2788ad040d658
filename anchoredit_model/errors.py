"""The one exception of the project that is meant for people."""


class AnchorEditError(ValueError):
    """A mistake in what the user gave us.

    The message is one line that names the thing, its value and the remedy. The command line prints it
    and exits with code 2; a node shows it. Programming errors are never wrapped in it.
    """
