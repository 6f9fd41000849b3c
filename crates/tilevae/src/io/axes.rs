//! The order of the axes of stored tensors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tiling::PerAxis;
use vae_core::{FrameRule, VaeSpec};

use crate::{Direction, IoConfig};

/// The letters of batch, channels, frames, height and width, in the order of a [`HostTensor`](crate::HostTensor).
const LETTERS: [char; 5] = ['b', 'c', 't', 'h', 'w'];

/// The order of the axes of a stored tensor, as letters: `b`atch, `c`hannels, `t` (frames), `h`eight, `w`idth. Batch and frames may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Axes {
    /// Places in [`LETTERS`].
    order: [usize; 5],
    rank: usize,
}

impl Axes {
    pub(super) const CHW: Self = Self { order: [1, 3, 4, 0, 0], rank: 3 };
    pub(super) const BCHW: Self = Self { order: [0, 1, 3, 4, 0], rank: 4 };
    pub(super) const CTHW: Self = Self { order: [1, 2, 3, 4, 0], rank: 4 };
    pub(super) const TCHW: Self = Self { order: [2, 1, 3, 4, 0], rank: 4 };
    pub(super) const BCTHW: Self = Self { order: [0, 1, 2, 3, 4], rank: 5 };
    pub(super) const BTCHW: Self = Self { order: [0, 2, 1, 3, 4], rank: 5 };

    fn order(&self) -> &[usize] {
        &self.order[..self.rank]
    }

    fn has_frames(&self) -> bool {
        self.order().contains(&2)
    }

    /// `[batch, channels, frames, height, width]` of a tensor of this shape.
    fn sides(&self, shape: &[usize]) -> Option<[usize; 5]> {
        let mut sides = [1; 5];
        for (&axis, &side) in self.order().iter().zip(shape) {
            sides[axis] = side;
        }
        (shape.len() == self.rank).then_some(sides)
    }

    /// The axes that have more than one px, in the order in which they are stored: two readings that agree in it and in the sides are the same.
    fn effective(&self, sides: [usize; 5]) -> Vec<usize> {
        self.order().iter().copied().filter(|&axis| sides[axis] > 1).collect()
    }
}

impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.order().iter().try_for_each(|&axis| write!(f, "{}", LETTERS[axis]))
    }
}

impl FromStr for Axes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` are no axes; expected the letters c, h and w, with b (batch) and t (frames) where the tensor has them, in its order, as \"bcthw\" or \"cthw\""
            )
        };
        let order: Vec<usize> =
            text.chars().map(|letter| LETTERS.iter().position(|&known| known == letter)).collect::<Option<_>>().ok_or_else(wrong)?;
        let is_complete = [1, 3, 4].iter().all(|axis| order.contains(axis));
        let is_unique = (0..5).all(|axis| order.iter().filter(|&&other| other == axis).count() <= 1);
        if !is_complete || !is_unique {
            return Err(wrong());
        }
        let mut axes = Self { order: [0; 5], rank: order.len() };
        axes.order[..order.len()].copy_from_slice(&order);
        Ok(axes)
    }
}

impl TryFrom<String> for Axes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Axes> for String {
    fn from(axes: Axes) -> Self {
        axes.to_string()
    }
}

/// How a stored tensor is read as `[batch, channels, frames, height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) sides: [usize; 5],
    layout: Layout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Axes(Axes),
    /// `[batch, height / 2 * width / 2, channels * 4]`: patches of 2x2 px, row by row, each as channels, rows and columns.
    Packed,
}

/// Why a shape has no reading.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// There are several, or a size is missing: the message with the remedy.
    Ambiguous(String),
    /// There is none.
    Unfit(String),
}

impl Reading {
    pub(super) fn of_axes(axes: Axes, shape: &[usize]) -> Option<Self> {
        Some(Self { sides: axes.sides(shape)?, layout: Layout::Axes(axes) })
    }

    /// 4 without an axis of frames, 5 with one.
    pub(super) fn rank(&self) -> usize {
        match self.layout {
            Layout::Axes(axes) if axes.has_frames() => 5,
            Layout::Axes(_) | Layout::Packed => 4,
        }
    }

