//! The model file: one `.safetensors` file whose `__metadata__` holds a [`ModelSpec`].

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};

use super::scores::ScoreFunction;
use super::spec::{ClipSpec, ModelSpec, Resize};
use crate::replacement;
use crate::zoo::{ArchitectureError, output_lens};
use candle_conv3d::graph::{Graph, Parameter};
use candle_conv3d::network::Network;

/// Key in the safetensors `__metadata__` under which the [`ModelSpec`] stands as JSON.
pub const SPEC_KEY: &str = "kinetoscope.model";

/// Longest head of a safetensors file, as the library has it.
const MAX_HEAD_BYTES: u64 = 100_000_000;

/// Largest file that is read.
pub const MAX_FILE_BYTES: u64 = 8 << 30;

/// A model read from its file: specification, checked layout, and tensors on the CPU in the file's type.
#[derive(Debug, Clone)]
pub struct Model {
    /// What the file says about itself.
    pub spec: ModelSpec,
    /// The network that the specification describes.
    pub graph: Graph,
    /// Exactly the graph's parameters, in one of f32, f16, bf16.
    pub tensors: HashMap<String, Tensor>,
}

/// Why a model file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    /// The file could not be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Bigger than anything this program serves.
    #[error("model file is {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// Bytes.
        actual: u64,
        /// Bytes.
        limit: u64,
    },
    /// Not a safetensors file.
    #[error("not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A safetensors file that does not describe itself.
    #[error("the file has no `{SPEC_KEY}` entry in its metadata; `kinetoscope convert` makes model files")]
    NoSpec,
    /// A description that does not parse.
    #[error("the file's description does not parse: {0}")]
    SpecSyntax(#[from] serde_json::Error),
    /// A description that makes no sense.
    #[error("the file's description is wrong: {0}")]
    Spec(#[from] SpecError),
    /// A layer's tensor is not in the file.
    #[error("tensor {name} is missing; expected shape {expected:?}")]
    MissingTensor {
        /// Name in the checkpoint.
        name: String,
        /// From the architecture.
        expected: Vec<usize>,
    },
    /// A tensor that no layer takes.
    #[error("tensor {name} with shape {actual:?} belongs to no layer of the described network")]
    UnexpectedTensor {
        /// Name in the file.
        name: String,
        /// In the file.
        actual: Vec<usize>,
    },
    /// A tensor of another shape than its layer's.
    #[error("tensor {name} has shape {actual:?}; expected {expected:?}")]
    Shape {
        /// Name in the checkpoint.
        name: String,
        /// In the file.
        actual: Vec<usize>,
        /// From the architecture.
        expected: Vec<usize>,
    },
    /// Weights in a type that is not served.
    #[error("tensor {name} is {actual:?}; allowed are F32, F16 and BF16")]
    DType {
        /// Name in the checkpoint.
        name: String,
        /// In the file.
        actual: Dtype,
    },
    /// Weights that can only give NaN.
    #[error("tensor {name} holds a value that is not finite")]
    NotFinite {
        /// Name in the checkpoint.
        name: String,
    },
    /// candle refused a tensor.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Why a [`ModelSpec`] makes no sense.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SpecError {
    /// The architecture.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    /// A name that can't stand in requests, logs and paths.
    #[error("model name is {actual:?}; allowed are 1 to 128 letters, digits, '.', '_' and '-'")]
    Name {
        /// What the specification says.
        actual: String,
    },
    /// Two classes of one name.
    #[error("label {label:?} stands twice, at {first} and {second}")]
    DuplicateLabel {
        /// The label.
        label: String,
        /// Zero-based.
        first: usize,
        /// Zero-based.
        second: usize,
    },
    /// A class without a name.
    #[error("label {index} is empty")]
    EmptyLabel {
        /// Zero-based.
        index: usize,
    },
    /// A clip that no network takes.
    #[error("clip is {actual:?}; allowed are 1 to 512 frames of 16 to 1024 pixels, temporal stride 1 to 64")]
    Clip {
        /// What the specification says.
        actual: ClipSpec,
    },
    /// A fixed size that the crop does not fit in.
    #[error("resize to {height}x{width} is smaller than the {size}-pixel crop or larger than 4096")]
    Resize {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
        /// Pixels.
        size: usize,
    },
    /// Normalisation that gives infinities.
    #[error("normalisation must be finite, with divisor and std above 0: {actual}")]
    Normalisation {
        /// The values.
        actual: String,
    },
    /// A temperature that makes all scores alike, or none of a number.
    #[error("temperature is {actual}; allowed are {} to {}", ScoreFunction::TEMPERATURES.start(), ScoreFunction::TEMPERATURES.end())]
    Temperature {
        /// What the specification says.
        actual: f64,
    },
}

impl ModelSpec {
    /// Checks everything but the tensors, and gives the network.
    pub fn validate(&self) -> Result<Graph, SpecError> {
        let name_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if self.name.is_empty() || self.name.len() > 128 || !self.name.bytes().all(name_allowed) {
            return Err(SpecError::Name { actual: self.name.clone() });
        }
        let mut seen = HashMap::new();
        for (index, label) in self.labels.iter().enumerate() {
            if label.trim().is_empty() {
                return Err(SpecError::EmptyLabel { index });
            }
            if let Some(first) = seen.insert(label.as_str(), index) {
                return Err(SpecError::DuplicateLabel { label: label.clone(), first, second: index });
            }
        }
        let clip = self.clip;
        if !(1..=512).contains(&clip.frames)
            || !(16..=1024).contains(&clip.size)
            || !(1..=64).contains(&clip.temporal_stride)
        {
            return Err(SpecError::Clip { actual: clip });
        }
        let preprocessing = &self.preprocessing;
        if let Resize::Fixed { height, width } = preprocessing.resize
            && (height.min(width) < clip.size || height.max(width) > 4096)
        {
            return Err(SpecError::Resize { height, width, size: clip.size });
        }
        let positive = |value: f32| value.is_finite() && value > 0.0;
        if !positive(preprocessing.pixel_divisor)
            || !preprocessing.std.into_iter().all(positive)
            || !preprocessing.mean.into_iter().all(f32::is_finite)
        {
            return Err(SpecError::Normalisation { actual: format!("{preprocessing:?}") });
        }
        if !ScoreFunction::TEMPERATURES.contains(&self.scores.temperature) {
            return Err(SpecError::Temperature { actual: self.scores.temperature });
        }
        Ok(self.architecture.graph(self.clip, self.labels.len())?)
    }
}

impl Model {
    /// Reads and checks a model file. Nothing in it is executed.
    pub fn read(path: &Path) -> Result<Self, ModelFileError> {
        let io = |error| ModelFileError::Io { path: path.to_owned(), error };
        Self::read_open(&File::open(path).map_err(io)?, path)
    }

    /// [`read`](Self::read) from a file that is open, whatever has its path by now. Moves the file's position.
    pub(crate) fn read_open(mut file: &File, path: &Path) -> Result<Self, ModelFileError> {
        let io = |error| ModelFileError::Io { path: path.to_owned(), error };
        let actual = file.metadata().map_err(io)?.len();
        if actual > MAX_FILE_BYTES {
            return Err(ModelFileError::TooLarge { actual, limit: MAX_FILE_BYTES });
        }
        let mut bytes = Vec::with_capacity(actual as usize);
        file.rewind().map_err(io)?;
        file.read_to_end(&mut bytes).map_err(io)?;
        Self::from_bytes(&bytes)
    }

    /// What a model file says about itself, checked, and the layers that it describes. Reads the file's head only, so
    /// that this takes no memory for weights; whether the tensors are there is not looked at. Moves the file's position.
    #[cfg_attr(not(feature = "video"), allow(dead_code, reason = "only a repository asks"))]
    pub(crate) fn read_spec(file: &File, path: &Path) -> Result<(ModelSpec, Graph), ModelFileError> {
        let metadata = read_metadata(file, path)?;
        let spec: ModelSpec = serde_json::from_str(metadata.get(SPEC_KEY).ok_or(ModelFileError::NoSpec)?)?;
        let graph = spec.validate()?;
        Ok((spec, graph))
    }

    /// [`read`](Self::read) from memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelFileError> {
        let spec = read_spec(bytes)?;
        let graph = spec.validate()?;

        let file = SafeTensors::deserialize(bytes)?;
        let mut unclaimed: BTreeSet<&str> = file.names().into_iter().collect();
        let mut tensors = HashMap::new();
        for Parameter { name, shape, .. } in graph.parameters() {
            let (name, expected) = (name.clone(), shape.clone());
            let Ok(view) = file.tensor(&name) else {
                return Err(ModelFileError::MissingTensor { name, expected });
            };
            unclaimed.remove(name.as_str());
            if view.shape() != expected {
                return Err(ModelFileError::Shape { name, actual: view.shape().to_vec(), expected });
            }
            tensors.insert(name.clone(), tensor_from_view(name, &view)?);
        }
        if let Some(name) = unclaimed.into_iter().find(|name| !name.ends_with(".num_batches_tracked")) {
            let actual = file.tensor(name)?.shape().to_vec();
            return Err(ModelFileError::UnexpectedTensor { name: name.to_owned(), actual });
        }
        Ok(Self { spec, graph, tensors })
    }

    /// A model from tensors in memory, checked as one read from a file.
    pub fn new(spec: ModelSpec, tensors: HashMap<String, Tensor>) -> Result<Self, ModelFileError> {
        let graph = spec.validate()?;
        for parameter in graph.parameters() {
            let Some(tensor) = tensors.get(&parameter.name) else {
                return Err(ModelFileError::MissingTensor {
                    name: parameter.name.clone(),
                    expected: parameter.shape.clone(),
                });
            };
            if tensor.dims() != parameter.shape {
                return Err(ModelFileError::Shape {
                    name: parameter.name.clone(),
                    actual: tensor.dims().to_vec(),
                    expected: parameter.shape.clone(),
                });
            }
        }
        let known: BTreeSet<&str> = graph.parameters().map(|parameter| parameter.name.as_str()).collect();
        if let Some((name, tensor)) = tensors.iter().find(|(name, _)| !known.contains(name.as_str())) {
            let actual = tensor.dims().to_vec();
            return Err(ModelFileError::UnexpectedTensor { name: name.clone(), actual });
        }
        Ok(Self { spec, graph, tensors })
    }

    /// Writes the model file. The file appears whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), ModelFileError> {
        let metadata = HashMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (SPEC_KEY.to_owned(), serde_json::to_string(&self.spec)?),
        ]);
        write_whole(path, &self.tensors, metadata)
    }

    /// Number of classes and length of an embedding.
    pub fn output_lens(&self) -> [usize; 2] {
        output_lens(&self.graph)
    }

    /// The network in candle, its weights converted to `dtype` on `device`: slower than a plan, differentiable.
    pub fn network(&self, dtype: DType, device: &Device) -> candle_core::Result<Network> {
        let convert =
            |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?.to_device(device)?));
        Network::new(self.graph.clone(), self.tensors.iter().map(convert).collect::<candle_core::Result<_>>()?)
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }

    /// The type most of the weights are stored in.
    pub fn dtype(&self) -> DType {
        let largest = self.tensors.values().max_by_key(|tensor| tensor.elem_count());
        largest.map_or(DType::F32, Tensor::dtype)
    }
}

