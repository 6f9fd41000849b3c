use super::{Fault, Source};
use crate::WeightError;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Safetensors,
    TorchZip,
    Pickle,
    Json,
}

/// Other files that are taken for checkpoints, by how they begin.
const OTHERS: [(&[u8], &str, &str); 15] = [
    (b"version https://git-lfs", "a Git LFS pointer", "`git lfs pull` in its folder fetches what it points to"),
    (b"GGUF", "a GGUF file", "use the safetensors file that it was made of"),
    (b"\x89HDF", "an HDF5 file", HAND_OVER),
    (b"\x93NUMPY", "a NumPy array", HAND_OVER),
    (b"\x1f\x8b", UNPACK.0, UNPACK.1),
    (b"BZh", UNPACK.0, UNPACK.1),
    (b"\xfd7zXZ", UNPACK.0, UNPACK.1),
    (b"\x28\xb5\x2f\xfd", UNPACK.0, UNPACK.1),
    (b"7z\xbc\xaf", UNPACK.0, UNPACK.1),
    (b"Rar!", UNPACK.0, UNPACK.1),
    (b"\x89PNG", IMAGE.0, IMAGE.1),
    (b"\xff\xd8\xff", IMAGE.0, IMAGE.1),
    (b"RIFF", IMAGE.0, IMAGE.1),
    (b"%PDF", "a PDF document", HAND_OVER),
    (b"\x7fELF", "a program", HAND_OVER),
];
const HAND_OVER: &str = "give a .safetensors file, or one that `torch.save` has written";
const UNPACK: (&str, &str) = ("a compressed archive", "unpack it first");
const IMAGE: (&str, &str) = ("an image or a video", HAND_OVER);

/// The content of a file, recognised by its first bytes.
pub(crate) fn content(file: &Source) -> Result<Content, WeightError> {
    let fault = |fault: Fault| Err(fault.at(&file.path));
    let head = file.head(512)?;
    if head.is_empty() {
        return fault(Fault::Damaged("it is empty".to_owned()));
    }
    if let Some((_, what, hint)) = OTHERS.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return fault(Fault::NotWeights((*what).to_owned(), hint));
    }
    match head[..] {
        [b'P', b'K', 3 | 5, 4 | 6, ..] => return Ok(Content::TorchZip),
        // A pickle says its protocol first.
        [0x80, 2..=5, ..] => return Ok(Content::Pickle),
        // The length of the header, then the header.
        [_, _, _, _, _, _, _, _, b'{', ..] if !head.starts_with(b"{") => return Ok(Content::Safetensors),
        _ => {}
    }
    if head.get(257..262) == Some(b"ustar") {
        return fault(Fault::NotWeights(
            "a tar archive".to_owned(),
            "unpack it; if PyTorch before 0.1.10 has written it, load and save it with a newer one",
        ));
    }
    // A cut in the middle of a character is no fault of the text.
    let text = match std::str::from_utf8(&head) {
        Ok(text) => Some(text),
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).ok(),
        Err(_) => None,
    };
    let text = text.map(|text| text.trim_start_matches('\u{feff}').trim_start());
    let Some(text) = text.filter(|text| !text.chars().any(|c| c.is_control() && !c.is_whitespace())) else {
        return fault(unknown(&head));
    };
    if text.starts_with('{') || text.starts_with('[') {
        return Ok(Content::Json);
    }
    let start: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
    if text.starts_with('<') {
        let hint = "the download gave a page, perhaps of an error or a login, in place of the file";
        return fault(Fault::NotWeights("a web page".to_owned(), hint));
    }
    fault(Fault::NotWeights(format!("a text (`{}`)", start.trim_end()), "the download may have given a message in place of the file"))
}

fn unknown(head: &[u8]) -> Fault {
    let start: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Fault::NotWeights(format!("of an unknown kind (it begins with {})", start.join(" ")), HAND_OVER)
}
