"""The exit codes of the tools and of the launcher, without an import that would take the launcher time."""

FAILED = 1  # as Python does for an exception
BAD_INPUT = 2
# A loss or gradient was not finite: the run stopped before it changed the weights (engine.nonfinite.guard).
NONFINITE = 3
# EX_TEMPFAIL of sysexits.h: stopped by a signal with everything saved, start it again with --resume.
SAVED_AND_LEFT = 75
# As timeout(1) does: ended because nothing happened for too long.
HUNG = 124
INTERRUPTED = 130
