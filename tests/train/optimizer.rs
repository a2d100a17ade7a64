//! Optimisers step by step beside PyTorch's, and whole training steps.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::{Optimizer as _, ParamsAdamW};
use kinetoscope::model::counter::CounterStream;
use kinetoscope::train::adamw::AdamW;
use kinetoscope::train::network::{BeginAt, Network};
use kinetoscope::train::optimizer::{Optimizer, OptimizerConfig};
use kinetoscope::train::sgd::{Sgd, SgdConfig};

use crate::golden::{self, Golden, relative_distance};

fn uniform(seed: u64, name: &str, len: u64) -> Vec<f32> {
    let stream = CounterStream::new(seed, name);
    (0..len).map(|index| stream.uniform(index)).collect()
}

/// Takes the steps of `generate.py` and compares the weights after each: in f32, and in f64 by the operations that other
/// devices take too.
fn assert_steps<O: candle_nn::Optimizer<Config: Clone>>(case: &str, config: O::Config) {
    let path = golden::path("optimizers.safetensors");
    let golden = candle_core::safetensors::load(path, &Device::Cpu).expect("the golden is committed");
    for dtype in [DType::F32, DType::F64] {
        let tensor = |seed: u64, name: &str| {
            Tensor::from_vec(uniform(seed, name, 64), 64, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
        };
        let weight = Var::from_tensor(&tensor(1, "weight")).unwrap();
        let mut optimizer = O::new(vec![weight.clone()], config.clone()).unwrap();
        for step in 0..5 {
            let gradient = tensor(2, &format!("gradient {step}"));
            // The gradient of the sum of weight times constant is the constant.
            let gradients = (weight.as_tensor() * gradient).unwrap().sum_all().unwrap().backward().unwrap();
            optimizer.step(&gradients).unwrap();
            let expected = golden[&format!("{case}.{step}")].to_vec1::<f32>().unwrap();
            let actual = weight.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            for (actual, expected) in actual.into_iter().zip(expected) {
                let error = (actual - expected).abs();
                assert!(error <= 1e-6, "{case}, {dtype:?}, step {step}: {actual} instead of {expected}");
            }
        }
    }
}

#[test]
fn sgd_is_pytorchs() {
    let plain = SgdConfig { learning_rate: 0.1, momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
    assert_steps::<Sgd>("plain", plain);
    assert_steps::<Sgd>("decay", SgdConfig { weight_decay: 0.01, ..plain });
    assert_steps::<Sgd>("momentum", SgdConfig { momentum: 0.9, weight_decay: 0.001, ..plain });
    let dampening = SgdConfig { learning_rate: 0.05, momentum: 0.9, dampening: 0.5, weight_decay: 0.01, ..plain };
    assert_steps::<Sgd>("dampening", dampening);
    assert_steps::<Sgd>("nesterov", SgdConfig { momentum: 0.8, nesterov: true, weight_decay: 0.01, ..plain });
}

#[test]
fn adamw_is_pytorchs() {
    assert_steps::<AdamW>("adamw", ParamsAdamW { lr: 0.01, weight_decay: 0.05, ..ParamsAdamW::default() });
}

#[test]
fn nesterov_with_dampening_is_refused() {
    let config = SgdConfig { nesterov: true, dampening: 0.1, ..SgdConfig::default() };
    assert!(Sgd::new(Vec::new(), config).is_err());
}

/// Two whole steps: convolutions, batch norms in training, shortcuts, pool, loss, gradients, momentum, decay.
fn assert_training_step(name: &str) {
    let mut golden = Golden::read(name);
    let expected = std::mem::take(&mut golden.tensors);
    for (name, tensor) in &expected {
        let fresh = match name.rsplit('.').next() {
            Some("running_mean") => tensor.zeros_like().unwrap(),
            Some("running_var") => tensor.ones_like().unwrap(),
            _ => continue,
        };
        golden.tensors.insert(name.clone(), fresh);
    }
    let seed = golden.recipe.seed;
    let network = Network::new(&golden.model(), &BeginAt::First, false, &Device::Cpu).unwrap();
    let config = SgdConfig { learning_rate: 0.01, ..SgdConfig::default() };
    let mut optimizer = Optimizer::new(network.backbone_and_head(), &OptimizerConfig::Sgd(config), 1.0).unwrap();
    let labels = Tensor::new(&[0u32, 1, 2, 1], &Device::Cpu).unwrap();
    for step in 0..2 {
        let shape = (4, 3, 8, 32, 32);
        let values = uniform(seed, &format!("clips {step}"), 4 * 3 * 8 * 32 * 32);
        let clips = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        let pass = network.train(&clips).unwrap();
        let loss = cross_entropy(&pass.logits, &labels).unwrap();
        let expected = expected[&format!("loss.{step}")].to_vec1::<f32>().unwrap()[0];
        let actual = loss.to_scalar::<f32>().unwrap();
        // The second step goes through what the first one rounded, and batch norms of four values enlarge it: PyTorch's own
        // f32 is then up to 7e-6 off.
        let tolerance = if step == 0 { 1e-5 } else { 3e-5 };
        assert!((actual - expected).abs() <= tolerance * expected, "step {step}: {actual} instead of {expected}");
        optimizer.step(&pass.backward(&loss).unwrap(), 0.01).unwrap();
    }
    for (name, weight) in network.weights().unwrap() {
        let distance = relative_distance(&weight, &expected[&name]);
        assert!(distance <= 1e-4, "{name} is {distance:.1e} off");
    }
}

#[test]
fn training_steps_with_shortcut_a_are_pytorchs() {
    assert_training_step("step-10-a");
}

#[test]
fn training_steps_with_shortcut_b_are_pytorchs() {
    assert_training_step("step-10-b");
}

/// As on a GPU, where the checkpoint's tensors are on the CPU: the parameters' kind of tensor is another than the state's.
#[test]
fn restored_state_is_of_its_parameters_kind() {
    let adamw = OptimizerConfig::AdamW { learning_rate: 0.1, weight_decay: 0.0 };
    for config in [OptimizerConfig::Sgd(SgdConfig::default()), adamw] {
        let parameter = |dtype: DType| {
            let values = Tensor::from_vec(uniform(1, "weight", 64), 64, &Device::Cpu).unwrap();
            vec![("fc.weight".to_owned(), Var::from_tensor(&values.to_dtype(dtype).unwrap()).unwrap())]
        };
        let step = |optimizer: &mut Optimizer, parameters: &[(String, Var)]| {
            let gradients = parameters[0].1.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            optimizer.step(&gradients, 0.1).unwrap();
            parameters[0].1.to_dtype(DType::F32).unwrap().copy().unwrap()
        };
        let first = parameter(DType::F32);
        let mut optimizer = Optimizer::new([Vec::new(), first.clone()], &config, 1.0).unwrap();
        step(&mut optimizer, &first);
        // Steps change the state in place.
        let state = optimizer.state().into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect();
        let middle = first[0].1.copy().unwrap();
        let expected = step(&mut optimizer, &first);

        let other = parameter(DType::F64);
        other[0].1.set(&middle.to_dtype(DType::F64).unwrap()).unwrap();
        let mut restored = Optimizer::new([Vec::new(), other.clone()], &config, 1.0).unwrap();
        restored.restore(&state, 1).unwrap();
        assert!(restored.state().iter().all(|(_, tensor)| tensor.dtype() == DType::F64));
        let actual = step(&mut restored, &other);
        assert!(relative_distance(&actual, &expected) < 1e-6, "{config}: {actual} instead of {expected}");
    }
}
