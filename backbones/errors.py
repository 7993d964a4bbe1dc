"""The one exception that means: the input is wrong, the code is not."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake a person can mend; the message is one line that names the thing and the mend.

    Every tool prints the message without a stack and exits with code 2 (see ``engine.cli``).
    """
