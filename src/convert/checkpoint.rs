//! PyTorch checkpoints: names, shapes and values of the tensors in a `.pth`, read without executing any of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use zip::result::ZipError;

use super::names::{Selection, network_names};
use super::pickle::{Pickle, PickleError, Value, ValueId};
use super::storage::{Container, Storage, check_unpacked, is_plain};
use crate::model::file::SPEC_KEY;

/// Most dimensions of a tensor; a 3D convolution's weight has five.
const MAX_RANK: usize = 8;

/// An open checkpoint. Tensors are read when asked for.
pub struct Checkpoint {
    source: Source,
    entries: BTreeMap<String, Entry>,
    arch: Option<String>,
}

/// Where the bytes are.
enum Source {
    Torch(Container),
    /// A whole safetensors file.
    Safetensors(Vec<u8>),
}

/// What the state_dict has under a name.
enum Entry {
    Tensor(StoredTensor),
    /// One of a safetensors file, under the name that it has there.
    Plain {
        name: String,
        shape: Vec<usize>,
    },
    /// What it is instead, in words.
    Other(String),
}

/// Where a tensor's values lie.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StoredTensor {
    storage: Storage,
    /// Elements from the storage's start.
    offset: u64,
    shape: Vec<usize>,
    /// In elements, one a dimension.
    strides: Vec<u64>,
}

/// Why a file is not taken as a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Some other file.
    #[error("not a PyTorch checkpoint but {what}")]
    NotACheckpoint {
        /// What it seems to be.
        what: &'static str,
    },
    /// A pickle of something else.
    #[error("a Python pickle, but not one that torch.save wrote: it holds {found} (nothing of it was executed)")]
    NotATorchPickle {
        /// Its value, in words.
        found: String,
    },
    /// A format older or newer than any known one.
    #[error("the checkpoint's format version is {found}; expected 1001")]
    LegacyProtocol {
        /// Its value, in words.
        found: String,
    },
    /// The pickle is damaged.
    #[error("the checkpoint's pickle is damaged or cut short: {0}")]
    Pickle(#[from] PickleError),
    /// The zip archive is damaged.
    #[error("the checkpoint's zip archive is damaged or cut short: {0}")]
    Zip(#[from] ZipError),
    /// An archive of a great many files.
    #[error("the archive has {actual} entries; the limit is {limit}")]
    TooManyEntries {
        /// As found.
        actual: usize,
        /// The most allowed.
        limit: usize,
    },
    /// One entry is larger than its place in a checkpoint allows.
    #[error("{name} in the archive has {actual} bytes or more; expected at most {limit}")]
    EntryTooLarge {
        /// Of the entry.
        name: String,
        /// Bytes.
        actual: u64,
        /// Bytes.
        limit: u64,
    },
    /// The file claims to hold far more than it can.
    #[error("the file has {file} bytes but unpacks to {unpacked}; the limit for its size is {limit}")]
    Bomb {
        /// Bytes.
        unpacked: u64,
        /// Bytes.
        file: u64,
        /// Bytes.
        limit: u64,
    },
    /// Written on a machine of the other byte order.
    #[error("the checkpoint is big-endian; only little-endian ones are read")]
    BigEndian,
    /// The list that says which storages follow makes no sense.
    #[error("the list of the checkpoint's storages does not fit its pickle")]
    StorageKeys,
    /// A tensor refers to data that is not there.
    #[error("storage {key} is not in the checkpoint")]
    StorageMissing {
        /// Name of the storage.
        key: String,
    },
    /// The file ends too early.
    #[error("the checkpoint is cut short: storage {key} needs {expected} bytes, {available} are left")]
    StorageTruncated {
        /// Name of the storage.
        key: String,
        /// Bytes.
        expected: u64,
        /// Bytes.
        available: u64,
    },
    /// Header and reference disagree.
    #[error("storage {key} has {found} bytes; its tensors expect {expected}")]
    StorageSize {
        /// Name of the storage.
        key: String,
        /// Bytes.
        found: u64,
        /// Bytes.
        expected: u64,
    },
    /// A module with its code, rather than its weights.
    #[error(
        "the checkpoint is a whole module ({class}), which only the code that made it can read (nothing of it was executed); \
         there, torch.save(model.state_dict(), FILE) saves its weights"
    )]
    WholeModule {
        /// Of the module.
        class: String,
    },
    /// Nothing under a key that was asked for.
    #[error("the checkpoint has no dictionary of tensors under {key}; its keys are {}", keys.join(", "))]
    NoSuchKey {
        /// As asked for.
        key: String,
        /// Those on its level.
        keys: Vec<String>,
    },
    /// Several dictionaries that may be meant.
    #[error("the checkpoint has tensors under several keys: {}; --key says which", keys.join(", "))]
    SeveralKeys {
        /// Those with tensors.
        keys: Vec<String>,
    },
    /// No names of the prefix that was asked for.
    #[error("no tensor's name begins with {prefix}; the first ones are {}", names.join(", "))]
    NoSuchPrefix {
        /// As asked for.
        prefix: String,
        /// Names that there are.
        names: Vec<String>,
    },
    /// Several networks that may be meant.
    #[error("the checkpoint has several networks; --prefix says which: {}", shown(prefixes))]
    SeveralNetworks {
        /// What their names begin with.
        prefixes: Vec<String>,
    },
    /// A safetensors file with a broken header.
    #[error("the safetensors file is damaged: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// The top value is something else.
    #[error(
        "the checkpoint holds {found}; expected a dictionary of tensors or one with such under `state_dict`, `model` or the \
         like (nothing of it was executed)"
    )]
    NoStateDict {
        /// The value, in words.
        found: String,
    },
    /// A layer's tensor is not there.
    #[error("the checkpoint has no tensor {name}")]
    MissingTensor {
        /// Name in the checkpoint.
        name: String,
    },
    /// Something else stands under a tensor's name.
    #[error("{name} in the checkpoint is {found}; expected a tensor")]
    NotATensor {
        /// Name in the checkpoint.
        name: String,
        /// The value, in words.
        found: String,
    },
    /// A tensor whose elements lie outside its storage.
    #[error(
        "tensor {name} of shape {shape:?} and strides {strides:?} at element {offset} exceeds its storage of {length} elements"
    )]
    OutOfBounds {
        /// Name in the checkpoint.
        name: String,
        /// Dimensions.
        shape: Vec<usize>,
        /// In elements.
        strides: Vec<u64>,
        /// In elements.
        offset: u64,
        /// Of the storage, in elements.
        length: u64,
    },
    /// A tensor of a type that no layer has.
    #[error("tensor {name} is of a type that is not converted; allowed are float, double, half, bfloat16 and long")]
    ElementType {
        /// Name in the checkpoint.
        name: String,
    },
    /// candle refused the values.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// What is said of what `convert` makes.
