//! Outputs that get their name when they are whole.
//!
//! Until then they are unnamed files where the system has such (Linux). Elsewhere, and where another program opens them by name, they are in
//! a hidden folder next to their destination, which is removed when they are abandoned.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::format::{format_by_content, format_of};
use super::{IoError, folder_of};

/// Incomplete outputs that have a name.
static NAMED: Mutex<Named> = Mutex::new(Named { folders: Vec::new(), is_over: false });

struct Named {
    folders: Vec<PathBuf>,
    is_over: bool,
}

fn named() -> MutexGuard<'static, Named> {
    NAMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what outputs that are not whole have left in file systems. This is for programs that are about to exit: no output gets its name afterwards.
pub fn remove_pending() {
    let mut named = named();
    named.is_over = true;
    for folder in named.folders.drain(..) {
        let _ = fs::remove_dir_all(folder);
    }
}

/// Gives an output its name, unless the program is about to exit.
fn place(give: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let named = named();
    if named.is_over { Err(io::Error::new(io::ErrorKind::Interrupted, "the program was ended")) } else { give() }
}

/// A hidden folder that [`remove_pending`] knows, gone when it is dropped.
#[derive(Debug)]
struct Hidden(PathBuf);

impl Hidden {
    fn new(folder: &Path) -> io::Result<Self> {
        let mut named = named();
        if named.is_over {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the program was ended"));
        }
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        // The random name is left out of the error.
        let hidden = builder.prefix(".tilevae-").tempdir_in(folder).map_err(|error| io::Error::from(error.kind()))?.keep();
        named.folders.push(hidden.clone());
        Ok(Self(hidden))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let mut named = named();
        named.folders.retain(|folder| *folder != self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where the output at a path is put.
#[derive(Debug)]
enum Place {
    /// A file, there or not, at the end of all symbolic links: another takes its place.
    File(PathBuf),
    /// A pipe, a device or an open file: it is written to.
    Stream,
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let mut place = path.to_owned();
        for _ in 0..40 {
            // What lies in /proc is no file but stands for what a process has open.
            let is_open_file = cfg!(target_os = "linux") && folder_of(&place).canonicalize().is_ok_and(|folder| folder.starts_with("/proc"));
            if is_standard_output(&place) || is_open_file {
                return Ok(Self::Stream);
            }
            let Ok(link) = fs::read_link(&place) else {
                let is_stream = fs::metadata(&place).is_ok_and(|there| !there.is_file() && !there.is_dir());
                return Ok(if is_stream { Self::Stream } else { Self::File(place) });
            };
            place = folder_of(&place).join(link);
        }
        Err(io::Error::other("its symbolic links lead in a circle"))
    }
}

/// The file that writing at `path` makes or replaces, at the end of all symbolic links; none for a pipe, a device or an open file, which are written to.
///
/// # Errors
/// When links lead in a circle, or the file's folder is not there.
pub fn written_file(path: &Path) -> io::Result<Option<PathBuf>> {
    match Place::of(path)? {
        Place::File(file) => Ok(Some(folder_of(&file).canonicalize()?.join(file.file_name().unwrap_or_default()))),
        Place::Stream => Ok(None),
    }
}

/// What a path leads to at the end of all symbolic links, there or not.
pub(super) fn linked_file(path: &Path) -> io::Result<PathBuf> {
    Ok(match Place::of(path)? {
        Place::File(file) => file,
        Place::Stream => path.to_owned(),
    })
}

/// Whether a path stands for standard output.
pub fn is_standard_output(path: &Path) -> bool {
    path == Path::new("-") || (cfg!(unix) && ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name)))
}

/// An output file that is not yet whole. Dropped before it is published, it leaves nothing.
#[derive(Debug)]
pub(super) struct PendingFile {
    path: PathBuf,
    place: Place,
    file: File,
    /// Where it has to have a name.
    hidden: Option<Hidden>,
}

impl PendingFile {
    /// A file to be written at `path`; `-` is standard output. What is there stays until [`publish`](Self::publish), and keeps its permissions.
    pub(super) fn new(path: &Path) -> Result<Self, IoError> {
        Self::begin(path, false).map_err(|source| IoError::Write { path: path.to_owned(), source })
    }

    /// The same with a name, for programs that open it by that.
    pub(super) fn named(path: &Path) -> Result<Self, IoError> {
        Self::begin(path, true).map_err(|source| IoError::Write { path: path.to_owned(), source })
    }

    fn begin(path: &Path, by_name: bool) -> io::Result<Self> {
        let place = Place::of(path)?;
        let folder = match &place {
            Place::File(place) => folder_of(place).to_owned(),
            Place::Stream => std::env::temp_dir(),
        };
        let (file, hidden) = if let Some(file) = Some(&folder).filter(|_| !by_name).and_then(|folder| unnamed(folder)) {
            (file, None)
        } else {
            let hidden = Hidden::new(&folder)?;
            (File::options().read(true).write(true).create_new(true).open(named_in(&hidden, path))?, Some(hidden))
        };
        Ok(Self { path: path.to_owned(), place, file, hidden })
    }

