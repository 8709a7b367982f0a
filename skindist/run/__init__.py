"""The run folder: its files (folder), whether a run may go on there (opening), its one writer (lock), its checkpoints,
and the record of its curves.

Nothing here knows of processes or of Accelerate. Training writes a run through this room, and whatever looks at one
reads it here. Open folder.py first: `Run` spells the name of each file, once.
"""
