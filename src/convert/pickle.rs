//! A reader of Python pickles that executes nothing.
//!
//! Python's pickle is a program for a stack machine, one of whose instructions calls any function by name. This
//! machine builds the same graph of values, but a call stays a [`Value::Call`]: data that names a function and its
//! arguments. Which names mean something is the caller's business, so a checkpoint may hold objects of any class
//! beside its tensors, and a pickle that calls `os.system` is a value like any other.
//!
//! Instructions of protocols 2 to 5 are understood (`Lib/pickletools.py` of CPython), which are all that `torch.save`
//! has ever written, from Python 2 or 3. Values live in one arena and refer to each other by index, so neither deep
//! nesting nor cycles can exhaust the call stack.

use std::collections::HashMap;

/// Most values in one pickle. A ResNet-200 with its optimizer's state has about 60 000.
pub(super) const MAX_VALUES: usize = 2_000_000;

/// Most values on the machine's stack; Python writes collections in batches of 1000.
const MAX_STACK: usize = 200_000;

/// Most references from collections to values.
const MAX_ITEMS: usize = 4_000_000;

/// Index of a value in its [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ValueId(u32);

/// One Python value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits.
    Int(i64),
    /// A longer integer: little-endian two's complement.
    BigInt(&'a [u8]),
    /// A float.
    Float(f64),
    /// Text; also a `str` of Python 2 that is UTF-8.
    Str(&'a str),
    /// Bytes; also a `str` of Python 2 that is not UTF-8.
    Bytes(&'a [u8]),
    /// A tuple.
    Tuple(Vec<ValueId>),
    /// A list or set.
    List(Vec<ValueId>),
    /// Keys and values as they were set; a later one of the same key replaces an earlier.
    Dict(Vec<(ValueId, ValueId)>),
    /// The name of a class or function.
    Global {
        /// Dotted.
        module: &'a str,
        /// Within the module.
        name: &'a str,
    },
    /// What Python would have got by calling something.
    Call {
        /// Usually a [`Value::Global`].
        callable: ValueId,
        /// Usually a [`Value::Tuple`].
        args: ValueId,
        /// Keys and values that were set on the result.
        items: Vec<(ValueId, ValueId)>,
    },
    /// A reference to something outside the pickle, such as a storage.
    Persistent(ValueId),
}

/// A pickle's values.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: ValueId,
    length: usize,
}

/// Why bytes are not a pickle that this reader takes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PickleError {
    /// The bytes end within an instruction or before the last.
    #[error("the pickle ends at byte {offset}, before its end mark")]
    Truncated {
        /// Where the bytes end.
        offset: usize,
    },
    /// An instruction that no `torch.save` writes.
    #[error("unknown instruction {opcode:#04x} at byte {offset}")]
    Opcode {
        /// Its code.
        opcode: u8,
        /// Where it stands.
        offset: usize,
    },
    /// Newer than this reader, or nonsense.
    #[error("pickle protocol is {actual}; the highest allowed is 5")]
    Protocol {
        /// As declared.
        actual: u8,
    },
    /// An instruction whose operands can't be.
    #[error("instruction {opcode:#04x} at byte {offset}: {problem}")]
    Operand {
        /// Its code.
        opcode: u8,
        /// Where it stands.
        offset: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// More than any checkpoint of a network has.
    #[error("the pickle has more than {limit} {what}")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// The most allowed.
        limit: usize,
    },
}

impl<'a> Pickle<'a> {
    /// Reads one pickle from the start of `bytes`; what follows it is left alone.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, PickleError> {
        Machine {
            bytes,
            position: 0,
            opcode: 0,
            opcode_offset: 0,
            values: Vec::new(),
            item_count: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
        .run()
    }

    /// The value that the pickle is of.
    pub(super) fn root(&self) -> ValueId {
        self.root
    }

