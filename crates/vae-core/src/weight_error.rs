use std::fmt;
use std::path::PathBuf;

/// An error in reading a checkpoint or applying it to a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// A file that cannot be opened or read.
    #[error("{} cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that should be JSON and is not.
    #[error("{} is not valid JSON of the expected form", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A folder without weights.
    #[error("{} holds no weights; looked for {looked_for}", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// File names.
        looked_for: &'static str,
    },
    /// The name or address of a model on a hub, where a local folder or file is expected.
    #[error("there is no file or folder `{name}`, and nothing is downloaded: {way_out}")]
    NotLocal {
        /// The given name.
        name: String,
        /// How to get the model.
        way_out: String,
    },
    /// A sound file that is not a checkpoint.
    #[error("{} is {what}, not a checkpoint; {hint}", path.display())]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A sound checkpoint of a kind that is not supported.
    #[error("{} cannot be read: {message}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Its kind, and the workaround.
        message: String,
    },
    /// A file that is truncated or contradicts itself.
    #[error("{} is damaged: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        message: String,
    },
    /// An index that names a file outside its folder.
    #[error("{} names the shard `{shard}`, which is not in the same folder", path.display())]
    ShardPath {
        /// The index.
        path: PathBuf,
        /// The name in it.
        shard: String,
    },
    /// Tensors that do not fit the model.
    #[error("{} does not fit the model:{mismatch}", path.display())]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        mismatch: Mismatch,
    },
}

/// The tensors of a checkpoint that do not fit a model.
#[derive(Debug, Default)]
pub struct Mismatch {
    /// Names that the model has and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Names that the checkpoint has and the model lacks.
    pub unexpected: Vec<String>,
    /// Tensors with another shape or kind of value, or that cannot be read.
    pub wrong: Vec<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (title, names) in [("missing", &self.missing), ("unexpected", &self.unexpected), ("wrong", &self.wrong)] {
            if !names.is_empty() {
                write!(f, "\n  {title} ({}): {}", names.len(), names[..names.len().min(SHOWN)].join(", "))?;
                if names.len() > SHOWN {
                    write!(f, ", and {} more", names.len() - SHOWN)?;
                }
            }
        }
        Ok(())
    }
}
