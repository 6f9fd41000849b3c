use std::path::{Path, PathBuf};

use image::DynamicImage;
use vae_core::from_eight_bits;

use super::Background;
use super::background::{is_transparent, laid_over};

/// Px as they are stored: interleaved channels, row by row.
#[derive(Debug)]
pub(super) enum Pixels {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

impl Pixels {
    /// The px of an image with `channels` channels (1: grey, 3: RGB, 4: RGBA), if it can be shown so. Where the channels have no alpha, transparent px are
    /// laid over `background`; without one, `on_dropped_alpha` is called.
    pub(super) fn new(mut image: DynamicImage, channels: usize, background: Background, on_dropped_alpha: impl FnOnce()) -> Option<Self> {
        if channels < 4 && is_transparent(&image) {
            match background {
                Background::None => on_dropped_alpha(),
                Background::Color(color) => image = laid_over(image, color),
            }
        }
        let is_deep = image.color().bytes_per_pixel() / image.color().channel_count() > 1;
        Some(match (channels, is_deep) {
            (1, false) => Self::Eight(image.into_luma8().into_raw()),
            (3, false) => Self::Eight(image.into_rgb8().into_raw()),
            (4, false) => Self::Eight(image.into_rgba8().into_raw()),
            (1, true) => Self::Sixteen(image.into_luma16().into_raw()),
            (3, true) => Self::Sixteen(image.into_rgb16().into_raw()),
            (4, true) => Self::Sixteen(image.into_rgba16().into_raw()),
            _ => return None,
        })
    }

    /// Fills `samples`, from -1 to 1, with one channel of a row from px `left` on. `[width, channels]` is the layout; past its end the last px repeats.
    pub(super) fn samples(&self, [width, channels]: [usize; 2], row: usize, channel: usize, left: usize, samples: &mut [f32]) {
        let place = |x: usize| (row * width + (left + x).min(width - 1)) * channels + channel;
        let samples = samples.iter_mut().enumerate();
        match self {
            Self::Eight(values) => samples.for_each(|(x, sample)| *sample = from_eight_bits(values[place(x)])),
            Self::Sixteen(values) => samples.for_each(|(x, sample)| *sample = f32::from(values[place(x)]) / 32767.5 - 1.0),
        }
    }
}

/// Images whose alpha is dropped, for one warning about all of them.
#[derive(Debug, Default)]
pub(super) struct DroppedAlpha {
    first: Option<PathBuf>,
    count: usize,
}

impl DroppedAlpha {
    pub(super) fn add(&mut self, path: &Path) {
        self.first.get_or_insert_with(|| path.to_owned());
        self.count += 1;
    }

    pub(super) fn warn(&self) {
        let Some(first) = &self.first else { return };
        let others = if self.count > 1 { format!(" (and {} more)", self.count - 1) } else { String::new() };
        tracing::warn!(
            "{}{others} has transparent px: their alpha is dropped and their colours are taken as stored, as diffusers does; io.background = \"white\", \"black\" or \"#rrggbb\" lays them over a colour",
            first.display()
        );
    }
}
