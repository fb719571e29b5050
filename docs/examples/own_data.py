"""Recordings of another robot become an episode file; models learn from it without any environment."""

import numpy as np

from worldmodel.cli import main
from worldmodel.data.episodes import Episode, EpisodeSpec, write_episodes

STEPS, SIZE = 20, 64
rng = np.random.default_rng(0)


def recording():
    """Stands for your own reader: pictures (T+1, Y, X, 3), joint angles (T+1, P) and commands (T, A)."""
    commands = rng.uniform(-1, 1, (STEPS, 2)).astype(np.float32)
    joints = np.clip(0.5 + np.cumsum(np.vstack([np.zeros((1, 2)), 0.1 * commands]), axis=0), 0, 1)
    across, down = ((np.arange(SIZE) / SIZE - joints[:, i, None]) ** 2 for i in range(2))
    pixels = 255 * np.exp(-50 * (down[:, :, None] + across[:, None, :]))
    return np.repeat(pixels[..., None], 3, axis=-1).astype(np.uint8), joints.astype(np.float32), commands


def episode(number):
    pixels, joints, commands = recording()
    unknown = {"privileged": np.zeros((STEPS + 1, 0), np.float32), "contact": np.zeros(STEPS + 1, bool)}
    facts = {"policy": "teleoperation", "seed": number, "success": False}
    return Episode(pixels=pixels, proprio=joints, action=commands, **unknown, **facts)


if __name__ == "__main__":
    bounds = {"action_low": (-1.0, -1.0), "action_high": (1.0, 1.0)}
    names = {"env_id": "mine/Robot", "proprio_names": ("shoulder", "elbow"), "privileged_names": ()}
    spec = EpisodeSpec(image_size=SIZE, control_dt_s=0.1, **bounds, **names)
    write_episodes("robot.h5", spec, [episode(number) for number in range(30)])
    main(["inspect", "data=robot.h5"])
    small = "encoder.embed_dim=48 encoder.depth=2 encoder.num_heads=2 encoder.num_frames=4"
    main(f"pretrain data=robot.h5 {small} batch_size=8 fit.steps=5 fit.warmup_steps=2 run_dir=eyes".split())
    small = "batch_size=16 steps=20 temporal_distance.steps=20"
    main(f"train data=robot.h5 encoder.path=eyes/encoder {small} run_dir=robot".split())
