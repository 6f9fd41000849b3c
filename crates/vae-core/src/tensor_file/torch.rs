//! What `torch.save` writes: since PyTorch 1.6 a zip archive of a pickle and the values of its storages, before that pickles with the values after them.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::rc::Rc;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive, result::ZipError};

use super::pickle::{self, Budget, Id, Pickle, Value, View};
use super::{Fault, Source, StoredDtype, StoredTensor};

/// Dictionaries in dictionaries that are looked into.
const MAX_DEPTH: usize = 32;
/// The number that old files begin with (`torch/serialization.py`, `MAGIC_NUMBER`), without its sign.
const MAGIC: [u8; 15] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
const SAVE_AGAIN: &str = "load it with torch and save it again with `torch.save`";

/// Where the bytes of a storage lie.
#[derive(Clone, Copy)]
struct Place {
    start: u64,
    len: u64,
    checksum: Option<u32>,
}

pub(super) fn zip_tensors(file: &Arc<Source>) -> Result<Vec<StoredTensor>, Fault> {
    // A directory takes ten times its bytes in memory.
    let left = Rc::new(Cell::new((2 << 20) + file.len / 8));
    let input = Limited { input: BufReader::new(file.reopen()?), left: left.clone() };
    let mut archive = ZipArchive::new(input).map_err(|error| match error {
        ZipError::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            Fault::Unsupported("its archive has more entries than a checkpoint of its size".to_owned())
        }
        ZipError::Io(error) => Fault::Io(error),
        error => Fault::Damaged(format!("it is a zip archive that is cut or broken ({error})")),
    })?;
    left.set(u64::MAX);
    let names: Vec<String> = archive.file_names().map(|name| name.map(Cow::into_owned).unwrap_or_default()).collect();
    let Some(root) = names
        .iter()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .filter(|root| root.is_empty() || root.ends_with('/'))
        .min_by_key(|root| root.len())
    else {
        let hint = if names.iter().any(|name| name.to_ascii_lowercase().ends_with(".npy")) {
            "give a .safetensors file, or one that `torch.save` has written"
        } else {
            "unpack it first"
        };
        return Err(Fault::NotWeights("a zip archive that `torch.save` has not written".to_owned(), hint));
    };
    let mut places = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        let Some(name) = name.strip_prefix(root).filter(|name| name.starts_with("data/") || ["data.pkl", "byteorder"].contains(name)) else {
            continue;
        };
        let entry = archive.by_index_raw(index).map_err(|error| Fault::Damaged(format!("its entry `{name}` is broken ({error})")))?;
        if entry.encrypted() || entry.compression() != CompressionMethod::Stored {
            return Err(Fault::Unsupported(format!("its archive is compressed, which `torch.save` never does; {SAVE_AGAIN}")));
        }
        let (start, len) = (entry.data_start().unwrap_or(u64::MAX), entry.size());
        if start.checked_add(len).is_none_or(|end| end > file.len) {
            return Err(Fault::Damaged(format!("its entry `{name}` reaches past its end")));
        }
        // `torch.save` can be set to write no checksums.
        let checksum = Some(entry.crc32()).filter(|&checksum| checksum != 0);
        places.insert(name.strip_prefix("data/").unwrap_or(name).to_owned(), Place { start, len, checksum });
    }
    let mut bytes = Vec::new();
    if let Some(order) = places.get("byteorder") {
        file.read_into(order.start, order.len.min(16), &mut bytes)?;
        if bytes.starts_with(b"big") {
            return Err(big_endian());
        }
    }
    let Some(pickle) = places.get("data.pkl") else { return Err(Fault::Damaged("its pickle is missing".to_owned())) };
    let mut input = file.reopen()?;
    input.seek(SeekFrom::Start(pickle.start))?;
    let mut budget = Budget::of_file(file.len);
    let pickle = pickle::run(&mut BufReader::new(input.take(pickle.len)), &mut budget)?;
    tensors(file, &pickle, &places, &mut budget)
}

