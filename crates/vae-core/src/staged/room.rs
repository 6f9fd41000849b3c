//! Room for features: memory up to a limit, and ranges of a scratch file.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tiling::{ScratchError, ScratchFile};

/// Counts the bytes that lie in one memory.
#[derive(Debug)]
pub(super) struct Room {
    limit: u64,
    /// Used now, and at most.
    used: Mutex<[u64; 2]>,
}

/// A share of a memory, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Share(Arc<Room>, u64);

impl Room {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, used: Mutex::default() }
    }

    /// The most bytes that were used at once.
    pub(super) fn peak(&self) -> u64 {
        lock(&self.used)[1]
    }

    /// A share of so many bytes, if it fits.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let mut used = lock(&self.used);
        if used[0].saturating_add(bytes) > self.limit {
            return None;
        }
        used[0] += bytes;
        used[1] = used[1].max(used[0]);
        Some(Share(self.clone(), bytes))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        lock(&self.0.used)[0] -= self.1;
    }
}

/// A scratch file that is made when it is first needed, with the ranges of it that are in use.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    state: Mutex<ScratchState>,
}

#[derive(Debug, Default)]
struct ScratchState {
    file: Option<Arc<ScratchFile>>,
    /// Bytes from the beginning of each free range to its end.
    free: BTreeMap<u64, u64>,
    length: u64,
}

/// A range of the scratch file, free again when it is dropped.
#[derive(Debug)]
pub(super) struct FileRange {
    scratch: Arc<Scratch>,
    pub(super) file: Arc<ScratchFile>,
    pub(super) start: u64,
    end: u64,
}

impl Scratch {
    /// The length of the file.
    pub(super) fn length(&self) -> u64 {
        lock(&self.state).length
    }

    /// A free range of so many bytes.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<FileRange, ScratchError> {
        let mut state = lock(&self.state);
        let file = match &state.file {
            Some(file) => file.clone(),
            None => state.file.insert(Arc::new(ScratchFile::new()?)).clone(),
        };
        let found = state.free.iter().find(|(start, end)| **end - **start >= bytes).map(|(start, end)| (*start, *end));
        let start = if let Some((start, end)) = found {
            state.free.remove(&start);
            if start + bytes < end {
                state.free.insert(start + bytes, end);
            }
            start
        } else {
            state.length += bytes;
            state.length - bytes
        };
        Ok(FileRange { scratch: self.clone(), file, start, end: start + bytes })
    }
}

impl Drop for FileRange {
    fn drop(&mut self) {
        let mut state = lock(&self.scratch.state);
        let (mut start, mut end) = (self.start, self.end);
        if let Some(next) = state.free.remove(&end) {
            end = next;
        }
        if let Some((&before, &until)) = state.free.range(..start).next_back()
            && until == start
        {
            state.free.remove(&before);
            start = before;
        }
        state.free.insert(start, end);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_the_scratch_file_are_used_again() {
        let scratch = Arc::new(Scratch::default());
        let take = |bytes| scratch.take(bytes).unwrap();
        let [first, second, third] = [take(100), take(50), take(70)];
        assert_eq!([first.start, second.start, third.start], [0, 100, 150]);
        drop(first);
        drop(second);
        // Both free ranges have become one.
        let fourth = take(150);
        assert_eq!((fourth.start, scratch.length()), (0, 220));
        drop(third);
        assert_eq!(take(20).start, 150);
    }

    #[test]
    fn memory_is_counted_and_given_back() {
        let room = Arc::new(Room::new(100));
        let share = room.take(60).unwrap();
        assert!(room.take(50).is_none());
        drop(share);
        assert!(room.take(100).is_some());
        assert_eq!(*lock(&room.used), [0, 100]);
    }
}
