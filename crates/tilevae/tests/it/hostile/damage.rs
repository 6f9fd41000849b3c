//! Valid files, damaged.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// The longest that a repeated part becomes.
const REPEATED: usize = 100_000;

/// One of `seeds` with one to four damages. Of formats that have checksums, half come with right ones, so that readers look further; of those that hold
/// JSON or TOML, half are valid text with other values.
pub(crate) fn damaged(seeds: &[Vec<u8>], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = pick(seeds, rng).clone();
    if rng.random()
        && let Some(fresh) = other_values(&bytes, rng)
    {
        return fresh;
    }
    for _ in 0..=rng.random_range(0..4_u32) {
        match rng.random_range(0..14_u32) {
            0 => change(&mut bytes, rng, |byte, rng| byte ^ (1 << rng.random_range(0..8_u32))),
            1 => change(&mut bytes, rng, |_, rng| rng.random()),
            2 | 3 => number(&mut bytes, rng),
            4 => bytes.truncate(at(&bytes, rng)),
            5 => drop(bytes.drain(part(&bytes, 64, rng))),
            6 => {
                let copy = bytes[part(&bytes, 64, rng)].to_vec();
                insert(&mut bytes, rng, copy);
            }
            7 => {
                let unit = bytes[part(&bytes, 16, rng)].to_vec();
                let most = (REPEATED / unit.len().max(1)).max(2);
                let times = 1 << rng.random_range(1..=most.ilog2());
                insert(&mut bytes, rng, unit.repeat(times));
            }
            8 => {
                let fresh = (0..rng.random_range(1..16_usize)).map(|_| rng.random()).collect();
                insert(&mut bytes, rng, fresh);
            }
            9 => {
                let other = pick(seeds, rng);
                let copy = other[part(other, 64, rng)].to_vec();
                let start = at(&bytes, rng);
                for (place, byte) in bytes.iter_mut().skip(start).zip(copy) {
                    *place = byte;
                }
            }
            10 | 11 => digits(&mut bytes, rng),
            _ => word(&mut bytes, rng),
        }
    }
    if rng.random() {
        fix_checksums(&mut bytes);
    }
    bytes
}

fn pick<'a, T>(from: &'a [T], rng: &mut ChaCha8Rng) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

/// A place in `bytes`, most often near the start or the end, where headers and tables are.
fn at(bytes: &[u8], rng: &mut ChaCha8Rng) -> usize {
    let length = bytes.len();
    let near = length.min(*pick(&[32, 256, 2048, length], rng));
    let place = rng.random_range(0..=near);
    if rng.random_ratio(1, 5) { length - place } else { place }
}

fn part(bytes: &[u8], longest: usize, rng: &mut ChaCha8Rng) -> std::ops::Range<usize> {
    let start = at(bytes, rng);
    start..(start + rng.random_range(1..=longest)).min(bytes.len())
}

fn change(bytes: &mut [u8], rng: &mut ChaCha8Rng, change: impl Fn(u8, &mut ChaCha8Rng) -> u8) {
    let place = at(bytes, rng);
    if let Some(byte) = bytes.get_mut(place) {
        *byte = change(*byte, rng);
    }
}

fn insert(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng, what: Vec<u8>) {
    let place = at(bytes, rng);
    bytes.splice(place..place, what);
}

/// Sets an integer of 1, 2, 4 or 8 bytes to something at the edge.
fn number(bytes: &mut [u8], rng: &mut ChaCha8Rng) {
    let width = *pick(&[1_usize, 2, 4, 4, 8, 8], rng);
    let max = u64::MAX >> (64 - 8 * width);
    let edges = [0, 1, 2, max, max - 1, max / 2, max / 2 + 1, max / 3, 0x7fff, 0xffff, 0x1_0000, 1 << 20, 1 << 31, bytes.len() as u64];
    let value = (*pick(&edges, rng) & max).to_le_bytes();
    let mut value = value[..width].to_vec();
    if rng.random() {
        value.reverse();
    }
    let place = at(bytes, rng);
    if let Some(field) = bytes.get_mut(place..place + width) {
        field.copy_from_slice(&value);
    }
}

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "3",
    "17",
    "255",
    "1000",
    "65535",
    "65536",
    "1000000",
    "2147483648",
    "4294967295",
    "4294967296",
    "1099511627776",
    "4611686018427387904",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999",
    "-9223372036854775808",
    "0.5",
    "-0.0",
    "1e308",
    "1e999",
    "-1e999",
    "1e-400",
    "NaN",
    "nan",
    "inf",
    "Infinity",
]; // fmt: skip

const WORDS: &[&str] = &[
    "null",
    "true",
    "false",
    "",
    "[]",
    "{}",
    "\"\"",
    "[[]]",
    "[1,2,3]",
    "{\"a\":1}",
    "\"x\"",
    "\\u0000",
    "../x",
    "/",
    "é",
    "\u{2028}",
    "kind",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "'",
    ":",
    "=",
    ",",
    "x",
    "/0",
    "F64",
    "I64",
    "BF16",
    "F8_E4M3",
    "(",
    ")",
]; // fmt: skip

/// Puts another number in the place of one, in what is text.
fn digits(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let starts = (0..bytes.len().min(4096)).filter(|&i| bytes[i].is_ascii_digit() && (i == 0 || !bytes[i - 1].is_ascii_digit()));
    let starts: Vec<usize> = starts.collect();
    if starts.is_empty() {
        return;
    }
    let start = *pick(&starts, rng);
    let length = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let fresh = if rng.random_ratio(1, 16) { vec![b'9'; rng.random_range(1..400)] } else { pick(NUMBERS, rng).as_bytes().to_vec() };
    bytes.splice(start..start + length, fresh);
}