    /// Permutes values to batch, channels, frames, height and width.
    pub(super) fn arrange(&self, values: Vec<f32>, is_fortran: bool) -> Vec<f32> {
        let [batch, channels, _, height, width] = self.sides;
        if let Layout::Axes(axes) = self.layout {
            let effective = axes.effective(self.sides);
            return if !is_fortran && effective.is_sorted() { values } else { permuted(values, self.sides, effective, is_fortran) };
        }
        let (tokens, features) = (height / 2 * (width / 2), channels * 4);
        gathered(&values, self.sides, |[b, c, _, y, x]| {
            let (token, feature) = (y / 2 * (width / 2) + x / 2, (c * 2 + y % 2) * 2 + x % 2);
            if is_fortran { (feature * tokens + token) * batch + b } else { (b * tokens + token) * features + feature }
        })
    }
}

fn permuted(values: Vec<f32>, sides: [usize; 5], mut stored: Vec<usize>, is_fortran: bool) -> Vec<f32> {
    if is_fortran {
        stored.reverse();
    }
    let mut strides = [0; 5];
    let mut stride = 1;
    for &axis in stored.iter().rev() {
        strides[axis] = stride;
        stride *= sides[axis];
    }
    gathered(&values, sides, |at| (0..5).map(|axis| at[axis] * strides[axis]).sum())
}

fn gathered(values: &[f32], sides: [usize; 5], index: impl Fn([usize; 5]) -> usize) -> Vec<f32> {
    tiling::HostTensor::from_fn(sides, |at| values[index(at)]).into_data()
}

/// The reading of a tensor of `shape`: that of the configuration, else that of the file (`hint`), else the only one that fits the model.
pub(super) fn resolve(shape: &[usize], direction: Direction, spec: &VaeSpec, io: &IoConfig, hint: Option<Axes>) -> Result<Reading, Unread> {
    if shape.contains(&0) {
        return Err(Unread::Unfit("it has no values".to_owned()));
    }
    let (what, channels) = match direction {
        Direction::Decode => ("latents", spec.latent_channels),
        Direction::Encode => ("samples", spec.input_channels),
    };
    match (io.axes, io.packed_size_px.filter(|_| direction == Direction::Decode)) {
        (Some(_), Some(_)) => {
            return Err(Unread::Unfit("io.axes and io.packed_size_px exclude each other; packed latents have fixed axes".to_owned()));
        }
        (Some(axes), None) => {
            let wrong = || Unread::Unfit(format!("io.axes = \"{axes}\" names {} axes, it has {}", axes.rank, shape.len()));
            return Reading::of_axes(axes, shape).ok_or_else(wrong);
        }
        (None, Some(size)) => return packed(shape, size, channels, spec),
        (None, None) => {}
    }
    let fits = |reading: &Reading| reading.sides[1] == channels && (spec.frames != FrameRule::Image || reading.sides[2] == 1);
    let read = |axes: &Axes| Reading::of_axes(*axes, shape).filter(fits);
    if let Some(reading) = hint.and_then(|hint| read(&hint)) {
        return Ok(reading);
    }
    // Five axes are always stored in this order by other programs; four axes are not.
    let known: &[&[Axes]] = match shape.len() {
        5 => &[&[Axes::BCTHW], &[Axes::BTCHW]],
        4 => &[&[Axes::BCHW, Axes::CTHW, Axes::TCHW]],
        3 => &[&[Axes::CHW]],
        _ => &[],
    };
    let mut readings: Vec<(Axes, Reading)> = Vec::new();
    for axes in known.iter().map(|level| level.iter()).find(|level| level.clone().any(|axes| read(axes).is_some())).into_iter().flatten() {
        let Some(reading) = read(axes) else { continue };
        let is_same =
            |(other, known): &(Axes, Reading)| known.sides == reading.sides && other.effective(known.sides) == axes.effective(reading.sides);
        if !readings.iter().any(is_same) {
            readings.push((*axes, reading));
        }
    }
    let may_be_packed = direction == Direction::Decode && matches!(shape.len(), 2 | 3) && shape.last() == Some(&(4 * channels));
    match (&readings[..], may_be_packed) {
        ([(_, reading)], false) => Ok(*reading),
        ([], true) => Err(Unread::Ambiguous(format!(
            "the latents are packed patches of 2x2 px without height and width: set io.packed_size_px = [height, width], the size of the image in px; {}",
            sizes(shape[shape.len() - 2], spec)
        ))),
        ([], false) => match Reading::of_axes(if shape.len() == 4 { Axes::BCHW } else { Axes::BCTHW }, shape) {
            // The model reports what is wrong with its frames.
            Some(reading) if reading.sides[1] == channels => Ok(reading),
            Some(reading) => Err(Unread::Unfit(format!(
                "the {what} have {} channels, this model expects {channels}; if its axes are others, io.axes names them, as \"bhwc\"",
                reading.sides[1]
            ))),
            None => Err(Unread::Unfit(format!(
                "expected [batch, channels, height, width], [batch, channels, frames, height, width], or the same without batch, with {channels} channels{}; if its axes are others, io.axes names them, as \"hwc\"",
                if direction == Direction::Decode { format!(", or packed patches [batch, tokens, {}]", 4 * channels) } else { String::new() },
            ))),
        },
        _ => {
            let mut ways: Vec<String> =
                readings.iter().map(|(axes, reading)| format!("io.axes = \"{axes}\" ({})", described(reading.sides))).collect();
            if may_be_packed {
                ways.push(format!("io.packed_size_px = [height, width] (packed patches; {})", sizes(shape[shape.len() - 2], spec)));
            }
            Err(Unread::Ambiguous(format!("its axes can be read in several ways; say which: {}", ways.join(", or "))))
        }
    }
}

