"""A cart on a rail pushes a box to where the goal picture shows it."""

import gymnasium
import numpy as np

from worldmodel.cli import main
from worldmodel.envs import StateEnv
from worldmodel.testing import check_env


class CartEnv(StateEnv):
    env_id, max_steps, max_step_m, success_radius_m = "mine/Cart-v0", 24, 0.05, 0.05
    privileged_names, proprio_dim, action_dim = ("cart", "box"), 1, 1  # the cart knows its own place, metres

    def sample_states(self, rng):
        cart, box, way = rng.uniform(0.1, 0.2), rng.uniform(0.3, 0.5), rng.uniform(0.15, 0.35)
        return np.array([cart, box]), np.array([box + way - 0.1, box + way])

    def advance(self, state, action):
        cart = np.clip(state[0] + self.max_step_m * action[0], 0.1, 0.9)
        return np.array([cart, max(state[1], cart + 0.1)])  # pushed once it is touched, and never pulled

    def draw(self, state):
        picture = np.full((self.image_size, self.image_size, 3), 230.0)
        for place, colour in zip(state, np.array([(40, 80, 200), (200, 40, 40)]), strict=True):
            shade = np.clip(3 - np.abs(np.arange(self.image_size) - place * self.image_size), 0, 1)[:, None]
            picture += shade * (colour - picture)
        return picture.astype(np.uint8)

    def goal_position(self, state):
        return state[1:]


gymnasium.register(CartEnv.env_id, CartEnv)

if __name__ == "__main__":
    check_env(CartEnv())
    main("collect env=mine/Cart-v0 episodes=40 expert_fraction=0 workers=1 out=cart.h5".split())
    main("train data=cart.h5 encoder=pixels batch_size=16 steps=40 temporal_distance.steps=40 run_dir=cart".split())
    main("plan env=mine/Cart-v0 checkpoint=cart/checkpoint planner.num_samples=50 run_dir=cart_plan".split())
