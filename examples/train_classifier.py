"""Train a torchxrayvision classifier on a generated data set: python train_classifier.py SHARDS"""

import sys

import torch
import torchxrayvision as xrv
from torch.utils.data import DataLoader

import cxrsynth

shards = sys.argv[1] if len(sys.argv) == 2 else sys.exit("usage: python train_classifier.py SHARDS")
dataset = cxrsynth.open_dataset(shards, shuffle=1000, seed=0)
model = xrv.models.DenseNet(
    num_classes=len(cxrsynth.OBSERVATIONS), in_channels=1, growth_rate=8, block_config=(2, 4, 4)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for images, labels, metadata in DataLoader(dataset, batch_size=8, num_workers=1):
    logits = model(images * 2048 - 1024)  # torchxrayvision's range is [-1024, 1024]
    known = ~labels.isnan()  # nan: uncertain or not mentioned
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}, {known.sum()} labels of {len(metadata['key'])} images")  # noqa: T201