fn described([b, _, t, h, w]: [usize; 5]) -> String {
    let of = |count: usize, one: &str, many: &str| if count == 1 { format!("one {one}") } else { format!("{count} {many}") };
    match (b, t) {
        (_, 1) => format!("{} of {h}x{w}", of(b, "image", "images")),
        _ => format!("{} of {t} frames of {h}x{w}", of(b, "clip", "clips")),
    }
}

/// Height and width in latent px of an image, as in diffusers' `FluxPipeline._unpack_latents`.
fn latent_px(px: usize, spec: &VaeSpec) -> usize {
    px / (2 * spec.spatial_ratio) * 2
}

fn packed(shape: &[usize], PerAxis([height, width]): PerAxis<usize>, channels: usize, spec: &VaeSpec) -> Result<Reading, Unread> {
    let (batch, tokens, features) = match *shape {
        [batch, tokens, features] => (batch, tokens, features),
        [tokens, features] => (1, tokens, features),
        _ => return Err(Unread::Unfit("io.packed_size_px is for latents in packed patches, [batch, tokens, channels * 4]".to_owned())),
    };
    if features != 4 * channels {
        return Err(Unread::Unfit(format!("expected packed patches of {} values, 4 of each of the model's {channels} channels", 4 * channels)));
    }
    let [h, w] = [height, width].map(|px| latent_px(px, spec));
    if (h / 2).checked_mul(w / 2) != Some(tokens) {
        let candidates = sizes(tokens, spec);
        return Err(Unread::Unfit(format!(
            "io.packed_size_px = [{height}, {width}] makes {} patches of 2x2 latent px; {candidates}",
            (h / 2).saturating_mul(w / 2)
        )));
    }
    Ok(Reading { sides: [batch, channels, 1, h, w], layout: Layout::Packed })
}

/// Sizes in px of images with this number of tokens, the squarest first.
fn sizes(tokens: usize, spec: &VaeSpec) -> String {
    let px = 2 * spec.spatial_ratio;
    // A bound on the search, as headers may be damaged.
    let root = if tokens <= 1 << 32 { tokens.isqrt() } else { 1 };
    let pairs: Vec<[usize; 2]> =
        (1..=root).rev().filter(|short| tokens.is_multiple_of(*short)).map(|short| [short, tokens / short]).take(4).collect();
    let name = |[a, b]: [usize; 2]| format!("{}x{}", a.saturating_mul(px), b.saturating_mul(px));
    let names: Vec<String> =
        pairs.into_iter().flat_map(|[a, b]| if a == b { vec![name([a, b])] } else { vec![name([a, b]), name([b, a])] }).collect();
    format!("{tokens} of them are an image of {} px (height x width)", names.join(", "))
}