/// What a model file says about itself, unchecked; its tensors are not looked at.
pub(super) fn read_spec(bytes: &[u8]) -> Result<ModelSpec, ModelFileError> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let spec = metadata.metadata().as_ref().and_then(|entries| entries.get(SPEC_KEY));
    Ok(serde_json::from_str(spec.ok_or(ModelFileError::NoSpec)?)?)
}

/// Writes a safetensors file. Whatever ends this process or fills the disk, `path` is the old file or the whole new one.
pub(crate) fn write_whole(
    path: &Path,
    tensors: &HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
) -> Result<(), ModelFileError> {
    let io = |error| ModelFileError::Io { path: path.to_owned(), error };
    replacement::write_whole(path, &safetensors::serialize(tensors, Some(metadata))?).map_err(io)
}

/// The entries of a safetensors file that are not about tensors. Reads the file's head only. Moves the file's position.
pub(crate) fn read_metadata(mut file: &File, path: &Path) -> Result<HashMap<String, String>, ModelFileError> {
    /// What is not about tensors.
    #[derive(serde::Deserialize)]
    struct Head {
        #[serde(rename = "__metadata__", default)]
        metadata: HashMap<String, String>,
    }

    let io = |error| ModelFileError::Io { path: path.to_owned(), error };
    let mut len = [0; 8];
    file.rewind().map_err(io)?;
    match file.read_exact(&mut len) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(SafeTensorError::HeaderTooSmall.into()),
        read => read.map_err(io)?,
    }
    let len = u64::from_le_bytes(len);
    if len > MAX_HEAD_BYTES {
        return Err(SafeTensorError::HeaderTooLarge.into());
    }
    let mut head = Vec::new();
    file.take(len).read_to_end(&mut head).map_err(io)?;
    if head.len() as u64 != len {
        return Err(SafeTensorError::InvalidHeaderLength.into());
    }
    let head: Head = serde_json::from_slice(&head).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    Ok(head.metadata)
}

fn tensor_from_view(name: String, view: &TensorView<'_>) -> Result<Tensor, ModelFileError> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        actual => return Err(ModelFileError::DType { name, actual }),
    };
    if !all_finite(view.data(), dtype) {
        return Err(ModelFileError::NotFinite { name });
    }
    Ok(Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?)
}

/// Whether no value has all exponent bits set, read from the little-endian bytes.
fn all_finite(data: &[u8], dtype: DType) -> bool {
    match dtype {
        DType::F32 => data.chunks_exact(4).all(|bytes| {
            let exponent = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & 0x7F80_0000;
            exponent != 0x7F80_0000
        }),
        DType::F16 => data.chunks_exact(2).all(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]) & 0x7C00 != 0x7C00),
        _ => data.chunks_exact(2).all(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]) & 0x7F80 != 0x7F80),
    }
}
