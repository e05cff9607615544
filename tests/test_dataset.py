"""`BatchDataset`: what a torch DataLoader may and may not do with batches."""

from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.conftest import save_tokens
from tiny_llm.batching import BatchDataset, batches, get_batch, load_token_array

IDS = np.arange(5000, dtype=np.uint16)


# Warnings: more workers than cores; forking beside torch's threads (Python 3.12 on).
@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*fork")
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_data_loader_gives_the_same_batches_in_order(tmp_path, num_workers):
    path = save_tokens(tmp_path / "x.bin", IDS, vocab_size=5000)
    options = {"seed": 3, "start": 5, "rank": 1, "world_size": 2, "replace": False}
    dataset = BatchDataset(load_token_array(path), 4, 8, **options)
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    found = [x.tolist() for x, _ in islice(loader, 8)]
    expected = islice(batches(IDS, 4, 8, **options), 8)
    assert found == [x.tolist() for _, (x, _) in expected]


def test_a_dataset_without_a_seed_says_what_to_give():
    with pytest.raises(ValueError, match="BatchDataset needs a seed; give one, such"):
        BatchDataset(IDS, 4, 8)


def test_a_dataset_yields_a_dict_for_hugging_face_models():
    """They shift the labels themselves, so labels equal input_ids."""
    dataset = BatchDataset(IDS, 4, 8, seed=3, as_dict=True)
    [fields] = islice(DataLoader(dataset, batch_size=None), 1)
    x, _ = get_batch(IDS, 4, 8, seed=3)
    assert isinstance(fields, dict)
    assert list(fields) == ["input_ids", "labels"]
    assert torch.equal(fields["input_ids"], x)
    assert torch.equal(fields["labels"], x)
    fields["labels"].zero_()
    assert torch.equal(fields["input_ids"], x)


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_loader_that_stacks_batches_is_refused(as_dict, batch_size, num_workers):
    dataset = BatchDataset(IDS, 4, 8, seed=3, as_dict=as_dict)
    loader = DataLoader(dataset, batch_size, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"give DataLoader\(\.\.\., batch_size=None\)"):
        next(iter(loader))


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_worker_of_a_data_loader_refuses_another_device():
    dataset = BatchDataset(IDS, 4, 8, seed=3, device="meta")
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    with pytest.raises(ValueError, match="device is meta in a worker"):
        next(iter(loader))
