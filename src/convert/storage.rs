//! Where a checkpoint's bytes lie: the two file formats of `torch.save`, and the storages in them.
//!
//! * Since torch 1.6: a zip archive with `<name>/data.pkl` and one entry `<name>/data/<key>` a storage.
//! * Before: five pickles in a row (magic number, protocol, system, object, keys of the storages), then for each key
//!   its element count (i64) and elements. Both are described in `torch/serialization.py`.
//!
//! Storages are read one at a time when a tensor of theirs is asked for: an optimizer's state is never read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use candle_core::DType;
use zip::ZipArchive;
use zip::result::ZipError;

use super::checkpoint::CheckpointError;
use super::pickle::{Pickle, Value, ValueId};

/// Largest pickle that is read. That of a ResNet-200 with optimizer state has about 1 MB.
pub(super) const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// Most entries of a zip archive.
const MAX_ENTRIES: usize = 100_000;

/// How many times its own size a checkpoint may unpack to. Weights hardly compress, and `torch.save` doesn't try.
const MAX_EXPANSION: u64 = 16;

/// What any file may unpack to.
const MIN_UNPACKED_BYTES: u64 = 1 << 20;

/// What no file may unpack to. A ResNet-200 with its optimizer's state has 1 GB.
const MAX_UNPACKED_BYTES: u64 = 16 << 30;

/// `MAGIC_NUMBER` of `torch/serialization.py`, 0x1950a86a20f9469cfc6c.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Refuses what unpacks to far more than the file's own size.
pub(super) fn check_unpacked(unpacked: u64, file: u64) -> Result<(), CheckpointError> {
    let limit = file.saturating_mul(MAX_EXPANSION).clamp(MIN_UNPACKED_BYTES, MAX_UNPACKED_BYTES);
    if unpacked > limit {
        return Err(CheckpointError::Bomb { unpacked, file, limit });
    }
    Ok(())
}

/// A storage as the pickle names it: a flat array of one type, or a view of a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    /// Name of the array in the file.
    pub(super) key: String,
    /// Of the elements.
    pub(super) element: Element,
    /// Elements of the array.
    pub(super) total: u64,
    /// First element of the view.
    pub(super) start: u64,
    /// Elements of the view.
    pub(super) length: u64,
}

/// Type of a storage's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element {
    /// Bytes of one element.
    pub(super) bytes: u64,
    /// The type, if tensors of it are converted.
    pub(super) dtype: Option<DType>,
}

impl Storage {
    /// The storage of a persistent id `("storage", class, key, location, count[, view])`, if it is one. `view` is
    /// `(key, first element, count)` and occurs in files of torch before 0.4.
    pub(super) fn from_value(pickle: &Pickle<'_>, id: ValueId) -> Option<Self> {
        let Value::Persistent(id) = *pickle.get(id) else { return None };
        Self::from_persistent_id(pickle, id)
    }

    fn from_persistent_id(pickle: &Pickle<'_>, id: ValueId) -> Option<Self> {
        let [kind, class, key, _location, count, view @ ..] = pickle.as_sequence(id)? else { return None };
        if pickle.as_str(*kind)? != "storage" {
            return None;
        }
        let (_module, class) = pickle.as_global(*class)?;
        let total = pickle.as_u64(*count)?;
        let (start, length) = match view.first() {
            Some(&view) if *pickle.get(view) != Value::None => {
                let [_key, start, length] = pickle.as_sequence(view)? else { return None };
                (pickle.as_u64(*start)?, pickle.as_u64(*length)?)
            }
            _ => (0, total),
        };
        let key = storage_key(pickle, *key)?;
        Some(Self { key, element: Element::from_class(class)?, total, start, length })
    }
}

impl Element {
    /// The element type of a storage class such as `FloatStorage`, of `torch` or `torch.cuda`.
    fn from_class(class: &str) -> Option<Self> {
        let (bytes, dtype) = match class.strip_suffix("Storage")? {
            "Float" => (4, Some(DType::F32)),
            "Double" => (8, Some(DType::F64)),
            "Half" => (2, Some(DType::F16)),
            "BFloat16" => (2, Some(DType::BF16)),
            "Long" => (8, Some(DType::I64)),
            "Int" | "QInt32" => (4, None),
            "Short" => (2, None),
            "Char" | "Byte" | "Bool" | "QInt8" | "QUInt8" | "Untyped" => (1, None),
            "ComplexFloat" => (8, None),
            "ComplexDouble" => (16, None),
            _ => return None,
        };
        Some(Self { bytes, dtype })
    }
}

/// An open checkpoint file.
pub(super) enum Container {
    /// Since torch 1.6.
    Zip { archive: ZipArchive<BufReader<File>>, prefix: String },
    /// Before: first byte and element count of each storage.
    Legacy { file: BufReader<File>, file_bytes: u64, storages: HashMap<String, (u64, u64)> },
}

