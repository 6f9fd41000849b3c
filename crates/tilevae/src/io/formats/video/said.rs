//! What ffmpeg says on its standard error, at a level of messages that names the level of each (`-v level+info`).

/// The first complaints of one of ffmpeg's parts.
const KEPT_COMPLAINTS: usize = 3;
/// Parts of ffmpeg whose complaints are kept.
const KEPT_PARTS: usize = 32;

/// Complaints about reference frames that lie before the beginning: of video that was cut out of other video without being encoded anew.
const HARMLESS: [&str; 2] = ["mmco: unref short failure", "co located POCs unavailable"];

/// The stream of video that is read, as ffmpeg describes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct VideoStream {
    /// The codec, its profile and decoder.
    codec: Vec<String>,
    pub(super) pixels: String,
    /// Names of matrix, primaries and transfer; empty where there is no tag.
    pub(super) colour: [String; 3],
    pub(super) is_interlaced: bool,
    /// Of a px, where it is no square.
    pub(super) aspect: Option<String>,
    seconds: Option<f64>,
}

impl VideoStream {
    /// More than 8 bits.
    pub(super) fn is_deep(&self) -> bool {
        // These alone have an order of bytes.
        self.pixels.ends_with("le") || self.pixels.ends_with("be")
    }

    pub(super) fn has_alpha(&self) -> bool {
        let name = self.pixels.trim_end_matches("le").trim_end_matches("be");
        ["yuva", "gbrap", "rgba", "bgra", "argb", "abgr", "ayuv", "vuya", "ya8", "ya16"].iter().any(|kind| name.starts_with(kind))
    }

    /// Whether its colour takes a matrix that no tag names.
    pub(super) fn lacks_matrix(&self) -> bool {
        let is_rgb = ["rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr", "pal8", "gray", "mono", "ya8", "ya16", "x2", "bayer"];
        self.colour[0].is_empty() && !is_rgb.iter().any(|kind| self.pixels.starts_with(kind))
    }
}

/// What one part of ffmpeg complained of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Complaints {
    /// Names of the part, from the outermost to the innermost; none where ffmpeg itself speaks.
    parts: Vec<String>,
    first: Vec<String>,
    count: usize,
}

/// Where a line belongs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Section {
    #[default]
    Before,
    /// In the description of the input; within that of the stream that is read, if so.
    Input {
        in_video: bool,
    },
    After,
}

/// What ffmpeg said that matters.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    complaints: Vec<Complaints>,
    /// Names of the container.
    container: Vec<String>,
    seconds: Option<f64>,
    streams: usize,
    pub(super) video: Option<VideoStream>,
    section: Section,
}

/// What complaints are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// Frames that are damaged or missing.
    Frames,
    /// The file around them.
    Container,
    /// Anything else.
    Else,
}

impl Said {
    /// Takes in a line.
    pub(super) fn take(&mut self, line: &str) {
        let (parts, level, text) = split(line);
        match level {
            Some("panic" | "fatal" | "error") if !HARMLESS.contains(&text.trim()) => self.complain(parts, text),
            // ffmpeg reports a truncated packet as a warning.
            Some("warning") if text.to_ascii_lowercase().contains("packet corrupt") || text.contains("corrupt input packet") => {
                self.complain(parts, text);
            }
            Some("panic" | "fatal" | "error" | "warning") => {}
            _ => self.describe(text),
        }
    }

    fn complain(&mut self, parts: Vec<&str>, text: &str) {
        let text = text.trim();
        if let Some(known) = self.complaints.iter_mut().find(|known| known.parts == parts) {
            known.count += 1;
            if known.first.len() < KEPT_COMPLAINTS && !known.first.iter().any(|other| other == text) {
                known.first.push(text.to_owned());
            }
        } else if self.complaints.len() < KEPT_PARTS {
            let parts = parts.into_iter().map(str::to_owned).collect();
            self.complaints.push(Complaints { parts, first: vec![text.to_owned()], count: 1 });
        }
    }

    fn describe(&mut self, text: &str) {
        let line = text.trim();
        if let Some(input) = line.strip_prefix("Input #0, ") {
            self.section = Section::Input { in_video: false };
            self.container = input.split(", from ").next().unwrap_or_default().split(',').map(str::to_owned).collect();
        } else if line.starts_with("Output #") || line.starts_with("Stream mapping") {
            self.section = Section::After;
        }
        let Section::Input { in_video } = &mut self.section else { return };
        if let Some(duration) = line.strip_prefix("Duration: ") {
            self.seconds = duration.split(',').next().and_then(seconds);
        } else if line.starts_with("Stream #0:") {
            self.streams += 1;
            *in_video = false;
            if let Some((_, description)) = line.split_once(": Video: ")
                && self.video.is_none()
                && !line.ends_with("(attached pic)")
            {
                *in_video = true;
                self.video = Some(video(description));
            }
        } else if let Some((key, value)) = line.split_once(':')
            && *in_video
            && key.trim().starts_with("DURATION")
            && let Some(video) = &mut self.video
        {
            video.seconds = seconds(value.trim());
        }
    }

