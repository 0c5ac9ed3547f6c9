"""Planning: what a training takes, from shapes alone, before anything is loaded."""