pub(crate) const MODEL_FILE: &str = "a model file already; `serve`, `classify` and `train --init` take it as it is";

impl Checkpoint {
    /// Opens a file that `torch.save` wrote, with the weights anywhere in it where training scripts usually put them, or a
    /// safetensors file. What wrappers such as `DataParallel` put before the names is taken off.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::open_selected(path, &Selection::default())
    }

    /// The same, with the weights where `selection` says.
    pub fn open_selected(path: &Path, selection: &Selection) -> Result<Self, CheckpointError> {
        let mut file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let mut head = [0; 9];
        let read = file.by_ref().take(9).read(&mut head)?;
        file.rewind()?;
        if read == 9 && head[8] == b'{' {
            return Self::open_safetensors(file, selection);
        }
        let (container, pickle) = Container::open(file)?;
        let pickle = Pickle::read(&pickle)?;
        let Some(top) = mapping(&pickle, pickle.root()) else {
            return Err(no_state_dict(&pickle, pickle.root(), ""));
        };
        let arch = top.iter().find(|&&(key, _)| pickle.as_str(key) == Some("arch"));
        let arch = arch.and_then(|&(_, value)| pickle.as_str(value)).map(str::to_owned);
        let items = match &selection.key {
            Some(key) => items_under(&pickle, top, key)?,
            None => find_state_dict(&pickle, top)?,
        };
        let entries = entries(&pickle, &items);
        if !entries.values().any(|entry| matches!(entry, Entry::Tensor(_))) {
            let keys: Vec<_> = entries.keys().take(8).map(String::as_str).collect();
            let found = format!("a dictionary without tensors (keys: {})", keys.join(", "));
            return Err(CheckpointError::NoStateDict { found });
        }

        let mut total = 0u64;
        for (name, entry) in &entries {
            if let Entry::Tensor(tensor) = entry {
                tensor.check(name)?;
                total = total.saturating_add(tensor.elements().saturating_mul(tensor.storage.element.bytes));
            }
        }
        check_unpacked(total, file_bytes)?;
        Ok(Self { source: Source::Torch(container), entries: named(entries, selection)?, arch })
    }

    fn open_safetensors(mut file: File, selection: &Selection) -> Result<Self, CheckpointError> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
        if metadata.metadata().as_ref().is_some_and(|metadata| metadata.contains_key(SPEC_KEY)) {
            return Err(CheckpointError::NotACheckpoint { what: MODEL_FILE });
        }
        let tensors = SafeTensors::deserialize(&bytes)?;
        let entries = tensors.iter().filter(|(name, _)| is_plain(name)).map(|(name, view)| {
            (name.to_owned(), Entry::Plain { name: name.to_owned(), shape: view.shape().to_vec() })
        });
        let entries = named(entries.collect(), selection)?;
        Ok(Self { source: Source::Safetensors(bytes), entries, arch: None })
    }

    /// Names and shapes of all tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().filter_map(|(name, entry)| match entry {
            Entry::Tensor(StoredTensor { shape, .. }) | Entry::Plain { shape, .. } => {
                Some((name.as_str(), shape.as_slice()))
            }
            Entry::Other(_) => None,
        })
    }

    /// Dimensions of a tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize], CheckpointError> {
        match self.entry(name)? {
            Entry::Tensor(StoredTensor { shape, .. }) | Entry::Plain { shape, .. } => Ok(shape),
            Entry::Other(found) => Err(CheckpointError::NotATensor { name: name.to_owned(), found: found.clone() }),
        }
    }

    /// Whether anything stands under a name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The name of the network that the authors' code saves beside the weights, such as `resnet-34`.
    pub fn arch(&self) -> Option<&str> {
        self.arch.as_deref()
    }

    /// A tensor's values in the file's type, on the CPU.
    pub fn read(&mut self, name: &str) -> Result<Tensor, CheckpointError> {
        let unknown_type = || CheckpointError::ElementType { name: name.to_owned() };
        match (self.entry(name)?, &self.source) {
            (Entry::Other(found), _) => {
                Err(CheckpointError::NotATensor { name: name.to_owned(), found: found.clone() })
            }
            (Entry::Plain { name: in_file, shape }, Source::Safetensors(bytes)) => {
                let tensors = SafeTensors::deserialize(bytes)?;
                let view = tensors.tensor(in_file)?;
                let dtype = DType::try_from(view.dtype()).map_err(|_| unknown_type())?;
                Ok(Tensor::from_raw_buffer(view.data(), dtype, shape, &Device::Cpu)?)
            }
            (Entry::Tensor(tensor), _) => {
                let tensor = tensor.clone();
                let dtype = tensor.storage.element.dtype.ok_or_else(unknown_type)?;
                let first = tensor.storage.start + tensor.offset;
                let Source::Torch(container) = &mut self.source else { unreachable!("the tensor came from there") };
                let bytes = container.read(&tensor.storage, first, tensor.span())?;
                let bytes = if tensor.is_row_major() { bytes } else { tensor.gather(&bytes, dtype.size_in_bytes()) };
                Ok(Tensor::from_raw_buffer(&bytes, dtype, &tensor.shape, &Device::Cpu)?)
            }
            (Entry::Plain { .. }, Source::Torch(_)) => unreachable!("the tensor came from the other"),
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry, CheckpointError> {
        self.entries.get(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.to_owned() })
    }
}

