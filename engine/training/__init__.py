"""The runner and the loops of all tasks: one optimizer step, averaged weights, progress."""
