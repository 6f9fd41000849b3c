use std::path::{Path, PathBuf};

use super::{FormatKind, Fps};
use crate::NonFinite;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// A file name with an ending that no format claims.
    #[error("{} has a format that cannot be used here; formats are {kinds}", path.display())]
    UnknownKind {
        /// The file.
        path: PathBuf,
        /// File name endings.
        kinds: String,
    },
    /// A file that cannot be opened or read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file with damaged content of any kind.
    #[error("{} is damaged or not what its name says: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        message: String,
    },
    /// A sound file of a kind that is not supported.
    #[error("{} cannot be used here: {message}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is, and the remedy.
        message: String,
    },
    /// A tensor file that lacks the tensor.
    #[error(
        "{} holds no tensor named `{wanted}`; {}",
        path.display(),
        if found.is_empty() { "it holds none".to_owned() } else { format!("it holds: {}; io.tensor names another", found.join(", ")) }
    )]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name that was looked for.
        wanted: String,
        /// The names in the file.
        found: Vec<String>,
    },
    /// A file with several candidate tensors.
    #[error("{} holds several tensors that may be the latents: {}; set io.tensor to the name of one", path.display(), found.join(", "))]
    SeveralTensors {
        /// The file.
        path: PathBuf,
        /// Their names.
        found: Vec<String>,
    },
    /// A tensor whose axes are ambiguous.
    #[error("`{name}` in {} has the shape {shape:?}: {message}", path.display())]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The candidates, and the setting that selects one.
        message: String,
    },
    /// A tensor whose shape does not fit the model.
    #[error("`{name}` in {} has the shape {shape:?}: {message}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What is expected.
        message: String,
    },
    /// Values that are NaN or infinite.
    #[error("of the {what} in {}, {found}; io.on_non_finite = \"allow\" takes them as they are", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// `latents` or `samples`.
        what: &'static str,
        /// How many, and where.
        found: NonFinite,
    },
    /// A full disk.
    #[error("{} has {} free, {} are needed", folder.display(), bytes(*free), bytes(*needed))]
    NoSpace {
        /// The folder.
        folder: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A tensor that is no image and no clip.
    #[error("`{name}` in {} has the shape {shape:?}; expected [batch, channels, height, width] or [batch, channels, frames, height, width]", path.display())]
    Rank {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Values that are no floats.
    #[error("`{name}` in {} holds {dtype}; expected f64, f32, f16, bf16 or f8", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it holds.
        dtype: String,
    },
    /// A file that lacks a part.
    #[error("{} is incomplete: {missing}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is missing.
        missing: String,
    },
    /// Several frames where one is taken.
    #[error("{} has {frames} frames, where one is expected: image models and batches take single images; encode it alone with a video model, or save one frame as an image", path.display())]
    Animated {
        /// The file.
        path: PathBuf,
        /// Its frames.
        frames: usize,
    },
    /// A file that is no image, among several.
    #[error("{} is not an image: several inputs must be images of one batch; give a clip as one folder or file, and raw samples as one file", path.display())]
    NotOneBatch {
        /// The file.
        path: PathBuf,
    },
    /// More px than a kind of file can hold.
    #[error("{} cannot have {} x {} px (height, width): the format's limit is {limit} px a side; write {}", path.display(), size[0], size[1], if size.iter().all(|&side| side < i32::MAX as usize) { "a .png, .tif, .safetensors or .npy file" } else { "a .safetensors or .npy file" })]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Height and width.
        size: [usize; 2],
        /// The largest side.
        limit: usize,
    },
    /// More bytes than a kind of file can hold.
    #[error("{} cannot have {bytes} bytes of px: the format's limit is 4 GiB; write a .png, .safetensors or .npy file", path.display())]
    TooManyBytes {
        /// The file.
        path: PathBuf,
        /// What is asked for.
        bytes: u64,
    },
    /// An image that cannot be encoded.
    #[error("{} cannot be encoded", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: image::ImageError,
    },
    /// An image that cannot be decoded.
    #[error("{} cannot be decoded", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: image::ImageError,
    },
    /// Images of several sizes in one batch.
    #[error("{} is {got:?} px (height, width), but the previous images are {expected:?}", path.display())]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        got: [usize; 2],
        /// The size of the first.
        expected: [usize; 2],
    },
    /// A number of channels or frames that a kind of image cannot show.
    #[error(
        "{} cannot show {channels} channels and {frames} frames; images show one frame, clips three channels: write {} instead",
        path.display(), if *frames > 1 && *channels <= 3 { "a folder (a name without ending), a .y4m, .gif or .mp4 file" } else { "a .safetensors or .npy file" }
    )]
    NotAImage {
        /// The file.
        path: PathBuf,
        /// Channels of the samples.
        channels: usize,
        /// Frames of the samples.
        frames: usize,
    },
    /// A clip without a frame.
    #[error("{} holds no frames", path.display())]
    NoFrames {
        /// The clip.
        path: PathBuf,
    },
    /// A clip that ends early, or of which some frames are damaged.
    #[error(
        "{} is cut off or damaged: {frames}{} frames can be read; {message}",
        path.display(), expected.map(|all| format!(" of {all}")).unwrap_or_default()
    )]
    IncompleteClip {
        /// The clip.
        path: PathBuf,
        /// Frames that came.
        frames: usize,
        /// Frames that there should be, when the clip says it.
        expected: Option<usize>,
        /// What the reader found.
        message: String,
    },
    /// A rate that a kind of clip cannot have.
    #[error("{} cannot have {fps} frames a second: {limits}; set another rate with --fps", path.display())]
    Rate {
        /// The clip.
        path: PathBuf,
        /// The rate.
        fps: Fps,
        /// What it can have.
        limits: &'static str,
    },
    /// A folder for frames that holds other things.
    #[error("{} is a folder that is not empty; frames are written to a new or empty folder", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
    },
    /// Video without the program that reads and writes it.
    #[error("{} is {verb} through ffmpeg, which is not installed or not in the PATH; without it, use a folder of frames, .y4m or .gif", path.display())]
    NoFfmpeg {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
    },
    /// Video that ffmpeg could not read or write.
    #[error("ffmpeg failed on {}: {message}", path.display())]
    Ffmpeg {
        /// The file.
        path: PathBuf,
        /// Its message.
        message: String,
    },
    /// A failure of a scratch file.
    #[error("the scratch file in {} failed; the variable TMPDIR names another folder", folder.display())]
    Scratch {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A pipe of unknown format.
    #[error("{} has no known format: its first bytes are those of no tensor (safetensors, npy), image or clip file", path.display())]
    UnknownContent {
        /// The pipe.
        path: PathBuf,
    },
    /// Bytes that would come from or go to a terminal.
    #[error("{} is a terminal; use a pipe or a file", path.display())]
    Terminal {
        /// The input or output.
        path: PathBuf,
    },
    /// An output that would replace an input.
    #[error("{option} {} would replace {what}{}; choose another name", path.display(), if file == path { String::new() } else { format!(", {}", file.display()) })]
    WouldReplace {
        /// The option that names the output.
        option: String,
        /// The output.
        path: PathBuf,
        /// What the input is.
        what: String,
        /// The input.
        file: PathBuf,
    },
    /// Two outputs with one path.
    #[error("{option} and {other} would both write {}; choose different names", path.display())]
    WrittenTwice {
        /// The option that names one output.
        option: String,
        /// The option that names the other.
        other: String,
        /// The file.
        path: PathBuf,
    },
    /// A rate for an output that has none.
    #[error("--fps is the rate of a clip; {} is written as {written_as}", shown(path))]
    NotAClip {
        /// The output.
        path: PathBuf,
        /// What it is.
        written_as: &'static str,
    },
    /// A rate for images.
    #[error("--fps is the rate of a clip, and the inputs are images")]
    RateOfImages,
    /// A file to compare an encode with.
    #[error("{} holds samples to compare a decode with, and the input is encoded", path.display())]
    AgainstLatents {
        /// The file.
        path: PathBuf,
    },
    /// Samples to compare with that are of another size.
    #[error("{} holds {got:?} (batch, channels, frames, height, width), and the decode gives {expected:?}", path.display())]
    AgainstShape {
        /// The file.
        path: PathBuf,
        /// Its shape.
        got: [usize; 5],
        /// The shape of the decode.
        expected: [usize; 5],
    },
    /// A rate for a format of latents without metadata.
    #[error("--fps is stored in .safetensors files; {} cannot store it", path.display())]
    NoMetadata {
        /// The output.
        path: PathBuf,
    },
    /// Latents in a format that is not one of tensors.
    #[error("{} is {}; latents are written as .safetensors or .npy", path.display(), if *kind == FormatKind::Image { "an image" } else { "a clip" })]
    NotLatents {
        /// The output.
        path: PathBuf,
        /// What its format holds.
        kind: FormatKind,
    },
    /// Several images or clips for one pipe.
    #[error("a batch of {items} needs {items} files, and {} is one; write raw samples", shown(path))]
    BatchToStream {
        /// The output.
        path: PathBuf,
        /// Items of the batch.
        items: usize,
    },
    /// A file name whose ending contradicts the given format.
    #[error("the ending of {} contradicts --output-format; leave one out", path.display())]
    OtherFormat {
        /// The output.
        path: PathBuf,
    },
    /// A file name without a format.
    #[error("the name {} has no file ending; add --output-format png, safetensors or another", path.display())]
    UnnamedFormat {
        /// The output.
        path: PathBuf,
    },
    /// Standard input for several inputs.
    #[error("only one input can be standard input")]
    OneStandardInput,
    /// A round trip with a model whose output has other channels than its input.
    #[error("the model takes {taken} channels and gives {given}: they cannot be compared")]
    Channels {
        /// Channels of the samples that are encoded.
        taken: usize,
        /// Channels of the samples that are decoded.
        given: usize,
    },
    /// Several tensors for a format that holds one.
    #[error("{} can hold one tensor; write a .safetensors file for latents, mean and logvar", path.display())]
    OneTensor {
        /// The file.
        path: PathBuf,
    },
}