/// Under the names that the network has for them.
fn named(
    mut entries: BTreeMap<String, Entry>,
    selection: &Selection,
) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    let rank = |entry: &Entry| match entry {
        Entry::Tensor(StoredTensor { shape, .. }) | Entry::Plain { shape, .. } => shape.len(),
        Entry::Other(_) => 0,
    };
    let ranks = entries.iter().map(|(name, entry)| (name.clone(), rank(entry))).collect();
    let names = network_names(&ranks, selection)?;
    Ok(names.into_iter().filter_map(|(file, name)| Some((name, entries.remove(&file)?))).collect())
}

/// Where training scripts put the weights in what they save, the surest first.
const STATE_DICT_KEYS: [&str; 10] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "state",
    "module",
];

/// How deep dictionaries lie within each other.
const DEPTH: usize = 3;

type Items = Vec<(ValueId, ValueId)>;

fn find_state_dict(pickle: &Pickle<'_>, mut top: Items) -> Result<Items, CheckpointError> {
    let has_tensors = |items: &Items| items.iter().any(|&(_, value)| StoredTensor::from_value(pickle, value).is_some());
    for _ in 0..DEPTH {
        let under =
            |key: &str| top.iter().rev().find(|&&(name, _)| pickle.as_str(name) == Some(key)).map(|&(_, value)| value);
        // One that is empty or something else is told of, rather than others taken.
        if let Some(value) = under("state_dict") {
            top = mapping(pickle, value).ok_or_else(|| no_state_dict(pickle, value, " under `state_dict`"))?;
            continue;
        }
        if has_tensors(&top) {
            return Ok(top);
        }
        let known = STATE_DICT_KEYS.iter().find_map(|key| Some((*key, under(key)?)));
        match known {
            Some((key, value)) => {
                top = mapping(pickle, value).ok_or_else(|| no_state_dict(pickle, value, &format!(" under `{key}`")))?;
            }
            None => {
                let mut with_tensors: Vec<(&str, Items)> = top
                    .iter()
                    .filter_map(|&(key, value)| {
                        Some((pickle.as_str(key).filter(|key| is_plain(key))?, mapping(pickle, value)?))
                    })
                    .filter(|(_, items)| has_tensors(items))
                    .collect();
                match with_tensors.len() {
                    0 => return Ok(top),
                    1 => return Ok(with_tensors.remove(0).1),
                    _ => {
                        let keys = with_tensors.into_iter().map(|(key, _)| key.to_owned()).collect();
                        return Err(CheckpointError::SeveralKeys { keys });
                    }
                }
            }
        }
    }
    Ok(top)
}

