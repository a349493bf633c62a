"""CLIP's image tower with prompts: learned tokens that stand beside the patches.

Letters: B images, J layers with prompts of their own, N prompt tokens, L tokens of an image
(class token, then patches), W width of the tower, D width of the joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import (
    keys_and_values,
    layer_norm,
    matrix_dtype,
    merge_heads,
    queries,
    rest_of_block,
)


class VisionEncoder(nn.Module):
    """A frozen CLIP's vision transformer that takes prompts from outside.

    The prompts follow the patches, without positions; before layers 2 to J they are replaced.
    Only the class token goes through the last layer's end, since only it is read.

    Source: deep visual prompts (VPT, arXiv:2203.12119) as MaPLe (arXiv:2210.03117) places them.
    """

    def __init__(self, clip_model: nn.Module):
        """Read widths, heads and depth from the model.

        Raises:
            ValueError: the model's image tower is no vision transformer read at its class token.
        """
        super().__init__()
        visual = clip_model.visual
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        plain = (
            blocks is not None
            and hasattr(visual, "class_embedding")
            and getattr(visual, "pool_type", "tok") == "tok"
            and getattr(visual, "attn_pool", None) is None
            and not getattr(visual, "final_ln_after_pool", False)
            and all(
                isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks
            )
            and all(hasattr(getattr(block, "mlp", None), "c_fc") for block in blocks)
        )
        if not plain:
            raise ValueError(
                f"The image tower {type(visual).__name__} takes no prompts: this method needs a "
                "vision transformer. Set MODEL.BACKBONE.NAME to ViT-B/32, ViT-B/16, ViT-L/14, "
                "ViT-L/14@336px or a ViT of open_clip; RN50 and RN101 serve the methods that learn "
                "text prompts alone (CoOp, CoCoOp, IVLP with PROMPT_DEPTH_VISION 0)."
            )
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.num_layers = len(blocks)

    def forward(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Image features (B, D), not normalised.

        Args:
            images: (B, 3, size, size).
            prompts: (J, N, W); layers that the tower does not have are passed over. None: none.
        """
        visual, blocks = self.visual, self.visual.transformer.resblocks
        dtype = matrix_dtype(blocks[0])
        patches = visual.conv1(images.to(dtype)).flatten(2).transpose(1, 2)
        start = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = torch.cat([start, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        depth = 0 if prompts is None else len(prompts)
        own = x.shape[1]
        for layer, block in enumerate(blocks):
            if layer < depth:
                beside = prompts[layer].to(x.dtype).expand(len(x), -1, -1)
                x = torch.cat([x[:, :own], beside], dim=1)
            if layer == 0:
                x = layer_norm(visual.ln_pre, x)
            x = _block(block, x, only_first=layer + 1 == len(blocks))
        features = layer_norm(visual.ln_post, x[:, 0])
        return features if visual.proj is None else features @ visual.proj


def _block(block: nn.Module, x: Tensor, only_first: bool) -> Tensor:
    """One layer on (B, L, W); with only_first the class token alone comes out, (B, 1, W)."""
    normed = layer_norm(block.ln_1, x)
    k, v = keys_and_values(block.attn, normed)
    if only_first:
        normed, x = normed[:, :1], x[:, :1]
    q = queries(block.attn, normed)
    return rest_of_block(block, x, merge_heads(F.scaled_dot_product_attention(q, k, v)))
