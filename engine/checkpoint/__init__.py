"""To stop at any moment and to go on as if nothing had happened: what is saved, when, and how it is read."""
