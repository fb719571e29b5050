"""What is learned: encoders, the masked predictor, latent heads, action-conditioned predictors, the world model.

Every module takes one config dataclass. Nothing here knows an environment, a planner or a training loop.
"""
