"""What the tasks on language models share: texts as token numbers, what is held out, the lesson."""