impl Container {
    /// Finds out the format; gives the container and the bytes of the object's pickle.
    pub(super) fn open(file: File) -> Result<(Self, Vec<u8>), CheckpointError> {
        let file_bytes = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let mut head = Vec::new();
        file.by_ref().take(262).read_to_end(&mut head)?;
        file.rewind()?;
        match head.as_slice() {
            [] => Err(CheckpointError::NotACheckpoint { what: "an empty file" }),
            [b'P', b'K', 3, 4, ..] => Self::open_zip(file, file_bytes),
            [0x80, ..] => Self::open_legacy(file, file_bytes),
            bytes if bytes.get(257..262) == Some(b"ustar") => {
                Err(CheckpointError::NotACheckpoint { what: "a tar archive (torch before 0.1.10 wrote such)" })
            }
            bytes => Err(CheckpointError::NotACheckpoint { what: other_file(bytes).unwrap_or(NEITHER) }),
        }
    }

    fn open_zip(file: BufReader<File>, file_bytes: u64) -> Result<(Self, Vec<u8>), CheckpointError> {
        // It begins with the file. Told so, the reader does not look for it elsewhere, where names of 21 letters mislead it.
        let config = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
        let mut archive = ZipArchive::with_config(config, file)?;
        if archive.len() > MAX_ENTRIES {
            return Err(CheckpointError::TooManyEntries { actual: archive.len(), limit: MAX_ENTRIES });
        }
        let mut unpacked = 0u64;
        let mut prefix = None;
        let mut torch_script = false;
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index)?;
            unpacked = unpacked.saturating_add(entry.size());
            match entry.name()?.split_once('/') {
                Some((root, "data.pkl")) if is_plain(root) => prefix = Some(root.to_owned()),
                Some((_, "constants.pkl")) => torch_script = true,
                _ => {}
            }
        }
        check_unpacked(unpacked, file_bytes)?;
        if torch_script {
            return Err(CheckpointError::NotACheckpoint { what: TORCH_SCRIPT });
        }
        let prefix = prefix.ok_or(CheckpointError::NotACheckpoint { what: OTHER_ZIP })?;
        if let Some(index) = archive.index_for_name(&format!("{prefix}/byteorder")) {
            let mut order = Vec::new();
            archive.by_index(index)?.take(16).read_to_end(&mut order)?;
            if order != b"little" {
                return Err(CheckpointError::BigEndian);
            }
        }
        let pickle = read_entry(&mut archive, &format!("{prefix}/data.pkl"), MAX_PICKLE_BYTES)?;
        Ok((Self::Zip { archive, prefix }, pickle))
    }

    fn open_legacy(mut file: BufReader<File>, file_bytes: u64) -> Result<(Self, Vec<u8>), CheckpointError> {
        let mut head = Vec::new();
        file.by_ref().take(MAX_PICKLE_BYTES).read_to_end(&mut head)?;

        let magic = Pickle::read(&head)?;
        if *magic.get(magic.root()) != Value::BigInt(&LEGACY_MAGIC) {
            return Err(CheckpointError::NotATorchPickle { found: magic.describe(magic.root()) });
        }
        let mut position = magic.length();
        let protocol = Pickle::read(&head[position..])?;
        if protocol.as_u64(protocol.root()) != Some(1001) {
            return Err(CheckpointError::LegacyProtocol { found: protocol.describe(protocol.root()) });
        }
        position += protocol.length();
        let system = Pickle::read(&head[position..])?;
        if let Value::Dict(items) = system.get(system.root()) {
            let order = items.iter().find(|&&(key, _)| system.as_str(key) == Some("little_endian"));
            if order.is_some_and(|&(_, little)| *system.get(little) == Value::Bool(false)) {
                return Err(CheckpointError::BigEndian);
            }
        }
        position += system.length();

        let object_start = position;
        let object = Pickle::read(&head[position..])?;
        position += object.length();
        let keys = Pickle::read(&head[position..])?;
        let keys_end = position + keys.length();

        // The element size of an array is not in its header, but with the references to it.
        let referenced: HashMap<String, Storage> = object
            .values()
            .filter_map(|value| match value {
                Value::Persistent(id) => Storage::from_persistent_id(&object, *id),
                _ => None,
            })
            .map(|storage| (storage.key.clone(), storage))
            .collect();
        let keys_in_order = keys.as_sequence(keys.root()).ok_or(CheckpointError::StorageKeys)?;
        let mut storages = HashMap::new();
        let mut offset = keys_end as u64;
        for &key in keys_in_order {
            let key = storage_key(&keys, key).ok_or(CheckpointError::StorageKeys)?;
            let storage = referenced.get(&key).ok_or(CheckpointError::StorageKeys)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut count = [0; 8];
            if file.read_exact(&mut count).is_err() {
                return Err(CheckpointError::StorageTruncated {
                    key,
                    expected: 8,
                    available: file_bytes.saturating_sub(offset),
                });
            }
            let count = u64::from_le_bytes(count);
            let start = offset + 8;
            let bytes = count.checked_mul(storage.element.bytes);
            match bytes.and_then(|bytes| start.checked_add(bytes)) {
                Some(end) if end <= file_bytes => offset = end,
                _ => {
                    let expected = bytes.unwrap_or(u64::MAX);
                    return Err(CheckpointError::StorageTruncated {
                        key,
                        expected,
                        available: file_bytes.saturating_sub(start),
                    });
                }
            }
            storages.insert(key, (start, count));
        }
        let pickle = head[object_start..position].to_vec();
        Ok((Self::Legacy { file, file_bytes, storages }, pickle))
    }

    /// Bytes of elements `first..first + count` of an array. The caller has checked that the array has them.
    pub(super) fn read(&mut self, storage: &Storage, first: u64, count: u64) -> Result<Vec<u8>, CheckpointError> {
        let element = storage.element.bytes;
        let size = |found: u64| CheckpointError::StorageSize {
            key: storage.key.clone(),
            found,
            expected: storage.total.saturating_mul(element),
        };
        match self {
            Self::Zip { archive, prefix } => {
                let name = format!("{prefix}/data/{}", storage.key);
                let total = storage.total.checked_mul(element).ok_or_else(|| size(u64::MAX))?;
                // Whole, so that the archive's checksum is checked.
                let mut bytes = read_entry(archive, &name, total)?;
                if bytes.len() as u64 != total {
                    return Err(size(bytes.len() as u64));
                }
                let start = (first * element) as usize;
                bytes.truncate(start + (count * element) as usize);
                bytes.drain(..start);
                Ok(bytes)
            }
            Self::Legacy { file, file_bytes, storages } => {
                let missing = || CheckpointError::StorageMissing { key: storage.key.clone() };
                let (start, elements) = *storages.get(&storage.key).ok_or_else(missing)?;
                if elements != storage.total {
                    return Err(size(elements.saturating_mul(element)));
                }
                let (offset, expected) = (start + first * element, count * element);
                file.seek(SeekFrom::Start(offset))?;
                let mut bytes = Vec::with_capacity(expected.min(*file_bytes) as usize);
                file.by_ref().take(expected).read_to_end(&mut bytes)?;
                if (bytes.len() as u64) < expected {
                    let available = bytes.len() as u64;
                    return Err(CheckpointError::StorageTruncated { key: storage.key.clone(), expected, available });
                }
                Ok(bytes)
            }
        }
    }
}

