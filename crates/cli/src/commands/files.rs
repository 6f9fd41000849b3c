use std::fs;
use std::path::{Path, PathBuf};

use tilevae::vae_core::Checkpoint;
use tilevae::{Config, io};

use crate::args::Common;
use crate::failure::UsageError;

/// The files of a command. What it writes must destroy nothing that it reads, nor another output.
pub(super) struct Files {
    read: Vec<File>,
    written: Vec<File>,
}

impl Files {
    pub(super) fn new(common: &Common, config: &Config, inputs: &[PathBuf]) -> Self {
        let mut read = Vec::new();
        let mut add = |what: &str, path: &Path| read.push(File::new(what, path));
        for input in inputs {
            add("the input", input);
            for frame in files_in(input).filter(|file| io::FileKind::of(file).is_ok_and(io::FileKind::is_picture)) {
                add("a frame of the input", &frame);
            }
        }
        if let Some(given) = &common.config {
            add("the configuration", given);
        }
        let model = &config.model;
        if let Some(given) = &model.config {
            add("the model's configuration", given);
        }
        add("the model", &model.path);
        if model.path.is_file() {
            add("the model's configuration", &model.path.with_file_name("config.json"));
        }
        let read_of_model = Checkpoint::open(&model.path, None).map(|checkpoint| checkpoint.files()).unwrap_or_default();
        // Also what is not read today.
        let beside =
            [model.path.clone(), model.path.join("vae")].into_iter().flat_map(|folder| files_in(&folder).filter(|file| is_of_checkpoint(file)));
        for file in read_of_model.into_iter().chain(beside) {
            add("a file of the model", &file);
        }
        Self { read, written: Vec::new() }
    }

    /// Adds an output.
    pub(super) fn write(&mut self, option: &str, path: &Path) -> Result<(), UsageError> {
        let output = File::new(option, path);
        if let Some(File { what, path: file, .. }) = self.read.iter().find(|file| file.is_same(&output)) {
            let name = if file == path { String::new() } else { format!(", {}", file.display()) };
            return Err(UsageError(format!("{option} {} would replace {what}{name}; choose another name", path.display())));
        }
        let take_stdout = |other: &File| [&other.path, path].iter().all(|path| io::is_standard_output(path));
        if let Some(File { what, .. }) = self.written.iter().find(|other| other.is_same(&output) || take_stdout(other)) {
            return Err(UsageError(format!("{option} and {what} would both write {}; choose another name for one", path.display())));
        }
        self.written.push(output);
        Ok(())
    }

    /// Whether an output takes standard output.
    pub(super) fn take_stdout(&self) -> bool {
        self.written.iter().any(|file| io::is_standard_output(&file.path))
    }
}

/// A file, by its name and by what the name leads to.
struct File {
    what: String,
    path: PathBuf,
    /// Where it lies or will lie, links followed.
    place: Option<PathBuf>,
    /// Its device and number there, which hard links share.
    number: Option<[u64; 2]>,
}

impl File {
    fn new(what: &str, path: &Path) -> Self {
        Self { what: what.to_owned(), path: path.to_owned(), place: io::written_file(path).ok().flatten(), number: number(path) }
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.number.is_some() && self.number == other.number) || (self.place.is_some() && self.place == other.place)
    }
}

#[cfg(unix)]
fn number(path: &Path) -> Option<[u64; 2]> {
    use std::os::unix::fs::MetadataExt;

    let there = fs::metadata(path).ok().filter(|there| there.is_file() || there.is_dir())?;
    Some([there.dev(), there.ino()])
}

#[cfg(not(unix))]
fn number(_: &Path) -> Option<[u64; 2]> {
    None
}

fn files_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file())
}

/// Whether a file of a model's folder is one that checkpoints are read from.
fn is_of_checkpoint(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with("config.json") || name == "model_index.json" || name.starts_with("diffusion_pytorch_model") || name.contains(".index.")
}
