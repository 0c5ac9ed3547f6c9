"""PEFT's words: its enumerations, its errors, and where its folders are."""
