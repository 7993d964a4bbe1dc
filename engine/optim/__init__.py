"""Parameter groups with layer-wise decay, schedules, precision, and parameters that get no gradient."""
