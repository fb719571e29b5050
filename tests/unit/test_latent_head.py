import pytest
import torch

from worldmodel.errors import ConfigError, DataError
from worldmodel.models.latent_head import (
    STD_FLOOR_SHARE,
    CompactHead,
    CompactHeadConfig,
    GridHead,
    GridHeadConfig,
    IdentityHead,
    IdentityHeadConfig,
    TokenStandardiser,
    build_head,
)


def features(frames: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.5, 2.0, 4 * 6).view(4, 6)
    return torch.randn(frames, 4, 6, generator=generator) * scale + 100.0


def test_standardiser_matches_the_statistics_of_all_blocks_together() -> None:
    x = features()
    standardise = TokenStandardiser(4, 6)
    standardise.fit(x.half().split(37))
    expected = x.half().double()
    torch.testing.assert_close(standardise.mean.double(), expected.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(standardise.std.double(), expected.std(0, correction=0), rtol=1e-4, atol=0)
    y = standardise(x.half().float())
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(4, 6), rtol=0, atol=1e-3)
    assert standardise.fitted


def test_static_channels_are_not_blown_up() -> None:
    x = features()
    x[:, 2, 3] = 5.0 + 1e-4 * torch.randn(200, generator=torch.Generator().manual_seed(1))
    standardise = TokenStandardiser(4, 6)
    standardise.fit([x])
    assert float(standardise.std[2, 3]) == pytest.approx(
        STD_FLOOR_SHARE * float(x.std(0, correction=0).mean()), rel=1e-2
    )
    assert standardise(x)[:, 2, 3].abs().max() < 0.05


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "at least 2 frames"),
        ([torch.zeros(1, 4, 6)], "at least 2 frames"),
        ([torch.zeros(5, 4, 7)], r"\(4, 6\)"),
        ([torch.full((5, 4, 6), torch.nan)], "NaN"),
    ],
)
def test_standardiser_refuses(blocks: list[torch.Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TokenStandardiser(4, 6).fit(blocks)


def test_compact_head_gives_one_token_and_sees_every_token() -> None:
    head = CompactHead(CompactHeadConfig(token_dim=3, hidden_dim=16, latent_dim=5), num_tokens=4, embed_dim=6)
    tokens = torch.randn(2, 3, 4, 6, requires_grad=True)
    z = head(tokens)
    assert z.shape == (2, 3, 1, 5)
    assert (head.num_tokens, head.latent_dim) == (1, 5)
    z[1, 2].sum().backward()
    assert tokens.grad is not None
    touched = tokens.grad.abs().sum(-1) > 0
    assert touched[1, 2].all()  # every token of the frame
    assert touched.sum() == 4  # and no other frame


def test_grid_head_sees_every_token_of_its_frame_and_no_other() -> None:
    head = GridHead(GridHeadConfig(token_dim=3, hidden_dim=16, latent_dim=5, blocks=2), num_tokens=9, embed_dim=6)
    tokens = torch.randn(2, 3, 9, 6, requires_grad=True)
    z = head(tokens)
    assert z.shape == (2, 3, 1, 5)
    assert (head.num_tokens, head.latent_dim) == (1, 5)
    z[1, 2].sum().backward()
    assert tokens.grad is not None
    touched = tokens.grad.abs().sum(-1) > 0
    assert touched[1, 2].all()
    assert touched.sum() == 9
    torch.testing.assert_close(head(tokens[1, 2][None, None])[0, 0], z[1, 2])


def test_grid_head_treats_neighbours_in_the_picture_as_neighbours() -> None:
    """With all other weights shared, a token's influence on what is flattened reaches blocks + 1 rows and columns."""
    head = GridHead(GridHeadConfig(token_dim=2, hidden_dim=16, latent_dim=5, blocks=1), num_tokens=25, embed_dim=6)
    flattened: list[torch.Tensor] = []
    head.hidden.register_forward_pre_hook(lambda _, inputs: flattened.append(inputs[0]))
    tokens = torch.zeros(1, 1, 25, 6)
    head(tokens)
    tokens[0, 0, 12] = 1  # the middle of 5 x 5
    head(tokens)
    changed = (flattened[1] - flattened[0]).reshape(5, 5, 2).abs().sum(-1) > 1e-6
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 1:4] = True
    assert torch.equal(changed, expected)


def test_grid_head_refuses_tokens_without_a_square() -> None:
    with pytest.raises(ConfigError, match="square grid of tokens, got 8"):
        build_head(GridHeadConfig(), num_tokens=8, embed_dim=6)
    with pytest.raises(ConfigError, match="blocks must be >= 1, got 0"):
        GridHeadConfig(blocks=0)


def test_identity_head_standardises_and_projects_without_training() -> None:
    plain = IdentityHead(IdentityHeadConfig(), num_tokens=4, embed_dim=6)
    x = features()
    plain.standardise.fit([x])
    torch.testing.assert_close(plain(x[None]), plain.standardise(x)[None])
    narrow = IdentityHead(IdentityHeadConfig(latent_dim=3), num_tokens=4, embed_dim=6)
    assert narrow(x[None]).shape == (1, 200, 4, 3)
    assert not any(parameter.requires_grad for parameter in narrow.parameters())
    weight = next(narrow.parameters())
    torch.testing.assert_close(weight @ weight.T, torch.eye(3))


def test_build_head_depends_on_the_seed_only() -> None:
    config = CompactHeadConfig(token_dim=3, hidden_dim=16, latent_dim=5)
    before = torch.get_rng_state()
    first, again, other = (build_head(config, num_tokens=4, embed_dim=6, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.state_dict()["out.weight"], again.state_dict()["out.weight"])
    assert not torch.equal(first.state_dict()["out.weight"], other.state_dict()["out.weight"])
    assert isinstance(build_head(GridHeadConfig(), num_tokens=4, embed_dim=6), GridHead)
    assert isinstance(build_head(IdentityHeadConfig(), num_tokens=4, embed_dim=6), IdentityHead)


def test_configs_refuse_nonsense() -> None:
    with pytest.raises(ConfigError, match="token_dim must be >= 1, got 0"):
        CompactHeadConfig(token_dim=0)
    with pytest.raises(ConfigError, match="latent_dim"):
        IdentityHeadConfig(latent_dim=0)
    with pytest.raises(ConfigError, match="at most the token width 6"):
        IdentityHead(IdentityHeadConfig(latent_dim=7), num_tokens=4, embed_dim=6)
