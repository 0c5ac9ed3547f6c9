"""The commands of the command line, one per file: each parses, calls the library, and prints."""
