//! A VAE family from outside: `patch` moves squares of px into channels and back, and multiplies each colour by a gain that it loads. It loses nothing.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use tiling::{GridDefaults, Overlap};
use vae_core::{Context, Vae, VaeError, VaeFamily, VaeSpec, Weights, layers};

vae_core::register_vae!(Patch);

/// The family.
pub struct Patch;

/// The fields of its `config.json`. What it has besides is told as a warning.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PatchConfig {
    /// Channels of the samples.
    pub channels: usize,
    /// Height and width of a patch, in px.
    pub patch_px: usize,
}

impl VaeFamily for Patch {
    const NAME: &'static str = "patch";
    const ALIASES: &'static [&'static str] = &["AutoencoderPatch"];
    const SUMMARY: &'static str = "Squares of px as channels, an example";
    const MARKERS: &'static [&'static str] = &["gain"];
    type Config = PatchConfig;

    fn spec(config: &PatchConfig) -> Result<VaeSpec, VaeError> {
        VaeError::check_range("channels", config.channels, 1..=1024)?;
        VaeError::check_range("patch_px", config.patch_px, 1..=64)?;
        let spec = VaeSpec::image(config.channels, config.channels * config.patch_px.pow(2), config.patch_px);
        let grid = GridDefaults { tile_px: [16 * config.patch_px; 2], overlap: Overlap::Share([0.25; 2]) };
        Ok(VaeSpec { grid, ..spec })
    }

    fn load(config: &PatchConfig, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        let modules = Modules { gain: layers::parameter([config.channels], device) };
        let modules = weights.apply(modules, dtype)?;
        Ok(Box::new(PatchVae { modules, spec: Self::spec(config)?, dtype, device: device.clone() }))
    }
}

#[derive(Module, Debug)]
struct Modules {
    gain: Param<Tensor<1>>,
}

#[derive(Debug)]
struct PatchVae {
    modules: Modules,
    spec: VaeSpec,
    dtype: DType,
    device: Device,
}

impl PatchVae {
    fn gain(&self) -> Tensor<4> {
        self.modules.gain.val().reshape([1, self.spec.input_channels, 1, 1])
    }
}

impl Vae for PatchVae {
    fn spec(&self) -> &VaeSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn decode(&self, latents: Tensor<5>, _: &Context) -> Result<Tensor<5>, VaeError> {
        self.spec.check_latents(latents.dims())?;
        let [b, _, _, h, w] = latents.dims();
        let (c, p) = (self.spec.output_channels, self.spec.spatial_ratio);
        let px = latents.cast(self.dtype).reshape([b, c, p, p, h, w]).permute([0, 1, 4, 2, 5, 3]);
        Ok((px.reshape([b, c, h * p, w * p]) * self.gain()).unsqueeze_dim(2))
    }

    fn encode(&self, samples: Tensor<5>, _: &Context) -> Result<Tensor<5>, VaeError> {
        self.spec.check_samples(samples.dims())?;
        let (c, p) = (self.spec.input_channels, self.spec.spatial_ratio);
        let [b, _, _, h, w] = samples.dims();
        let [h, w] = [h / p, w / p];
        let whole = samples.cast(self.dtype).squeeze_dim::<4>(2).slice([0..b, 0..c, 0..h * p, 0..w * p]) / self.gain();
        let mean = whole.reshape([b, c, h, p, w, p]).permute([0, 1, 3, 5, 2, 4]).reshape([b, c * p * p, h, w]);
        // No doubt at all: a variance of nearly nothing.
        let log_variance = mean.zeros_like() - 30.0;
        Ok(Tensor::cat(vec![mean, log_variance], 1).unsqueeze_dim(2))
    }

    fn to_device(&self, device: &Device) -> Box<dyn Vae> {
        let modules = self.modules.clone().to_device(device);
        Box::new(Self { modules, spec: self.spec.clone(), dtype: self.dtype, device: device.clone() })
    }
}

#[cfg(test)]
mod tests {
    const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model");

    vae_core::vae_conformance!(super::Patch, MODEL, burn::tensor::Device::flex());

    #[test]
    fn the_registry_holds_all_families() {
        let registry = vae_core::Registry::linked().unwrap();
        assert_eq!(registry.entries().map(|entry| entry.name).collect::<Vec<_>>(), ["kl", "patch", "qwen-image", "wan"]);
    }

    #[test]
    fn tiles_lose_nothing() {
        let config = tilevae::Config::from_toml(&format!("model.path = {MODEL:?}\ntiling.tile_px = 16")).unwrap();
        let pipeline = tilevae::Pipeline::load(&config).unwrap();
        let samples = tilevae::HostTensor::from_fn([1, 3, 1, 40, 32], |[_, c, _, y, x]| ((7 * c + 5 * y + 3 * x) % 19) as f32 / 9.5 - 1.0);
        let encoded = pipeline.encode(&samples, tilevae::RunOptions::default()).unwrap();
        assert!(encoded.stats.tiles > 4);
        let decoded = pipeline.decode(&encoded.latents, tilevae::RunOptions::default()).unwrap();
        let worst = samples.data().iter().zip(decoded.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");
    }
}
