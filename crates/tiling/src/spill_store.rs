use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::HostTensor;

/// Keeps blocks until they are asked for: in memory, or in a file.
#[derive(Debug, Default)]
pub(crate) struct SpillStore(Option<Scratch>);

#[derive(Debug)]
struct Scratch {
    file: File,
    end: u64,
    /// Places that are free again, by the number of values that fit.
    free: BTreeMap<usize, Vec<u64>>,
}

/// A block on the spill_store.
#[derive(Debug)]
pub(crate) enum Kept {
    InMemory(HostTensor),
    InFile { shape: [usize; 5], offset: u64 },
}

impl SpillStore {
    pub(crate) fn in_file(file: File) -> Self {
        Self(Some(Scratch { file, end: 0, free: BTreeMap::new() }))
    }

    pub(crate) fn put(&mut self, block: HostTensor) -> io::Result<Kept> {
        let Some(scratch) = &mut self.0 else { return Ok(Kept::InMemory(block)) };
        let values = block.data().len();
        let offset = scratch.free.get_mut(&values).and_then(Vec::pop).unwrap_or(scratch.end);
        scratch.end = scratch.end.max(offset + size_of_val(block.data()) as u64);
        let bytes: Vec<u8> = block.data().iter().flat_map(|value| value.to_le_bytes()).collect();
        scratch.file.seek(SeekFrom::Start(offset))?;
        scratch.file.write_all(&bytes)?;
        Ok(Kept::InFile { shape: block.shape(), offset })
    }

    pub(crate) fn take(&mut self, kept: Kept) -> io::Result<HostTensor> {
        match (kept, &mut self.0) {
            (Kept::InMemory(block), _) => Ok(block),
            (Kept::InFile { shape, offset }, Some(scratch)) => {
                let values = shape.iter().product();
                let mut bytes = vec![0; values * size_of::<f32>()];
                scratch.file.seek(SeekFrom::Start(offset))?;
                scratch.file.read_exact(&mut bytes)?;
                scratch.free.entry(values).or_default().push(offset);
                let data = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
                Ok(HostTensor::new(shape, data).expect("as many values as were put"))
            }
            (Kept::InFile { .. }, None) => unreachable!("a spill_store in memory puts nothing into a file"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_and_their_places_are_used_again() {
        let block = |size: usize, seed: usize| HostTensor::from_fn([1, 2, 1, 3, size], |[_, c, _, y, x]| (seed + 7 * c + 3 * y + x) as f32 / 3.0);
        let mut spill_store = SpillStore::in_file(tempfile::tempfile().unwrap());
        let kept: Vec<Kept> = (0..3).map(|seed| spill_store.put(block(4 + seed, seed)).unwrap()).collect();
        for (seed, kept) in kept.into_iter().enumerate().rev() {
            assert_eq!(spill_store.take(kept).unwrap(), block(4 + seed, seed));
        }
        let end = spill_store.0.as_ref().unwrap().end;
        let again = spill_store.put(block(5, 9)).unwrap();
        assert_eq!(spill_store.0.as_ref().unwrap().end, end);
        assert_eq!(spill_store.take(again).unwrap(), block(5, 9));
    }
}
