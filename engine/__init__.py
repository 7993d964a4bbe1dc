"""What all tasks share at run time: batch contract, layer decay, hooks, launching, report."""
