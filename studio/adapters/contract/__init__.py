"""What a method is: its config, its delta, what it starts from, and its names in other programs' files."""
