import pytest
import torch

from worldmodel.errors import ConfigError
from worldmodel.models.action_predictor import ActionPredictor, ResidualMLPConfig, ResidualMLPPredictor
from worldmodel.models.action_transformer import TransformerPredictor, TransformerPredictorConfig, build_predictor

MLP = ResidualMLPConfig(hidden_dim=16, num_blocks=2)
TRANSFORMER = TransformerPredictorConfig(embed_dim=16, depth=2, num_heads=2, window=3, mlp_ratio=2.0)


def wake(predictor: ActionPredictor, seed: int = 0) -> ActionPredictor:
    """Give the zero-initialised output map weights, so that tests see more than copy-last-frame."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = predictor.get_parameter("out.weight")
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return predictor


@pytest.mark.parametrize(("config", "tokens"), [(MLP, 1), (TRANSFORMER, 4), (TRANSFORMER, 5)])
def test_shapes_and_start_as_copy_last_frame(config: ResidualMLPConfig, tokens: int) -> None:
    predictor = build_predictor(config, num_tokens=tokens, latent_dim=6, action_dim=3)
    z, actions = torch.randn(2, 4, tokens, 6), torch.randn(2, 4, 3)
    assert torch.equal(predictor(z, actions), z)
    rolled = predictor.rollout(z[:, :2], actions[:, :1], torch.randn(2, 7, 5, 3))
    assert rolled.shape == (2, 7, 5, tokens, 6)
    torch.testing.assert_close(rolled, z[:, None, 1:2].expand(2, 7, 5, tokens, 6))


@pytest.mark.parametrize(("config", "tokens"), [(MLP, 1), (TRANSFORMER, 4)])
def test_actions_matter_and_only_from_their_step_on(config: ResidualMLPConfig, tokens: int) -> None:
    predictor = wake(build_predictor(config, num_tokens=tokens, latent_dim=6, action_dim=3))
    z, actions = torch.randn(1, 1, tokens, 6), torch.randn(1, 2, 4, 3)
    changed = actions.clone()
    changed[:, :, 2] += 1.0
    empty = torch.zeros(1, 0, 3)
    before, after = predictor.rollout(z, empty, actions), predictor.rollout(z, empty, changed)
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2])
    assert ((before[:, :, 2:] - after[:, :, 2:]).abs().amax(dim=(-1, -2)) > 1e-4).all()


@pytest.mark.parametrize(("config", "tokens"), [(MLP, 1), (TRANSFORMER, 4)])
def test_rollout_is_differentiable_in_context_actions_and_weights(config: ResidualMLPConfig, tokens: int) -> None:
    predictor = wake(build_predictor(config, num_tokens=tokens, latent_dim=6, action_dim=3))
    z = torch.randn(2, 2, tokens, 6, requires_grad=True)
    actions = torch.randn(2, 1, 3, 3, requires_grad=True)
    predictor.rollout(z, torch.randn(2, 1, 3), actions).square().mean().backward()
    assert z.grad is not None
    assert actions.grad is not None
    assert z.grad[:, -1].abs().sum() > 0
    assert (actions.grad.abs().sum(-1) > 0).all()
    assert all(p.grad is not None for p in predictor.parameters())


def test_context_frames_matter_inside_the_window_only() -> None:
    predictor = wake(TransformerPredictor(TRANSFORMER, num_tokens=4, latent_dim=6, action_dim=3))
    z, past, future = torch.randn(1, 3, 4, 6), torch.randn(1, 2, 3), torch.randn(1, 2, 1, 3)
    moved = z.clone()
    moved[:, 0] += 1.0
    assert not torch.allclose(predictor.rollout(z, past, future), predictor.rollout(moved, past, future), atol=1e-4)
    single = TransformerPredictorConfig(embed_dim=16, depth=2, num_heads=2, window=1)
    narrow = wake(TransformerPredictor(single, num_tokens=4, latent_dim=6, action_dim=3))
    torch.testing.assert_close(narrow.rollout(z, past, future), narrow.rollout(moved, past, future))


def test_tokens_of_a_frame_know_where_they_are() -> None:
    predictor = wake(TransformerPredictor(TRANSFORMER, num_tokens=4, latent_dim=6, action_dim=3))
    z, actions = torch.randn(1, 1, 4, 6), torch.randn(1, 1, 3)
    swapped = predictor(z[:, :, [1, 0, 2, 3]], actions)[:, :, [1, 0, 2, 3]]
    assert not torch.allclose(swapped, predictor(z, actions), atol=1e-5)


@pytest.mark.parametrize(
    ("z", "past", "actions", "message"),
    [
        ((2, 1, 1, 5), (2, 0, 3), (2, 4, 2, 3), "context latents"),
        ((2, 0, 1, 6), (2, 0, 3), (2, 4, 2, 3), "context latents"),
        ((2, 2, 1, 6), (2, 0, 3), (2, 4, 2, 3), "context actions"),
        ((2, 1, 1, 6), (2, 0, 3), (3, 4, 2, 3), r"actions must be .*\(2, S, H, 3\)"),
        ((2, 1, 1, 6), (2, 0, 3), (2, 4, 2, 4), r"got \(2, 4, 2, 4\)"),
    ],
)
def test_rollout_refuses_shapes(z: tuple[int], past: tuple[int], actions: tuple[int], message: str) -> None:
    predictor = ResidualMLPPredictor(MLP, latent_dim=6, action_dim=3)
    with pytest.raises(ConfigError, match=message):
        predictor.rollout(torch.zeros(z), torch.zeros(past), torch.zeros(actions))


def test_configs_refuse_nonsense() -> None:
    with pytest.raises(ConfigError, match="hidden_dim must be >= 1"):
        ResidualMLPConfig(hidden_dim=0)
    with pytest.raises(ConfigError, match="window must be >= 1, got 0"):
        TransformerPredictorConfig(window=0)
    with pytest.raises(ConfigError, match="multiple of num_heads=3"):
        TransformerPredictorConfig(embed_dim=128, num_heads=3)
    with pytest.raises(ConfigError, match="at least 6"):
        TransformerPredictorConfig(embed_dim=16, num_heads=4)
    with pytest.raises(ConfigError, match="num_tokens=4"):
        ResidualMLPPredictor(MLP, num_tokens=4, latent_dim=6, action_dim=3)


def test_build_predictor_depends_on_the_seed_only() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        build_predictor(TRANSFORMER, num_tokens=4, latent_dim=6, action_dim=3, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.state_dict()["embed.weight"], again.state_dict()["embed.weight"])
    assert not torch.equal(first.state_dict()["embed.weight"], other.state_dict()["embed.weight"])