/// The dictionary under `outer.inner`; a key that has dots itself is found, too.
fn items_under(pickle: &Pickle<'_>, top: Items, key: &str) -> Result<Items, CheckpointError> {
    let mut level = top;
    let mut rest = key;
    loop {
        let keys: Vec<(&str, ValueId)> = level
            .iter()
            .filter_map(|&(key, value)| Some((pickle.as_str(key).filter(|key| is_plain(key))?, value)))
            .collect();
        let found = keys.iter().rev().find_map(|&(name, value)| {
            let after = rest.strip_prefix(name)?;
            let after = if after.is_empty() { after } else { after.strip_prefix('.')? };
            Some((after, value))
        });
        let missing = || CheckpointError::NoSuchKey {
            key: key.to_owned(),
            keys: keys.iter().take(16).map(|(key, _)| (*key).to_owned()).collect(),
        };
        let (after, value) = found.ok_or_else(missing)?;
        let items = mapping(pickle, value).ok_or_else(|| no_state_dict(pickle, value, &format!(" under `{key}`")))?;
        if after.is_empty() {
            return Ok(items);
        }
        (level, rest) = (items, after);
    }
}

/// What stands where a dictionary should.
fn no_state_dict(pickle: &Pickle<'_>, value: ValueId, place: &str) -> CheckpointError {
    let found = pickle.describe(value);
    if let Value::Call { callable, .. } = pickle.get(value)
        && let Some((module, name)) = pickle.as_global(*callable)
        && !["collections", "builtins", "__builtin__", "numpy", "torch", "torch._utils"].contains(&module)
        && is_plain(module)
        && is_plain(name)
        && !name.is_empty()
        && (name.starts_with(char::is_uppercase) || module == "copyreg" || module == "copy_reg")
    {
        return CheckpointError::WholeModule { class: found };
    }
    CheckpointError::NoStateDict { found: format!("{found}{place}") }
}

/// Prefixes for a person; that of nothing needs a word.
fn shown(prefixes: &[String]) -> String {
    let quoted: Vec<String> = prefixes.iter().map(|prefix| format!("{prefix:?}")).collect();
    quoted.join(", ")
}

impl StoredTensor {
    /// The tensor that a value is, through any number of `Parameter` around it.
    fn from_value(pickle: &Pickle<'_>, mut id: ValueId) -> Option<Self> {
        loop {
            let Value::Call { callable, args, .. } = pickle.get(id) else { return None };
            let ("torch._utils", function) = pickle.as_global(*callable)? else { return None };
            // A list could hold its own call and so turn this into an endless loop; torch writes tuples.
            let Value::Tuple(args) = pickle.get(*args) else { return None };
            match (function, args.as_slice()) {
                ("_rebuild_parameter" | "_rebuild_parameter_with_state", [data, ..]) => id = *data,
                ("_rebuild_tensor" | "_rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                    let (shape, strides) = (numbers(pickle, *shape)?, numbers(pickle, *strides)?);
                    if shape.len() != strides.len() || shape.len() > MAX_RANK {
                        return None;
                    }
                    return Some(Self {
                        storage: Storage::from_value(pickle, *storage)?,
                        offset: pickle.as_u64(*offset)?,
                        shape: shape.into_iter().map(|size| usize::try_from(size).ok()).collect::<Option<_>>()?,
                        strides,
                    });
                }
                _ => return None,
            }
        }
    }

