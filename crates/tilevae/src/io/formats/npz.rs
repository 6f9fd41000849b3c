use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::super::format::head_of;
use super::super::{Format, FormatKind, IoError, Reader, TensorHeader, TensorReader};
use super::npy::NpyHeader;
use super::{Fault, torch};

/// A zip archive of arrays, as NumPy's `savez` writes it.
pub(super) struct Npz;

impl Format for Npz {
    fn name(&self) -> &'static str {
        "npz"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["npz"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Tensors
    }

    /// What `torch.save` writes begins so, too.
    fn matches(&self, head: &[u8]) -> bool {
        head.starts_with(MAGIC)
    }

    fn is_written(&self) -> bool {
        false
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        if !self.matches(&head_of(path)?) {
            // The reader of checkpoints says what it is.
            return torch::open(path);
        }
        match Arrays::open(path).map_err(|fault| fault.of(path))? {
            Some(arrays) => Ok(Reader::Tensors(Box::new(arrays))),
            None => torch::open(path),
        }
    }
}

/// The arrays of an archive.
#[derive(Debug)]
struct Arrays {
    path: PathBuf,
    headers: Vec<TensorHeader>,
    /// The place among the members, and the header.
    members: Vec<(usize, NpyHeader)>,
}

impl Arrays {
    /// `None` for another kind of archive.
    fn open(path: &Path) -> Result<Option<Self>, Fault> {
        let (mut archive, _) = open_archive(path)?;
        let mut arrays = Self { path: path.to_owned(), headers: Vec::new(), members: Vec::new() };
        for index in 0..archive.len() {
            let mut member = archive.by_index(index).map_err(of_zip)?;
            let Some(name) = member.name().ok().and_then(|name| Some(name.strip_suffix(".npy")?.to_owned())) else { continue };
            let size = member.size();
            let read = |member: &mut dyn Read| {
                let header = NpyHeader::read(member)?;
                header.check(size)?;
                Ok(header)
            };
            let header = read(&mut member).map_err(|fault| match fault {
                Fault::Damaged(message) => Fault::Damaged(format!("in `{name}`: {message}")),
                other => other,
            })?;
            arrays.headers.push(header.header(&name));
            arrays.members.push((index, header));
        }
        Ok((!arrays.members.is_empty()).then_some(arrays))
    }

    fn values(&self, index: usize) -> Result<Vec<f32>, Fault> {
        let (member, header) = &self.members[index];
        let name = &self.headers[index].name;
        let (mut archive, length) = open_archive(&self.path)?;
        let mut member = archive.by_index(*member).map_err(of_zip)?;
        let count = header.count();
        if count as u64 > unfolded_limit(length) / 4 {
            let message = format!("`{name}` would unfold to {count} values from a file of {length} bytes; save it uncompressed");
            return Err(Fault::Damaged(message));
        }
        io::copy(&mut (&mut member).take(header.length), &mut io::sink())?;
        let values = header.read_values(&mut member)?;
        // The end is where the archive's checksum is looked at.
        if io::copy(&mut member, &mut io::sink())? > 0 {
            return Err(Fault::Damaged(format!("`{name}` has more bytes than its shape says")));
        }
        Ok(values)
    }
}

impl TensorReader for Arrays {
    fn headers(&self) -> &[TensorHeader] {
        &self.headers
    }

    fn read(&self, index: usize) -> Result<Vec<f32>, IoError> {
        self.values(index).map_err(|fault| fault.of(&self.path))
    }
}

/// The most bytes in f32 that a member of an archive may unfold to: compressed files could hold anything.
fn unfolded_limit(length: u64) -> u64 {
    length.saturating_mul(3).saturating_add(16 << 20)
}

/// How a zip archive begins.
const MAGIC: &[u8] = b"PK";

/// A reader that gives a number of bytes and then an error.
struct Limited<R> {
    reader: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(bytes)?;
        self.left.set(self.left.get().checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?);
        Ok(read)
    }
}

impl<R: Seek> Seek for Limited<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.reader.seek(to)
    }
}

type Archive = zip::ZipArchive<Limited<BufReader<File>>>;

/// The archive, and the bytes of its file.
fn open_archive(path: &Path) -> Result<(Archive, u64), Fault> {
    let file = File::open(path).map_err(Fault::Read)?;
    let length = file.metadata().map_err(Fault::Read)?.len();
    // A directory takes ten times its bytes in memory.
    let left = Rc::new(Cell::new((2 << 20) + length / 8));
    let archive = zip::ZipArchive::new(Limited { reader: BufReader::new(file), left: left.clone() }).map_err(of_zip)?;
    left.set(u64::MAX);
    Ok((archive, length))
}

fn of_zip(error: zip::result::ZipError) -> Fault {
    match error {
        zip::result::ZipError::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            Fault::NotSupported("its archive has more members than one of arrays".to_owned())
        }
        zip::result::ZipError::Io(error) => error.into(),
        other => Fault::Damaged(other.to_string()),
    }
}
