//! Checkpoints made by hand: old, odd, damaged and malicious ones.

use std::io::Write;
use std::path::Path;

use candle_conv3d::graph::Parameter;
use candle_core::{DType, Tensor};
use kinetoscope::convert::{Checkpoint, CheckpointError, ConvertError, ConvertOptions, convert};
use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::zoo::resnet3d::{Config, Shortcut, Stem};
use kinetoscope::zoo::{Architecture, DEPTHS, DetectError, TorchvisionR3dConfig};
use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

// ---- A writer of pickles ----

#[derive(Clone)]
enum Object {
    None,
    Int(i32),
    /// `str` of Python 3.
    Text(&'static str),
    /// `str` of Python 2.
    Bytes(&'static [u8]),
    Tuple(Vec<Object>),
    List(Vec<Object>),
    Dict(Vec<(Object, Object)>),
    Global(&'static str, &'static str),
    Call(Box<Object>, Vec<Object>),
    Persistent(Box<Object>),
}

use Object::{Bytes, Dict, Global, Int, List, Persistent, Text, Tuple};

impl Object {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::None => out.push(b'N'),
            Int(number) => {
                out.push(b'J');
                out.extend(number.to_le_bytes());
            }
            Text(text) => {
                out.push(b'X');
                out.extend((text.len() as u32).to_le_bytes());
                out.extend(text.as_bytes());
            }
            Bytes(bytes) => {
                out.extend([b'U', bytes.len() as u8]);
                out.extend(*bytes);
            }
            Tuple(items) => {
                out.push(b'(');
                items.iter().for_each(|item| item.write(out));
                out.push(b't');
            }
            List(items) => {
                out.extend(b"](");
                items.iter().for_each(|item| item.write(out));
                out.push(b'e');
            }
            Dict(items) => {
                out.extend(b"}(");
                for (key, value) in items {
                    key.write(out);
                    value.write(out);
                }
                out.push(b'u');
            }
            Global(module, name) => out.extend(format!("c{module}\n{name}\n").bytes()),
            Self::Call(callable, args) => {
                callable.write(out);
                Tuple(args.clone()).write(out);
                out.push(b'R');
            }
            Persistent(id) => {
                id.write(out);
                out.push(b'Q');
            }
        }
    }

    fn pickle(&self) -> Vec<u8> {
        let mut out = vec![0x80, 2];
        self.write(&mut out);
        out.push(b'.');
        out
    }
}

fn call(module: &'static str, name: &'static str, args: Vec<Object>) -> Object {
    Object::Call(Box::new(Global(module, name)), args)
}

fn storage(class: &'static str, key: &'static str, count: i32, view: Object) -> Object {
    let class = Global("torch.cuda", class);
    Persistent(Box::new(Tuple(vec![Text("storage"), class, Text(key), Text("cuda:0"), Int(count), view])))
}

/// A tensor of the six floats 0.0 to 5.0 under key `0`.
fn six(offset: i32, shape: &[i32], strides: &[i32]) -> Object {
    let numbers = |numbers: &[i32]| Tuple(numbers.iter().map(|&number| Int(number)).collect());
    let storage = storage("FloatStorage", "0", 6, Object::None);
    call("torch._utils", "_rebuild_tensor", vec![storage, Int(offset), numbers(shape), numbers(strides)])
}

fn state_dict(tensor: Object) -> Object {
    Dict(vec![(Text("weight"), tensor)])
}

// ---- Files around a pickle ----

