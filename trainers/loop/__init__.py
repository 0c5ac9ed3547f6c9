"""The training loop, whatever is trained: there is one, and a task is all that it is given.

``plan`` (its settings) and ``task`` (what it is given) are what a task needs of it; ``training`` runs it, in the folder
that ``run`` holds.
"""
