"""Pictures of other programs: what their files say about how they were made, one file per program."""
