"""Tiny in-memory data modules: what tasks need, without files."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import BaseDataModule


class Memory(Dataset):
    """Samples from a function of the index."""

    def __init__(self, count, sample):
        self.samples = [sample(i) for i in range(count)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class MemoryModule(BaseDataModule):
    """Data module over :class:`Memory`; images are already normalised."""

    bands = ("red", "green", "blue")
    mean = torch.zeros(3)
    std = torch.ones(3)
    gsd = 0.5

    def __init__(self, sample, classes=(), count=12, batch_size=4):
        super().__init__(Memory, batch_size)
        self.classes = tuple(classes)
        self.data = Memory(count, sample)

    def loader(self):
        return DataLoader(self.data, batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def image(index, size=32):
    return torch.randn(3, size, size, generator=torch.Generator().manual_seed(index))


def scene_sample(index):
    """Three classes, told apart by colour."""
    label = index % 3
    picture = 0.1 * image(index)
    picture[label] += 2
    return {"image": picture, "label": torch.tensor(label)}


def mask_sample(index):
    """A bright square is class 1; a corner is unlabelled."""
    mask = torch.zeros(64, 64, dtype=torch.long)
    row, column = 4 * (index % 6), 8 * (index % 4)
    mask[row : row + 24, column : column + 24] = 1
    picture = 0.1 * image(index, 64) + 2.0 * mask
    mask[:4, :4] = 255
    return {"image": picture, "mask": mask}


@pytest.fixture
def scenes():
    return MemoryModule(scene_sample, classes=("red", "green", "blue"))


@pytest.fixture
def masks():
    return MemoryModule(mask_sample, classes=("background", "building"))


@pytest.fixture
def unlabelled():
    return MemoryModule(lambda i: {"image": image(i)})


@pytest.fixture
def trainer(tmp_path):
    def make(**options):
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return Trainer(
            accelerator="cpu", default_root_dir=tmp_path, max_epochs=1, **(quiet | options)
        )

    return make
