import pytest
import torch

from worldmodel.data.normalize import Normalizer
from worldmodel.errors import ConfigError
from worldmodel.models.action_predictor import ResidualMLPConfig
from worldmodel.models.action_transformer import TransformerPredictorConfig, build_predictor
from worldmodel.models.frozen_encoders import build_encoder
from worldmodel.models.latent_head import CompactHeadConfig, IdentityHeadConfig, build_head
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import MAX_CANDIDATE_BLOCK, ROLLOUT_BYTES, ModelSpec, WorldModel
from worldmodel.types import Context, Latent


def tiny_spec(latent: str = "compact") -> ModelSpec:
    return ModelSpec(
        env_ids=("worldmodel/Push-v0",),
        action_dim=2,
        action_low=(-1.0, -2.0),
        action_high=(1.0, 2.0),
        action_block=3,
        image_size=16,
        proprio_names=("x", "y", "z"),
        latent=latent,
    )


def tiny_model(latent: str = "compact", *, candidate_block: int = 512) -> WorldModel:
    vit = ViTConfig(image_size=16, patch_size=8, num_frames=2, embed_dim=12, depth=1, num_heads=2, mlp_ratio=2.0)
    encoder = build_encoder(vit)
    compact = latent == "compact"
    head_config = CompactHeadConfig(token_dim=4, hidden_dim=16, latent_dim=6) if compact else IdentityHeadConfig()
    head = build_head(head_config, num_tokens=encoder.num_tokens, embed_dim=encoder.embed_dim)
    config = (
        ResidualMLPConfig(hidden_dim=16, num_blocks=1)
        if compact
        else TransformerPredictorConfig(embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
    )
    predictor = build_predictor(config, num_tokens=head.num_tokens, latent_dim=head.latent_dim, action_dim=6)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        predictor.out.weight.copy_(torch.randn(predictor.out.weight.shape, generator=generator) * 0.2)
    normalizers = (
        Normalizer.fit(torch.randn(50, 6, generator=generator) * 3 + 1),
        Normalizer.fit(torch.randn(50, 3, generator=generator) * 0.1 + 5),
    )
    return WorldModel(encoder, head, predictor, *normalizers, tiny_spec(latent), candidate_block=candidate_block)


def frames(problems: int, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (problems, count, 16, 16, 3), dtype=torch.uint8, generator=generator)


def seen(model: WorldModel, problems: int = 2, count: int = 1) -> Context:
    actions = torch.randn(problems, count - 1, 6, generator=torch.Generator().manual_seed(3))
    return Context(latent=model.encode(frames(problems, count)), actions=actions)


@pytest.mark.parametrize("latent", ["compact", "patch"])
def test_encode_standardises_proprio_and_returns_the_head_of_the_tokens(latent: str) -> None:
    model = tiny_model(latent)
    pixels, proprio = frames(2, 3), torch.full((2, 3, 3), 5.0)
    result = model.encode(pixels, proprio)
    torch.testing.assert_close(result.visual, model.head(model.encoder.encode_frames(pixels)))
    assert result.proprio is not None
    torch.testing.assert_close(result.proprio, model.proprio_normalizer(proprio))
    assert result.proprio.abs().max() < 1
    assert model.encode(pixels).proprio is None
    torch.testing.assert_close(model.encode_batch(pixels.flatten(0, 1)), result.visual.flatten(0, 1))


@pytest.mark.parametrize("latent", ["compact", "patch"])
def test_rollout_takes_env_units(latent: str) -> None:
    model = tiny_model(latent)
    context = seen(model, 2, 1)
    actions = torch.randn(2, 5, 4, 6)
    expected = model.predictor.rollout(context.latent.visual, torch.zeros(2, 0, 6), model.action_normalizer(actions))
    result = model.rollout(context, actions)
    torch.testing.assert_close(result.visual, expected)
    assert result.proprio is None
    assert result.visual.shape == (2, 5, 4, model.head.num_tokens, model.head.latent_dim)


def test_context_actions_are_normalised_too() -> None:
    model = tiny_model("patch")
    context, actions = seen(model, 1, 3), torch.randn(1, 2, 2, 6)
    expected = model.predictor.rollout(
        context.latent.visual, model.action_normalizer(context.actions), model.action_normalizer(actions)
    )
    torch.testing.assert_close(model.rollout(context, actions).visual, expected)


@pytest.mark.parametrize("latent", ["compact", "patch"])
def test_blocks_of_candidates_change_nothing(latent: str) -> None:
    whole, cut = tiny_model(latent), tiny_model(latent, candidate_block=4)
    context, actions = seen(whole, 2, 1), torch.randn(2, 10, 3, 6)
    torch.testing.assert_close(whole.rollout(context, actions).visual, cut.rollout(context, actions).visual)


def test_gradients_reach_the_actions_only_when_asked_for() -> None:
    model = tiny_model()
    context, actions = seen(model, 1, 1), torch.randn(1, 3, 2, 6)
    assert model.rollout(context, actions).visual.is_inference()
    wanted = actions.requires_grad_(True)
    model.rollout(context, wanted).visual.square().sum().backward()
    assert wanted.grad is not None
    assert (wanted.grad.abs().sum(-1) > 0).all()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_spec_gives_flat_bounds() -> None:
    low, high = tiny_spec().flat_bounds()
    assert low.tolist() == [-1, -2] * 3
    assert high.tolist() == [1, 2] * 3
    assert tiny_spec().flat_action_dim == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": "compct"}, "compact, patch, pixels, got 'compct'"),
        ({"action_block": 0}, "must be >= 1"),
        ({"action_low": (-1.0,)}, "action_dim=2"),
    ],
)
def test_spec_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSpec(**{**tiny_spec().__dict__, **changes})


