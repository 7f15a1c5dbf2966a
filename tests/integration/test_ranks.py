"""For every loss with statistics, K ranks equal one rank on the concatenated batch.

A rank may have no positive RoI, or no RoI at all.
"""

from __future__ import annotations

import method_oracle as oracle
import pytest
import ranks
import torch
from loss_cases import CASES, C

WORLD, N = 3, 18
LOSSES = [name for name in CASES if name not in ("ls", "bags")]  # these two keep none
SHARES = (
    [0, 6, 12, 18],
    [0, 9, 9, 18],
    [0, 4, 15, 18],
)  # where each iteration's batch is cut; a rank may get nothing


def inputs(channels: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    out = oracle.batches(len(SHARES), N, C, channels)
    out[0][1][6:12] = C  # the second rank has background alone
    return out


def rank_of_all(rank: int, world: int) -> dict:
    return {
        name: train(name, lambda i, x: x[SHARES[i][rank] : SHARES[i][rank + 1]]) for name in LOSSES
    }


def train(name: str, share) -> dict:
    """Sums of losses, gradients of the logits and final state after all iterations and steps."""
    build, channels = CASES[name]
    loss = build().double()
    values, grads = [], []
    for i, (z, label) in enumerate(inputs(channels)):
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(i + 1)
        for step in range(3):
            mine, classes = share(i, z.roll(step, 0)), share(i, label.roll(step, 0))
            if name == "loce":
                fg = classes < C
                loss.update_scores(
                    mine.softmax(1)[fg].gather(1, classes[fg, None]).squeeze(1), classes[fg]
                )
            value, grad = oracle.value_and_grad(
                loss, mine, classes, step=step, reduction_override="sum"
            )
            values.append(value)
            grads.append(grad)
    return {"values": values, "grads": grads, "state": loss.state_dict()}


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    return ranks.run(rank_of_all, WORLD, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", LOSSES)
def test_k_ranks_equal_one(spread, name):
    one, many = train(name, lambda i, x: x), [rank[name] for rank in spread]
    for key, value in one["state"].items():
        for rank in many:
            torch.testing.assert_close(rank["state"][key], value, rtol=1e-9, atol=1e-12)
    for k, (value, grad) in enumerate(zip(one["values"], one["grads"], strict=True)):
        torch.testing.assert_close(sum(rank["values"][k] for rank in many), value)
        torch.testing.assert_close(torch.cat([rank["grads"][k] for rank in many]), grad)
