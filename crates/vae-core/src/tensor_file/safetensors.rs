//! Safetensors: the length of a header, the header in JSON, the values. The crate of that name refuses whole files for one type that it does not know.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Fault, MAX_AXES, Source, StoredDtype, StoredTensor, TensorFile};

pub(super) fn open(file: &Arc<Source>) -> Result<TensorFile, Fault> {
    let mut bytes = file.head(8)?;
    let length = bytes.as_slice().try_into().map(u64::from_le_bytes).map_err(|_| Fault::Damaged("it ends in its first 8 bytes".to_owned()))?;
    let Some(data_len) = file.len.checked_sub(8).and_then(|rest| rest.checked_sub(length)) else {
        return Err(Fault::Damaged(format!("it is cut: its header has {length} bytes, the file {}", file.len)));
    };
    file.read_into(8, length, &mut bytes)?;
    let Header { entries, metadata } =
        serde_json::from_slice(&bytes).map_err(|error| Fault::Damaged(format!("its header is no safetensors header: {error}")))?;
    drop(bytes);
    let mut names = HashSet::new();
    if let Some((twice, _)) = entries.iter().find(|(name, _)| !names.insert(name)) {
        return Err(Fault::Damaged(format!("its header names `{twice}` twice")));
    }
    let end = entries.iter().map(|(_, entry)| entry.data_offsets[1]).max().unwrap_or(0);
    if end > data_len {
        return Err(Fault::Damaged(format!("it is cut: {end} bytes of values belong to it, of which {data_len} are there")));
    }
    let mut spans: Vec<[u64; 2]> = entries.iter().map(|(_, entry)| entry.data_offsets).collect();
    let tensors = entries.into_iter().map(|(name, Entry { dtype, shape: Shape(shape), data_offsets: [start, end] })| {
        let wrong = |what: &str| Err(Fault::Damaged(format!("the header's {what} of `{name}` contradict each other")));
        let Some(len) = end.checked_sub(start) else { return wrong("offsets") };
        let values = shape.iter().try_fold(1_usize, |values, &side| values.checked_mul(side));
        let bytes = |size: usize| values?.checked_mul(size).map(|bytes| bytes as u64);
        if dtype.size().is_some_and(|size| bytes(size) != Some(len)) {
            return wrong("shape and offsets");
        }
        // Of types that are not known there is nothing to be checked, and nothing is read.
        let shape = if values.is_some() { shape } else { Vec::new() };
        Ok(StoredTensor { name, dtype, shape, strides: None, file: file.clone(), start: 8 + length + start, len, checksum: None })
    });
    let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    if end < data_len {
        return Err(Fault::Damaged(format!("it has {} bytes, its header speaks of {}", file.len, 8 + length + end)));
    }
    spans.sort_unstable();
    let mut next = 0;
    for [start, end] in spans {
        if start < next {
            return Err(Fault::Damaged("the values of two tensors lie in one place".to_owned()));
        }
        if start > next {
            return Err(Fault::Damaged(format!("the {} bytes before byte {start} of its values belong to no tensor", start - next)));
        }
        next = end;
    }
    Ok(TensorFile { tensors, metadata })
}

/// Every key that the header names, in its order.
struct Header {
    entries: Vec<(String, Entry)>,
    metadata: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(deserialize_with = "dtype")]
    dtype: StoredDtype,
    shape: Shape,
    data_offsets: [u64; 2],
}

fn dtype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StoredDtype, D::Error> {
    let name = Cow::<str>::deserialize(deserializer)?;
    Ok(match &*name {
        "F64" => StoredDtype::F64,
        "F32" => StoredDtype::F32,
        "F16" => StoredDtype::F16,
        "BF16" => StoredDtype::Bf16,
        "F8_E4M3" => StoredDtype::F8E4m3,
        "F8_E5M2" => StoredDtype::F8E5m2,
        "I64" => StoredDtype::I64,
        "I32" => StoredDtype::I32,
        "I16" => StoredDtype::I16,
        "I8" => StoredDtype::I8,
        "U64" => StoredDtype::U64,
        "U32" => StoredDtype::U32,
        "U16" => StoredDtype::U16,
        "U8" => StoredDtype::U8,
        "BOOL" => StoredDtype::Bool,
        other => StoredDtype::Other(other.chars().take(32).collect()),
    })
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut entries, mut metadata) = (Vec::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    if name != "__metadata__" {
                        entries.push((name, map.next_value()?));
                    } else if metadata.replace(map.next_value()?).is_some() {
                        return Err(de::Error::custom("`__metadata__` comes twice"));
                    }
                }
                Ok(Header { entries, metadata: metadata.unwrap_or_default() })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sides;
        impl<'de> Visitor<'de> for Sides {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the lengths of axes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sides: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(side) = sides.next_element()? {
                    if shape.len() == MAX_AXES {
                        return Err(de::Error::custom(format!("a tensor with more than {MAX_AXES} axes")));
                    }
                    shape.push(side);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Sides)
    }
}
