//! Sources and sinks that a run puts between the caller's and the model: latent spaces, the posterior and the range of samples.

use tiling::{BoxError, Canvas, HostTensor, Region, Sink, TileSource};
use vae_core::{Clamp, Posterior, PosteriorKind, VaeSpec};

use crate::LatentSpace;

/// Latents in the VAE's own space, read from latents of the space that a plan names.
pub(super) struct VaeLatents<'a> {
    pub(super) latents: &'a dyn TileSource,
    pub(super) spec: &'a VaeSpec,
    pub(super) space: LatentSpace,
}

impl TileSource for VaeLatents<'_> {
    fn shape(&self) -> [usize; 5] {
        self.latents.shape()
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        let mut piece = self.latents.read(region)?;
        if self.space == LatentSpace::Diffusion {
            self.spec.latent_norm.to_vae(&mut piece);
        }
        Ok(piece)
    }

    fn is_in_memory(&self) -> bool {
        self.latents.is_in_memory()
    }
}

/// Takes decoded samples and hands them on clamped to the range of the model's samples.
pub(super) struct SampleSink<'a> {
    pub(super) sink: &'a mut dyn Sink,
    pub(super) spec: &'a VaeSpec,
    pub(super) clamp: Clamp,
    pub(super) is_tiled: bool,
}

impl Sink for SampleSink<'_> {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], mut piece: HostTensor) -> Result<(), BoxError> {
        self.spec.check_decoded(piece.shape())?;
        self.clamp.apply(&mut piece, self.is_tiled);
        self.sink.take(start, extent, piece)
    }
}

/// Takes what an encoder gives and hands on latents of the space that a plan names.
pub(super) struct LatentSink<'a> {
    pub(super) sink: &'a mut dyn Sink,
    pub(super) spec: &'a VaeSpec,
    pub(super) posterior: Posterior,
    pub(super) seed: u64,
    pub(super) space: LatentSpace,
    /// Takes mean and log-variance in the VAE's own space, where they are asked for.
    pub(super) moments: Option<&'a mut [Canvas; 2]>,
}

impl Sink for LatentSink<'_> {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        self.spec.check_encoded(piece.shape())?;
        let mut latents = match self.spec.posterior {
            PosteriorKind::None => piece,
            PosteriorKind::Gaussian => {
                let [mean, log_variance] = Posterior::split(&piece);
                if let Some([means, log_variances]) = &mut self.moments {
                    means.take(start, extent, mean.clone())?;
                    log_variances.take(start, extent, log_variance.clone())?;
                }
                self.posterior.draw(mean, &log_variance, self.seed, start, extent)
            }
        };
        if self.space == LatentSpace::Diffusion {
            self.spec.latent_norm.to_diffusion(&mut latents);
        }
        self.sink.take(start, extent, latents)
    }
}
