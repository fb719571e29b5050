"""How it is learned: one training task per file, the one training loop, probes and diagnostics.

A task is a module whose forward returns `{"loss": ..., parts}`; `fit` serves them all.
"""
