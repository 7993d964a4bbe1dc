"""The tables of the paper as data, and the same numbers counted from our networks."""
