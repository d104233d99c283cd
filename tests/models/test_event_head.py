"""The event head: seconds are made of the frames that cover them, and it learns onsets within epochs and across them."""

from __future__ import annotations

import pytest
import torch

from sleepfm.errors import ModelError
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import DownstreamConfig
from sleepfm.models.event_head import EventHead, EventHeadConfig, second_weights
from sleepfm.models.neuronet import NeuroNetConfig

TIMES = NeuroNetConfig().frame_times


def head(dim: int = 16) -> EventHead:
    torch.manual_seed(0)
    config = EventHeadConfig(hidden=16, context=ContextConfig(bidirectional=True, d_state=8, headdim=16))
    return EventHead(dim, TIMES, config)


def test_frames_of_the_papers_networks_cover_every_second() -> None:
    assert TIMES.shape == (27, 2)
    weights = second_weights(TIMES)
    assert torch.allclose(weights.sum(1), torch.ones(30))
    for second in range(30):
        covering = [f for f in range(27) if f <= second < f + 4]
        assert weights[second].nonzero()[:, 0].tolist() == covering
        assert torch.allclose(weights[second, covering], torch.full((len(covering),), 1 / len(covering)))


def test_partly_covered_and_uncovered_seconds() -> None:
    fine = NeuroNetConfig(window_s=3.0, step_s=0.375).frame_times
    weights = second_weights(fine)
    overlap = [[max(0.0, min(s + 1, end) - max(s, start)) for start, end in fine.tolist()] for s in range(30)]
    expected = torch.tensor(overlap)
    held = expected.sum(1) > 0
    torch.testing.assert_close(weights[held], (expected / expected.sum(1, keepdim=True))[held])
    short = second_weights(torch.tensor([[0.0, 4.0], [10.0, 14.0]]))
    assert short[6].tolist() == [1, 0] and short[9].tolist() == [0, 1] and short[29].tolist() == [0, 1]


def test_it_learns_events_to_the_second_across_epochs() -> None:
    model = head().train()
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    direction = torch.randn(16, generator=generator)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        truth = torch.zeros(8, 90, dtype=torch.long)
        for row in range(8):
            onset = int(torch.randint(5, 65, (1,), generator=generator))
            truth[row, onset : onset + 20] = 1
        covered = truth.unflatten(1, (3, 30)).float().unfold(2, 4, 1).mean(-1)  # [8, 3, 27], frames of 4 s
        noise = 0.3 * torch.randn(8, 3, 27, 16, generator=generator)
        return covered[..., None] * direction + noise, truth

    for _ in range(60):
        frames, truth = batch()
        logits = model(frames).flatten(1, 2)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), truth.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    frames, truth = batch()
    with torch.no_grad():
        found = model.eval()(frames).flatten(1, 2).argmax(-1)
    for row in range(8):
        seconds, true = found[row].nonzero()[:, 0], truth[row].nonzero()[:, 0]
        assert abs(int(seconds[0]) - int(true[0])) <= 2 and abs(len(seconds) - len(true)) <= 3


def test_epochs_that_do_not_exist_change_nothing() -> None:
    model = head().eval()
    frames = torch.randn(2, 4, 27, 16)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    with torch.no_grad():
        torch.testing.assert_close(model(frames, valid)[1, :2], model(frames[1:, :2])[0], atol=1e-5, rtol=1e-5)


def test_a_model_without_event_head_says_so() -> None:
    from sleepfm.models.build import build_model
    from sleepfm.models.downstream import Downstream

    encoder = {"kind": "neuronet", "frame_encoder": {"stem": 4, "channels": [4, 4, 4, 4], "reduction": 2, "feature": 8}}
    encoder |= {"encoder": {"dim": 8, "depth": 1, "heads": 2}, "decoder": {"dim": 8, "depth": 1, "heads": 2}}
    config = DownstreamConfig(task="apnea", classes=("none", "apnea"), encoder=encoder)
    model = build_model(config.model_dump(mode="json"))
    assert isinstance(model, Downstream)
    with pytest.raises(ModelError, match="no event head"):
        model.locate(torch.zeros(1, 1, 27, 8))