    /// How long the video lasts, in seconds, by what the file says.
    pub(super) fn seconds(&self) -> Option<f64> {
        self.video.as_ref().and_then(|video| video.seconds).or(self.seconds.filter(|_| self.streams == 1))
    }

    /// Whether ffmpeg takes the duration from the size of the file, where the container was written without looking back.
    pub(super) fn may_guess_seconds(&self) -> bool {
        self.container.iter().any(|name| name == "avi")
    }

    /// What was complained of.
    pub(super) fn about(&self, about: About) -> Option<String> {
        list(self.complaints.iter().filter(|complaints| self.subject(complaints) == about))
    }

    /// All that was complained of.
    pub(super) fn all(&self) -> Option<String> {
        list(self.complaints.iter())
    }

    fn subject(&self, complaints: &Complaints) -> About {
        let is = |known: &dyn Fn(&str) -> bool| complaints.parts.iter().any(|part| known(part));
        let codec = self.video.as_ref().map(|video| &video.codec[..]).unwrap_or_default();
        if is(&|part| part.starts_with("vist#") || part.starts_with("dec:") || codec.iter().any(|name| name == part)) {
            return About::Frames;
        }
        if is(&|part| part.starts_with("in#") || (!self.container.is_empty() && self.container.iter().eq(part.split(',')))) {
            let is_of_a_packet = |text: &String| text.to_ascii_lowercase().contains("corrupt") && text.to_ascii_lowercase().contains("packet");
            return if complaints.first.iter().any(is_of_a_packet) { About::Frames } else { About::Container };
        }
        // As older ffmpegs put it.
        let is_old = |text: &String| text.starts_with("Error while decoding stream") || text.contains("corrupt input packet");
        if complaints.parts.is_empty() && complaints.first.iter().any(is_old) { About::Frames } else { About::Else }
    }
}

fn list<'a>(complaints: impl Iterator<Item = &'a Complaints>) -> Option<String> {
    let (mut texts, mut count, mut shown) = (Vec::new(), 0, 0);
    for complaint in complaints {
        count += complaint.count;
        for text in &complaint.first {
            if texts.len() < 2 * KEPT_COMPLAINTS && !texts.contains(&text.as_str()) {
                texts.push(text);
                shown += 1;
            }
        }
    }
    let more = if count > shown { format!(" (and {} more)", count - shown) } else { String::new() };
    (!texts.is_empty()).then(|| texts.join("; ") + &more)
}

/// The parts of ffmpeg that a line comes from, its level, and the text.
fn split(line: &str) -> (Vec<&str>, Option<&str>, &str) {
    let (mut parts, mut level, mut rest) = (Vec::new(), None, line);
    while level.is_none()
        && let Some((inner, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] "))
    {
        match inner {
            "panic" | "fatal" | "error" | "warning" | "info" | "verbose" | "debug" | "trace" => level = Some(inner),
            _ => match inner.split_once(" @ ") {
                Some((part, _)) => parts.push(part),
                None => break,
            },
        }
        rest = after;
    }
    (parts, level, rest)
}

/// `00:01:02.500000` in seconds.
fn seconds(text: &str) -> Option<f64> {
    text.split(':').try_fold(0.0, |sum, part| Some(60.0 * sum + part.parse::<f64>().ok()?))
}

/// How names of matrices begin.
const MATRICES: [&str; 8] = ["bt", "smpte", "fcc", "ycgco", "gbr", "ictcp", "ipt", "chroma-derived"];

/// What lies between commas that are not in brackets.
fn fields(text: &str) -> Vec<&str> {
    let (mut fields, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (index, character) in text.char_indices() {
        match character {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ',' if depth <= 0 => {
                fields.push(text[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    fields.push(text[start..].trim());
    fields
}

/// `h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, progressive), 96x64 [SAR 4:3 DAR 2:1], 24 fps`.
fn video(description: &str) -> VideoStream {
    let fields = fields(description);
    let words = |text: &str| text.split(['(', ')', ' ', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let codec = words(fields.first().copied().unwrap_or_default());
    let (pixels, details) = fields.get(1).map_or(("", ""), |field| field.split_once('(').unwrap_or((field, "")));
    let mut video = VideoStream { codec, pixels: pixels.to_owned(), ..VideoStream::default() };
    for detail in details.trim_end_matches(')').split(',').map(str::trim) {
        match detail {
            _ if detail.starts_with("top ") || detail.starts_with("bottom ") => video.is_interlaced = true,
            _ if detail.contains('/') || MATRICES.iter().any(|name| detail.starts_with(name)) => {
                // One name stands for all three.
                let names: Vec<&str> = detail.split('/').collect();
                let tag = |index: usize| names.get(index).or(names.last()).copied().filter(|&name| name != "unknown");
                video.colour = [0, 1, 2].map(|index| tag(index).unwrap_or_default().to_owned());
            }
            _ => {}
        }
    }
    let aspect = description.split_once("SAR ").and_then(|(_, rest)| rest.split([' ', ']', ',']).next());
    video.aspect = aspect.filter(|&aspect| !matches!(aspect, "1:1" | "0:1")).map(str::to_owned);
    video
}