#[cfg(test)]
mod tests {
    use vae_core::VaeSpec;

    use super::*;
    use crate::Config;

    fn image(channels: usize) -> VaeSpec {
        VaeSpec::image(3, channels, 8)
    }

    fn video(channels: usize) -> VaeSpec {
        VaeSpec { frames: FrameRule::Causal { ratio: 4 }, ..image(channels) }
    }

    fn read(shape: &[usize], spec: &VaeSpec, settings: &str) -> Result<[usize; 5], String> {
        let config = Config::from_toml(&format!("[io]\n{settings}")).unwrap();
        match resolve(shape, Direction::Decode, spec, &config.io, None) {
            Ok(reading) => Ok(reading.sides),
            Err(Unread::Ambiguous(text)) => Err(format!("several: {text}")),
            Err(Unread::Unfit(text)) => Err(text),
        }
    }

    #[test]
    fn shapes_that_fit_in_one_way_are_read_so() {
        for (shape, spec, sides) in [
            (&[1, 4, 8, 12][..], image(4), [1, 4, 1, 8, 12]),
            (&[4, 8, 12], image(4), [1, 4, 1, 8, 12]),
            (&[4, 1, 8, 12], image(4), [1, 4, 1, 8, 12]),
            (&[4, 4, 8, 12], image(4), [4, 4, 1, 8, 12]),
            (&[1, 4, 1, 8, 12], image(4), [1, 4, 1, 8, 12]),
            (&[1, 1, 4, 8, 12], image(4), [1, 4, 1, 8, 12]),
            (&[16, 5, 8, 12], video(16), [1, 16, 5, 8, 12]),
            (&[16, 1, 8, 12], video(16), [1, 16, 1, 8, 12]),
            (&[1, 16, 8, 12], video(16), [1, 16, 1, 8, 12]),
            (&[16, 8, 12], video(16), [1, 16, 1, 8, 12]),
            (&[1, 16, 16, 8, 12], video(16), [1, 16, 16, 8, 12]),
            (&[1, 5, 16, 8, 12], video(16), [1, 16, 5, 8, 12]),
            (&[16, 16, 16, 8, 12], video(16), [16, 16, 16, 8, 12]),
        ] {
            assert_eq!(read(shape, &spec, ""), Ok(sides), "{shape:?}");
        }
    }

    #[test]
    fn what_can_be_read_in_several_ways_is_asked_for() {
        for (shape, spec, fragments) in [
            (&[16, 16, 8, 12][..], video(16), &["\"bchw\" (16 images of 8x12)", "\"cthw\" (one clip of 16 frames of 8x12)", "\"tchw\""][..]),
            (&[21, 16, 8, 12], video(16), &["\"bchw\" (21 images", "\"tchw\" (one clip of 21 frames"]),
            (&[16, 10, 64], image(16), &["\"chw\"", "io.packed_size_px"]),
            (&[1, 24, 64], image(16), &["io.packed_size_px", "24 of them", "64x96, 96x64", "16x384"]),
            (&[24, 64], image(16), &["io.packed_size_px"]),
        ] {
            let message = read(shape, &spec, "").unwrap_err();
            assert!(message.starts_with("several") && fragments.iter().all(|fragment| message.contains(fragment)), "{shape:?}: {message}");
        }
        assert_eq!(read(&[16, 16, 8, 12], &video(16), "axes = 'cthw'"), Ok([1, 16, 16, 8, 12]));
        assert_eq!(read(&[16, 16, 8, 12], &video(16), "axes = 'bchw'"), Ok([16, 16, 1, 8, 12]));
        assert_eq!(read(&[8, 12, 16], &video(16), "axes = 'hwc'"), Ok([1, 16, 1, 8, 12]));
        assert_eq!(read(&[1, 24, 64], &image(16), "packed_size_px = [64, 96]"), Ok([1, 16, 1, 8, 12]));
        // As in diffusers, a remainder of less than a patch is dropped.
        assert_eq!(read(&[1, 24, 64], &image(16), "packed_size_px = [72, 111]"), Ok([1, 16, 1, 8, 12]));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (shape, settings, fragment) in [
            (&[1, 24, 64][..], "", "with 4 channels"),
            (&[1, 8, 12, 4], "", "the latents have 8 channels, this model expects 4"),
            (&[7], "", "expected [batch"),
            (&[], "", "expected [batch"),
            (&[1, 1, 1, 4, 8, 8], "", "expected [batch"),
            (&[1, 4, 0, 8], "", "no values"),
            (&[0, 4, 8, 8], "axes = 'bchw'", "no values"),
            (&[4, 8, 8], "axes = 'bchw'", "names 4 axes"),
            (&[1, 24, 16], "packed_size_px = [64, 64]", "makes 16 patches"),
            (&[1, 24, 64], "packed_size_px = [64, 96]", "patches of 16 values"),
            (&[1, 4, 8, 8], "packed_size_px = 64", "is for latents in packed patches"),
            (&[1, 24, 16], "packed_size_px = 64\naxes = 'bchw'", "exclude each other"),
        ] {
            let message = read(shape, &image(4), settings).unwrap_err();
            assert!(message.contains(fragment) && !message.starts_with("several"), "{shape:?}: {message}");
        }
        for wrong in ["bch", "bcthwx", "bbchw", "hw", "", "BCHW"] {
            assert!(wrong.parse::<Axes>().is_err(), "{wrong}");
        }
    }

