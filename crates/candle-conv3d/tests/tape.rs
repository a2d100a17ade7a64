//! Tapes against the same layers as operations on tensors.

use candle_conv3d::{
    Activation, Conv3d, Conv3dConfig, ConvNormLayer, Following, MaxPool3d, MaxPool3dConfig, Statistics, Tape, Volume,
    add_relu, batch_norm, fixed_norm,
};
use candle_core::{Device, Result, Tensor, Var};
use candle_nn::Module;

const POOL: MaxPool3dConfig = MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [1; 3] };

/// A convolution and its normalisation.
struct Layer {
    config: Conv3dConfig,
    parameters: [Tensor; 3],
    /// Mean and variance of a normalisation that doesn't go by the batch.
    fixed: Option<[Tensor; 2]>,
}

impl Layer {
    fn new(weight: [usize; 5], stride: [usize; 3], padding: [usize; 3]) -> Result<Self> {
        let variable = |tensor: Tensor| Ok::<_, candle_core::Error>(Var::from_tensor(&tensor)?.into_inner());
        let (weight, channels) = (randn(&weight)?, weight[0]);
        let parameters = [variable((weight * 0.2)?)?, variable(randn(&[channels])?)?, variable(randn(&[channels])?)?];
        Ok(Self { config: Conv3dConfig { stride, padding }, parameters, fixed: None })
    }

    fn frozen(mut self) -> Result<Self> {
        let channels = self.parameters[1].dim(0)?;
        self.fixed = Some([randn(&[channels])?, (randn(&[channels])?.sqr()? + 0.5)?]);
        Ok(self)
    }

    fn on_tape(&self, tape: &mut Tape, input: &Volume, activation: Activation, following: Following) -> Result<Volume> {
        let [weight, norm_weight, norm_bias] = &self.parameters;
        let statistics = match &self.fixed {
            Some([mean, variance]) => Statistics::Fixed { mean, variance },
            None => Statistics::Batch,
        };
        let config = self.config;
        let layer =
            ConvNormLayer { weight, config, norm_weight, norm_bias, statistics, epsilon: 1e-5, activation, following };
        let (output, statistics) = tape.conv_norm(input, &layer)?;
        assert_eq!(statistics.is_some(), self.fixed.is_none());
        Ok(output)
    }

    fn on_tensors(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        let [weight, scale, bias] = &self.parameters;
        let x = Conv3d::new(weight.clone(), None, self.config).forward(input)?;
        match &self.fixed {
            Some([mean, variance]) => fixed_norm(&x, scale, bias, mean, variance, 1e-5, activation),
            None => Ok(batch_norm(&x, scale, bias, 1e-5, activation)?.output),
        }
    }
}

fn randn(dims: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1., dims, &Device::Cpu)
}

/// A stem with a pool and three residual blocks, whose shortcuts are the identity, a stride and a projection.
struct Network {
    stem: Layer,
    blocks: Vec<[Layer; 2]>,
    projection: Layer,
}

impl Network {
    fn new(frozen: bool) -> Result<Self> {
        let layer = |weight, stride: [usize; 3], padding: [usize; 3]| {
            let layer = Layer::new(weight, stride, padding)?;
            if frozen { layer.frozen() } else { Ok(layer) }
        };
        Ok(Self {
            stem: layer([16, 3, 7, 7, 7], [1, 2, 2], [3; 3])?,
            blocks: vec![
                [layer([16, 16, 3, 3, 3], [1; 3], [1; 3])?, layer([16, 16, 3, 3, 3], [1; 3], [1; 3])?],
                [layer([20, 16, 3, 3, 3], [2; 3], [1; 3])?, layer([20, 20, 3, 3, 3], [1; 3], [1; 3])?],
                [layer([24, 20, 1, 1, 1], [1; 3], [0; 3])?, layer([24, 24, 3, 3, 3], [2; 3], [1; 3])?],
            ],
            projection: layer([24, 20, 1, 1, 1], [2; 3], [0; 3])?,
        })
    }

    fn on_tape(&self, tape: &mut Tape, clips: &Tensor) -> Result<Tensor> {
        let clips = Volume::from_tensor(clips)?;
        let mut x = self.stem.on_tape(tape, &clips, Activation::Relu, Following::MaxPool(POOL))?;
        for (index, [first, second]) in self.blocks.iter().enumerate() {
            let y = first.on_tape(tape, &x, Activation::Relu, Following::Nothing)?;
            let shortcut = match index {
                0 => x,
                1 => tape.strided_shortcut(&x, 2, 20)?,
                _ => self.projection.on_tape(tape, &x, Activation::Identity, Following::Nothing)?,
            };
            x = second.on_tape(tape, &y, Activation::Relu, Following::Add(&shortcut))?;
        }
        tape.mean(&x)
    }

