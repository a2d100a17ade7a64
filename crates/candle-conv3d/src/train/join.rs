//! The end of a residual block: the sum of both branches and its ReLU.

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{contiguous, with_slices};

/// Floats a task takes.
const CHUNK: usize = 32 * 1024;

pub(crate) struct AddRelu;

impl CustomOp2 for AddRelu {
    fn name(&self) -> &'static str {
        "add-relu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        // A comparison, not `max`: NaN must stay NaN.
        let sum = map(contiguous(s1, l1)?, contiguous(s2, l2)?, |a, b| if a + b < 0. { 0. } else { a + b });
        Ok((CpuStorage::F32(sum), l1.shape().clone()))
    }

    fn bwd(
        &self,
        _a: &Tensor,
        _b: &Tensor,
        output: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let upstream = upstream.contiguous()?;
        let passed = with_slices(output, &upstream, |output, upstream| {
            map(output, upstream, |output, upstream| if output > 0. { upstream } else { 0. })
        })?;
        let passed = Tensor::from_vec(passed, output.shape(), &Device::Cpu)?;
        Ok((Some(passed.clone()), Some(passed)))
    }
}

fn map(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut result = vec![0f32; a.len()];
    let operands = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    result.par_chunks_mut(CHUNK).zip(operands).for_each(|(result, (a, b))| {
        for (result, (&a, &b)) in result.iter_mut().zip(a.iter().zip(b)) {
            *result = f(a, b);
        }
    });
    result
}
