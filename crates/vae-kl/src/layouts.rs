//! The ways in which checkpoints name an `AutoencoderKL`'s tensors.
//!
//! Source of the names: `convert_ldm_vae_checkpoint` in diffusers' `loaders/single_file_utils.py`, and `_convert_deprecated_attention_blocks` for the old
//! attention names.

use vae_core::Weights;

use crate::blocks::{DOWN_BLOCKS, UP_BLOCKS};
use crate::{KlConfig, SampleSize};

/// The first convolution of encoder and decoder, in diffusers' layout and in the original one.
pub(crate) const MARKERS: [&str; 4] = [
    "encoder.down_blocks.0.resnets.0.conv1.weight",
    "decoder.up_blocks.0.resnets.0.conv1.weight",
    "encoder.down.0.block.0.conv1.weight",
    "decoder.up.0.block.0.conv1.weight",
];
/// The components of a VAE, among others of a bare checkpoint of the original layout.
const PARTS: [&str; 4] = ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Diffusers,
    /// Latent diffusion's.
    Ldm,
}

fn layout(weights: &Weights) -> Option<Layout> {
    // The kernels of video VAEs, some of which have the same names, have three axes.
    let has = |name: &str| weights.shape(name).is_some_and(|shape| shape.len() == 4);
    let [diffusers, ldm] = [[MARKERS[0], MARKERS[1]], [MARKERS[2], MARKERS[3]]];
    if diffusers.into_iter().any(has) {
        return Some(Layout::Diffusers);
    }
    ldm.into_iter().any(has).then_some(Layout::Ldm)
}

/// The tensors under the names and shapes of diffusers. Others keep their names, for the strict load to name.
pub(crate) fn to_diffusers(weights: Weights, config: &KlConfig) -> Weights {
    let blocks = config.block_out_channels.len();
    let weights = match layout(&weights) {
        Some(Layout::Ldm) => weights.renamed(|name| PARTS.iter().any(|part| name.starts_with(part)).then(|| from_ldm(name, blocks))),
        Some(Layout::Diffusers) | None => weights.renamed(|name| Some(from_old_attention(name))),
    };
    // Attention maps may be stored as 1x1 convolutions.
    weights.reshaped(|name, shape| match shape {
        [out, channels, 1, 1] if name.contains(".attentions.") && name.ends_with(".weight") => Some(vec![*out, *channels]),
        _ => None,
    })
}

fn from_ldm(name: &str, blocks: usize) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    let mirrored: String;
    match parts[..] {
        [_, side @ ("down" | "up"), index, kind, ..] => {
            if side == "up" {
                // The original counts up blocks from the finest to the coarsest.
                mirrored =
                    index.parse::<usize>().ok().and_then(|i| (blocks.saturating_sub(1)).checked_sub(i)).map_or(index.to_owned(), |i| i.to_string());
                parts[2] = &mirrored;
            }
            parts[1] = if side == "down" { "down_blocks" } else { "up_blocks" };
            match kind {
                "block" => parts[3] = "resnets",
                "attn" => parts[3] = "attentions",
                "downsample" => parts.splice(3..4, ["downsamplers", "0"]).for_each(drop),
                "upsample" => parts.splice(3..4, ["upsamplers", "0"]).for_each(drop),
                _ => {}
            }
        }
        [_, "mid", part, ..] => {
            let place: &[&str] = match part {
                "block_1" => &["mid_block", "resnets", "0"],
                "block_2" => &["mid_block", "resnets", "1"],
                "attn_1" => &["mid_block", "attentions", "0"],
                other => &["mid", other],
            };
            parts.splice(1..3, place.iter().copied()).for_each(drop);
        }
        [_, "norm_out", _] => parts[1] = "conv_norm_out",
        _ => {}
    }
    let field = parts.len().saturating_sub(2);
    if parts.contains(&"attentions") {
        match parts[field] {
            "norm" => parts[field] = "group_norm",
            "q" => parts[field] = "to_q",
            "k" => parts[field] = "to_k",
            "v" => parts[field] = "to_v",
            "proj_out" => parts.splice(field..=field, ["to_out", "0"]).for_each(drop),
            _ => {}
        }
    } else if parts[field] == "nin_shortcut" {
        parts[field] = "conv_shortcut";
    }
    parts.join(".")
}