    /// That every element lies in the storage, and that there are no more of them than the storage has: then a
    /// tensor takes no more memory than its storage takes in the file.
    fn check(&self, name: &str) -> Result<(), CheckpointError> {
        let storage = &self.storage;
        let within = || {
            let elements = self.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64))?;
            let last = self.shape.iter().zip(&self.strides).try_fold(self.offset, |last, (&size, &stride)| {
                last.checked_add((size as u64).saturating_sub(1).checked_mul(stride)?)
            })?;
            let view_end = storage.start.checked_add(storage.length)?;
            storage.total.checked_mul(storage.element.bytes)?;
            let inside = if elements == 0 { self.offset <= storage.length } else { last < storage.length };
            Some(inside && elements <= storage.length && view_end <= storage.total)
        };
        if within() == Some(true) {
            return Ok(());
        }
        Err(CheckpointError::OutOfBounds {
            name: name.to_owned(),
            shape: self.shape.clone(),
            strides: self.strides.clone(),
            offset: self.offset,
            length: storage.length,
        })
    }

    /// Elements; `check` has shown that the product fits.
    fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Elements of the storage from the tensor's first to its last.
    fn span(&self) -> u64 {
        if self.elements() == 0 {
            return 0;
        }
        let steps = self.shape.iter().zip(&self.strides).map(|(&size, &stride)| (size as u64 - 1) * stride);
        steps.sum::<u64>() + 1
    }

    /// Whether the elements lie in the storage without gaps, in the order in which they are counted.
    fn is_row_major(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size as u64;
            fits
        })
    }

    /// The elements in row-major order, from the bytes of the [`span`](Self::span).
    fn gather(&self, span: &[u8], element: usize) -> Vec<u8> {
        let mut gathered = Vec::with_capacity(self.elements() as usize * element);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..self.elements() {
            let steps = index.iter().zip(&self.strides).map(|(&step, &stride)| step as u64 * stride);
            let start = steps.sum::<u64>() as usize * element;
            gathered.extend_from_slice(&span[start..start + element]);
            for dimension in (0..index.len()).rev() {
                index[dimension] += 1;
                if index[dimension] < self.shape[dimension] {
                    break;
                }
                index[dimension] = 0;
            }
        }
        gathered
    }
}

/// The items of a dictionary or `OrderedDict`.
fn mapping(pickle: &Pickle<'_>, id: ValueId) -> Option<Vec<(ValueId, ValueId)>> {
    match pickle.get(id) {
        Value::Dict(items) => Some(items.clone()),
        Value::Call { callable, args, items }
            if pickle.as_global(*callable) == Some(("collections", "OrderedDict")) =>
        {
            // Python 2 gives the items as an argument, Python 3 sets them.
            let initial = match pickle.as_sequence(*args)? {
                [] => &[],
                [pairs] => pickle.as_sequence(*pairs)?,
                _ => return None,
            };
            let pairs = initial.iter().map(|&pair| match pickle.as_sequence(pair) {
                Some(&[key, value]) => Some((key, value)),
                _ => None,
            });
            pairs.chain(items.iter().copied().map(Some)).collect()
        }
        _ => None,
    }
}

/// A shape or strides: numbers in a tuple, a list, or a `torch.Size` of one.
fn numbers(pickle: &Pickle<'_>, id: ValueId) -> Option<Vec<u64>> {
    let sequence = match pickle.get(id) {
        Value::Call { callable, args, .. } if pickle.as_global(*callable) == Some(("torch", "Size")) => {
            match pickle.as_sequence(*args)? {
                [] => &[],
                [sizes] => pickle.as_sequence(*sizes)?,
                _ => return None,
            }
        }
        _ => pickle.as_sequence(id)?,
    };
    sequence.iter().map(|&number| pickle.as_u64(number)).collect()
}

fn entries(pickle: &Pickle<'_>, items: &[(ValueId, ValueId)]) -> BTreeMap<String, Entry> {
    // No layer has a name that is not plain.
    let named = items.iter().filter_map(|&(key, value)| Some((pickle.as_str(key)?, value)));
    let entry = |value| match StoredTensor::from_value(pickle, value) {
        Some(tensor) => Entry::Tensor(tensor),
        None => Entry::Other(pickle.describe(value)),
    };
    named.filter(|(name, _)| is_plain(name)).map(|(name, value)| (name.to_owned(), entry(value))).collect()
}
