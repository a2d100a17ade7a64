//! Forward and backward against the PyTorch values that `golden/generate.py` wrote.

use std::collections::HashMap;

use candle_conv3d::{Conv3d, Conv3dConfig, MaxPool3d, MaxPool3dConfig, reference};
use candle_core::{Device, Result, Tensor, Var};
use candle_nn::Module;

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn load() -> Self {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ops.safetensors");
        Self(candle_core::safetensors::load(file, &Device::Cpu).expect("the goldens lie in the repository"))
    }

    fn var(&self, name: &str) -> Option<Var> {
        self.0.get(name).map(|tensor| Var::from_tensor(tensor).expect("a var of a golden"))
    }

    /// Sums of a few hundred products of unit size: f32 rounding stays within 2e-5 whatever the order.
    fn assert_close(&self, name: &str, actual: &Tensor) {
        let expected = &self.0[name];
        assert_eq!(actual.dims(), expected.dims(), "{name}");
        let error = (actual - expected).and_then(|d| d.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>());
        let error = error.expect("the shapes are equal");
        assert!(error < 2e-5, "{name} is off by {error}");
    }

    fn assert_convolution(&self, name: &str, stride: [usize; 3], padding: [usize; 3]) -> Result<()> {
        let config = Conv3dConfig { stride, padding };
        let key = |part: &str| format!("{name}.{part}");
        let input = self.var(&key("input")).expect("every case has an input");
        let weight = self.var(&key("weight")).expect("every convolution has a weight");
        let bias = self.var(&key("bias"));
        let layer = Conv3d::new(weight.as_tensor().clone(), bias.as_ref().map(|b| b.as_tensor().clone()), config);
        let output = layer.forward(&input)?;
        self.assert_close(&key("output"), &output);
        let gradients = (output * &self.0[&key("upstream")])?.sum_all()?.backward()?;
        for (part, var) in [("input", Some(&input)), ("weight", Some(&weight)), ("bias", bias.as_ref())] {
            let Some(var) = var else { continue };
            self.assert_close(&key(&format!("grad_{part}")), gradients.get(var).expect("a gradient for each variable"));
        }
        if bias.is_none() {
            self.assert_close(&key("output"), &reference::conv3d(&input, &weight, &config)?);
        }
        Ok(())
    }

    fn assert_pool(&self, name: &str, config: MaxPool3dConfig) -> Result<()> {
        let key = |part: &str| format!("{name}.{part}");
        let input = self.var(&key("input")).expect("every case has an input");
        for output in [MaxPool3d::new(config).forward(&input)?, reference::max_pool3d(&input, &config)?] {
            self.assert_close(&key("output"), &output);
            let gradients = (output * &self.0[&key("upstream")])?.sum_all()?.backward()?;
            self.assert_close(&key("grad_input"), gradients.get(&input).expect("a gradient for the input"));
        }
        Ok(())
    }
}

#[test]
fn stem_convolution_matches_pytorch() -> Result<()> {
    Golden::load().assert_convolution("stem", [1, 2, 2], [3; 3])
}

#[test]
fn residual_convolution_with_bias_matches_pytorch() -> Result<()> {
    Golden::load().assert_convolution("residual", [1; 3], [1; 3])
}

#[test]
fn downsampling_convolution_on_odd_and_even_sizes_matches_pytorch() -> Result<()> {
    Golden::load().assert_convolution("downsampling", [2; 3], [1; 3])
}

#[test]
fn shortcut_convolution_matches_pytorch() -> Result<()> {
    Golden::load().assert_convolution("shortcut", [2; 3], [0; 3])
}

#[test]
fn convolution_of_a_single_frame_matches_pytorch() -> Result<()> {
    Golden::load().assert_convolution("one_frame", [1; 3], [1; 3])
}

#[test]
fn convolution_with_different_strides_and_paddings_matches_pytorch() -> Result<()> {
    Golden::load().assert_convolution("lopsided", [2, 3, 1], [0, 2, 1])
}

#[test]
fn stem_pool_matches_pytorch() -> Result<()> {
    let config = MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [1; 3] };
    Golden::load().assert_pool("stem_pool", config)
}

#[test]
fn pool_gradient_goes_to_the_first_of_equal_maxima_as_in_pytorch() -> Result<()> {
    let config = MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [1; 3] };
    Golden::load().assert_pool("tied_pool", config)
}

#[test]
fn pool_with_different_strides_and_paddings_matches_pytorch() -> Result<()> {
    let config = MaxPool3dConfig { kernel: [2, 3, 1], stride: [1, 2, 2], padding: [1, 0, 0] };
    Golden::load().assert_pool("lopsided_pool", config)
}