    /// Bytes of the pickle itself.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The value behind an index.
    pub(super) fn get(&self, id: ValueId) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    /// All values in the order of their making.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value<'a>> {
        self.values.iter()
    }

    /// The text of a string.
    pub(super) fn as_str(&self, id: ValueId) -> Option<&'a str> {
        match *self.get(id) {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is an integer that fits.
    pub(super) fn as_u64(&self, id: ValueId) -> Option<u64> {
        match *self.get(id) {
            Value::Int(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// The members of a tuple or list.
    pub(super) fn as_sequence(&self, id: ValueId) -> Option<&[ValueId]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Module and name of a global.
    pub(super) fn as_global(&self, id: ValueId) -> Option<(&'a str, &'a str)> {
        match *self.get(id) {
            Value::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// What a value is, for messages: `a list`, `the result of os.system`.
    pub(super) fn describe(&self, id: ValueId) -> String {
        match self.get(id) {
            Value::None => "None".to_owned(),
            Value::Bool(_) => "a boolean".to_owned(),
            Value::Int(_) | Value::BigInt(_) | Value::Float(_) => "a number".to_owned(),
            Value::Str(_) => "a string".to_owned(),
            Value::Bytes(_) => "bytes".to_owned(),
            Value::Tuple(_) => "a tuple".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Dict(_) => "a dictionary".to_owned(),
            Value::Global { module, name } => format!("the name {}.{}", shortened(module), shortened(name)),
            Value::Call { callable, .. } => match self.as_global(*callable) {
                Some((module, name)) => format!("an object of {}.{}", shortened(module), shortened(name)),
                None => "an object".to_owned(),
            },
            Value::Persistent(_) => "a storage".to_owned(),
        }
    }
}

/// Names from a file are not to flood a terminal.
fn shortened(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    opcode: u8,
    opcode_offset: usize,
    values: Vec<Value<'a>>,
    item_count: usize,
    stack: Vec<ValueId>,
    /// Heights of the stack at which a mark lies.
    marks: Vec<usize>,
    memo: HashMap<u64, ValueId>,
}

impl<'a> Machine<'a> {
    fn run(mut self) -> Result<Pickle<'a>, PickleError> {
        loop {
            self.opcode_offset = self.position;
            self.opcode = self.take(1)?[0];
            if self.opcode == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { values: self.values, root, length: self.position });
            }
            self.step()?;
        }
    }

    fn step(&mut self) -> Result<(), PickleError> {
        match self.opcode {
            // PROTO, FRAME: framing only.
            0x80 => match self.take(1)?[0] {
                0..=5 => {}
                actual => return Err(PickleError::Protocol { actual }),
            },
            0x95 => {
                self.take(8)?;
            }

            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,

            // BININT, BININT1, BININT2, LONG1, LONG4, INT and LONG (as text), BINFLOAT
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(number.into()))?;
            }
            b'K' => {
                let number = self.take(1)?[0];
                self.push(Value::Int(number.into()))?;
            }
            b'M' => {
                let number = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(number.into()))?;
            }
            0x8a => {
                let length = self.take(1)?[0];
                self.long(length.into())?;
            }
            0x8b => {
                let length = u32::from_le_bytes(self.array()?);
                self.long(length as usize)?;
            }
            b'I' | b'L' => {
                // `I00` and `I01` are how protocol 1 wrote booleans; as numbers they serve the same.
                let text = self.line()?;
                let number = text.trim_end_matches('L').parse().map_err(|_| self.operand("not a 64-bit integer"))?;
                self.push(Value::Int(number))?;
            }
            b'G' => {
                let number = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(number))?;
            }

            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8: UTF-8 with surrogates let through, hence `text`.
            b'X' => self.counted::<4>(true)?,
            0x8c => self.counted::<1>(true)?,
            0x8d => self.counted::<8>(true)?,
            // BINSTRING, SHORT_BINSTRING: Python 2's `str`.
            b'T' => self.counted::<4>(true)?,
            b'U' => self.counted::<1>(true)?,
            // BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
            b'B' => self.counted::<4>(false)?,
            b'C' => self.counted::<1>(false)?,
            0x8e | 0x96 => self.counted::<8>(false)?,

            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let count = usize::from(self.opcode - 0x84);
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.count_items(count)?;
                self.push(Value::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }

            // EMPTY_LIST, EMPTY_SET, LIST, FROZENSET, APPEND, APPENDS, ADDITEMS
            b']' | 0x8f => self.push(Value::List(Vec::new()))?,
            b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.count_items(1)?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }

            // EMPTY_DICT, DICT, SETITEM, SETITEMS
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.set_items(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.count_items(2)?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }

            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.push(Value::Global { module, name })?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.text(module), self.text(name)) {
                    (Some(module), Some(name)) => self.push(Value::Global { module, name })?,
                    _ => return Err(self.operand("module and name are not text")),
                }
            }

            // REDUCE, NEWOBJ, NEWOBJ_EX
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.push(Value::Call { callable, args, items: Vec::new() })?;
            }
            0x92 => {
                let (_keywords, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.push(Value::Call { callable: class, args, items: Vec::new() })?;
            }
            // BUILD sets attributes; those of the values in a checkpoint (`_metadata` of a state_dict) carry no tensor.
            b'b' => {
                self.pop()?;
                self.top()?;
            }

            // PERSID, BINPERSID
            b'P' => {
                let text = self.line()?;
                self.push(Value::Str(text))?;
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }

            // MARK, POP, POP_MARK, DUP
            b'(' => {
                if self.marks.len() >= MAX_STACK {
                    return Err(PickleError::TooMany { what: "nested marks", limit: MAX_STACK });
                }
                self.marks.push(self.stack.len());
            }
            b'0' => {
                // CPython pops the mark itself if nothing lies above it.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.pop_to_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.push_id(top)?;
            }

            // GET, BINGET, LONG_BINGET
            b'g' => {
                let index = self.line()?.parse().map_err(|_| self.operand("not an index"))?;
                self.recall(index)?;
            }
            b'h' => {
                let index = self.take(1)?[0];
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index.into())?;
            }

            // PUT, BINPUT, LONG_BINPUT, MEMOIZE
            b'p' => {
                let index = self.line()?.parse().map_err(|_| self.operand("not an index"))?;
                self.memoize(index)?;
            }
            b'q' => {
                let index = self.take(1)?[0];
                self.memoize(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.array()?);
                self.memoize(index.into())?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,

            opcode => return Err(PickleError::Opcode { opcode, offset: self.opcode_offset }),
        }
        Ok(())
    }

    // ---- Bytes ----

    fn take(&mut self, count: usize) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.position..];
        let taken = rest.get(..count).ok_or(PickleError::Truncated { offset: self.bytes.len() })?;
        self.position += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        Ok(self.take(N)?.try_into().expect("take gives the count asked for"))
    }

    /// Text up to a line feed, without it.
    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|&byte| byte == b'\n');
        let length = length.ok_or(PickleError::Truncated { offset: self.bytes.len() })?;
        let line = std::str::from_utf8(self.take(length)?).map_err(|_| self.operand("not UTF-8"))?;
        self.take(1)?;
        Ok(line.trim_end_matches('\r'))
    }

    /// Bytes after their little-endian count of `N` bytes.
    fn counted<const N: usize>(&mut self, text: bool) -> Result<(), PickleError> {
        let mut count = [0; 8];
        count[..N].copy_from_slice(self.take(N)?);
        let count = usize::try_from(u64::from_le_bytes(count)).unwrap_or(usize::MAX);
        let bytes = self.take(count)?;
        self.push(match std::str::from_utf8(bytes) {
            Ok(string) if text => Value::Str(string),
            _ => Value::Bytes(bytes),
        })
    }

    fn long(&mut self, length: usize) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        if length > 8 {
            return self.push(Value::BigInt(bytes));
        }
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut extended = [sign; 8];
        extended[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(extended)))
    }

    // ---- Stack ----

    fn push(&mut self, value: Value<'a>) -> Result<(), PickleError> {
        if self.values.len() >= MAX_VALUES {
            return Err(PickleError::TooMany { what: "values", limit: MAX_VALUES });
        }
        let id = ValueId(self.values.len() as u32);
        self.values.push(value);
        self.push_id(id)
    }

    fn push_id(&mut self, id: ValueId) -> Result<(), PickleError> {
        if self.stack.len() >= MAX_STACK {
            return Err(PickleError::TooMany { what: "values on the stack", limit: MAX_STACK });
        }
        self.stack.push(id);
        Ok(())
    }

    fn top(&self) -> Result<ValueId, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or(self.operand("the stack is empty"))
    }

    fn pop(&mut self) -> Result<ValueId, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<ValueId>, PickleError> {
        let mark = self.marks.pop().ok_or(self.operand("no mark lies below"))?;
        let items = self.stack.split_off(mark);
        self.count_items(items.len())?;
        Ok(items)
    }

    fn count_items(&mut self, count: usize) -> Result<(), PickleError> {
        self.item_count += count;
        if self.item_count > MAX_ITEMS {
            return Err(PickleError::TooMany { what: "members of collections", limit: MAX_ITEMS });
        }
        Ok(())
    }

    // ---- Memo and collections ----

    fn memoize(&mut self, index: u64) -> Result<(), PickleError> {
        let top = self.top()?;
        if self.memo.len() >= MAX_VALUES {
            return Err(PickleError::TooMany { what: "remembered values", limit: MAX_VALUES });
        }
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), PickleError> {
        let id = self.memo.get(&index).copied().ok_or(self.operand("nothing is remembered under this index"))?;
        self.push_id(id)
    }

    fn append(&mut self, items: &[ValueId]) -> Result<(), PickleError> {
        let list = self.top()?;
        match &mut self.values[list.0 as usize] {
            Value::List(list) => list.extend_from_slice(items),
            // A class derived from `list`: none that a checkpoint's tensors are in.
            Value::Call { .. } => {}
            _ => return Err(self.operand("not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, keys_and_values: &[ValueId]) -> Result<(), PickleError> {
        let dict = self.top()?;
        let (pairs, []) = keys_and_values.as_chunks::<2>() else {
            return Err(self.operand("a key has no value"));
        };
        match &mut self.values[dict.0 as usize] {
            Value::Dict(items) | Value::Call { items, .. } => {
                items.extend(pairs.iter().map(|&[key, value]| (key, value)))
            }
            _ => return Err(self.operand("not a dictionary")),
        }
        Ok(())
    }

    fn text(&self, id: ValueId) -> Option<&'a str> {
        match self.values[id.0 as usize] {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    fn operand(&self, problem: &'static str) -> PickleError {
        PickleError::Operand { opcode: self.opcode, offset: self.opcode_offset, problem }
    }
}