    /// Values that encode their position.
    fn value([b, c, t, y, x]: [usize; 5]) -> f32 {
        (b * 10000 + c * 1000 + t * 100 + y * 10 + x) as f32
    }

    #[test]
    fn values_are_brought_to_their_places() {
        let sides = [2, 3, 4, 5, 6];
        let expected = tiling::HostTensor::from_fn(sides, value).into_data();
        for text in ["bcthw", "btchw", "wthcb", "hwbct"] {
            let axes: Axes = text.parse().unwrap();
            assert_eq!(axes.to_string(), text);
            let shape: Vec<usize> = axes.order().iter().map(|&axis| sides[axis]).collect();
            for is_fortran in [false, true] {
                let mut order = axes.order().to_vec();
                if is_fortran {
                    order.reverse();
                }
                let mut stored = Vec::new();
                for index in 0..expected.len() {
                    let (mut at, mut rest) = ([0; 5], index);
                    for &axis in order.iter().rev() {
                        at[axis] = rest % sides[axis];
                        rest /= sides[axis];
                    }
                    stored.push(value(at));
                }
                let reading = Reading::of_axes(axes, &shape).unwrap();
                assert_eq!((reading.sides, reading.arrange(stored, is_fortran)), (sides, expected.clone()), "{text} {is_fortran}");
            }
        }
    }

    /// `FluxPipeline._pack_latents`, by its definition: `view(b, c, h / 2, 2, w / 2, 2).permute(0, 2, 4, 1, 3, 5)`.
    #[test]
    fn packed_patches_are_unpacked() {
        let spec = image(3);
        let (b, c, h, w) = (2, 3, 4, 6);
        let mut stored = Vec::new();
        for item in 0..b {
            for (i, j) in (0..h / 2).flat_map(|i| (0..w / 2).map(move |j| (i, j))) {
                for channel in 0..c {
                    stored.extend([[0, 0], [0, 1], [1, 0], [1, 1]].map(|[dy, dx]| value([item, channel, 0, 2 * i + dy, 2 * j + dx])));
                }
            }
        }
        let reading = packed(&[b, h / 2 * w / 2, 4 * c], PerAxis([32, 48]), c, &spec).unwrap();
        let expected = tiling::HostTensor::from_fn([b, c, 1, h, w], value).into_data();
        assert_eq!(reading.arrange(stored.clone(), false), expected);
        // The same array in Fortran order.
        let [tokens, features] = [h / 2 * w / 2, 4 * c];
        let fortran = (0..stored.len()).map(|index| {
            let (item, token, feature) = (index % b, index / b % tokens, index / b / tokens);
            stored[(item * tokens + token) * features + feature]
        });
        assert_eq!(reading.arrange(fortran.collect(), true), expected);
    }
}
