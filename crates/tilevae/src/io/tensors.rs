#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tiling::HostTensor;
use vae_core::VaeSpec;

use super::axes::{Axes, Reading, Unread, resolve};
use super::format::{format_by_content, head_of};
use super::formats::{COMFYUI_SCALE, COMFYUI_TENSOR, COMFYUI_UNSCALED};
use super::{Format, FormatKind, IoError, Origin, Reader, Spooled, TensorHeader, TensorReader, endings, format_of, is_stream};
use crate::{Direction, IoConfig, LatentSpace, NonFinite, OnNonFiniteInput};

/// One raw tensor, as rank 5.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// `[batch, channels, frames, height, width]`.
    pub values: HostTensor,
    /// 4 or 5: whether it was stored with an axis of frames.
    pub rank: usize,
    /// What the file says of the samples that latents come from.
    pub origin: Origin,
}

/// The raw tensors of a file. The format is recognised by content. Headers are read when it is opened, values when they are asked for.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    reader: Box<dyn TensorReader>,
    metadata: HashMap<String, String>,
    /// What came through a pipe.
    _spooled: Option<Spooled>,
}

impl Tensors {
    /// Opens a file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of another kind.
    pub fn read(path: &Path) -> Result<Self, IoError> {
        let unknown = || IoError::UnknownKind { path: path.to_owned(), kinds: endings(|format| format.kind() == FormatKind::Tensors) };
        if path.is_dir() {
            return Err(unknown());
        }
        let spooled = if is_stream(path) { Some(Spooled::read(path)?) } else { None };
        let file = spooled.as_ref().map_or(path, Spooled::path);
        let head = head_of(file)?;
        let is_tensors = |format: &&'static dyn Format| format.kind() == FormatKind::Tensors;
        let by_name = || format_of(file).ok().filter(is_tensors);
        let format = format_by_content(&head, |format| is_tensors(&format)).or_else(by_name).ok_or_else(unknown)?;
        let Reader::Tensors(reader) = format.open(file)? else { return Err(unknown()) };
        Ok(Self { path: file.to_owned(), metadata: reader.metadata(), reader, _spooled: spooled })
    }

    /// The tensor `latents`, or the only one, as this program writes it: `[b, c, h, w]` or `[b, c, t, h, w]`, as stored. Files of other programs are
    /// read by [`input`](Self::input).
    ///
    /// # Errors
    /// When there is none, or it is not of rank 4 or 5, or no float's.
    pub fn latents(self) -> Result<Tensor, IoError> {
        self.own("latents")
    }

    /// The tensor `samples`, or the only one, as this program writes it: `[b, c, h, w]` or `[b, c, t, h, w]`, as stored.
    ///
    /// # Errors
    /// When there is none, or it is not of rank 4 or 5, or no float's.
    pub fn samples(self) -> Result<Tensor, IoError> {
        self.own("samples")
    }

    fn own(self, wanted: &str) -> Result<Tensor, IoError> {
        let chosen = self.find(wanted).or_else(|| (self.reader.headers().len() == 1).then_some(0)).ok_or_else(|| self.lacks(wanted))?;
        let TensorHeader { name, shape, .. } = &self.reader.headers()[chosen];
        let reading = match shape.len() {
            4 => Reading::of_axes(Axes::BCHW, shape),
            5 => Reading::of_axes(Axes::BCTHW, shape),
            _ => None,
        };
        let Some(reading) = reading else {
            return Err(IoError::Rank { path: self.path, name: name.clone(), shape: shape.clone() });
        };
        self.values(chosen, reading)
    }

