"""Simulated manipulation environments with image goals."""