/// What is said of a file whose kind is not known.
pub(crate) const NEITHER: &str = "neither a zip archive nor a pickle";

const TORCH_SCRIPT: &str = "a TorchScript program with its code; torch.save(torch.jit.load(FILE).state_dict(), OUT) in Python \
    saves its weights";

const OTHER_ZIP: &str = "a zip archive without data.pkl; if a checkpoint is packed in it, unpack it first";

/// What is often saved under the name of a checkpoint, by its first bytes.
fn other_file(head: &[u8]) -> Option<&'static str> {
    let text = head.trim_ascii_start();
    let starts_with =
        |word: &str| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()));
    if starts_with("version https://git-lfs") {
        Some("a Git LFS pointer, which stands for the file; `git lfs pull` gets the file itself")
    } else if ["<!doctype", "<html", "<?xml", "<head", "<body"].iter().any(|start| starts_with(start)) {
        Some(
            "a web page, saved instead of the file; the link leads to a page that asks or refuses: open it in a browser",
        )
    } else if starts_with("{") || starts_with("[") {
        Some("JSON, perhaps the answer of a server that refused the file")
    } else if head.starts_with(&[0x1f, 0x8b]) || head.starts_with(b"7z") || head.starts_with(&[0xfd, b'7', b'z']) {
        Some("a compressed archive; unpack it first")
    } else {
        None
    }
}

/// Whether a name may stand in a message. Real ones are short and printable; others could garble a terminal.
pub(super) fn is_plain(name: &str) -> bool {
    name.len() <= 256 && !name.chars().any(char::is_control)
}

fn storage_key(pickle: &Pickle<'_>, key: ValueId) -> Option<String> {
    match pickle.get(key) {
        Value::Str(key) if is_plain(key) => Some((*key).to_owned()),
        Value::Int(key) => Some(key.to_string()),
        _ => None,
    }
}

/// One entry of an archive, refused if it has more than `limit` bytes, whatever it declares.
fn read_entry(archive: &mut ZipArchive<BufReader<File>>, name: &str, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let entry = match archive.by_name(name) {
        Err(ZipError::FileNotFound) => return Err(CheckpointError::StorageMissing { key: name.to_owned() }),
        entry => entry?,
    };
    let too_large = |actual| CheckpointError::EntryTooLarge { name: name.to_owned(), actual, limit };
    if entry.size() > limit {
        return Err(too_large(entry.size()));
    }
    let mut bytes = Vec::with_capacity(entry.size() as usize);
    entry.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}
