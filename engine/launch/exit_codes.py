"""Exit codes of the tools and of the launcher, in a module without imports: the launcher has to start quickly."""

EXIT_FAILED = 1  # as Python does for an exception
EXIT_BAD_INPUT = 2
# A loss or gradient was not finite: the run stopped before the weights changed (engine.nonfinite.guard).
EXIT_NONFINITE = 3
# EX_TEMPFAIL of sysexits.h: stopped by a signal with everything saved, to be started again with --resume.
EXIT_SAVED = 75
# As timeout(1) does: ended because nothing happened for too long.
EXIT_HUNG = 124
EXIT_INTERRUPTED = 130
