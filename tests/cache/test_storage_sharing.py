"""Caches that share a storage do not see one another, and append without a copy where that is possible."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.small_caches import (
    CROPS,
    assert_equal,
    random_cache,
)

pytestmark = pytest.mark.usefixtures("plain_torch")


def test_appending_to_the_newest_costs_no_copy(past):
    tensor, _ = past
    codes, window = tensor.inner_tensors()["codes"], tensor.inner_tensors()["window"]
    longer = torch.cat([tensor, random_cache(1)], dim=2)
    assert longer._storage is tensor._storage
    assert longer.inner_tensors()["codes"] is codes and longer.inner_tensors()["window"] is window
    assert tensor.shape[2] == 100 and longer.shape[2] == 101


def test_branches_do_not_see_one_another(past):
    tensor, dense = past
    news = [random_cache(60) for _ in range(3)]
    branches = [torch.cat([tensor, new], dim=2) for new in news]
    assert branches[0]._storage is tensor._storage  # the first goes in place, the others copy
    assert len({id(branch._storage) for branch in branches}) == 3
    for branch, new in zip(branches, news, strict=True):
        assert_equal(branch, torch.cat([dense, new], dim=2))
    assert_equal(tensor, dense)


def test_a_dead_branch_costs_no_copy(past):
    tensor, dense = past
    rejected = torch.cat([tensor, random_cache(60)], dim=2)
    del rejected
    new = random_cache(3)
    accepted = torch.cat([tensor, new], dim=2)
    assert accepted._storage is tensor._storage
    assert_equal(accepted, torch.cat([dense, new], dim=2))


@pytest.mark.parametrize("crop", [c for c in CROPS if c != "torch.narrow"], ids=lambda crop: crop.replace(":", "_"))
def test_crop_and_append_in_a_loop_costs_no_copy(past, crop):
    """Assisted decoding: append candidates, crop those that were rejected. torch.narrow copies, being a true view."""
    tensor, dense = past
    storage = tensor._storage
    for _ in range(3):
        new = random_cache(5)
        tensor = torch.cat([tensor, new], dim=2)
        tensor = CROPS[crop](tensor, tensor.shape[2] - 3)
        dense = torch.cat([dense, new[:, :, :2]], dim=2)
        assert tensor._storage is storage
    assert_equal(tensor, dense)


def test_a_live_longer_view_is_not_overwritten(past):
    tensor, dense = past
    cropped = tensor[:, :, :40]
    new = random_cache(50)
    other = torch.cat([cropped, new], dim=2)
    assert other._storage is not tensor._storage
    assert_equal(tensor, dense)
    assert_equal(other, torch.cat([dense[:, :, :40], new], dim=2))


def test_growing_past_the_capacity(past):
    tensor, dense = past
    sizes = {tensor._storage.capacity}
    for _ in range(40):
        new = random_cache(20)
        tensor, dense = torch.cat([tensor, new], dim=2), torch.cat([dense, new], dim=2)
        sizes.add(tensor._storage.capacity)
    assert_equal(tensor, dense)
    assert 2 < len(sizes) < 10  # it grew, but not at each append
