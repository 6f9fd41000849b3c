//! The ways in which checkpoints name the tensors of an `AutoencoderKLWan`.
//!
//! Source of the names: `convert_wan_vae_to_diffusers` in diffusers' `loaders/single_file_utils.py` (Wan 2.1), and `convert_vae_22` in its
//! `scripts/convert_wan_to_diffusers.py` (Wan 2.2).

use std::num::NonZeroUsize;

use vae_core::Weights;

use crate::WanConfig;

/// A layer at the ends of encoder and decoder, in diffusers' layout and in the original one.
pub(crate) const MARKERS: [&str; 4] = ["encoder.norm_out.gamma", "decoder.norm_out.gamma", "encoder.head.0.gamma", "decoder.head.0.gamma"];

/// The tensors under the names and shapes of the modules here. Those of neither layout keep their names, for the strict load to name.
pub(crate) fn to_modules(weights: Weights) -> Weights {
    let weights = match up_blocks(&weights) {
        Some(blocks) => weights.renamed(|name| Some(from_original(name, blocks))),
        None => weights,
    };
    // The convolution of a sampler is the second entry of a torch `Sequential`.
    let weights = weights.renamed(|name| Some(name.replace(".resample.1.", ".resample.")));
    weights.reshaped(|name, shape| match shape {
        [channels, rest @ ..] if name.rsplit('.').next() == Some("gamma") && rest.iter().all(|&side| side == 1) => Some(vec![*channels]),
        _ => None,
    })
}

/// How the original layout lists the layers of up blocks.
#[derive(Clone, Copy)]
enum UpBlocks {
    /// Wan 2.2: in blocks.
    Nested,
    /// Wan 2.1: a flat list with a fixed number per block: residual blocks and the upsampling.
    OfLength(NonZeroUsize),
}

/// Of the original layout, the division of the decoder's layers.
fn up_blocks(weights: &Weights) -> Option<UpBlocks> {
    weights.shape("decoder.middle.0.residual.0.gamma").or_else(|| weights.shape("encoder.middle.0.residual.0.gamma"))?;
    if weights.shape("decoder.upsamples.0.upsamples.0.residual.0.gamma").is_some() {
        return Some(UpBlocks::Nested);
    }
    // A model without doublings has one up block.
    let doubling = (0..=weights.names().count()).find(|layer| weights.shape(&format!("decoder.upsamples.{layer}.resample.1.weight")).is_some());
    Some(UpBlocks::OfLength(NonZeroUsize::MIN.saturating_add(doubling.unwrap_or(usize::MAX))))
}

fn from_original(name: &str, up_blocks: UpBlocks) -> String {
    let Some((coder, rest)) = name.split_once('.') else { return name.to_owned() };
    if let Some(own) = [("conv1", "quant_conv"), ("conv2", "post_quant_conv")].iter().find(|(old, _)| *old == coder) {
        return format!("{}.{rest}", own.1);
    }
    let parts: Vec<&str> = rest.split('.').collect();
    let renamed = match parts[..] {
        ["conv1", field] => format!("conv_in.{field}"),
        ["head", "0", field] => format!("norm_out.{field}"),
        ["head", "2", field] => format!("conv_out.{field}"),
        ["middle", "1", ..] => format!("mid_block.attentions.0.{}", parts[2..].join(".")),
        ["middle", "0", ..] => format!("mid_block.resnets.0.{}", layer(&parts[2..])),
        ["middle", "2", ..] => format!("mid_block.resnets.1.{}", layer(&parts[2..])),
        // Wan 2.2: blocks of layers, of which the last samples.
        [list @ ("downsamples" | "upsamples"), block, "downsamples" | "upsamples", index, ..] => {
            let (blocks, sampler) = if list == "downsamples" { ("down_blocks", "downsampler") } else { ("up_blocks", "upsampler") };
            let place = if is_sampler(&parts[4..]) { sampler.to_owned() } else { format!("resnets.{index}") };
            format!("{blocks}.{block}.{place}.{}", layer(&parts[4..]))
        }
        // Wan 2.1: one list of layers.
        ["downsamples", index, ..] => format!("down_blocks.{index}.{}", layer(&parts[2..])),
        ["upsamples", index, ..] => match (index.parse::<usize>(), up_blocks) {
            (Ok(index), UpBlocks::OfLength(length)) => {
                let (block, index) = (index / length, index % length);
                let place = if is_sampler(&parts[2..]) { "upsamplers.0".to_owned() } else { format!("resnets.{index}") };
                format!("up_blocks.{block}.{place}.{}", layer(&parts[2..]))
            }
            _ => rest.to_owned(),
        },
        _ => rest.to_owned(),
    };
    format!("{coder}.{renamed}")
}

fn is_sampler(parts: &[&str]) -> bool {
    matches!(parts.first(), Some(&("resample" | "time_conv")))
}

/// The name within a layer.
fn layer(parts: &[&str]) -> String {
    match parts {
        ["residual", "0", field] => format!("norm1.{field}"),
        ["residual", "2", field] => format!("conv1.{field}"),
        ["residual", "3", field] => format!("norm2.{field}"),
        ["residual", "6", field] => format!("conv2.{field}"),
        ["shortcut", field] => format!("conv_shortcut.{field}"),
        _ => parts.join("."),
    }
}

