//! What a worker runs: a model on a device, from pixels to logits.

use candle_core::{DType, Device, Tensor};
use candle_nn::ModuleT;

use crate::model::file::Model;
use crate::model::resnet::ResNet3d;
use crate::model::spec::ClipSpec;

/// A model on a device.
pub trait Executor: Send {
    /// Logits `(n, classes)`, row after row, of `n >= 1` clips of 8-bit RGB `(t, h, w, 3)`.
    fn logits(&mut self, clips: &[&[u8]]) -> Result<Vec<f32>, ExecutorError>;
}

/// Why a model can't be built or run.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// candle refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The candle network on the CPU in f32.
pub struct CpuExecutor {
    network: ResNet3d,
    clip: ClipSpec,
    /// Network input for each channel and pixel value.
    table: [[f32; 256]; 3],
}

impl CpuExecutor {
    /// Builds the network.
    pub fn new(model: &Model, _threads: usize, _max_batch: usize) -> Result<Self, ExecutorError> {
        let network = ResNet3d::from_model(model, DType::F32, &Device::Cpu)?;
        Ok(Self { network, clip: model.spec.clip, table: model.spec.preprocessing.lookup_table() })
    }
}

impl Executor for CpuExecutor {
    fn logits(&mut self, clips: &[&[u8]]) -> Result<Vec<f32>, ExecutorError> {
        let ClipSpec { frames, size, .. } = self.clip;
        let mut input = Vec::with_capacity(clips.len() * self.clip.rgb_len());
        for clip in clips {
            for (channel, table) in self.table.iter().enumerate() {
                input.extend(clip.iter().skip(channel).step_by(3).map(|&pixel| table[usize::from(pixel)]));
            }
        }
        let input = Tensor::from_vec(input, (clips.len(), 3, frames, size, size), &Device::Cpu)?;
        Ok(self.network.forward_t(&input, false)?.flatten_all()?.to_vec1()?)
    }
}
