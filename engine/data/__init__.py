"""Data of all formats: checked, ordered, and read where an image is damaged."""