fn from_old_attention(name: &str) -> String {
    if !name.contains(".attentions.") {
        return name.to_owned();
    }
    [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")]
        .into_iter()
        .fold(name.to_owned(), |name, (old, new)| name.replace(old, new))
}

/// The configuration inferred from names and shapes. The rest comes from the most similar published model: SDXL, SD3 and SD 1.x by the other components
/// of a whole checkpoint; a VAE alone with 16 latent channels is FLUX.1, others are SD 1.x.
pub(crate) fn infer(weights: &Weights) -> Option<KlConfig> {
    let ldm = layout(weights)? == Layout::Ldm;
    // FLUX.2's has the same names, and scales latents by these besides.
    if weights.shape("bn.running_mean").is_some() {
        return None;
    }
    let dim = |name: &str, axis: usize| weights.shape(name).and_then(|shape| shape.get(axis).copied());
    let (down, resnet, mid_attention) =
        if ldm { ("down", "block", "mid.attn_1.norm") } else { ("down_blocks", "resnets", "mid_block.attentions.0.group_norm") };
    let width = |block: usize| dim(&format!("encoder.{down}.{block}.{resnet}.0.conv1.weight"), 0);
    let block_out_channels: Vec<usize> = (0..).map_while(width).collect();
    let layers =
        (0..weights.names().count()).take_while(|layer| dim(&format!("encoder.{down}.0.{resnet}.{layer}.conv1.weight"), 0).is_some()).count();
    let latent_channels = dim("decoder.conv_in.weight", 1)?;
    let (scaling_factor, shift_factor, sample_size) = match whole_model(weights) {
        Some(Whole::Sd3) => (1.5305, Some(0.0609), 1024),
        Some(Whole::Sdxl) => (0.13025, None, 1024),
        Some(Whole::Flux) => (0.3611, Some(0.1159), 1024),
        None if latent_channels == 16 => (0.3611, Some(0.1159), 1024),
        Some(Whole::Sd) | None => (0.18215, None, 512),
    };
    Some(KlConfig {
        in_channels: dim("encoder.conv_in.weight", 1)?,
        out_channels: dim("decoder.conv_out.weight", 0)?,
        down_block_types: vec![DOWN_BLOCKS[0].to_owned(); block_out_channels.len()],
        up_block_types: vec![UP_BLOCKS[0].to_owned(); block_out_channels.len()],
        layers_per_block: layers,
        latent_channels,
        sample_size: SampleSize([sample_size; 2]),
        scaling_factor,
        shift_factor,
        use_quant_conv: dim("quant_conv.weight", 0).is_some(),
        use_post_quant_conv: dim("post_quant_conv.weight", 0).is_some(),
        mid_block_add_attention: dim(&format!("encoder.{mid_attention}.weight"), 0).is_some(),
        block_out_channels,
        ..KlConfig::default()
    })
}

/// The model whose other components are in a whole checkpoint.
#[derive(Clone, Copy)]
enum Whole {
    Sd,
    Sdxl,
    Sd3,
    Flux,
}

fn whole_model(weights: &Weights) -> Option<Whole> {
    let latent_channels = *weights.shape("decoder.conv_in.weight")?.get(1)?;
    // Upscalers, which have other scalings, halve less often.
    let halves_thrice =
        ["encoder.down.3.block.0.conv1.weight", "encoder.down_blocks.3.resnets.0.conv1.weight"].iter().any(|name| weights.shape(name).is_some());
    let parts: &[(&str, Whole)] = match latent_channels {
        4 => &[("conditioner.embedders.", Whole::Sdxl), ("cond_stage_model.", Whole::Sd)],
        16 => &[("joint_blocks.", Whole::Sd3), ("double_blocks.", Whole::Flux)],
        _ => &[],
    };
    parts.iter().find(|(part, _)| halves_thrice && weights.file_has(part)).map(|&(_, whole)| whole)
}

/// Whether the other components of the file determine the scaling of latents.
pub(crate) fn determines_scaling(weights: &Weights) -> bool {
    whole_model(weights).is_some()
}

/// Whether the tensors fit a model of this configuration. Those of an encoder or decoder alone always do.
pub(crate) fn fits(config: &KlConfig, weights: &Weights) -> bool {
    layout(weights).is_some()
        && infer(weights).is_none_or(|told| {
            let same = KlConfig {
                in_channels: told.in_channels,
                out_channels: told.out_channels,
                block_out_channels: told.block_out_channels,
                layers_per_block: told.layers_per_block,
                latent_channels: told.latent_channels,
                use_quant_conv: told.use_quant_conv,
                use_post_quant_conv: told.use_post_quant_conv,
                mid_block_add_attention: told.mid_block_add_attention,
                ..config.clone()
            };
            same == *config
        })
}
