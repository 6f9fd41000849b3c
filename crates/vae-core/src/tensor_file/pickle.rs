//! A machine for the pickles that `torch.save` writes. It makes dictionaries, lists, numbers, strings and tensors; anything else that a pickle names stays a
//! name, and nothing is called.
//!
//! Source of the opcodes: CPython's `pickletools.py`.
//!
//! Values lie in one list and refer to each other by their places, so that a hostile pickle can be as deep or as tangled as it likes, and everything that
//! is put there is paid for from a [`Budget`].

use std::collections::HashMap;
use std::io::{BufRead, Read};

use super::{Fault, MAX_AXES, StoredDtype};

/// The longest name of a class or number in letters.
const MAX_LINE: u64 = 4096;

/// Memory that may still be used.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    /// For what a file of `len` bytes describes.
    pub(super) fn of_file(len: u64) -> Self {
        Self(len + (32 << 20))
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Fault> {
        self.0 = self
            .0
            .checked_sub(bytes as u64)
            .ok_or_else(|| Fault::Unsupported("it holds more Python objects than a checkpoint of its size".to_owned()))?;
        Ok(())
    }
}

/// The place of a value.
pub(super) type Id = u32;

/// A value of a pickle.
#[derive(Debug)]
pub(super) enum Value {
    /// What is of no use here: numbers with a point, bytes, nothing.
    Other,
    Bool(bool),
    Int(i64),
    Text(Box<str>),
    /// Lists, tuples and sets.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function, as `module.name`.
    Global(Box<str>),
    /// An object of a class that is not known here, with what was put into it and its state.
    Object(Box<Object>),
    Storage(Box<Storage>),
    Tensor(Box<View>),
}

#[derive(Debug)]
pub(super) struct Object {
    pub(super) class: Id,
    pub(super) items: Vec<(Id, Id)>,
    pub(super) state: Option<Id>,
}

/// Values of one type, which tensors look at.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    pub(super) key: Box<str>,
    /// Not known of untyped storages.
    pub(super) dtype: Option<StoredDtype>,
    /// In values, or bytes where the type is not known.
    pub(super) len: u64,
    /// The first value of a storage within another.
    pub(super) offset: u64,
}

/// A tensor: a view of a storage. Lengths are in values.
#[derive(Debug)]
pub(super) struct View {
    pub(super) storage: Storage,
    pub(super) dtype: StoredDtype,
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) values: Vec<Value>,
    pub(super) root: Id,
}

impl Pickle {
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// A string, or a number in letters.
    pub(super) fn key(&self, id: Id) -> Option<String> {
        match self.get(id) {
            Value::Text(text) => Some(text.to_string()),
            Value::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

fn damaged<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(format!("its pickle {}", message.into())))
}

/// Runs the pickle that `input` begins with, to its end and no further.
pub(super) fn run(input: &mut impl BufRead, budget: &mut Budget) -> Result<Pickle, Fault> {
    let mut machine = Machine { input, budget, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    // One value stands for all that are of no use.
    machine.values.push(Value::Other);
    let root = machine.run()?;
    Ok(Pickle { values: machine.values, root })
}

struct Machine<'a, R> {
    input: &'a mut R,
    budget: &'a mut Budget,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Where the stack stood.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

const OTHER: Id = 0;

impl<R: BufRead> Machine<'_, R> {
    fn run(&mut self) -> Result<Id, Fault> {
        loop {
            let [op] = self.bytes()?;
            match op {
                b'.' => return self.pop(),
                // PROTO, FRAME
                0x80 => self.skip(1)?,
                0x95 => self.skip(8)?,
                // MARK, POP, POP_MARK, DUP
                b'(' => {
                    self.budget.take(16)?;
                    self.marks.push(self.stack.len());
                }
                b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.push_id(top)?;
                }
                _ => {
                    if !(self.scalar(op)? || self.container(op)? || self.memory(op)? || self.object(op)?) {
                        return match op {
                            0x82..=0x84 | 0x97 | 0x98 => {
                                Err(Fault::Unsupported(format!("its pickle uses the opcode {op:#04x}, which is not implemented")))
                            }
                            _ => damaged(format!("has {op:#04x} where an opcode should be")),
                        };
                    }
                }
            }
        }
    }

