//! Whether a disk has room for what a run will write, found before it runs.

use std::fs::File;
use std::path::Path;

use super::IoError;

/// Checks that a folder has room for `bytes` more. Passes where the system does not report it.
///
/// # Errors
/// [`IoError::NoSpace`].
pub fn check_space(folder: &Path, bytes: u64) -> Result<(), IoError> {
    match free_bytes(folder) {
        Some(free) if free < bytes => Err(IoError::NoSpace { folder: folder.to_owned(), needed: bytes, free }),
        _ => Ok(()),
    }
}

/// Takes `bytes` of a disk for a new file in a folder. Where a file system cannot do that, it is only looked whether they are there.
pub(super) fn reserve(file: &File, folder: &Path, bytes: u64) -> Result<(), IoError> {
    let no_space = |free| IoError::NoSpace { folder: folder.to_owned(), needed: bytes, free };
    match free_beside(file) {
        Some(free) if free < bytes => Err(no_space(free)),
        free if bytes > 0 && !allocate(file, bytes) => Err(no_space(free.unwrap_or(0))),
        _ => Ok(()),
    }
}

/// Bytes that are free on a folder's disk, where the system reports it.
#[cfg(unix)]
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().and_then(free_of)
}

#[cfg(unix)]
fn free_beside(file: &File) -> Option<u64> {
    rustix::fs::fstatvfs(file).ok().and_then(free_of)
}

/// File systems without blocks report nothing.
#[cfg(unix)]
fn free_of(room: rustix::fs::StatVfs) -> Option<u64> {
    (room.f_blocks > 0).then(|| room.f_bavail.saturating_mul(room.f_frsize))
}

/// Bytes that are free on a folder's disk, where the system reports it.
#[cfg(not(unix))]
pub(crate) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(not(unix))]
fn free_beside(_: &File) -> Option<u64> {
    None
}

/// `false` when there is no room. The length of the file stays: what is not written yet is not there to be read.
#[cfg(target_os = "linux")]
fn allocate(file: &File, bytes: u64) -> bool {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    !matches!(fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes), Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG))
}

#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: u64) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn what_finds_no_room_is_refused_with_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile_in(folder.path()).unwrap();
        reserve(&file, folder.path(), 4096).unwrap();
        reserve(&file, folder.path(), 0).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        for bytes in [1 << 62, u64::MAX] {
            for error in [reserve(&file, folder.path(), bytes).unwrap_err(), check_space(folder.path(), bytes).unwrap_err()] {
                assert!(matches!(&error, IoError::NoSpace { needed, free, .. } if *needed == bytes && *free < bytes), "{error:?}");
                let message = error.to_string();
                assert!(message.contains(folder.path().to_str().unwrap()) && message.contains("GiB"), "{message}");
            }
        }
    }
}
