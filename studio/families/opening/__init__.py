"""Opening a base: which files it needs, where they come from, in which types they are read, and their hash."""
