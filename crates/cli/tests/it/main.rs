//! The program as its users run it.

mod clips;
mod files;
mod images;
mod information;
mod json_events;
mod latents;
mod outputs;
mod parity;
mod paths;
mod refusals;
#[cfg(feature = "remote")]
mod remote;
#[cfg(unix)]
mod signals;
mod verify;
mod video;
mod watching;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use tilevae::HostTensor;
use tilevae::io::{Tensor, Tensors};

/// A path from the root of the repository.
fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn tilevae(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tilevae")).args(args).current_dir(root("")).output().expect("the program starts")
}

/// Runs a command that must succeed, and gives what it printed.
#[track_caller]
fn run(args: &[&str]) -> String {
    let output = tilevae(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail with this exit code, without a panic, and gives its message.
#[track_caller]
fn refused(code: i32, args: &[&str]) -> String {
    let output = tilevae(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    let is_told = message.contains("error: ") || message.contains(r#""event":"error""#);
    assert!(is_told && !message.contains("panicked"), "{message}");
    message
}

/// Says that a test, or a part of one, does not run here; `cargo test -- --show-output` shows it.
#[expect(clippy::print_stdout, reason = "tests say what they skip")]
fn skipped(why: &str) {
    println!("skipped: {why}");
}

/// Whether the program `ffmpeg` can be run; what is skipped without it is said.
fn has_ffmpeg() -> bool {
    let has_ffmpeg = Command::new("ffmpeg").arg("-version").output().is_ok_and(|output| output.status.success());
    if !has_ffmpeg {
        skipped("no ffmpeg in the PATH");
    }
    has_ffmpeg
}

/// A folder for outputs, and a path in it as text.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn latents(path: &str) -> Tensor {
    Tensors::read(Path::new(path)).unwrap().latents().unwrap()
}

fn samples(path: &str) -> Tensor {
    Tensors::read(Path::new(path)).unwrap().samples().unwrap()
}

fn max_diff(a: &HostTensor, b: &HostTensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.data().iter().zip(b.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