def test_wrong_inputs_are_named() -> None:
    model = tiny_model()
    context = seen(model, 2, 1)
    with pytest.raises(ConfigError, match=r"pixels must be \(B, T, 16, 16, 3\) uint8"):
        model.encode(frames(1, 1).float())
    with pytest.raises(ConfigError, match=r"pixels must be \(F, 16, 16, 3\) uint8"):
        model.encode_batch(frames(1, 1))
    with pytest.raises(ConfigError, match=r"pixels must be .* got \(1, 16, 16, 3\)"):
        model.encode(frames(1, 1)[0])
    with pytest.raises(ConfigError, match=r"proprio must be \(B, T, P\) = \(1, 2, 3\)"):
        model.encode(frames(1, 2), torch.zeros(1, 1, 3))
    with pytest.raises(ConfigError, match=r"actions must be .*\(B, S, H, 6\), got \(2, 5, 4, 5\)"):
        model.rollout(context, torch.zeros(2, 5, 4, 5))
    with pytest.raises(ConfigError, match="context holds 2 problems, actions 3"):
        model.rollout(context, torch.zeros(3, 5, 4, 6))


def test_parts_that_do_not_fit_are_refused() -> None:
    model = tiny_model()
    normalizers = (model.action_normalizer, model.proprio_normalizer)
    wrong = build_predictor(ResidualMLPConfig(hidden_dim=8), num_tokens=1, latent_dim=6, action_dim=4)
    with pytest.raises(ConfigError, match="width 4, the spec asks for 6"):
        WorldModel(model.encoder, model.head, wrong, *normalizers, tiny_spec())
    wrong = build_predictor(ResidualMLPConfig(hidden_dim=8), num_tokens=1, latent_dim=7, action_dim=6)
    with pytest.raises(ConfigError, match=r"\(1, 6\), the predictor takes \(1, 7\)"):
        WorldModel(model.encoder, model.head, wrong, *normalizers, tiny_spec())
    with pytest.raises(ConfigError, match="candidate_block"):
        tiny_model(candidate_block=0)


def test_a_latent_is_what_types_say() -> None:
    model = tiny_model()
    assert isinstance(model.encode(frames(1, 1)), Latent)
    assert model.window == 1
    assert tiny_model("patch").window == 3


def test_blocks_of_candidates_fit_into_memory() -> None:
    """The wide predictor of `bench plan` would take 10 GB for 300 candidates at once."""
    config = TransformerPredictorConfig(embed_dim=1024, depth=6, num_heads=16)
    with torch.device("meta"):
        wide = build_predictor(config, num_tokens=256, latent_dim=768, action_dim=6)
    assert 300 * wide.candidate_bytes > 10e9
    model = tiny_model("patch")
    parts = (model.encoder, model.head, model.predictor, model.action_normalizer, model.proprio_normalizer)
    assert model.predictor.candidate_bytes > 0
    assert WorldModel(*parts, model.spec).candidate_block == MAX_CANDIDATE_BLOCK
    model.predictor.__class__ = type("Greedy", (type(model.predictor),), {"candidate_bytes": ROLLOUT_BYTES // 7})
    assert WorldModel(*parts, model.spec).candidate_block == 7


def test_the_memory_of_a_candidate_is_about_what_a_rollout_takes() -> None:
    """Keys and values of the whole window in every block are the part that can be counted exactly."""
    config = TransformerPredictorConfig(embed_dim=48, depth=5, num_heads=4, window=3)
    predictor = build_predictor(config, num_tokens=9, latent_dim=6, action_dim=2)
    _, cache = predictor._run(predictor.embed(torch.zeros(1, 3, 9, 6)), torch.zeros(1, 3, 2), 0, None)
    exact = sum(part.numel() * part.element_size() for pair in cache for part in pair)
    assert 1.5 * exact < predictor.candidate_bytes < 3 * exact
