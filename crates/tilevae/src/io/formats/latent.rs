use std::path::Path;

use super::super::{Format, FormatKind, IoError, Reader};

/// Latents as ComfyUI saves them: a safetensors file with a name of its own for the tensor.
pub(super) struct Latent;

/// The name that ComfyUI gives latents.
pub(in crate::io) const COMFYUI_TENSOR: &str = "latent_tensor";
/// A tensor that marks latents as the VAE's own. Before there was that mark, they were stored as Stable Diffusion 1's, scaled; ComfyUI divides all by the
/// same number.
pub(in crate::io) const COMFYUI_UNSCALED: &str = "latent_format_version_0";
/// What latents without the mark are divided by.
pub(in crate::io) const COMFYUI_SCALE: f64 = 0.18215;

impl Format for Latent {
    fn name(&self) -> &'static str {
        "latent"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["latent"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Tensors
    }

    fn is_written(&self) -> bool {
        false
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        super::torch::open(path)
    }
}