    /// What a run of this direction takes: the latents of a decode, the samples of an encode. Reads no values.
    ///
    /// The tensor is the one that `io.tensor` names, else the one that has a name that programs give it. `io.axes` says which axis is which, else
    /// by the file or the model, where only one way fits.
    ///
    /// # Errors
    /// When there is no such tensor or several, it has no floats, or it can be read in no way or in several.
    pub fn input(self, direction: Direction, spec: &VaeSpec, io: &IoConfig) -> Result<TensorInput, IoError> {
        let chosen = self.choose(direction, io)?;
        let TensorHeader { name, shape, unsupported, .. } = &self.reader.headers()[chosen];
        if let Some(dtype) = unsupported {
            return Err(IoError::Dtype { path: self.path, name: name.clone(), dtype: dtype.clone() });
        }
        let is_own = self.metadata.keys().any(|key| key.starts_with("tilevae."));
        let hint = match (is_own, sides_in_name(name), shape.len()) {
            (true, ..) if shape.len() == 4 => Some(Axes::BCHW),
            (_, Some(3), 4) => Some(Axes::CTHW),
            (_, Some(2), 3) => Some(Axes::CHW),
            _ => None,
        };
        let reading = resolve(shape, direction, spec, io, hint).map_err(|unread| {
            let (path, name, shape) = (self.path.clone(), name.clone(), shape.clone());
            match unread {
                Unread::Ambiguous(message) => IoError::Ambiguous { path, name, shape, message },
                Unread::Unfit(message) => IoError::Shape { path, name, shape, message },
            }
        })?;
        let is_comfy = direction == Direction::Decode && name == COMFYUI_TENSOR;
        let factor = (is_comfy && self.find(COMFYUI_UNSCALED).is_none()).then_some((1.0 / COMFYUI_SCALE) as f32);
        let norm = &spec.latent_norm;
        if direction == Direction::Decode && io.latent_space == LatentSpace::Diffusion && self.is_kohya() && *norm != vae_core::LatentNorm::identity()
        {
            tracing::warn!(
                "{} looks like a cache of kohya's scripts, which for most models is of the VAE's own latents; io.latent_space = \"vae\" reads them as such",
                self.path.display()
            );
        }
        let to_diffusion = (is_comfy && io.latent_space == LatentSpace::Diffusion).then(|| norm.clone());
        let what = if direction == Direction::Decode { "latents" } else { "samples" };
        Ok(TensorInput { chosen, reading, factor, to_diffusion, on_non_finite: io.on_non_finite, what, tensors: self })
    }

    fn find(&self, wanted: &str) -> Option<usize> {
        self.reader.headers().iter().position(|stored| stored.name == wanted)
    }

    /// Whether kohya's scripts wrote the file: they store the crop of each image with its latents.
    fn is_kohya(&self) -> bool {
        self.reader.headers().iter().any(|stored| stored.name.starts_with("crop_ltrb"))
    }

    fn choose(&self, direction: Direction, io: &IoConfig) -> Result<usize, IoError> {
        if let Some(wanted) = &io.tensor {
            return self.find(wanted).ok_or_else(|| self.lacks(wanted));
        }
        let names: &[&str] = match direction {
            Direction::Decode => &["latents", COMFYUI_TENSOR, "latent"],
            Direction::Encode => &["samples"],
        };
        // A dictionary may lie in another.
        let nested = |name: &str| {
            let mut found = (0..self.reader.headers().len())
                .filter(|&index| self.reader.headers()[index].name.strip_suffix(name).is_some_and(|outer| outer.ends_with('.')));
            found.next().filter(|_| found.next().is_none())
        };
        if let Some(chosen) = names.iter().find_map(|name| self.find(name)).or_else(|| names.iter().find_map(|name| nested(name))) {
            return Ok(chosen);
        }
        let of_sizes: Vec<usize> = (0..self.reader.headers().len())
            .filter(|&index| direction == Direction::Decode && sides_in_name(&self.reader.headers()[index].name).is_some())
            .collect();
        match of_sizes[..] {
            [chosen] => return Ok(chosen),
            [_, _, ..] => {
                let found = of_sizes.iter().map(|&index| self.reader.headers()[index].name.clone()).collect();
                return Err(IoError::SeveralTensors { path: self.path.clone(), found: some_of(found) });
            }
            [] => {}
        }
        // A node of ComfyUI hands latents around under this name.
        let samples = (direction == Direction::Decode).then(|| self.find("samples").or_else(|| nested("samples"))).flatten();
        samples.or_else(|| (self.reader.headers().len() == 1).then_some(0)).ok_or_else(|| self.lacks(names[0]))
    }

