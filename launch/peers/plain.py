"""The loop that most users write; at its best in bfloat16 and channels-last, with loader workers."""

import torch
from common import Epochs, adadelta, batches, job, model, training_images
from torch import Tensor

asked = job()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
layout = torch.channels_last if asked.best else torch.contiguous_format
images = training_images(asked)
loader = batches(asked, images)
module = model().to(device, memory_format=layout).train()  # type: ignore[call-overload]
optimizer, epochs = adadelta(module), Epochs(len(images))
for _ in range(asked.epochs):
    epochs.begin()
    for images_BCHW, labels_B in loader:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=asked.best):
            logits_BK = module(images_BCHW.to(device, memory_format=layout))
            loss: Tensor = torch.nn.functional.cross_entropy(logits_BK, labels_B.to(device))
        torch.autograd.backward(loss)
        optimizer.step()
    epochs.end()
print(epochs.speed)
