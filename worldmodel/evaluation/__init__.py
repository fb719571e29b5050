"""What is claimed: frozen task manifests, episode runs, statistics with intervals.

Baselines are computed by the same code path as the model, so a row beside a row is comparable.
"""
