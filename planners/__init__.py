"""Planners: search over action sequences, given nothing but a cost function."""
