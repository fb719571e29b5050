"""V-JEPA 2-AC's predictor and poses: parameter count, token order, causality by perturbation, kinematics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.models.ac_predictor import ACPredictor, ACPredictorConfig, block_causal_mask, normalise_tokens
from worldmodel.models.pose import euler_of, pose_change, propagate_pose, rotation_of

TINY = {"latent_dim": 20, "embed_dim": 24, "depth": 2, "num_heads": 2}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(**changes: Any) -> ACPredictor:
    """Wide weights, so that attention is far from uniform and every input leaves a trace."""
    model = ACPredictor(ACPredictorConfig(**{**TINY, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=stream())
    return model.requires_grad_(False)


def inputs(batch: int = 2, steps: int = 4, tokens: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    z = normalise_tokens(torch.randn(batch, steps, tokens, 20, generator=stream(1)))
    actions, states = torch.randn(2, batch, steps, 7, generator=stream(2)).unbind(0)
    return z, actions, states


def test_the_full_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = ACPredictor(ACPredictorConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 305_220_992  # 305.22 M
    assert sum(parameter.numel() for parameter in model.predictor_blocks[0].parameters()) == 12_596_224


def test_the_mask_is_full_within_a_step_and_causal_between_steps() -> None:
    mask = block_causal_mask(3, 2)
    expected = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [1] * 6, [1] * 6]
    assert mask.int().tolist() == expected


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_nothing_after_a_step_reaches_what_came_before(which: int, step: int) -> None:
    """Perturb frame, action or state of one step: earlier outputs keep their bits, this one and all later ones move."""
    model, parts = make(), list(inputs())
    before = model(*parts)
    changed = parts[which].clone()
    changed[:, step] += 1.0 + torch.rand(changed[:, step].shape, generator=stream(3))
    parts[which] = changed
    moved = (model(*parts) - before).abs().amax(dim=(0, 2, 3))
    assert torch.all(moved[:step] == 0)
    assert torch.all(moved[step:] > 1e-4)


def test_every_patch_sees_every_token_of_its_step() -> None:
    model, (z, actions, states) = make(), inputs()
    before = model(z, actions, states)
    for patch in range(4):
        changed = z.clone()
        changed[:, 2, patch] += 1.0
        assert torch.all((model(changed, actions, states) - before)[:, 2].abs().amax(dim=-1) > 1e-4)


def test_tokens_stand_in_the_published_order_at_the_published_places() -> None:
    """Attention is blind to order; positions are not. Step t: action and state at (t, 0, 0), patches at (t, h, w)."""
    model = make(grid_size=4)  # four patches of a 2 x 2 grid, scaled to places 0 and 2
    cos, sin = (table.squeeze(1).view(3, 6, 12) for table in model._rope(3, 4, torch.device("cpu")))
    frequency = 10000.0 ** (-torch.arange(2.0) / 2)
    for step in range(3):
        for token in range(6):
            row, column = (0, 0) if token < 2 else (2 * ((token - 2) // 2), 2 * ((token - 2) % 2))
            angle = torch.cat([place * frequency.repeat(2) for place in (step, row, column)])
            assert torch.allclose(cos[step, token], angle.cos(), atol=1e-6)
            assert torch.allclose(sin[step, token].abs(), angle.sin().abs(), atol=1e-6)


def test_a_forward_pass_is_the_blocks_on_the_published_sequence() -> None:
    """The whole pass by hand from the parts: order of the tokens, mask, what is read off."""
    model, (z, actions, states) = make(), inputs(batch=1, steps=2)
    rows = [
        torch.cat(
            [
                model.action_encoder(actions[0, t : t + 1]),
                model.state_encoder(states[0, t : t + 1]),
                model.predictor_embed(z[0, t]),
            ]
        )
        for t in range(2)
    ]
    x = torch.cat(rows).unsqueeze(0)
    allowed = torch.tensor([[q // 6 >= k // 6 for k in range(12)] for q in range(12)])
    for block in model.predictor_blocks:
        x = block(x, model._rope(2, 4, x.device), allowed)
    patches = torch.stack([x[0, 2:6], x[0, 8:12]])
    expected = model.predictor_proj(model.predictor_norm(patches))
    assert torch.allclose(model(z, actions, states)[0], expected, atol=1e-5)


def test_extrinsics_are_a_third_token_where_they_are_used() -> None:
    model, parts = make(uses_extrinsics=True), inputs()
    camera = torch.randn(2, 4, 6, generator=stream(5))
    out = model(*parts, camera)
    assert out.shape == parts[0].shape
    assert float((model(*parts, camera + 1) - out).abs().max()) > 1e-4
    with pytest.raises(ConfigError, match="extrinsics"):
        model(*parts)
    with pytest.raises(ConfigError, match="extrinsics"):
        make()(*parts, camera)


def test_rollout_equals_one_pass_fed_with_its_own_predictions() -> None:
    model, (z, actions, states) = make(), inputs()
    future = torch.randn(2, 3, 2, 7, generator=stream(6))
    found = model.rollout(z[:, :2], states[:, :2], actions[:, :1], future)
    assert found.shape == (2, 3, 2, 4, 20)
    for problem in range(2):
        for candidate in range(3):
            plan = future[problem, candidate]
            frames = torch.cat([z[problem, :2], found[problem, candidate]])[None]
            taken = torch.cat([actions[problem, :1], plan])[None]
            middle = propagate_pose(states[problem, 1], plan[0])
            poses = torch.cat([states[problem, :2], middle[None]])[None]
            expected = normalise_tokens(model(frames[:, :3], taken, poses))[0, 1:]
            assert torch.allclose(found[problem, candidate], expected, atol=1e-5)


def test_checkpointed_activations_give_the_same_gradients() -> None:
    parts = inputs()
    gradients = []
    for checkpointed in (False, True):
        model = make().requires_grad_(True)
        model.checkpoint_activations = checkpointed
        model(*parts).square().mean().backward()
        gradients.append([parameter.grad for name, parameter in model.named_parameters() if "extrinsics" not in name])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)
    assert all(gradient is not None for gradient in gradients[1])


def test_angles_are_extrinsic_xyz() -> None:
    angles = torch.rand(20, 3, generator=stream(7), dtype=torch.float64) * torch.tensor([6.2, 3.0, 6.2]) - torch.tensor(
        [3.1, 1.5, 3.1]
    )
    expected = Rotation.from_euler("xyz", angles.numpy()).as_matrix()
    assert torch.allclose(rotation_of(angles), torch.from_numpy(expected), atol=1e-12)
    assert torch.allclose(euler_of(rotation_of(angles)), angles, atol=1e-9)


def test_an_action_moves_turns_from_the_left_and_grips_within_bounds() -> None:
    pose = torch.tensor([0.1, 0.2, 0.3, 0.4, -0.5, 0.6, 0.9], dtype=torch.float64)
    action = torch.tensor([0.01, -0.02, 0.03, 0.2, 0.1, -0.3, 0.4], dtype=torch.float64)
    after = propagate_pose(pose, action)
    assert torch.allclose(after[:3], pose[:3] + action[:3])
    turned = Rotation.from_euler("xyz", action[3:6].numpy()) * Rotation.from_euler("xyz", pose[3:6].numpy())
    assert torch.allclose(after[3:6], torch.from_numpy(turned.as_euler("xyz")), atol=1e-9)
    assert float(after[6]) == 1.0
    assert float(propagate_pose(pose, -5 * action)[6]) == 0.0


def test_the_change_of_pose_leads_there() -> None:
    before, after = torch.rand(2, 30, 7, generator=stream(8), dtype=torch.float64).unbind(0)
    found = propagate_pose(before, pose_change(before, after))
    assert torch.allclose(found, after, atol=1e-9)


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((2, 3, 4, 19), (2, 3, 7), (2, 3, 7)), "20"),
        (((2, 3, 5, 20), (2, 3, 7), (2, 3, 7)), "square"),
        (((2, 3, 4, 20), (2, 2, 7), (2, 3, 7)), "actions"),
        (((2, 3, 4, 20), (2, 3, 7), (2, 3, 6)), "states"),
    ],
)
def test_shapes_that_do_not_belong_together_are_named(shapes: tuple[tuple[int, ...], ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()(*(torch.zeros(shape) for shape in shapes))


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="num_heads=5"):
        ACPredictorConfig(num_heads=5)
    with pytest.raises(ConfigError, match="depth"):
        ACPredictorConfig(depth=0)
    z, actions, states = inputs()
    with pytest.raises(ConfigError, match="past actions"):
        make().rollout(z, states, actions, actions[:, None])
