use std::path::{Path, PathBuf};

use tilevae::io::{self, Clip, FileKind, Fps, Media, Pictures, Tensors};
use tilevae::{Config, Direction, TileSource, VaeSpec};

use crate::failure::UsageError;

/// An input as a file: what comes through a pipe is spooled.
pub(super) enum Input {
    File(PathBuf),
    Spooled(io::Spooled),
}

impl Input {
    pub(super) fn open(path: &Path) -> Result<Self, io::IoError> {
        Ok(if io::is_stream(path) { Self::Spooled(io::Spooled::read(path)?) } else { Self::File(path.to_owned()) })
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Spooled(spooled) => spooled.path(),
        }
    }
}

/// What is encoded: pictures, a clip, or a raw tensor.
pub(super) enum Samples {
    Pictures(Pictures),
    Clip(Clip),
    Raw(io::Tensor),
}

impl Samples {
    pub(super) fn read(paths: &[PathBuf], spec: &VaeSpec, config: &Config) -> anyhow::Result<Self> {
        let is_stdin = |path: &&PathBuf| **path == Path::new("-") || **path == Path::new("/dev/stdin");
        if paths.iter().filter(is_stdin).count() > 1 {
            return Err(UsageError("standard input holds one input; name the others as files".to_owned()).into());
        }
        let inputs = paths.iter().map(|path| Input::open(path)).collect::<Result<Vec<_>, io::IoError>>()?;
        let paths: Vec<PathBuf> = inputs.iter().map(|input| input.path().to_owned()).collect();
        if let [path] = &paths[..]
            && FileKind::of(path)?.is_tensors()
        {
            return Ok(Self::Raw(Tensors::read(path)?.input(Direction::Encode, spec, &config.io)?.read()?));
        }
        Ok(match Media::read(&paths, spec, config.io.background)? {
            Media::Pictures(pictures) => Self::Pictures(pictures),
            Media::Clip(clip) => Self::Clip(clip),
        })
    }

    pub(super) fn source(&self) -> &dyn TileSource {
        match self {
            Self::Pictures(pictures) => pictures,
            Self::Clip(clip) => clip,
            Self::Raw(tensor) => &tensor.block,
        }
    }

    pub(super) fn is_pictures(&self) -> bool {
        matches!(self, Self::Pictures(_))
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
