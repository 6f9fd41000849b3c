use std::collections::BTreeMap;

use crate::{HostTensor, ScratchError, ScratchFile};

/// Keeps tensors until they are taken: in memory, or in a scratch file.
#[derive(Debug, Default)]
pub(crate) struct SpillStore(Option<Spilled>);

#[derive(Debug)]
struct Spilled {
    file: ScratchFile,
    /// Bytes in use, free places among them.
    end: u64,
    /// Offsets of free places, by the number of values that fit.
    free: BTreeMap<usize, Vec<u64>>,
}

/// A tensor in a [`SpillStore`].
#[derive(Debug)]
pub(crate) enum Kept {
    InMemory(HostTensor),
    InFile { shape: [usize; 5], offset: u64 },
}

impl SpillStore {
    pub(crate) fn in_file(file: ScratchFile) -> Self {
        Self(Some(Spilled { file, end: 0, free: BTreeMap::new() }))
    }

    pub(crate) fn put(&mut self, tensor: HostTensor) -> Result<Kept, ScratchError> {
        let Some(spilled) = &mut self.0 else { return Ok(Kept::InMemory(tensor)) };
        let values = tensor.data().len();
        let offset = spilled.free.get_mut(&values).and_then(Vec::pop).unwrap_or(spilled.end);
        spilled.end = spilled.end.max(offset + size_of_val(tensor.data()) as u64);
        spilled.file.write_at(offset, tensor.data())?;
        Ok(Kept::InFile { shape: tensor.shape(), offset })
    }

    pub(crate) fn take(&mut self, kept: Kept) -> Result<HostTensor, ScratchError> {
        match (kept, &mut self.0) {
            (Kept::InMemory(tensor), _) => Ok(tensor),
            (Kept::InFile { shape, offset }, Some(spilled)) => {
                let mut tensor = HostTensor::zeros(shape);
                spilled.file.read_at(offset, tensor.data_mut())?;
                spilled.free.entry(tensor.data().len()).or_default().push(offset);
                Ok(tensor)
            }
            (Kept::InFile { .. }, None) => unreachable!("a store in memory puts nothing into a file"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_and_their_places_are_used_again() {
        let tensor = |size: usize, seed: usize| HostTensor::from_fn([1, 2, 1, 3, size], |[_, c, _, y, x]| (seed + 7 * c + 3 * y + x) as f32 / 3.0);
        let mut store = SpillStore::in_file(ScratchFile::new().unwrap());
        let kept: Vec<Kept> = (0..3).map(|seed| store.put(tensor(4 + seed, seed)).unwrap()).collect();
        for (seed, kept) in kept.into_iter().enumerate().rev() {
            assert_eq!(store.take(kept).unwrap(), tensor(4 + seed, seed));
        }
        let end = store.0.as_ref().unwrap().end;
        let again = store.put(tensor(5, 9)).unwrap();
        assert_eq!(store.0.as_ref().unwrap().end, end);
        assert_eq!(store.take(again).unwrap(), tensor(5, 9));
    }
}
