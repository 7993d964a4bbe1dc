"""To stop at any moment and to go on as if nothing had happened."""
