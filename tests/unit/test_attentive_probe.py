from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.attentive_probe import (
    AttentiveProbe,
    AttentiveProbeConfig,
    CrossAttention,
    clip_tokens,
    token_grid,
)
from worldmodel.learning.probe_training import (
    FittedProbe,
    Outputs,
    ProbeFitConfig,
    ProbeProblem,
    Rows,
    fit_probe,
    hold_out,
)
from worldmodel.models.encoders import VideoViT
from worldmodel.models.frozen_encoders import ConvEncoder, ConvEncoderConfig
from worldmodel.models.vit import ViTConfig

GRID = (2, 3, 3)
WIDTH, CLASSES = 24, 3
ROWS = np.arange(150)
FIT = ProbeFitConfig(lr=(1e-2, 1e-5), weight_decay=(0.01,), epochs=1, min_steps=80, batch_size=32)


def accuracy(targets: Tensor) -> Callable[[Outputs, Rows], float]:
    return lambda outputs, rows: float((outputs[:, 0].argmax(-1) == targets.numpy()[rows]).mean())


def planted(clips: int = 210) -> ProbeProblem:
    """One token in 18, anywhere, says the class; the others are noise."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(clips, math.prod(GRID), WIDTH, generator=generator)
    targets = torch.arange(clips) % CLASSES
    place = torch.randint(0, math.prod(GRID), (clips,), generator=generator)
    signs = 6.0 * F.one_hot(targets, WIDTH).float() + 6.0 * F.one_hot(torch.tensor(WIDTH - 1), WIDTH).float()
    tokens[torch.arange(clips), place] += signs
    return ProbeProblem(
        inputs=tokens.half(),
        encoder=None,
        grid=GRID,
        embed_dim=WIDTH,
        targets=targets,
        num_queries=1,
        num_outputs=CLASSES,
        loss=lambda outputs, wanted: F.cross_entropy(outputs[:, 0], wanted),
        score=accuracy(targets),
    )


def fitted(problem: ProbeProblem, fit: ProbeFitConfig = FIT, seed: int = 0) -> FittedProbe:
    return fit_probe(problem, ROWS, AttentiveProbeConfig(), fit, seed=seed)


@pytest.mark.parametrize("queries", [1, 5])
def test_cross_attention_equals_the_textbook_form(queries: int) -> None:
    torch.manual_seed(0)
    attention, heads = CrossAttention(WIDTH, 4), 4
    q, tokens = torch.randn(queries, WIDTH), torch.randn(3, 11, WIDTH)
    key, value = attention.kv(tokens).chunk(2, dim=-1)
    split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (key, value)]
    asked = attention.q(q).unflatten(-1, (heads, -1)).transpose(0, 1).expand(3, -1, -1, -1)
    expected = F.scaled_dot_product_attention(asked, *split).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(q, tokens), expected, atol=1e-6, rtol=1e-5)


def test_the_probe_finds_the_token_that_matters() -> None:
    problem = planted()
    found = fitted(problem)
    unseen = np.arange(150, 210)
    assert problem.score(found.reader.predict(problem.inputs, unseen), unseen) >= 0.9
    assert found.lr == 1e-2
    assert found.validation[0] is not None
    assert found.validation[0] > found.validation[1]  # type: ignore[operator]


def test_without_a_signal_it_stays_at_chance() -> None:
    problem = planted(330)
    rng = np.random.default_rng(0)
    shuffled = torch.from_numpy(rng.permutation(problem.targets.numpy()))
    mixed = ProbeProblem(**{**problem.__dict__, "targets": shuffled, "score": accuracy(shuffled)})
    unseen = np.arange(150, 330)
    assert (
        abs(mixed.score(fitted(mixed).reader.predict(mixed.inputs, unseen), unseen) - 1 / 3) < 0.13
    )  # 3.7 standard errors


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    problem = planted()
    first, again, other = (fitted(problem, seed=seed).reader.predict(problem.inputs, ROWS) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_labels_outside_the_labelled_rows_change_nothing() -> None:
    problem = planted()
    hidden = problem.targets.clone()
    hidden[150:] = 0
    other = ProbeProblem(**{**problem.__dict__, "targets": hidden, "score": accuracy(hidden)})
    one, two = (fitted(each).reader.predict(problem.inputs, ROWS) for each in (problem, other))
    assert np.array_equal(one, two)


def test_training_reaches_the_encoder_only_where_it_is_asked_for() -> None:
    encoder = VideoViT(ViTConfig(image_size=16, num_frames=2, embed_dim=24, depth=1, num_heads=2))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    clips = torch.randint(0, 256, (12, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(12) % 2
    problem = ProbeProblem(
        inputs=clips,
        encoder=encoder,
        grid=token_grid(encoder, 2),
        embed_dim=24,
        targets=targets,
        num_queries=1,
        num_outputs=2,
        loss=lambda outputs, wanted: F.cross_entropy(outputs[:, 0], wanted),
        score=accuracy(targets),
    )
    fit = ProbeFitConfig(lr=(1e-2,), weight_decay=(0.0,), epochs=1, min_steps=30, batch_size=12)
    found = fit_probe(problem, np.arange(12), AttentiveProbeConfig(), fit, seed=0)
    assert problem.score(found.reader.predict(clips, np.arange(12)), np.arange(12)) == 1.0  # noise learned by heart
    assert found.validation == ()
    assert found.reader.encoder is not None
    trained = found.reader.encoder.state_dict()
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert any(not torch.equal(before[name], trained[name]) for name in before)


def test_a_candidate_that_diverges_is_not_chosen() -> None:
    problem = planted()
    found = fitted(problem, ProbeFitConfig(lr=(1e30, 1e-2), weight_decay=(0.0,), min_steps=20, epochs=1, batch_size=32))
    assert found.lr == 1e-2
    assert found.validation[0] is None
    with pytest.raises(DataError, match="add a lower lr"):
        fitted(problem, ProbeFitConfig(lr=(1e30,), weight_decay=(0.0,), min_steps=20, epochs=1))


def test_clips_longer_than_the_encoder_takes_are_cut_into_segments() -> None:
    encoder = VideoViT(ViTConfig(image_size=16, num_frames=2, embed_dim=24, depth=1, num_heads=2)).eval()
    clip = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tokens = clip_tokens(encoder, clip)
    assert tokens.shape == (2, 8, 24)
    assert token_grid(encoder, 4) == (2, 2, 2)
    torch.testing.assert_close(tokens[:, 4:], clip_tokens(encoder, clip[:, 2:]))
    still = clip_tokens(encoder, clip[:, :1])
    torch.testing.assert_close(still, clip_tokens(encoder, clip[:, :1].expand(-1, 2, -1, -1, -1)))
    with pytest.raises(ConfigError, match="tubelets of 2"):
        clip_tokens(encoder, clip[:, :3])
    image = ConvEncoder(ConvEncoderConfig(image_size=16, widths=(8, 8)))
    assert clip_tokens(image, clip).shape == (2, 64, 8)
    assert token_grid(image, 4) == (4, 4, 4)


def test_sizes() -> None:
    probe = AttentiveProbe(
        AttentiveProbeConfig(num_blocks=3), grid=GRID, embed_dim=WIDTH, num_queries=4, num_outputs=5, seed=0
    )
    assert probe(torch.randn(2, 18, WIDTH)).shape == (2, 4, 5)
    assert len(probe.blocks) == 2
    assert not any(isinstance(part, nn.Dropout) and part.p > 0 for part in probe.modules())
    with pytest.raises(ConfigError, match="must divide the width 24"):
        AttentiveProbe(AttentiveProbeConfig(num_heads=5), grid=GRID, embed_dim=24, num_queries=1, num_outputs=1, seed=0)


def test_without_positions_the_order_of_tokens_does_not_matter() -> None:
    tokens = torch.randn(1, 18, WIDTH, generator=torch.Generator().manual_seed(0))
    for positions in (True, False):
        config = AttentiveProbeConfig(positions=positions)
        probe = AttentiveProbe(config, grid=GRID, embed_dim=WIDTH, num_queries=1, num_outputs=2, seed=0)
        same = torch.allclose(probe(tokens), probe(tokens.flip(1)), atol=1e-6)
        assert same is not positions


def test_held_out_rows_are_spread_over_the_labelled_ones() -> None:
    train, held = hold_out(np.arange(100, 110), 0.2)
    assert held.tolist() == [104, 109]
    assert sorted([*train, *held]) == list(range(100, 110))
    assert [len(part) for part in hold_out(np.arange(3), 0.1)] == [2, 1]
    assert [len(part) for part in hold_out(np.arange(2), 0.9)] == [1, 1]
    with pytest.raises(DataError, match="at least 2"):
        hold_out(np.arange(1), 0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": ()}, "lr must list"),
        ({"lr": (0.0,)}, "lr must list"),
        ({"weight_decay": (-1.0,)}, "weight_decay"),
        ({"validation_fraction": 1.0}, r"in \(0, 1\)"),
        ({"epochs": 0}, "epochs must be >= 1"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProbeFitConfig(**wrong)  # type: ignore[arg-type]


def test_steps_follow_epochs_but_never_fall_below_the_least() -> None:
    config = ProbeFitConfig(epochs=20, min_steps=200, batch_size=64)
    assert config.steps(2000) == 625
    assert config.steps(80) == 200