    fn lacks(&self, wanted: &str) -> IoError {
        let mut found: Vec<String> = self.reader.headers().iter().map(|stored| stored.name.clone()).collect();
        found.sort();
        IoError::NoTensor { path: self.path.clone(), wanted: wanted.to_owned(), found: some_of(found) }
    }

    fn values(&self, chosen: usize, reading: Reading) -> Result<Tensor, IoError> {
        let header = &self.reader.headers()[chosen];
        if let Some(dtype) = &header.unsupported {
            return Err(IoError::Dtype { path: self.path.clone(), name: header.name.clone(), dtype: dtype.clone() });
        }
        let values = self.reader.read(chosen)?;
        let tensor = HostTensor::new(reading.sides, reading.arrange(values, header.is_fortran));
        let tensor = tensor
            .ok_or_else(|| IoError::Damaged { path: self.path.clone(), message: "a tensor has not as many values as its shape says".to_owned() })?;
        Ok(Tensor { values: tensor, rank: reading.rank(), origin: Origin::read(&self.metadata) })
    }
}

/// How many sides a name like `latents_64x64` (of kohya's scripts) or `latents_1x64x64_bfloat16` (of musubi-tuner) tells.
fn sides_in_name(name: &str) -> Option<usize> {
    let mut parts = name.strip_prefix("latents_")?.splitn(2, '_');
    let sides: Vec<&str> = parts.next()?.split('x').collect();
    let is_size = matches!(sides.len(), 2 | 3) && sides.iter().all(|side| !side.is_empty() && side.bytes().all(|byte| byte.is_ascii_digit()));
    is_size.then_some(sides.len())
}

/// As many names as a message can hold.
fn some_of(mut names: Vec<String>) -> Vec<String> {
    let more = names.len().saturating_sub(12);
    if more > 0 {
        names.truncate(12);
        names.push(format!("and {more} more"));
    }
    names
}

/// The tensor of a file that a run takes. Its values are not read yet.
#[derive(Debug)]
pub struct TensorInput {
    tensors: Tensors,
    chosen: usize,
    reading: Reading,
    /// What the file's values are to be multiplied by.
    factor: Option<f32>,
    /// Of latents that are the VAE's own where a pipeline's are configured.
    to_diffusion: Option<vae_core::LatentNorm>,
    on_non_finite: OnNonFiniteInput,
    what: &'static str,
}

impl TensorInput {
    /// `[batch, channels, frames, height, width]`.
    pub fn shape(&self) -> [usize; 5] {
        self.reading.sides
    }

    /// 4, or 5 where it is stored with an axis of frames.
    pub fn rank(&self) -> usize {
        self.reading.rank()
    }

    /// What the file says of the samples that latents come from.
    pub fn origin(&self) -> Origin {
        Origin::read(&self.tensors.metadata)
    }

    /// Reads the values. Floats of any width become f32. Latents come in the configured latent space, also where the file says that they are in
    /// another (ComfyUI's are the VAE's own).
    ///
    /// # Errors
    /// When they cannot be read, or some are not finite in f32 and the configuration refuses such.
    pub fn read(self) -> Result<Tensor, IoError> {
        let Self { tensors, chosen, reading, factor, to_diffusion, on_non_finite, what } = self;
        let mut tensor = tensors.values(chosen, reading)?;
        if let Some(factor) = factor {
            tensor.values.data_mut().iter_mut().for_each(|value| *value *= factor);
        }
        if let Some(norm) = to_diffusion {
            norm.to_diffusion(&mut tensor.values);
        }
        match NonFinite::in_tensor(&tensor.values).filter(|_| on_non_finite == OnNonFiniteInput::Refuse) {
            Some(found) => Err(IoError::NonFinite { path: tensors.path, what, found }),
            None => Ok(tensor),
        }
    }
}