impl IoError {
    /// The subject of the error, for programs: `arguments` where inputs and outputs do not fit together, else `file`.
    pub fn kind(&self) -> &'static str {
        if self.is_of_arguments() { "arguments" } else { "file" }
    }

    fn is_of_arguments(&self) -> bool {
        matches!(
            self,
            Self::WouldReplace { .. }
                | Self::WrittenTwice { .. }
                | Self::NotAClip { .. }
                | Self::RateOfImages
                | Self::AgainstLatents { .. }
                | Self::AgainstShape { .. }
                | Self::NoMetadata { .. }
                | Self::NotLatents { .. }
                | Self::BatchToStream { .. }
                | Self::OtherFormat { .. }
                | Self::UnnamedFormat { .. }
                | Self::OneStandardInput
                | Self::Channels { .. }
        )
    }

    /// Whether the arguments are wrong for any file. False where a file is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Animated { .. }
                | Self::NotOneBatch { .. }
                | Self::TooLarge { .. }
                | Self::TooManyBytes { .. }
                | Self::UnknownKind { .. }
                | Self::NotAImage { .. }
                | Self::OneTensor { .. }
                | Self::UnknownContent { .. }
                | Self::Terminal { .. }
                | Self::FolderInUse { .. }
                | Self::NoFfmpeg { .. }
                | Self::Rate { .. }
                | Self::SeveralTensors { .. }
                | Self::Ambiguous { .. }
        ) || self.is_of_arguments()
    }
}

/// The display name of a file.
fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard output".to_owned() } else { path.display().to_string() }
}

/// A number of bytes in words.
fn bytes(count: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB"];
    let unit = (0..3).take_while(|&unit| count >> (10 * (unit + 1)) > 0).count();
    if unit == 0 { format!("{count} bytes") } else { format!("{:.1} {}", count as f64 / f64::from(1 << (10 * unit)), units[unit]) }
}
