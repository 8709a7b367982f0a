"""The commands of `skindist` beside `train`: on images (data), on runs (runs), with a saved model (models).

Each function is one command: its arguments are the command's, and its docstring is the command's help. What a command
needs is imported when it runs: --help must not wait for torch. The command line alone imports this room; cli.py gives
each command its name.
"""
