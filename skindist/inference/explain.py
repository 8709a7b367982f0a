"""Where in an image the evidence lies that a model goes by, by Grad-CAM (Selvaraju et al., "Grad-CAM: visual
explanations from deep networks via gradient-based localization", ICCV 2017), as captum has it.

It shows where, not what: a warm lesion says that the model looked at it, not that it was right to.
"""

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from skindist.errors import UserError
from skindist.inference.ensemble import Ensemble


def explain(module: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Where in each image something speaks for malignant, and where for benign.

    Args:
        module: a timm model with one logit for each class, or an ensemble of such; it is not touched.
        images_BCHW: normalised images on the model's device, at least one.

    Returns:
        On the CPU, (B, H, W): above 0 where the evidence is for malignant, below 0 for benign; each image is scaled so
        that its strongest evidence is 1 or -1. All 0 where the model says the same of any image.

    Raises:
        UserError: the model does not pool a map of features, as convolutional ones do.
    """
    if isinstance(module, Ensemble):
        return scaled(torch.stack([explain(member, images_BCHW) for member in module.members]).mean(dim=0))
    from captum.attr import LayerGradCam  # a second of import, for the end of a run

    copied = without_gradients(module)
    pool = pooling(copied, images_BCHW[:1])

    def evidence(images: Tensor) -> Tensor:
        logits_BK: Tensor = copied(images)
        return logits_BK[:, 1] - logits_BK[:, 0]

    with torch.enable_grad():
        gradcam = LayerGradCam(evidence, pool)
        maps = gradcam.attribute(images_BCHW, attribute_to_layer_input=True).detach().float()
    return scaled(interpolate(maps, images_BCHW.shape[-2:], mode="bicubic", align_corners=False)[:, 0].cpu())


def scaled(maps_BHW: Tensor) -> Tensor:
    """So that the strongest value of each map is 1 or -1; a map of 0 stays so."""
    strongest = maps_BHW.abs().amax(dim=(1, 2), keepdim=True)
    return torch.where(strongest > 0, maps_BHW / strongest, torch.zeros_like(maps_BHW))


def pooling(module: nn.Module, image_1CHW: Tensor) -> nn.Module:
    """The layer that pools the last map of features (1, C, h, w).

    Raises:
        UserError: there is none.
    """
    named = module.named_modules()
    found: list[nn.Module] = [layer for name, layer in named if name.rpartition(".")[2] == "global_pool"]
    shapes: list[torch.Size] = []
    for layer in found[-1:]:
        hook = layer.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
        module(image_1CHW)
        hook.remove()
        if shapes and len(shapes[0]) == 4 and module.num_features != shapes[0][3]:  # else (1, h, w, C)
            return layer
    raise UserError("there are no heat maps of this model: they take one that pools a map of features")


def without_gradients(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, which has the same tensors but asks for no gradients of them: for these, every
    activation would be kept. captum asks for the gradient of the pooled map itself."""
    shared = {id(tensor): tensor.detach() for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared).eval()