    /// The file to write to.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The folder whose disk it takes room of.
    pub(super) fn lies_in(&self) -> PathBuf {
        match &self.place {
            Place::File(place) => folder_of(place).to_owned(),
            Place::Stream => std::env::temp_dir(),
        }
    }

    /// The temporary name, with the ending of its path if it was begun with one.
    pub(super) fn name(&self) -> Option<PathBuf> {
        self.hidden.as_ref().map(|hidden| named_in(hidden, &self.path))
    }

    /// Puts the file in its place, that of the file before it if there is one.
    pub(super) fn publish(self) -> Result<(), IoError> {
        let path = if self.path == Path::new("-") { "standard output".into() } else { self.path.clone() };
        self.finish().map_err(|source| IoError::Write { path, source })
    }

    fn finish(mut self) -> io::Result<()> {
        let Place::File(target) = &self.place else {
            self.file.rewind()?;
            return if is_standard_output(&self.path) {
                let mut out = io::stdout().lock();
                io::copy(&mut self.file, &mut out)?;
                out.flush()
            } else {
                io::copy(&mut self.file, &mut File::options().write(true).open(&self.path)?).map(drop)
            };
        };
        // Some file systems report a full disk only here.
        self.file.sync_all()?;
        if let Ok(before) = fs::metadata(target) {
            // Where they cannot be kept, those of a new file do.
            let _ = self.file.set_permissions(before.permissions());
        }
        let (hidden, name) = match self.hidden.take() {
            Some(hidden) => {
                let name = named_in(&hidden, &self.path);
                (hidden, name)
            }
            None if place(|| link(&self.file, target)).is_ok() => return Ok(()),
            // An unnamed file cannot take the name of an existing one.
            None => {
                let hidden = Hidden::new(folder_of(target))?;
                let name = named_in(&hidden, &self.path);
                if link(&self.file, &name).is_err() {
                    self.file.rewind()?;
                    let mut copy = File::create_new(&name)?;
                    io::copy(&mut self.file, &mut copy)?;
                    copy.set_permissions(self.file.metadata()?.permissions())?;
                }
                (hidden, name)
            }
        };
        let placed = place(|| fs::rename(name, target));
        drop(hidden);
        placed
    }
}

fn named_in(Hidden(folder): &Hidden, path: &Path) -> PathBuf {
    folder.join(path.file_name().unwrap_or("output".as_ref()))
}

/// An unnamed file, where the file system supports it.
#[cfg(target_os = "linux")]
fn unnamed(folder: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};
    open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o666)).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_: &Path) -> Option<File> {
    None
}

/// Gives an unnamed file a unique name.
#[cfg(target_os = "linux")]
fn link(file: &File, name: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, linkat};
    Ok(linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(not(target_os = "linux"))]
