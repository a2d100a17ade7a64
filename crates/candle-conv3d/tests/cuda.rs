//! Layers on candle's CUDA tensors beside the CPU. Says so and passes where there is no GPU.
#![cfg(feature = "candle-cuda")]

use candle_conv3d::{
    Activation, Conv3d, Conv3dConfig, ConvNormLayer, Following, MaxPool3dConfig, Precision, Statistics, Tape, Volume,
};
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::Module;

fn gpu() -> Option<Device> {
    match candle_conv3d::cuda::training_device(0) {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Distance over length.
fn error(actual: &Tensor, expected: &Tensor) -> Result<f32> {
    let actual = actual.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let length = |tensor: &Tensor| tensor.sqr()?.sum_all()?.to_scalar::<f32>();
    Ok((length(&(actual - expected)?)? / length(expected)?).sqrt())
}

#[test]
fn convolution_goes_forward_and_backward_in_every_type() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let config = Conv3dConfig { stride: [1, 2, 2], padding: [1; 3] };
    let clips = Tensor::randn(0f32, 1., (2, 16, 4, 15, 14), &Device::Cpu)?;
    let weight = Tensor::randn(0f32, 0.05, (24, 16, 3, 3, 3), &Device::Cpu)?;
    let run = |device: &Device, dtype: DType| {
        let variable = |tensor: &Tensor| Var::from_tensor(&tensor.to_device(device)?.to_dtype(dtype)?);
        let (clips, weight) = (variable(&clips)?, variable(&weight)?);
        let output = Conv3d::new(weight.as_tensor().clone(), None, config).forward(&clips)?;
        let gradients = output.sqr()?.sum_all()?.backward()?;
        let of = |variable: &Var| gradients.get(variable).cloned().expect("a gradient");
        Ok::<_, candle_core::Error>([output.detach(), of(&clips), of(&weight)])
    };
    let expected = run(&Device::Cpu, DType::F32)?;
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 3e-3), (DType::BF16, 3e-2)] {
        for (actual, expected) in run(&device, dtype)?.iter().zip(&expected) {
            assert_eq!((actual.dtype(), actual.dims()), (dtype, expected.dims()));
            let error = error(actual, expected)?;
            assert!(error < tolerance, "{dtype:?} {:?}: {error:e}", expected.shape());
        }
    }
    Ok(())
}

#[test]
fn a_tape_gives_what_it_gives_on_the_cpu() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let randn = |shape: &[usize], spread: f32| Tensor::randn(0f32, spread, shape, &Device::Cpu);
    let clips = randn(&[2, 3, 8, 56, 56], 1.)?;
    let parameters = [
        (randn(&[32, 3, 7, 7, 7], 0.03)?, Tensor::ones(32, DType::F32, &Device::Cpu)?, randn(&[32], 0.3)?),
        (randn(&[32, 32, 3, 3, 3], 0.03)?, Tensor::ones(32, DType::F32, &Device::Cpu)?, randn(&[32], 0.3)?),
    ];
    let upstream = randn(&[2, 32], 1.)?;
    let run = |device: &Device, precision: Precision| {
        let variable =
            |tensor: &Tensor| Ok::<_, candle_core::Error>(Var::from_tensor(&tensor.to_device(device)?)?.into_inner());
        let [first, second] = parameters.each_ref().map(|(weight, scale, bias)| {
            Ok::<_, candle_core::Error>([variable(weight)?, variable(scale)?, variable(bias)?])
        });
        let (first, second) = (first?, second?);
        let mut tape = Tape::default();
        let mut layer = |input: &Volume, variables: &[Tensor; 3], config, following: Following<'_>| {
            let [weight, norm_weight, norm_bias] = variables;
            let (statistics, activation) = (Statistics::Batch, Activation::Relu);
            let layer = ConvNormLayer {
                weight,
                config,
                norm_weight,
                norm_bias,
                statistics,
                epsilon: 1e-5,
                activation,
                following,
            };
            tape.conv_norm(input, &layer).map(|(volume, _)| volume)
        };
        let volume = Volume::with_precision(&clips.to_device(device)?, precision)?;
        let pool = MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [1; 3] };
        let stem = Conv3dConfig { stride: [1, 2, 2], padding: [3; 3] };
        let x = layer(&volume, &first, stem, Following::MaxPool(pool))?;
        let x = layer(&x, &second, Conv3dConfig { stride: [1; 3], padding: [1; 3] }, Following::Add(&x))?;
        let features = tape.mean(&x)?;
        let mut gradients = (&features * upstream.to_device(device)?)?.sum_all()?.backward()?;
        tape.backward(&mut gradients)?;
        let of = |variable: &Tensor| gradients.get(variable).cloned().expect("a gradient");
        let mut results = vec![features.detach()];
        results.extend(first.iter().chain(&second).map(of));
        Ok::<_, candle_core::Error>(results)
    };
    let expected = run(&Device::Cpu, Precision::F32)?;
    let tolerances = [(Precision::F32, 1e-4), (Precision::Tf32, 2e-2), (Precision::F16, 2e-2), (Precision::Bf16, 0.1)];
    for (precision, tolerance) in tolerances {
        for (index, (actual, expected)) in run(&device, precision)?.iter().zip(&expected).enumerate() {
            let error = error(actual, expected)?;
            assert!(error < tolerance, "{precision}, {index}, {:?}: {error:e}", expected.shape());
        }
    }
    Ok(())
}
