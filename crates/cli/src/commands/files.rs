use std::fs;
use std::path::{Path, PathBuf};

use tilevae::{Config, io};

use crate::args::Common;
use crate::failure::UsageError;

/// The files of a command. What it writes must destroy nothing that it reads, nor another output.
pub(super) struct Files {
    read: Vec<(String, PathBuf)>,
    written: Vec<(String, PathBuf)>,
}

impl Files {
    pub(super) fn new(common: &Common, config: &Config, inputs: &[PathBuf]) -> Self {
        let mut read = Vec::new();
        for input in inputs {
            read.push(("the input".to_owned(), input.clone()));
            read.extend(
                files_in(input)
                    .filter(|file| io::FileKind::of(file).is_ok_and(io::FileKind::is_picture))
                    .map(|frame| ("a frame of the input".to_owned(), frame)),
            );
        }
        read.extend(common.config.iter().map(|config| ("the configuration".to_owned(), config.clone())));
        read.extend(config.model.config.iter().map(|config| ("the model's configuration".to_owned(), config.clone())));
        let model = &config.model.path;
        read.push(("the model".to_owned(), model.clone()));
        if model.is_file() {
            read.push(("the model's configuration".to_owned(), model.with_file_name("config.json")));
        }
        for folder in [model.clone(), model.join("vae")] {
            read.extend(checkpoint_files(&folder).into_iter().map(|file| ("a file of the model".to_owned(), file)));
        }
        Self { read, written: Vec::new() }
    }

    /// Adds an output.
    pub(super) fn write(&mut self, option: &str, path: &Path) -> Result<(), UsageError> {
        if let Some((what, file)) = self.read.iter().find(|(_, file)| is_same(file, path)) {
            let name = if file == path { String::new() } else { format!(", {}", file.display()) };
            return Err(UsageError(format!("{option} {} would replace {what}{name}; choose another name", path.display())));
        }
        if let Some((other, _)) =
            self.written.iter().find(|(_, other)| is_same(other, path) || [other, path].iter().all(|path| io::is_standard_output(path)))
        {
            return Err(UsageError(format!("{option} and {other} would both write {}; choose another name for one", path.display())));
        }
        self.written.push((option.to_owned(), path.to_owned()));
        Ok(())
    }

    /// Whether an output takes standard output.
    pub(super) fn take_stdout(&self) -> bool {
        self.written.iter().any(|(_, path)| io::is_standard_output(path))
    }
}

fn files_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file())
}

/// The files of a folder that a checkpoint is read from.
fn checkpoint_files(folder: &Path) -> Vec<PathBuf> {
    let files: Vec<PathBuf> = files_in(folder).collect();
    let name = |file: &PathBuf| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_index = |name: &str| name.contains(".index.");
    // Shards may have any name.
    let indices: Vec<String> = files.iter().filter(|file| is_index(&name(file))).filter_map(|file| fs::read_to_string(file).ok()).collect();
    let is_part = |file: &PathBuf| {
        let name = name(file);
        let is_shard = || indices.iter().any(|index| index.contains(&format!("\"{name}\"")));
        name.ends_with("config.json") || name == "model_index.json" || name.starts_with("diffusion_pytorch_model.") || is_index(&name) || is_shard()
    };
    files.iter().filter(|file| is_part(file)).cloned().collect()
}

/// Whether two paths lead to one file, by whatever links.
fn is_same(one: &Path, other: &Path) -> bool {
    let is_plain = |path: &Path| fs::metadata(path).is_ok_and(|there| there.is_file() || there.is_dir());
    if is_plain(one) && is_plain(other) && same_file::is_same_file(one, other).unwrap_or(false) {
        return true;
    }
    let place = |path| io::written_file(path).ok().flatten();
    place(one).is_some_and(|one| place(other) == Some(one))
}