pub(super) fn legacy_tensors(file: &Arc<Source>) -> Result<Vec<StoredTensor>, Fault> {
    if file.head(MAGIC.len() as u64)? != MAGIC {
        let hint = "save tensors with `torch.save`, or as safetensors";
        return if MAGIC.starts_with(&file.head(MAGIC.len() as u64)?) {
            Err(Fault::Damaged("it ends too early".to_owned()))
        } else {
            Err(Fault::NotWeights("a pickle that `torch.save` has not written".to_owned(), hint))
        };
    }
    let mut budget = Budget::of_file(file.len);
    let mut input = BufReader::new(file.reopen()?);
    let mut next = |input: &mut BufReader<_>| pickle::run(input, &mut budget);
    // The magic number, the version, the system, the object, and the keys of the storages in the order of their values.
    let [_, _, system, pickle, keys] = [next(&mut input)?, next(&mut input)?, next(&mut input)?, next(&mut input)?, next(&mut input)?];
    if let Value::Dict(entries) = system.get(system.root)
        && entries.iter().any(|&(key, value)| system.key(key).as_deref() == Some("little_endian") && matches!(system.get(value), Value::Bool(false)))
    {
        return Err(big_endian());
    }
    let sizes: HashMap<&str, u64> = pickle
        .values
        .iter()
        .filter_map(|value| match value {
            Value::Storage(storage) => Some((&*storage.key, stored_size(storage.dtype.as_ref()))),
            _ => None,
        })
        .collect();
    let mut places = HashMap::new();
    let mut at = input.stream_position()?;
    let Value::Sequence(order) = keys.get(keys.root) else { return Err(Fault::Damaged("its list of storages is none".to_owned())) };
    for &key in order {
        let key = keys.key(key).ok_or_else(|| Fault::Damaged("a storage has no key".to_owned()))?;
        let mut len = [0; 8];
        input.seek(SeekFrom::Start(at))?;
        input.read_exact(&mut len)?;
        let Some(&size) = sizes.get(&*key) else { return Err(Fault::Damaged(format!("the storage `{key}` is nobody's"))) };
        if size == 0 {
            return Err(Fault::Unsupported(format!("the storage `{key}` is of a type that is not implemented; {SAVE_AGAIN}")));
        }
        let start = at + 8;
        let len = u64::from_le_bytes(len).checked_mul(size);
        let Some((end, len)) = len.and_then(|len| Some((start.checked_add(len)?, len))).filter(|&(end, _)| end <= file.len) else {
            return Err(Fault::Damaged(format!("it is cut in the storage `{key}`")));
        };
        places.insert(key, Place { start, len, checksum: None });
        at = end;
    }
    tensors(file, &pickle, &places, &mut budget)
}

/// Bytes of a value of a storage; 0 where that is not known.
fn stored_size(dtype: Option<&StoredDtype>) -> u64 {
    match dtype {
        None => 1,
        Some(StoredDtype::Other(name)) => match &**name {
            "ComplexDoubleStorage" => 16,
            "ComplexFloatStorage" => 8,
            "QInt32Storage" => 4,
            "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => 1,
            _ => 0,
        },
        Some(known) => known.size().unwrap_or(0) as u64,
    }
}

fn big_endian() -> Fault {
    Fault::Unsupported(format!("its values are big-endian; {SAVE_AGAIN}"))
}

/// All tensors of a pickle, by name.
fn tensors(file: &Arc<Source>, pickle: &Pickle, places: &HashMap<String, Place>, budget: &mut Budget) -> Result<Vec<StoredTensor>, Fault> {
    let mut found = Found { file, pickle, places, budget, tensors: Vec::new(), module: None };
    found.walk(pickle.root, String::new(), 0)?;
    if let (true, Some(class)) = (found.tensors.is_empty(), found.module) {
        return Err(if class.starts_with("__torch__") {
            Fault::Unsupported("it is a TorchScript program; save the tensors of its model, `torch.save(model.state_dict(), \"vae.pt\")`".to_owned())
        } else {
            let what = format!("it holds a whole Python object (`{class}`), not only its tensors");
            Fault::Unsupported(format!("{what}; save its state_dict: `torch.save(model.state_dict(), \"vae.pt\")`"))
        });
    }
    Ok(found.tensors)
}

struct Found<'a> {
    file: &'a Arc<Source>,
    pickle: &'a Pickle,
    places: &'a HashMap<String, Place>,
    budget: &'a mut Budget,
    tensors: Vec<StoredTensor>,
    /// The class of the first object of a class that is not known.
    module: Option<&'a str>,
}