/// The configuration inferred from names and shapes; mean and deviation of the latents are those of the published model with the same number of channels.
pub(crate) fn infer(weights: &Weights) -> Option<WanConfig> {
    let weights = to_modules(weights.clone());
    let dim = |name: &str, axis: usize| weights.shape(name).and_then(|shape| shape.get(axis).copied());
    let blocks = EncoderBlocks::of(&weights);
    let (base_dim, z_dim) = (dim("encoder.conv_in.weight", 0)?, dim("post_quant_conv.weight", 0)?);
    // Such names with such lengths are not this family's.
    if base_dim == 0 || blocks.widths.len() > 16 || z_dim > 1 << 16 {
        return None;
    }
    // Kernels of 3x3x3 px: the image VAEs that have such names have 3x3.
    dim("encoder.conv_in.weight", 4)?;
    let dim_mult: Vec<usize> = blocks.widths.iter().map(|width| width / base_dim).collect();
    let decoder_base = dim("decoder.norm_out.gamma", 0)? / (*dim_mult.first()?).max(1);
    let [in_channels, out_channels] = [dim("encoder.conv_in.weight", 1)?, dim("decoder.conv_out.weight", 0)?];
    // Samples have three channels; twelve are patches of 2x2 px.
    let patch_size = [2, 4].into_iter().find(|patch| in_channels == 3 * patch * patch);
    let [latents_mean, latents_std] = WanConfig::published_latents(z_dim);
    let config = WanConfig {
        base_dim,
        decoder_base_dim: (decoder_base != base_dim).then_some(decoder_base),
        z_dim,
        dim_mult,
        num_res_blocks: blocks.layers,
        attn_scales: blocks.attention,
        temperal_downsample: blocks.time,
        latents_mean,
        latents_std,
        is_residual: blocks.is_residual,
        in_channels,
        out_channels,
        patch_size,
        ..WanConfig::default()
    };
    let [temporal, spatial] = [config.temporal_ratio(), config.spatial_ratio()].map(Some);
    Some(WanConfig { scale_factor_temporal: temporal, scale_factor_spatial: spatial, ..config })
}

/// Whether the widths are those of a published model, whose scaling of latents is known.
pub(crate) fn determines_scaling(weights: &Weights) -> bool {
    infer(weights).is_some_and(|told| {
        [(16, 96, None, vec![1, 2, 4, 4]), (48, 160, Some(256), vec![1, 2, 4, 4])].contains(&(
            told.z_dim,
            told.base_dim,
            told.decoder_base_dim,
            told.dim_mult,
        ))
    })
}

/// Whether the tensors fit a model of this configuration. Those of an encoder or decoder alone always do.
pub(crate) fn fits(config: &WanConfig, weights: &Weights) -> bool {
    let or_plain = |given: Option<usize>, plain: usize| given.unwrap_or(plain);
    infer(weights).is_none_or(|told| {
        let own_attention = |scales: &[f64]| (0..16).filter(|&block| scales.contains(&0.5_f64.powi(block))).collect::<Vec<_>>();
        told.base_dim == config.base_dim
            && or_plain(told.decoder_base_dim, told.base_dim) == or_plain(config.decoder_base_dim, config.base_dim)
            && told.z_dim == config.z_dim
            && told.dim_mult == config.dim_mult
            && told.num_res_blocks == config.num_res_blocks
            && told.temperal_downsample == config.temperal_downsample
            && told.is_residual == config.is_residual
            && [told.in_channels, told.out_channels] == [config.in_channels, config.out_channels]
            && (config.is_residual || own_attention(&told.attn_scales) == own_attention(&config.attn_scales))
    })
}

/// What the encoder's list of layers shows.
#[derive(Default)]
struct EncoderBlocks {
    is_residual: bool,
    widths: Vec<usize>,
    layers: usize,
    /// Of each halving, whether it halves the frames.
    time: Vec<bool>,
    /// Scales with attention.
    attention: Vec<f64>,
}

impl EncoderBlocks {
    fn of(weights: &Weights) -> Self {
        let mut found = Self::default();
        for index in 0..weights.names().count() {
            let name = |part: &str| format!("encoder.down_blocks.{index}.{part}.weight");
            let width = |part: &str| weights.shape(&name(part)).and_then(|shape| shape.first().copied());
            let has = |part: &str| weights.shape(&name(part)).is_some();
            if let Some(width) = width("resnets.0.conv1") {
                // Wan 2.2: a whole block.
                found.is_residual = true;
                found.layers = (0..weights.names().count()).take_while(|layer| has(&format!("resnets.{layer}.conv1"))).count();
                found.widths.push(width);
                if has("downsampler.resample") {
                    found.time.push(has("downsampler.time_conv"));
                }
            } else if let Some(width) = width("conv1") {
                if found.widths.len() == found.time.len() {
                    found.widths.push(width);
                    found.layers = 0;
                }
                found.layers += 1;
            } else if has("to_qkv") {
                let scale = found.time.iter().fold(1.0, |scale, _| scale / 2.0);
                if found.attention.last() != Some(&scale) {
                    found.attention.push(scale);
                }
            } else if has("resample") {
                found.time.push(has("time_conv"));
            } else {
                break;
            }
        }
        found
    }
}