const SIX: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The format before torch 1.6, with storages of four-byte elements.
fn legacy(object: &Object, storages: &[(&'static str, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    out.extend(Int(1001).pickle());
    out.extend(Dict(vec![(Text("protocol_version"), Int(1001))]).pickle());
    out.extend(object.pickle());
    out.extend(List(storages.iter().map(|(key, _)| Text(key)).collect()).pickle());
    for (_, values) in storages {
        out.extend((values.len() as u64 / 4).to_le_bytes());
        out.extend(values);
    }
    out
}

fn archive(entries: &[(&str, &[u8])], compression: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in entries {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(compression)).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn open(content: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    Checkpoint::open(file.path())
}

fn read(content: &[u8], name: &str) -> Result<Tensor, CheckpointError> {
    open(content)?.read(name)
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn read_six(tensor: Object) -> Result<Tensor, CheckpointError> {
    read(&legacy(&state_dict(tensor), &[("0", bytes(&SIX))]), "weight")
}

// ---- Tests ----

#[test]
fn ordered_dict_of_python_2_is_read() {
    let pair = List(vec![Bytes(b"module.weight"), six(0, &[2, 3], &[3, 1])]);
    let object = call("collections", "OrderedDict", vec![List(vec![pair])]);
    let tensor = read(&legacy(&object, &[("0", bytes(&SIX))]), "weight").unwrap();
    assert_eq!((tensor.dims(), floats(&tensor)), ([2, 3].as_slice(), SIX.to_vec()));
}

#[test]
fn strides_and_offsets_are_honoured() {
    let transposed = read_six(six(0, &[3, 2], &[1, 3])).unwrap();
    assert_eq!(floats(&transposed), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    let every_other = read_six(six(1, &[3], &[2])).unwrap();
    assert_eq!(floats(&every_other), [1.0, 3.0, 5.0]);
    let scalar = read_six(six(4, &[], &[])).unwrap();
    assert_eq!((scalar.rank(), floats(&scalar)), (0, vec![4.0]));
    let empty = read_six(six(6, &[0, 3], &[3, 1])).unwrap();
    assert_eq!(empty.dims(), [0, 3]);
}

#[test]
fn view_of_a_part_of_a_storage_is_read() {
    let view = Tuple(vec![Text("view"), Int(2), Int(3)]);
    let tensor = |offset, count| {
        let storage = storage("FloatStorage", "0", 6, view.clone());
        let (count, stride) = (Tuple(vec![Int(count)]), Tuple(vec![Int(1)]));
        call("torch._utils", "_rebuild_tensor_v2", vec![storage, Int(offset), count, stride, Object::None])
    };
    assert_eq!(floats(&read_six(tensor(1, 2)).unwrap()), [3.0, 4.0]);
    assert!(matches!(read_six(tensor(1, 3)), Err(CheckpointError::OutOfBounds { length: 3, .. })));
}

#[test]
fn parameters_are_tensors() {
    let none = Object::None;
    let parameter = call("torch._utils", "_rebuild_parameter", vec![six(0, &[6], &[1]), none.clone(), none]);
    assert_eq!(floats(&read_six(parameter).unwrap()), SIX);
}

#[test]
fn tensors_beyond_their_storage_are_refused() {
    for (offset, shape, strides) in [
        (0, [7].as_slice(), [1].as_slice()),
        (1, &[6], &[1]),
        (7, &[0], &[1]),
        (0, &[2], &[6]),
        (0, &[2, 2], &[i32::MAX, i32::MAX]),
        (i32::MAX, &[1], &[1]),
        // More elements than the storage has would be a bomb: a few bytes that fill the memory.
        (0, &[i32::MAX, i32::MAX], &[0, 0]),
        (0, &[7, 1], &[0, 1]),
        (0, &[i32::MAX, i32::MAX, i32::MAX, i32::MAX], &[0, 0, 0, 0]),
    ] {
        let error = read_six(six(offset, shape, strides)).unwrap_err();
        assert!(matches!(error, CheckpointError::OutOfBounds { .. }), "{shape:?} {strides:?} {offset}: {error}");
    }
    // Not tensors at all, so an error only for those who need them.
    for tensor in [six(-1, &[1], &[1]), six(0, &[-1], &[1]), six(0, &[1, 1], &[1]), six(0, &[1; 9], &[1; 9])] {
        assert!(matches!(read_six(tensor), Err(CheckpointError::NoStateDict { .. })));
    }
}

#[test]
fn half_and_double_are_read_in_their_type() {
    for (class, count, dtype) in [("HalfStorage", 4, DType::F16), ("DoubleStorage", 1, DType::F64)] {
        let shape = || Tuple(vec![Int(count)]);
        let stride = Tuple(vec![Int(1)]);
        let storage = storage(class, "0", count, Object::None);
        let tensor = call("torch._utils", "_rebuild_tensor", vec![storage, Int(0), shape(), stride]);
        let pickle = state_dict(tensor).pickle();
        let content = archive(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 8])], CompressionMethod::Stored);
        assert_eq!(read(&content, "weight").unwrap().dtype(), dtype);
    }
}

#[test]
fn calls_are_data_and_are_refused_where_tensors_are_needed() {
    let proof = tempfile::tempdir().unwrap().path().join("executed");
    let command: &'static str = Box::leak(format!("touch {}", proof.display()).into_boxed_str());
    let attack = || call("os", "system", vec![Text(command)]);

    // As the magic number, as the whole object, as the state_dict and as a tensor.
    let error = open(&attack().pickle()).err().unwrap();
    assert!(error.to_string().contains("an object of os.system (nothing of it was executed)"), "{error}");
    for object in [attack(), Dict(vec![(Text("state_dict"), attack())]), state_dict(attack())] {
        for content in [legacy(&object, &[]), archive(&[("a/data.pkl", &object.pickle())], CompressionMethod::Stored)] {
            let error = open(&content).err().unwrap();
            assert!(matches!(error, CheckpointError::NoStateDict { .. }), "{error}");
        }
    }
    let beside = Dict(vec![(Text("weight"), six(0, &[6], &[1])), (Text("bias"), attack())]);
    let content = legacy(&beside, &[("0", bytes(&SIX))]);
    assert_eq!(floats(&read(&content, "weight").unwrap()), SIX);
    assert_eq!(
        read(&content, "bias").unwrap_err().to_string(),
        "bias in the checkpoint is an object of os.system; expected a tensor"
    );
    assert!(!proof.exists());
}

#[test]
fn zip_bomb_is_refused_before_it_is_unpacked() {
    let zeros = vec![0; 64 << 20];
    let pickle = state_dict(six(0, &[6], &[1])).pickle();
    for name in ["a/data.pkl", "a/data/0", "a/data/other"] {
        let entries: Vec<(&str, &[u8])> = [("a/data.pkl", pickle.as_slice()), (name, &zeros)]
            .into_iter()
            .skip(usize::from(name == "a/data.pkl"))
            .collect();
        let content = archive(&entries, CompressionMethod::Deflated);
        assert!(content.len() < 100_000);
        let error = open(&content).err().unwrap();
        assert!(matches!(error, CheckpointError::Bomb { .. }), "{name}: {error}");
    }
}

#[test]
fn zip_entry_that_understates_its_size_is_refused() {
    let pickle = state_dict(six(0, &[6], &[1])).pickle();
    let mut content = archive(&[("a/data.pkl", &pickle), ("a/data/0", &vec![0; 8 << 20])], CompressionMethod::Deflated);
    // Both headers say 24 bytes, which is what the tensor takes.
    let (honest, lie) = ((8u32 << 20).to_le_bytes(), 24u32.to_le_bytes());
    let places: Vec<usize> = (0..content.len() - 4).filter(|&at| content[at..at + 4] == honest).collect();
    assert!(!places.is_empty());
    for at in places {
        content[at..at + 4].copy_from_slice(&lie);
    }
    assert!(read(&content, "weight").is_err());
}

#[test]
fn archive_entries_of_the_wrong_size_are_refused() {
    let pickle = state_dict(six(0, &[6], &[1])).pickle();
    for (size, compression) in [(20, CompressionMethod::Stored), (28, CompressionMethod::Deflated)] {
        let content = archive(&[("a/data.pkl", &pickle), ("a/data/0", &vec![0; size])], compression);
        let error = read(&content, "weight").unwrap_err();
        assert!(
            matches!(error, CheckpointError::StorageSize { .. } | CheckpointError::EntryTooLarge { .. }),
            "{error}"
        );
    }
    let content = archive(&[("a/data.pkl", &pickle)], CompressionMethod::Stored);
    assert!(matches!(read(&content, "weight"), Err(CheckpointError::StorageMissing { .. })));
}

const TORCH_SCRIPT: &str = "a TorchScript program with its code; torch.save(torch.jit.load(FILE).state_dict(), OUT) in Python saves \
    its weights";

#[test]
fn other_archives_are_refused_by_what_they_are() {
    let pickle = state_dict(six(0, &[6], &[1])).pickle();
    for (entries, expected) in [
        (
            vec![("readme.txt", b"hello".as_slice())],
            "a zip archive without data.pkl; if a checkpoint is packed in it, unpack it first",
        ),
        (vec![("a/data.pkl", &pickle), ("a/constants.pkl", b"")], TORCH_SCRIPT),
    ] {
        let error = open(&archive(&entries, CompressionMethod::Stored)).err().unwrap().to_string();
        assert_eq!(error, format!("not a PyTorch checkpoint but {expected}"));
    }
    let big = [("a/data.pkl", pickle.as_slice()), ("a/byteorder", b"big")];
    assert!(matches!(open(&archive(&big, CompressionMethod::Stored)), Err(CheckpointError::BigEndian)));
}

#[test]
fn networks_of_another_kind_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let refusal = |object: Object| {
        let input = directory.path().join("input.pth");
        std::fs::write(&input, legacy(&object, &[("0", bytes(&SIX))])).unwrap();
        let options = ConvertOptions::new(directory.path().join("labels.txt"), Preprocessing::AUTHORS_2018);
        convert(&input, &directory.path().join("output.safetensors"), &options).unwrap_err()
    };
    let error = refusal(state_dict(six(0, &[6], &[1])));
    assert!(
        matches!(&error, ConvertError::Detect(DetectError::UnknownNames { names }) if names == &["weight"]),
        "{error}"
    );
    let error = refusal(Dict(vec![(Text("conv1.weight"), six(0, &[6], &[1]))]));
    assert_eq!(error.to_string(), "tensor conv1.weight has shape [6]; expected [channels, 3, frames, 7, 7]");
    assert!(!directory.path().join("output.safetensors").exists());
}

/// A checkpoint with the tensors of a network, all zero and all in one storage.
fn zeros(architecture: &Architecture, classes: usize) -> Vec<u8> {
    let graph = architecture.graph(ClipSpec::default(), classes).unwrap();
    let parameters: Vec<&Parameter> = graph.parameters().collect();
    let sizes: Vec<usize> = parameters.iter().map(|parameter| parameter.len()).collect();
    // Large enough that the file doesn't look like a bomb.
    let total = sizes.iter().sum::<usize>().div_ceil(8).max(*sizes.iter().max().unwrap());
    let tensors = parameters.iter().map(|parameter| {
        let mut strides = vec![1];
        for &size in parameter.shape[1..].iter().rev() {
            strides.insert(0, strides[0] * size);
        }
        let numbers = |numbers: &[usize]| Tuple(numbers.iter().map(|&number| Int(number as i32)).collect());
        let storage = storage("FloatStorage", "0", total as i32, Object::None);
        let args = vec![storage, Int(0), numbers(&parameter.shape), numbers(&strides)];
        (Text(Box::leak(parameter.name.clone().into_boxed_str())), call("torch._utils", "_rebuild_tensor", args))
    });
    legacy(&Dict(tensors.collect()), &[("0", vec![0; 4 * total])])
}

#[test]
fn every_published_depth_and_shortcut_is_recognised() {
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("input.pth");
    std::fs::write(directory.path().join("labels.txt"), "a\nb\nc\n").unwrap();
    for depth in DEPTHS {
        let authors = |shortcut, stem| Config { depth, shortcut, widen_factor: 3.0 / 128.0, stem };
        for architecture in [
            Architecture::ResNet3d(authors(Shortcut::A, Stem::AUTHORS)),
            Architecture::ResNet3d(authors(Shortcut::B, Stem { kernel_t: 5, ..Stem::AUTHORS })),
            Architecture::TorchvisionR3d(TorchvisionR3dConfig(authors(Shortcut::B, Stem::TORCHVISION))),
        ] {
            std::fs::write(&input, zeros(&architecture, 3)).unwrap();
            let options = ConvertOptions::new(directory.path().join("labels.txt"), Preprocessing::AUTHORS_2020);
            let report = convert(&input, &directory.path().join("output.safetensors"), &options).unwrap();
            assert_eq!(report.spec.architecture, architecture);
        }
    }
}

#[test]
fn deep_nesting_and_cycles_neither_hang_nor_overflow() {
    // A list in a list, a million deep, then the list that holds itself.
    let mut deep = vec![0x80, 2];
    deep.extend(std::iter::repeat_n(b"]", 190_000).flatten());
    deep.extend(std::iter::repeat_n(b"a", 189_999).flatten());
    deep.push(b'.');
    assert!(matches!(open(&deep), Err(CheckpointError::NotATorchPickle { .. })));
    assert!(matches!(open(b"\x80\x02]q\x00h\x00a."), Err(CheckpointError::NotATorchPickle { .. })));
    // A dictionary that is its own state_dict.
    let mut own = b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.".to_vec();
    let content = archive(&[("a/data.pkl", &own)], CompressionMethod::Stored);
    assert!(matches!(open(&content), Err(CheckpointError::NoStateDict { .. })));
    // More values than any checkpoint has.
    own = vec![0x80, 2];
    own.extend(std::iter::repeat_n(b"N0", 2_100_000).flatten());
    assert!(matches!(open(&own), Err(CheckpointError::Pickle(_))));
}

/// What happens to one byte of a file.
#[derive(Debug, Clone)]
enum Edit {
    Set(u8),
    Remove,
    Insert(u8),
    CutHere,
}

fn edits() -> impl Strategy<Value = Vec<(f64, Edit)>> {
    let edit = prop_oneof![
        8 => any::<u8>().prop_map(Edit::Set),
        1 => Just(Edit::Remove),
        1 => any::<u8>().prop_map(Edit::Insert),
        1 => Just(Edit::CutHere),
    ];
    prop::collection::vec((0.0..1.0, edit), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The pickles are at the start, the archive's directory at the end: edits go to both, hardly between.
    #[test]
    fn damaged_checkpoints_never_panic(file in 0..3usize, edits in edits(), at_end in any::<bool>()) {
        let file = ["authors-2018.pth", "authors-2020.pth", "authors-2020-legacy.pth"][file];
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
        let mut content = std::fs::read(path).unwrap();
        for (place, edit) in edits {
            if content.is_empty() {
                break;
            }
            let within = (place * content.len().min(20_000) as f64) as usize;
            let at = if at_end { content.len() - 1 - within } else { within };
            match edit {
                Edit::Set(byte) => content[at] = byte,
                Edit::Remove => { content.remove(at); }
                Edit::Insert(byte) => content.insert(at, byte),
                Edit::CutHere => content.truncate(at),
            }
        }
        if let Ok(mut checkpoint) = open(&content) {
            let names: Vec<String> = checkpoint.tensors().map(|(name, _)| name.to_owned()).collect();
            for name in names {
                let _ = checkpoint.read(&name);
            }
        }
    }

    #[test]
    fn noise_as_a_pickle_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut content = vec![0x80, 2];
        content.extend(&noise);
        let _ = open(&content);
        let _ = open(&archive(&[("a/data.pkl", &noise)], CompressionMethod::Stored));
    }
}