impl Found<'_> {
    fn walk(&mut self, id: Id, name: String, depth: usize) -> Result<(), Fault> {
        // Of long names in each other, too.
        self.budget.take(16 + name.len())?;
        match self.pickle.get(id) {
            Value::Tensor(view) => {
                self.budget.take(size_of::<StoredTensor>() + 16 * view.shape.len())?;
                let tensor = self.tensor(view, name)?;
                self.tensors.push(tensor);
            }
            Value::Sequence(items) if depth < MAX_DEPTH => {
                for (index, &item) in items.iter().enumerate() {
                    self.entry(item, &name, &index.to_string(), depth)?;
                }
            }
            Value::Dict(items) if depth < MAX_DEPTH => self.entries(items, &name, depth)?,
            Value::Object(object) if depth < MAX_DEPTH => {
                let class = if let Value::Global(class) = self.pickle.get(object.class) { class } else { "" };
                if depth <= 1 && self.module.is_none() {
                    self.module = Some(class);
                }
                self.entries(&object.items, &name, depth)?;
                // A kind of tensor that is not known keeps its name.
                if let Some(kind) = class.strip_prefix("torch.").and_then(|class| class.rsplit_once("_rebuild_")) {
                    self.budget.take(size_of::<StoredTensor>())?;
                    let dtype = StoredDtype::Other(kind.1.into());
                    self.tensors.push(StoredTensor {
                        name,
                        dtype,
                        shape: Vec::new(),
                        strides: None,
                        file: self.file.clone(),
                        start: 0,
                        len: 0,
                        checksum: None,
                    });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn entries(&mut self, items: &[(Id, Id)], name: &str, depth: usize) -> Result<(), Fault> {
        for &(key, value) in items {
            if let Some(key) = self.pickle.key(key) {
                self.entry(value, name, &key, depth)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, value: Id, name: &str, key: &str, depth: usize) -> Result<(), Fault> {
        if matches!(self.pickle.get(value), Value::Tensor(_) | Value::Sequence(_) | Value::Dict(_) | Value::Object(_)) {
            let name = if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
            self.walk(value, name, depth + 1)?;
        }
        Ok(())
    }

    fn tensor(&self, View { storage, dtype, offset, shape, strides }: &View, name: String) -> Result<StoredTensor, Fault> {
        let unread = |dtype: StoredDtype| StoredTensor {
            name: name.clone(),
            dtype,
            shape: shape.clone(),
            strides: None,
            file: self.file.clone(),
            start: 0,
            len: 0,
            checksum: None,
        };
        let damaged = |what: &str| Err(Fault::Damaged(format!("the tensor `{name}` {what}")));
        if shape.iter().try_fold(1_usize, |values, &side| values.checked_mul(side)).and_then(|values| values.checked_mul(8)).is_none() {
            return damaged("has more values than memory could hold");
        }
        let Some(size) = dtype.size().map(|size| size as u64) else { return Ok(unread(dtype.clone())) };
        if shape.contains(&0) {
            return Ok(unread(dtype.clone()));
        }
        let Some(place) = self.places.get(&*storage.key) else {
            return damaged(&format!("looks at the storage `{}`, which is missing", storage.key));
        };
        let stored = storage.dtype.as_ref().and_then(StoredDtype::size).unwrap_or(1) as u64;
        let limit = storage.len.checked_mul(stored).filter(|&limit| limit <= place.len);
        let Some(limit) = limit else { return damaged("looks at a storage that is shorter than it should be") };
        // The values from the first to the last that the view reaches.
        let reach =
            shape.iter().zip(strides).try_fold(0_u64, |reach, (&side, &stride)| reach.checked_add((side as u64 - 1).checked_mul(stride as u64)?));
        let start = offset.checked_mul(size).and_then(|start| start.checked_add(storage.offset.checked_mul(stored)?));
        let len = reach.and_then(|reach| reach.checked_add(1)?.checked_mul(size));
        let end = start.zip(len).and_then(|(start, len)| start.checked_add(len));
        let (Some(start), Some(len), Some(_)) = (start, len, end.filter(|&end| end <= limit)) else { return damaged("reaches past its storage") };
        let is_in_order = {
            let mut step = 1;
            shape.iter().zip(strides).rev().all(|(&side, &stride)| {
                let fits = side == 1 || stride == step;
                step *= side;
                fits
            })
        };
        Ok(StoredTensor {
            strides: (!is_in_order).then(|| strides.clone()),
            start: place.start + start,
            len,
            checksum: place.checksum.filter(|_| start == 0 && len == place.len),
            ..unread(dtype.clone())
        })
    }
}

/// A reader that gives a number of bytes and then an error.
struct Limited<R> {
    input: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(bytes)?;
        self.left.set(self.left.get().checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?);
        Ok(read)
    }
}

impl<R: Seek> Seek for Limited<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.input.seek(to)
    }
}
