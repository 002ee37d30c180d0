"""The exception type for mistakes that a user can repair."""


class UserError(ValueError):
    """A mistake in what the user gave: one line saying what is wrong, where, and what to do.

    The command-line programs print the message alone; a traceback would only hide it.
    """
