use std::path::PathBuf;

use tilevae::io::{self, Clip, FileKind, Fps, Pictures, Tensors};
use tilevae::{Config, Direction, TileSource, VaeSpec};

use crate::commands::UsageError;

/// What is encoded: pictures, a clip, or a raw tensor.
pub(super) enum Samples {
    Pictures(Pictures),
    Clip(Clip),
    Raw(io::Tensor),
}

impl Samples {
    pub(super) fn read(paths: &[PathBuf], spec: &VaeSpec, config: &Config) -> anyhow::Result<Self> {
        let kinds = paths.iter().map(|path| FileKind::of(path)).collect::<Result<Vec<_>, io::IoError>>()?;
        let (channels, ratio) = (spec.input_channels, spec.spatial_ratio);
        match kinds[..] {
            [kind] if kind.is_tensors() => Ok(Self::Raw(Tensors::read(&paths[0])?.input(Direction::Encode, spec, &config.io)?.read()?)),
            [FileKind::Clip(_)] => Ok(Self::Clip(Clip::read(&paths[0], channels, ratio)?)),
            ref kinds if kinds.iter().all(|kind| kind.is_picture()) => Ok(Self::Pictures(Pictures::read(paths, channels, ratio)?)),
            _ => {
                let text = "several inputs must all be pictures of one batch; the frames of a clip lie in a folder, and raw samples come as one file";
                Err(UsageError(text.to_owned()).into())
            }
        }
    }

    pub(super) fn source(&self) -> &dyn TileSource {
        match self {
            Self::Pictures(pictures) => pictures,
            Self::Clip(clip) => clip,
            Self::Raw(tensor) => &tensor.block,
        }
    }

    pub(super) fn rank(&self) -> usize {
        match self {
            Self::Pictures(_) => 4,
            Self::Clip(_) => 5,
            Self::Raw(tensor) => tensor.rank,
        }
    }

    /// Height and width before padding.
    pub(super) fn size(&self) -> [usize; 2] {
        let [_, _, _, height, width] = self.source().shape();
        self.picture_size().unwrap_or([height, width])
    }

    pub(super) fn picture_size(&self) -> Option<[usize; 2]> {
        match self {
            Self::Pictures(pictures) => Some(pictures.size()),
            Self::Clip(clip) => Some(clip.size()),
            Self::Raw(_) => None,
        }
    }

    pub(super) fn fps(&self) -> Option<Fps> {
        match self {
            Self::Clip(clip) => clip.fps(),
            Self::Pictures(_) | Self::Raw(_) => None,
        }
    }
}
