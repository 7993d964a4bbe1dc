"""How a tool ends: a result, or one line that says what to mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from backbones.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's ``main`` and turn a :class:`UserError` into one line and exit code 2.

    A broken pipe (``tool | head``) ends quietly, Ctrl-C with the customary code 130.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader went away: point stdout at nothing so that the interpreter's own flush cannot fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
