"""Pipelines of tiny models, and what they are called with."""

import diffusers
import torch
from models import flux2_vae, kl, noise, qwen, wan

NO_TEXT = dict(text_encoder=None, tokenizer=None)
EMBEDS = dict(prompt_embeds=noise(1, 7, 32), negative_prompt_embeds=noise(1, 7, 32))


def unet(**config):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, **config,
    )  # fmt: skip


def stable_diffusion(kind=diffusers.StableDiffusionPipeline):
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    return kind(unet=unet(), vae=kl(), scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **NO_TEXT), EMBEDS


def image_to_image():
    pipe, arguments = stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline)
    return pipe, arguments | dict(image=noise(1, 3, 32, 32).clamp(-1, 1) / 2 + 0.5, strength=0.9, height=None, width=None)


def inpainting():
    pipe, arguments = stable_diffusion(diffusers.StableDiffusionInpaintPipeline)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, :] = 1
    return pipe, arguments | dict(image=noise(1, 3, 32, 32).clamp(-1, 1) / 2 + 0.5, mask_image=mask)


def stable_diffusion_xl():
    conditioned = unet(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80, use_linear_projection=True)
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    pipe = diffusers.StableDiffusionXLPipeline(
        unet=conditioned, vae=kl(force_upcast=True), scheduler=scheduler, text_encoder_2=None, tokenizer_2=None, add_watermarker=False, **NO_TEXT
    )
    return pipe, EMBEDS | dict(pooled_prompt_embeds=noise(1, 32), negative_pooled_prompt_embeds=noise(1, 32))


def flux():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    vae = kl(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=1.5)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.FluxPipeline(scheduler=scheduler, vae=vae, text_encoder_2=None, tokenizer_2=None, transformer=transformer, **NO_TEXT)
    return pipe, dict(prompt_embeds=noise(1, 7, 32), pooled_prompt_embeds=noise(1, 32), guidance_scale=1.0)


def flux2():
    torch.manual_seed(0)
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        timestep_guidance_channels=256, axes_dims_rope=[4, 4, 4, 4],
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.Flux2Pipeline(scheduler=scheduler, vae=flux2_vae(), transformer=transformer, **NO_TEXT), dict(prompt_embeds=noise(1, 7, 16))


def wan_video():
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32, freq_dim=256, ffn_dim=32,
        num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    pipe = diffusers.WanPipeline(transformer=transformer, vae=wan(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), **NO_TEXT)
    return pipe, EMBEDS | dict(num_frames=5)


def wan_image_to_video():
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=12, out_channels=4, text_dim=32, freq_dim=256, ffn_dim=32,
        num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    pipe = diffusers.WanImageToVideoPipeline(
        transformer=transformer, vae=wan(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), image_encoder=None, image_processor=None, **NO_TEXT
    )
    return pipe, EMBEDS | dict(num_frames=5, image=noise(1, 3, 32, 32).clamp(-1, 1) / 2 + 0.5)


def qwen_image():
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    pipe = diffusers.QwenImagePipeline(transformer=transformer, vae=qwen(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **NO_TEXT)
    return pipe, dict(prompt_embeds=noise(1, 7, 16), prompt_embeds_mask=torch.ones(1, 7, dtype=torch.long), true_cfg_scale=1.0)
