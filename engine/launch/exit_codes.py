"""The exit codes of the tools and of the launcher, without an import that would take the launcher time."""

EXIT_FAILED = 1  # as Python does for an exception
EXIT_BAD_INPUT = 2
# A loss or gradient was not finite: the run stopped before it changed the weights (engine.nonfinite.guard).
EXIT_NONFINITE = 3
# EX_TEMPFAIL of sysexits.h: stopped by a signal with everything saved, start it again with --resume.
EXIT_SAVED = 75
# As timeout(1) does: ended because nothing happened for too long.
EXIT_HUNG = 124
EXIT_INTERRUPTED = 130