/// Puts another word in the place of one, in what is text.
fn word(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(byte);
    let place = at(bytes, rng);
    let Some(start) = bytes[place..].iter().position(is_word).map(|skipped| place + skipped) else { return };
    let start = bytes[..start].iter().rposition(|byte| !is_word(byte)).map_or(0, |before| before + 1);
    let end = bytes[start..].iter().position(|byte| !is_word(byte)).map_or(bytes.len(), |length| start + length);
    let words = if rng.random() { WORDS } else { NUMBERS };
    let fresh = *pick(words, rng);
    bytes.splice(start..end, fresh.bytes());
}

/// JSON, TOML, or a file with a header of JSON (safetensors), with one to three values that are others.
fn other_values(bytes: &[u8], rng: &mut ChaCha8Rng) -> Option<Vec<u8>> {
    let header = bytes.first_chunk().and_then(|&length| bytes.get(8..usize::try_from(u64::from_le_bytes(length)).ok()?.checked_add(8)?));
    let text = std::str::from_utf8(header.unwrap_or(bytes)).ok()?;
    let (mut value, is_json) = match serde_json::from_str::<Value>(text) {
        Ok(value @ Value::Object(_)) => (value, true),
        _ => (serde_json::to_value(text.parse::<toml::Table>().ok()?).ok()?, false),
    };
    for _ in 0..=rng.random_range(0..3_u32) {
        let mut place = rng.random_range(0..nodes(&value));
        change_node(&mut value, &mut place, rng);
    }
    let text = if is_json { value.to_string() } else { toml::to_string(&value).ok()? };
    let Some(header) = header else { return Some(text.into_bytes()) };
    Some([&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[8 + header.len()..]].concat())
}

/// How many values there are in a value, itself included.
fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(nodes).sum(),
        Value::Object(fields) => fields.values().map(nodes).sum(),
        _ => 0,
    }
}

/// Changes the value that `place` counts down to.
fn change_node(value: &mut Value, place: &mut usize, rng: &mut ChaCha8Rng) {
    if *place == 0 {
        *place = usize::MAX;
        *value = other_value(value, rng);
        return;
    }
    *place -= 1;
    let inside: Box<dyn Iterator<Item = &mut Value>> = match value {
        Value::Array(items) => Box::new(items.iter_mut()),
        Value::Object(fields) => Box::new(fields.values_mut()),
        _ => return,
    };
    for value in inside {
        if *place == usize::MAX {
            return;
        }
        change_node(value, place, rng);
    }
}

fn other_value(value: &Value, rng: &mut ChaCha8Rng) -> Value {
    let longer = 1 << rng.random_range(0..10_u32);
    match (value, rng.random_range(0..8_u32)) {
        (Value::Array(items), 0..3) if !items.is_empty() => Value::Array(items.iter().cycle().take(longer).cloned().collect()),
        (Value::Array(items), 3..5) => Value::Array(items.iter().skip(1).cloned().collect()),
        (Value::Object(fields), 0..3) => {
            Value::Object(fields.iter().filter(|_| rng.random_ratio(9, 10)).map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        (Value::Object(fields), 3..5) => Value::Object(fields.iter().map(|(k, v)| (k.to_uppercase(), v.clone())).collect()),
        (Value::String(text), 0..2) => json!(text.repeat(longer)),
        (Value::String(text), 2..4) => json!(text.chars().rev().collect::<String>()),
        (Value::Number(_), 0..6) | (_, 0..2) => serde_json::from_str::<Value>(pick::<&str>(NUMBERS, rng)).unwrap_or(Value::Null),
        (_, 2) => (0..longer.min(100)).fold(value.clone(), |inner, _| json!([inner])),
        (_, 3) => (0..longer.min(100)).fold(value.clone(), |inner, _| json!({ "a": inner })),
        (_, 4) => Value::Null,
        (_, 5) => json!(true),
        _ => json!(*pick(WORDS, rng)),
    }
}

/// Sets the checksums of a PNG or a zip archive.
pub(crate) fn fix_checksums(bytes: &mut [u8]) {
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        mend_png(bytes);
    } else if bytes.starts_with(b"PK") {
        mend_zip(bytes);
    }
}

fn mend_png(bytes: &mut [u8]) {
    let mut start = 8;
    while let Some(length) = bytes.get(start..start + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap_or_default()) as usize;
        let end = start + 8 + length;
        let Some(content) = bytes.get(start + 4..end) else { return };
        let sum = crc32fast::hash(content).to_be_bytes();
        let Some(place) = bytes.get_mut(end..end + 4) else { return };
        place.copy_from_slice(&sum);
        start = end + 4;
    }
}

/// Of members that are stored as they are.
fn mend_zip(bytes: &mut [u8]) {
    let read = |bytes: &[u8], place: usize, width: usize| -> Option<usize> {
        Some(bytes.get(place..place + width)?.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    };
    let entries: Vec<usize> = (0..bytes.len().saturating_sub(46)).filter(|&place| bytes[place..].starts_with(b"PK\x01\x02")).collect();
    for entry in entries {
        let mut fix_checksums = || {
            let (method, size, local) = (read(bytes, entry + 10, 2)?, read(bytes, entry + 20, 4)?, read(bytes, entry + 42, 4)?);
            let start = local + 30 + read(bytes, local + 26, 2)? + read(bytes, local + 28, 2)?;
            let sum = crc32fast::hash(bytes.get(start..start + size).filter(|_| method == 0)?).to_le_bytes();
            bytes.get_mut(entry + 16..entry + 20)?.copy_from_slice(&sum);
            bytes.get_mut(local + 14..local + 18)?.copy_from_slice(&sum);
            Some(())
        };
        let _ = fix_checksums();
    }
}