fn link(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// An output folder that is not yet whole. Dropped before it is published, it leaves nothing.
#[derive(Debug)]
pub(super) struct PendingFolder {
    path: PathBuf,
    place: PathBuf,
    hidden: Hidden,
}

impl PendingFolder {
    /// A folder to be put at `path`, where there is none or an empty one.
    pub(super) fn new(path: &Path) -> Result<Self, IoError> {
        let error = |source| IoError::Write { path: path.to_owned(), source };
        let Place::File(place) = Place::of(path).map_err(error)? else {
            return Err(error(io::ErrorKind::NotADirectory.into()));
        };
        // One that is there stays, and is filled: it may be on another file system than the one that it is in.
        let hidden = Hidden::new(if place.is_dir() { &place } else { folder_of(&place) }).map_err(error)?;
        Ok(Self { path: path.to_owned(), place, hidden })
    }

    /// The folder to put files in.
    pub(super) fn folder(&self) -> &Path {
        &self.hidden.0
    }

    /// Puts the folder in its place.
    pub(super) fn publish(self) -> Result<(), IoError> {
        let error = |source| IoError::Write { path: self.path.clone(), source };
        if !self.place.is_dir() {
            return place(|| fs::rename(self.folder(), &self.place)).map_err(error);
        }
        let entries = |folder: &Path| -> io::Result<Vec<PathBuf>> { fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect() };
        if entries(&self.place).map_err(error)?.iter().any(|entry| entry.file_name() != self.folder().file_name()) {
            return Err(IoError::FolderInUse { path: self.path.clone() });
        }
        let files = entries(self.folder()).map_err(error)?;
        let moved = |file: &PathBuf| fs::rename(file, self.place.join(file.file_name().unwrap_or_default()));
        place(|| files.iter().try_for_each(moved)).map_err(error)
    }
}

/// An input that comes through a pipe, as a file for as long as this lives.
#[derive(Debug)]
pub struct Spooled {
    path: PathBuf,
    _hidden: Hidden,
}

impl Spooled {
    /// Reads a pipe, a device or an open file to its end; `-` is standard input. Its format is given by its name or, where that has no ending, recognised by content.
    ///
    /// # Errors
    /// When it cannot be read or holds nothing that can be used.
    pub fn read(path: &Path) -> Result<Self, IoError> {
        let is_input = path == Path::new("-") || path == Path::new("/dev/stdin");
        let shown = if is_input { Path::new("standard input") } else { path };
        let read = |source| IoError::Read { path: shown.to_owned(), source };
        let mut input: Box<dyn Read> = if is_input {
            if io::stdin().is_terminal() {
                return Err(IoError::Terminal { path: shown.to_owned() });
            }
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(path).map_err(read)?)
        };
        let mut head = Vec::new();
        input.by_ref().take(64).read_to_end(&mut head).map_err(read)?;
        let mut name = shown.file_name().unwrap_or_default().to_owned();
        if shown.extension().is_none() || format_of(shown).is_err() {
            let format = format_by_content(&head, |format| !format.endings().is_empty());
            let ending = format.and_then(|format| format.endings().first()).ok_or_else(|| IoError::UnknownContent { path: shown.to_owned() })?;
            name.push(format!(".{ending}"));
        }
        let scratch = |source| IoError::Scratch { folder: std::env::temp_dir(), source };
        let hidden = Hidden::new(&std::env::temp_dir()).map_err(scratch)?;
        let path = hidden.0.join(name);
        let mut file = File::create_new(&path).map_err(scratch)?;
        let mut part = head;
        while !part.is_empty() {
            file.write_all(&part).map_err(scratch)?;
            part.clear();
            input.by_ref().take(1 << 20).read_to_end(&mut part).map_err(read)?;
        }
        Ok(Self { path, _hidden: hidden })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a path leads to a pipe, a device or an open file, which can be read once; `-` is one.
pub fn is_stream(path: &Path) -> bool {
    matches!(Place::of(path), Ok(Place::Stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write(mut file: PendingFile, text: &str) {
        file.file.write_all(text.as_bytes()).unwrap();
        file.publish().unwrap();
    }

    #[test]
    fn files_come_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.txt");
        for begin in [PendingFile::new, PendingFile::named] {
            for text in ["first", "second"] {
                let mut given_up = begin(&path).unwrap();
                given_up.file.write_all(b"half").unwrap();
                drop(given_up);
                write(begin(&path).unwrap(), text);
                assert_eq!((fs::read_to_string(&path).unwrap(), names(folder.path())), (text.to_owned(), vec!["out.txt".to_owned()]));
            }
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    #[expect(clippy::print_stdout, reason = "tests say what they skip")]
    fn files_have_no_name_until_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        if unnamed(folder.path()).is_none() {
            println!("skipped: the file system of temporary files does not support unnamed files");
            return;
        }
        let pending = PendingFile::new(&folder.path().join("out.txt")).unwrap();
        assert!(names(folder.path()).is_empty());
        write(pending, "whole");
        assert_eq!(names(folder.path()), ["out.txt"]);
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_and_permissions_stay() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("there")).unwrap();
        fs::write(at("there/real"), "old").unwrap();
        fs::set_permissions(at("there/real"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("there/real", at("link")).unwrap();
        symlink("there/new", at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        for begin in [PendingFile::new, PendingFile::named] {
            write(begin(&at("link")).unwrap(), "new");
            write(begin(&at("dangling")).unwrap(), "fresh");
            assert!(at("link").is_symlink() && at("dangling").is_symlink());
            assert_eq!(["there/real", "there/new"].map(|name| fs::read_to_string(at(name)).unwrap()), ["new", "fresh"]);
            assert_eq!(fs::metadata(at("there/real")).unwrap().permissions().mode() & 0o777, 0o640);
            assert_eq!(names(&at("there")), ["new", "real"]);
            let error = begin(&at("circle")).unwrap_err();
            assert!(matches!(&error, IoError::Write { path, .. } if *path == at("circle")), "{error:?}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn devices_are_written_to() {
        for begin in [PendingFile::new, PendingFile::named] {
            write(begin(Path::new("/dev/null")).unwrap(), "gone");
        }
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn folders_come_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frames");
        for there in [false, true] {
            if there {
                fs::create_dir(&path).unwrap();
            }
            drop(PendingFolder::new(&path).unwrap());
            let pending = PendingFolder::new(&path).unwrap();
            fs::write(pending.folder().join("a"), "a").unwrap();
            pending.publish().unwrap();
            assert_eq!((names(folder.path()), names(&path)), (vec!["frames".to_owned()], vec!["a".to_owned()]));
            fs::remove_dir_all(&path).unwrap();
        }
    }
}
