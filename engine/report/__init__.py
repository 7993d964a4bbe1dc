"""What a run leaves in its folder, and the pages made of it."""