    fn on_tensors(&self, clips: &Tensor) -> Result<Tensor> {
        let mut x = MaxPool3d::new(POOL).forward(&self.stem.on_tensors(clips, Activation::Relu)?)?;
        for (index, [first, second]) in self.blocks.iter().enumerate() {
            let y = second.on_tensors(&first.on_tensors(&x, Activation::Relu)?, Activation::Identity)?;
            let shortcut = match index {
                0 => x,
                1 => {
                    let pick = MaxPool3dConfig { kernel: [1; 3], stride: [2; 3], padding: [0; 3] };
                    MaxPool3d::new(pick).forward(&x)?.pad_with_zeros(1, 0, 4)?
                }
                _ => self.projection.on_tensors(&x, Activation::Identity)?,
            };
            x = add_relu(&y, &shortcut)?;
        }
        x.flatten_from(2)?.mean(2)
    }

    fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.blocks.iter().flatten().chain([&self.stem, &self.projection]);
        layers.flat_map(|layer| &layer.parameters)
    }
}

#[track_caller]
fn assert_close(actual: &Tensor, expected: &Tensor, what: &str) {
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (actual, expected) = (values(actual), values(expected));
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (actual, expected) in actual.into_iter().zip(expected) {
        assert!((actual - expected).abs() <= 1e-4 * largest, "{what}: {actual} instead of {expected} of {largest}");
    }
}

#[test]
fn tape_gives_what_operations_on_tensors_give() -> Result<()> {
    for frozen in [false, true] {
        let (network, clips) = (Network::new(frozen)?, randn(&[3, 3, 7, 44, 44])?);
        let expected = network.on_tensors(&clips)?;
        let upstream = randn(expected.dims())?;
        let expected_gradients = (&expected * &upstream)?.sum_all()?.backward()?;

        let mut tape = Tape::default();
        let features = network.on_tape(&mut tape, &clips)?;
        assert_close(&features, &expected, "features");
        let mut gradients = (&features * &upstream)?.sum_all()?.backward()?;
        tape.backward(&mut gradients)?;
        for parameter in network.parameters() {
            let expected = expected_gradients.get(parameter).expect("each parameter has one");
            let actual = gradients.get(parameter).expect("each parameter has one");
            assert_close(actual, expected, &format!("gradient of {:?}, frozen {frozen}", parameter.shape()));
        }
        assert!(gradients.get(&features).is_none(), "features are no parameter");
    }
    Ok(())
}

#[test]
fn constants_have_no_gradients_and_leave_nothing_to_go_back_to() -> Result<()> {
    let mut network = Network::new(true)?;
    let layers = network.blocks.iter_mut().flatten().chain([&mut network.stem, &mut network.projection]);
    for layer in layers {
        layer.parameters = layer.parameters.each_ref().map(Tensor::detach);
    }
    let mut tape = Tape::default();
    let features = network.on_tape(&mut tape, &randn(&[1, 3, 5, 40, 40])?)?;
    assert!(!features.is_variable());
    let scale = Var::ones(1, candle_core::DType::F32, &Device::Cpu)?;
    let mut gradients = features.broadcast_mul(&scale)?.sum_all()?.backward()?;
    let before = gradients.get_ids().count();
    tape.backward(&mut gradients)?;
    assert_eq!(gradients.get_ids().count(), before);
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_errors() -> Result<()> {
    let mut tape = Tape::default();
    let clips = Volume::from_tensor(&randn(&[1, 3, 4, 8, 8])?)?;
    for layer in [
        Layer::new([8, 4, 3, 3, 3], [1; 3], [1; 3])?,
        Layer::new([8, 3, 3, 3, 3], [1; 3], [3; 3])?,
        Layer::new([8, 3, 5, 3, 3], [1; 3], [0; 3])?,
    ] {
        let [weight, norm_weight, norm_bias] = &layer.parameters;
        let (statistics, activation, following) = (Statistics::Batch, Activation::Relu, Following::Nothing);
        let config = layer.config;
        let layer =
            ConvNormLayer { weight, config, norm_weight, norm_bias, statistics, epsilon: 1e-5, activation, following };
        assert!(tape.conv_norm(&clips, &layer).is_err());
    }
    let layer = Layer::new([8, 3, 3, 3, 3], [2; 3], [1; 3])?;
    assert!(layer.on_tape(&mut tape, &clips, Activation::Relu, Following::Add(&clips)).is_err());
    assert!(tape.strided_shortcut(&clips, 0, 8).is_err());
    assert!(tape.strided_shortcut(&clips, 2, 2).is_err());
    Ok(())
}