    /// Nothing, numbers, strings, bytes.
    fn scalar(&mut self, op: u8) -> Result<bool, Fault> {
        let value = match op {
            b'N' => Value::Other,
            0x88 | 0x89 => Value::Bool(op == 0x88),
            b'K' => Value::Int(i64::from(self.bytes::<1>()?[0])),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.bytes()?))),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.bytes()?))),
            b'I' | b'L' => match &*self.line()? {
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                text => text.trim_end_matches('L').parse().map_or(Value::Other, Value::Int),
            },
            b'F' => {
                self.line()?;
                Value::Other
            }
            b'G' => {
                self.skip(8)?;
                Value::Other
            }
            // LONG1, LONG4
            0x8a | 0x8b => {
                let len = if op == 0x8a { u64::from(self.bytes::<1>()?[0]) } else { u64::from(u32::from_le_bytes(self.bytes()?)) };
                self.long(len)?
            }
            b'V' => Value::Text(self.line()?),
            // Strings with a length of 1, 4 and 8 bytes, in Unicode and of Python 2.
            0x8c | b'U' => self.length::<1>().and_then(|len| self.text(len))?,
            b'X' | b'T' => self.length::<4>().and_then(|len| self.text(len))?,
            0x8d => self.length::<8>().and_then(|len| self.text(len))?,
            b'S' => {
                let line = self.line()?;
                Value::Text(line.trim_matches(['\'', '"']).into())
            }
            // Bytes.
            b'C' => self.length::<1>().and_then(|len| self.skipped(len))?,
            b'B' => self.length::<4>().and_then(|len| self.skipped(len))?,
            0x8e | 0x96 => self.length::<8>().and_then(|len| self.skipped(len))?,
            _ => return Ok(false),
        };
        self.push(value)?;
        Ok(true)
    }

    /// Tuples, lists, sets, dictionaries.
    fn container(&mut self, op: u8) -> Result<bool, Fault> {
        match op {
            b')' | b']' | 0x8f => self.push(Value::Sequence(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            // TUPLE, LIST, FROZENSET
            b't' | b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::Sequence(items))?;
            }
            // TUPLE1 to TUPLE3
            0x85..=0x87 => {
                let len = usize::from(op - 0x84);
                let items = self.pop_many(len)?;
                self.push(Value::Sequence(items))?;
            }
            b'd' => {
                let items = pairs(&self.pop_mark()?)?;
                self.budget.take(16 * items.len())?;
                self.push(Value::Dict(items))?;
            }
            // APPEND, APPENDS, ADDITEMS
            b'a' | b'e' | 0x90 => {
                let items = if op == b'a' { vec![self.pop()?] } else { self.pop_mark()? };
                self.budget.take(8 * items.len())?;
                match self.top_value()? {
                    Value::Sequence(list) => list.extend(items),
                    // What is put into a list of a class of its own is no tensor that anybody names.
                    Value::Object(_) => {}
                    _ => return damaged("appends to what is no list"),
                }
            }
            // SETITEM, SETITEMS
            b's' | b'u' => {
                let items = if op == b's' { self.pop_many(2)? } else { self.pop_mark()? };
                self.budget.take(16 * items.len())?;
                let items = pairs(&items)?;
                match self.top_value()? {
                    Value::Dict(dict) => dict.extend(items),
                    Value::Object(object) => object.items.extend(items),
                    _ => return damaged("puts entries into what is no dictionary"),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is noted and fetched again.
    fn memory(&mut self, op: u8) -> Result<bool, Fault> {
        let place = match op {
            // GET, BINGET, LONG_BINGET; PUT, BINPUT, LONG_BINPUT; MEMOIZE
            b'g' | b'p' => self.line()?.parse().or_else(|_| damaged("numbers a note with no number"))?,
            b'h' | b'q' => u32::from(self.bytes::<1>()?[0]),
            b'j' | b'r' => u32::from_le_bytes(self.bytes()?),
            0x94 => self.memo.len() as u32,
            _ => return Ok(false),
        };
        if matches!(op, b'g' | b'h' | b'j') {
            let Some(&id) = self.memo.get(&place) else { return damaged(format!("fetches the note {place}, which it has not made")) };
            self.push_id(id)?;
        } else {
            self.budget.take(32)?;
            let top = self.top()?;
            self.memo.insert(place, top);
        }
        Ok(true)
    }

    /// Classes, calls and what they give.
    fn object(&mut self, op: u8) -> Result<bool, Fault> {
        match op {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module}.{name}").into()))?;
            }
            // STACK_GLOBAL
            0x93 => {
                let names = self.pop_many(2)?;
                let [Value::Text(module), Value::Text(name)] = [0, 1].map(|which| &self.values[names[which] as usize]) else {
                    return damaged("names a class by what is no string");
                };
                let name = format!("{module}.{name}");
                self.budget.take(name.len())?;
                self.push(Value::Global(name.into()))?;
            }
            // PERSID, BINPERSID
            b'P' => {
                self.line()?;
                self.push_id(OTHER)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let value = self.persistent(id)?;
                self.push_id(value)?;
            }
            // REDUCE, NEWOBJ, NEWOBJ_EX, OBJ, INST
            b'R' | 0x81 | 0x92 => {
                let parts = self.pop_many(if op == 0x92 { 3 } else { 2 })?;
                let value = self.call(parts[0], parts[1])?;
                self.push_id(value)?;
            }
            b'o' | b'i' => {
                let class = if op == b'i' {
                    let (module, name) = (self.line()?, self.line()?);
                    self.add(Value::Global(format!("{module}.{name}").into()))?
                } else {
                    OTHER
                };
                let items = self.pop_mark()?;
                let class = if op == b'o' { items.first().copied().unwrap_or(OTHER) } else { class };
                self.push(Value::Object(Box::new(Object { class, items: Vec::new(), state: None })))?;
            }
            // BUILD: only an object keeps its state. That of dictionaries and tensors is not theirs to be saved.
            b'b' => {
                let state = self.pop()?;
                if let Value::Object(object) = self.top_value()? {
                    object.state = Some(state);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `('storage', type, key, device, length, view)`, or a class with its source, of a whole module.
    fn persistent(&mut self, id: Id) -> Result<Id, Fault> {
        let Value::Sequence(parts) = &self.values[id as usize] else { return Ok(OTHER) };
        let parts = parts.clone();
        let tag = parts.first().map(|&tag| &self.values[tag as usize]);
        match (tag, &parts[..]) {
            (Some(Value::Text(tag)), &[_, class, ..]) if **tag == *"module" => Ok(class),
            (Some(Value::Text(tag)), &[_, class, key, _, len, ref view @ ..]) if **tag == *"storage" => {
                let Value::Global(class) = &self.values[class as usize] else { return damaged("holds a storage of no type") };
                let dtype = storage_dtype(class);
                let key = match &self.values[key as usize] {
                    Value::Text(key) => key.clone(),
                    Value::Int(key) => key.to_string().into(),
                    _ => return damaged("holds a storage without a key"),
                };
                let len = self.length_of(len)?;
                let (mut offset, mut end) = (0, len);
                if let Some(&view) = view.first()
                    && let Value::Sequence(view) = &self.values[view as usize]
                    && let [_, start, size] = view[..]
                {
                    offset = self.length_of(start)?;
                    end = offset
                        .checked_add(self.length_of(size)?)
                        .filter(|&end| end <= len)
                        .map_or_else(|| damaged("has a storage that reaches past another"), Ok)?;
                }
                self.budget.take(key.len() + 64)?;
                self.add(Value::Storage(Box::new(Storage { key, dtype, len: end, offset })))
            }
            _ => Ok(OTHER),
        }
    }

    /// What a call gives: tensors and dictionaries are made, everything else is an object that remembers its class.
    fn call(&mut self, function: Id, arguments: Id) -> Result<Id, Fault> {
        let name = if let Value::Global(name) = &self.values[function as usize] { &**name } else { "" };
        let Value::Sequence(parts) = &self.values[arguments as usize] else { return damaged("calls with what is no tuple") };
        let value = match (name, &parts[..]) {
            ("collections.OrderedDict" | "builtins.dict" | "__builtin__.dict", []) | ("collections.defaultdict", [_]) => Value::Dict(Vec::new()),
            ("collections.OrderedDict", &[items]) => {
                let Value::Sequence(items) = &self.values[items as usize] else { return damaged("makes a dictionary of what is no list") };
                let pair = |&item: &Id| match &self.values[item as usize] {
                    Value::Sequence(pair) => <[Id; 2]>::try_from(&pair[..]).ok().map(|[key, value]| (key, value)),
                    _ => None,
                };
                let Some(items) = items.iter().map(pair).collect::<Option<Vec<_>>>() else {
                    return damaged("makes a dictionary of what are no pairs");
                };
                self.budget.take(16 * items.len())?;
                Value::Dict(items)
            }
            (
                "torch.Size" | "builtins.set" | "builtins.frozenset" | "builtins.list" | "builtins.tuple" | "__builtin__.set" | "__builtin__.list",
                &[items],
            ) => {
                return Ok(items);
            }
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", &[data, ..]) => return Ok(data),
            // The function that makes the tensor, and its arguments. A chain of them in each other would be no tensor.
            ("torch._tensor._rebuild_from_type_v2", &[inner, _, arguments, ..]) if !matches!(&self.values[inner as usize], Value::Global(name) if **name == *"torch._tensor._rebuild_from_type_v2") =>
            {
                return self.call(inner, arguments);
            }
            ("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", &[storage, offset, shape, strides, ..]) => {
                self.view([storage, offset, shape, strides], None)?
            }
            ("torch._utils._rebuild_tensor_v3", &[storage, offset, shape, strides, _, _, dtype, ..]) => {
                self.view([storage, offset, shape, strides], Some(dtype))?
            }
            _ => Value::Object(Box::new(Object { class: function, items: Vec::new(), state: None })),
        };
        self.add(value)
    }

    fn view(&mut self, [storage, offset, shape, strides]: [Id; 4], dtype: Option<Id>) -> Result<Value, Fault> {
        let Value::Storage(storage) = &self.values[storage as usize] else { return damaged("makes a tensor of what is no storage") };
        let storage = (**storage).clone();
        let (shape, strides) = (self.lengths_of(shape)?, self.lengths_of(strides)?);
        if shape.len() != strides.len() || shape.len() > MAX_AXES {
            return damaged("makes a tensor of axes that do not fit");
        }
        let dtype = match (dtype.map(|dtype| &self.values[dtype as usize]), &storage.dtype) {
            (Some(Value::Global(name)), _) => named_dtype(name),
            (_, Some(dtype)) => dtype.clone(),
            _ => return damaged("makes a tensor of no type"),
        };
        self.budget.take(storage.key.len() + 16 * shape.len() + size_of::<View>())?;
        let offset = self.length_of(offset)?;
        Ok(Value::Tensor(Box::new(View { storage, dtype, offset, shape, strides })))
    }

    fn length_of(&self, id: Id) -> Result<u64, Fault> {
        match self.values[id as usize] {
            Value::Int(length) => u64::try_from(length).or_else(|_| damaged("has a negative length")),
            _ => damaged("has a length that is no whole number"),
        }
    }

    fn lengths_of(&self, id: Id) -> Result<Vec<usize>, Fault> {
        let Value::Sequence(items) = &self.values[id as usize] else { return damaged("has a shape that is no tuple") };
        if items.len() > MAX_AXES {
            return damaged(format!("has a shape of {} axes", items.len()));
        }
        items
            .iter()
            .map(|&item| self.length_of(item).and_then(|length| usize::try_from(length).or_else(|_| damaged("has a length past all memory"))))
            .collect()
    }

    fn add(&mut self, value: Value) -> Result<Id, Fault> {
        if matches!(value, Value::Other) {
            return Ok(OTHER);
        }
        // Lists grow by doubling.
        self.budget.take(2 * size_of::<Value>() + if matches!(value, Value::Object(_)) { size_of::<Object>() } else { 0 })?;
        let id = Id::try_from(self.values.len()).or_else(|_| damaged("holds too many values"))?;
        self.values.push(value);
        Ok(id)
    }

    fn push(&mut self, value: Value) -> Result<(), Fault> {
        let id = self.add(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), Fault> {
        self.budget.take(2 * size_of::<Id>())?;
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        Ok(self.pop_many(1)?[0])
    }

    /// The topmost values, the lowest first.
    fn pop_many(&mut self, len: usize) -> Result<Vec<Id>, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(len).filter(|&start| start >= floor) {
            Some(start) => Ok(self.stack.split_off(start)),
            None => damaged("takes what it has not put down"),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Fault> {
        match self.marks.pop() {
            Some(mark) => {
                let items = self.stack.split_off(mark);
                self.budget.take(size_of::<Id>() * items.len())?;
                Ok(items)
            }
            None => damaged("goes back to a mark that it has not made"),
        }
    }

    fn top(&self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.last().filter(|_| self.stack.len() > floor).copied().map_or_else(|| damaged("looks at what it has not put down"), Ok)
    }

    fn top_value(&mut self) -> Result<&mut Value, Fault> {
        let top = self.top()?;
        Ok(&mut self.values[top as usize])
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn length<const N: usize>(&mut self) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.input.read_exact(&mut bytes[..N])?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn skip(&mut self, len: u64) -> Result<(), Fault> {
        let skipped = std::io::copy(&mut Read::take(&mut *self.input, len), &mut std::io::sink())?;
        if skipped == len { Ok(()) } else { damaged("ends too early") }
    }

    fn skipped(&mut self, len: u64) -> Result<Value, Fault> {
        self.skip(len)?;
        Ok(Value::Other)
    }

    fn long(&mut self, len: u64) -> Result<Value, Fault> {
        if len > 8 {
            return self.skipped(len);
        }
        let mut bytes = [0; 8];
        let len = len as usize;
        self.input.read_exact(&mut bytes[..len])?;
        let is_negative = len > 0 && bytes[len - 1] >= 0x80;
        bytes[len..].fill(if is_negative { 0xff } else { 0 });
        Ok(Value::Int(i64::from_le_bytes(bytes)))
    }

    fn text(&mut self, len: u64) -> Result<Value, Fault> {
        let mut bytes = Vec::new();
        Read::take(&mut *self.input, len).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != len {
            return damaged("ends in the middle of a string");
        }
        self.budget.take(bytes.len())?;
        Ok(Value::Text(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()).into()))
    }

    fn line(&mut self) -> Result<Box<str>, Fault> {
        let mut bytes = Vec::new();
        Read::take(&mut *self.input, MAX_LINE).read_until(b'\n', &mut bytes)?;
        if bytes.pop() != Some(b'\n') {
            return damaged("ends in the middle of a line, or has one without an end");
        }
        self.budget.take(2 * bytes.len())?;
        Ok(String::from_utf8_lossy(&bytes).into())
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Fault> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => damaged("has a key without a value"),
    }
}

fn storage_dtype(class: &str) -> Option<StoredDtype> {
    Some(match class.rsplit('.').next().unwrap_or_default() {
        "DoubleStorage" => StoredDtype::F64,
        "FloatStorage" => StoredDtype::F32,
        "HalfStorage" => StoredDtype::F16,
        "BFloat16Storage" => StoredDtype::Bf16,
        "LongStorage" => StoredDtype::I64,
        "IntStorage" => StoredDtype::I32,
        "ShortStorage" => StoredDtype::I16,
        "CharStorage" => StoredDtype::I8,
        "ByteStorage" => StoredDtype::U8,
        "BoolStorage" => StoredDtype::Bool,
        "UntypedStorage" => return None,
        other => StoredDtype::Other(other.into()),
    })
}

fn named_dtype(name: &str) -> StoredDtype {
    match name.rsplit('.').next().unwrap_or_default() {
        "float64" | "double" => StoredDtype::F64,
        "float32" | "float" => StoredDtype::F32,
        "float16" | "half" => StoredDtype::F16,
        "bfloat16" => StoredDtype::Bf16,
        "float8_e4m3fn" => StoredDtype::F8E4m3,
        "float8_e5m2" => StoredDtype::F8E5m2,
        "int64" | "long" => StoredDtype::I64,
        "int32" | "int" => StoredDtype::I32,
        "int16" | "short" => StoredDtype::I16,
        "int8" => StoredDtype::I8,
        "uint64" => StoredDtype::U64,
        "uint32" => StoredDtype::U32,
        "uint16" => StoredDtype::U16,
        "uint8" => StoredDtype::U8,
        "bool" => StoredDtype::Bool,
        other => StoredDtype::Other(other.into()),
    }
}
