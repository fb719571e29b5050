"""What can be seen: figures, videos and summaries behind the CLI and the notebooks.

Nothing here computes a number that evaluation claims; it only shows what other packages produced.
"""
