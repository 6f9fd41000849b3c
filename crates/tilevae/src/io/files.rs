use std::fs;
use std::path::{Path, PathBuf};

use vae_core::Checkpoint;

use super::{Format, IoError, format_of, is_standard_output, written_file};
use crate::Config;

/// The files of a job. Its outputs must replace neither its inputs nor each other.
#[derive(Debug)]
pub struct Files {
    read: Vec<File>,
    written: Vec<File>,
}

impl Files {
    /// The inputs, and the files of the configured model.
    pub fn new<P: AsRef<Path>>(config: &Config, inputs: &[P]) -> Self {
        let mut files = Self { read: Vec::new(), written: Vec::new() };
        for input in inputs {
            let input = input.as_ref();
            files.read("the input", input);
            for frame in files_in(input).filter(|file| format_of(file).is_ok_and(Format::is_image)) {
                files.read("a frame of the input", &frame);
            }
        }
        let model = &config.model;
        if let Some(given) = &model.config {
            files.read("the model's configuration", given);
        }
        files.read("the model", &model.path);
        if model.path.is_file() {
            files.read("the model's configuration", &model.path.with_file_name("config.json"));
        }
        let read_of_model = Checkpoint::open(&model.path, None).map(|checkpoint| checkpoint.files()).unwrap_or_default();
        // Also files that are not read at present.
        let beside =
            [model.path.clone(), model.path.join("vae")].into_iter().flat_map(|folder| files_in(&folder).filter(|file| is_of_checkpoint(file)));
        for file in read_of_model.into_iter().chain(beside) {
            files.read("a file of the model", &file);
        }
        files
    }

    /// Adds a file that is read; `what` describes it in messages.
    pub fn read(&mut self, what: &str, path: &Path) {
        self.read.push(File::new(what, path));
    }

    /// Adds an output; `option` names it in messages.
    ///
    /// # Errors
    /// [`IoError::WouldReplace`], [`IoError::WrittenTwice`].
    pub fn write(&mut self, option: &str, path: &Path) -> Result<(), IoError> {
        let output = File::new(option, path);
        if let Some(File { what, path: file, .. }) = self.read.iter().find(|file| file.is_same(&output)) {
            return Err(IoError::WouldReplace { option: option.to_owned(), path: path.to_owned(), what: what.clone(), file: file.clone() });
        }
        let take_stdout = |other: &File| [&other.path, path].iter().all(|path| is_standard_output(path));
        if let Some(File { what, .. }) = self.written.iter().find(|other| other.is_same(&output) || take_stdout(other)) {
            return Err(IoError::WrittenTwice { option: option.to_owned(), other: what.clone(), path: path.to_owned() });
        }
        self.written.push(output);
        Ok(())
    }

    /// Whether an output is standard output.
    pub fn take_stdout(&self) -> bool {
        self.written.iter().any(|file| is_standard_output(&file.path))
    }
}

/// A file, by its name and by what the name leads to.
#[derive(Debug)]
struct File {
    what: String,
    path: PathBuf,
    /// Its path, with links resolved.
    place: Option<PathBuf>,
    /// Its device and number there, which hard links share.
    number: Option<[u64; 2]>,
}

impl File {
    fn new(what: &str, path: &Path) -> Self {
        Self { what: what.to_owned(), path: path.to_owned(), place: written_file(path).ok().flatten(), number: number(path) }
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
