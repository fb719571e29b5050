"""Laws every action predictor and the world model around it must obey."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from worldmodel.data.normalize import Normalizer
from worldmodel.models.action_predictor import ActionPredictor, ResidualMLPConfig
from worldmodel.models.action_transformer import TransformerPredictorConfig, build_predictor
from worldmodel.models.frozen_encoders import build_encoder
from worldmodel.models.latent_head import CompactHeadConfig, IdentityHeadConfig, build_head
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec, WorldModel
from worldmodel.types import Context, Latent

LATENT_DIM, ACTION_DIM = 6, 4
FEW = settings(max_examples=12, deadline=None)


def predictor_of(kind: str, seed: int = 0, window: int = 3) -> ActionPredictor:
    mlp = ResidualMLPConfig(hidden_dim=32, num_blocks=2)
    transformer = TransformerPredictorConfig(embed_dim=24, depth=3, num_heads=2, window=window, mlp_ratio=2.0)
    compact = kind == "mlp"
    predictor = build_predictor(
        mlp if compact else transformer,
        num_tokens=1 if compact else 4,
        latent_dim=LATENT_DIM,
        action_dim=ACTION_DIM,
        seed=seed,
    )
    with torch.no_grad():  # the output map starts at zero, which would make every law trivial
        weight = predictor.get_parameter("out.weight")
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return predictor.eval()


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@FEW
@given(frame=st.integers(0, 5), seed=st.integers(0, 1000), what=st.sampled_from(["latent", "action"]))
def test_the_future_never_reaches_the_past(kind: str, frame: int, seed: int, what: str) -> None:
    predictor = predictor_of(kind, seed)
    z, actions = draw(2, 6, predictor.num_tokens, LATENT_DIM, seed=seed), draw(2, 6, ACTION_DIM, seed=seed + 1)
    before = predictor(z, actions)
    (z if what == "latent" else actions)[:, frame] += 1.0
    after = predictor(z, actions)
    assert torch.equal(before[:, :frame], after[:, :frame])
    assert not torch.allclose(before[:, frame], after[:, frame], atol=1e-4)


@FEW
@given(window=st.integers(1, 3), seed=st.integers(0, 1000))
def test_influence_ends_where_stacked_bands_end(window: int, seed: int) -> None:
    predictor = predictor_of("transformer", seed, window)
    depth, frames = 3, 9
    z, actions = draw(1, frames, 4, LATENT_DIM, seed=seed), draw(1, frames, ACTION_DIM, seed=seed + 1)
    before = predictor(z, actions)
    z[:, 0] += 1.0
    reach = depth * (window - 1)  # each block looks window - 1 frames back
    change = (predictor(z, actions) - before).abs().amax(dim=(0, 2, 3))
    assert change[reach] > 0
    assert (change[reach + 1 :] < 1e-6).all()


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@FEW
@given(seen=st.integers(1, 4), window=st.integers(1, 4), seed=st.integers(0, 1000))
def test_cached_rollout_equals_one_full_forward_under_the_band(kind: str, seen: int, window: int, seed: int) -> None:
    predictor = predictor_of(kind, seed, window)
    candidates, horizon = 3, 5
    z = draw(2, seen, predictor.num_tokens, LATENT_DIM, seed=seed)
    past = draw(2, seen - 1, ACTION_DIM, seed=seed + 1)
    actions = draw(2, candidates, horizon, ACTION_DIM, seed=seed + 2)
    with torch.inference_mode():
        rolled = predictor.rollout(z, past, actions)
        for candidate in range(candidates):
            imagined = rolled[:, candidate]
            frames = torch.cat([z, imagined[:, :-1]], dim=1)
            full = predictor(frames, torch.cat([past, actions[:, candidate]], dim=1))
            torch.testing.assert_close(imagined, full[:, seen - 1 :], rtol=0, atol=1e-4)


def model_of(latent: str) -> WorldModel:
    compact = latent == "compact"
    vit = ViTConfig(image_size=16, patch_size=8, num_frames=2, embed_dim=12, depth=1, num_heads=2, mlp_ratio=2.0)
    encoder = build_encoder(vit)
    head_config = CompactHeadConfig(token_dim=4, hidden_dim=16, latent_dim=24) if compact else IdentityHeadConfig()
    head = build_head(head_config, num_tokens=encoder.num_tokens, embed_dim=encoder.embed_dim)
    config = (
        ResidualMLPConfig(hidden_dim=64)
        if compact
        else TransformerPredictorConfig(embed_dim=24, depth=2, num_heads=2, mlp_ratio=2.0)
    )
    predictor = build_predictor(
        config, num_tokens=head.num_tokens, latent_dim=head.latent_dim, action_dim=ACTION_DIM, seed=5
    )
    with torch.no_grad():
        weight = predictor.get_parameter("out.weight")
        weight.copy_(draw(*weight.shape, seed=5) * 0.2)
    spec = ModelSpec(
        env_ids=("a",),
        action_dim=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        action_block=2,
        image_size=16,
        proprio_names=("x",),
        latent=latent,
    )
    return WorldModel(encoder, head, predictor, Normalizer(ACTION_DIM), Normalizer(1), spec, candidate_block=32)


@pytest.mark.parametrize("latent", ["compact", "patch"])
@FEW
@given(problems=st.integers(1, 5), candidates=st.sampled_from([1, 7, 32, 45]), seed=st.integers(0, 1000))
def test_a_problem_gives_the_same_bits_alone_or_in_company(
    latent: str, problems: int, candidates: int, seed: int
) -> None:
    model = model_of(latent)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (problems, 2, 16, 16, 3), dtype=torch.uint8, generator=generator)
    past, actions = draw(problems, 1, ACTION_DIM, seed=seed), draw(problems, candidates, 3, ACTION_DIM, seed=seed)
    seen = model.encode(pixels)
    together = model.rollout(Context(latent=seen, actions=past), actions).visual
    for i in range(problems):
        alone = model.encode(pixels[i : i + 1])
        assert torch.equal(alone.visual, seen.visual[i : i + 1])
        context = Context(latent=Latent(visual=alone.visual), actions=past[i : i + 1])
        assert torch.equal(model.rollout(context, actions[i : i + 1]).visual[0], together[i])


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_weights_survive_storage_bit_for_bit(kind: str) -> None:
    first, second = predictor_of(kind, seed=1), predictor_of(kind, seed=2)
    z, actions = draw(2, 4, first.num_tokens, LATENT_DIM, seed=3), draw(2, 4, ACTION_DIM, seed=4)
    assert not torch.equal(first(z, actions), second(z, actions))
    second.load_state_dict(load(save(first.state_dict())))
    assert torch.equal(first(z, actions), second(z, actions))
