"""What a training is about to do and to hold in memory, told before it begins."""
