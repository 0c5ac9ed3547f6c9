"""The image families, one file each."""
