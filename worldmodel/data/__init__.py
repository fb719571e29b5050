"""Episodes on disk and the way from them to training batches.

Holds the HDF5 episode format (write, read, validate, hash), windows over episodes (clips) and normalisation statistics.
Separate from the models so that a dataset can be inspected without any network code.
"""
