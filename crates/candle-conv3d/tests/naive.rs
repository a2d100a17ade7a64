//! Random shapes against seven plain loops, and gradients against finite differences.

use candle_conv3d::{
    Activation, Conv3d, Conv3dConfig, MaxPool3d, MaxPool3dConfig, batch_norm, conv3d, fixed_norm, reference,
};
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Module, VarBuilder, VarMap};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Case {
    input: [usize; 5],
    out_channels: usize,
    kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
}

impl Case {
    fn windows_fit(&self) -> bool {
        (0..3).all(|i| self.input[i + 2] + 2 * self.padding[i] >= self.kernel[i])
    }

    fn conv(&self) -> Conv3dConfig {
        Conv3dConfig { stride: self.stride, padding: self.padding }
    }

    fn pool(&self) -> MaxPool3dConfig {
        let padding = std::array::from_fn(|i| self.padding[i].min(self.kernel[i] / 2));
        MaxPool3dConfig { kernel: self.kernel, stride: self.stride, padding }
    }

    fn weight_dims(&self) -> [usize; 5] {
        let [kt, kh, kw] = self.kernel;
        [self.out_channels, self.input[1], kt, kh, kw]
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let axes = |range: std::ops::Range<usize>| proptest::array::uniform3(range);
    (1..3usize, 1..9usize, axes(1..9), 1..20usize, axes(1..5), axes(1..4), axes(0..4))
        .prop_map(|(n, c, [t, h, w], out_channels, kernel, stride, padding)| Case {
            input: [n, c, t, h, w],
            out_channels,
            kernel,
            stride,
            padding,
        })
        .prop_filter("windows must fit", Case::windows_fit)
}

fn randn(dims: [usize; 5]) -> Tensor {
    Tensor::randn(0f32, 1., dims.as_slice(), &Device::Cpu).expect("a small tensor")
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("an f32 tensor")
}

/// Calls `visit(output index, input index, tap index)` for each tap of each window that meets data, channels aside.
fn for_each_tap(case: &Case, padding: [usize; 3], output: [usize; 3], mut visit: impl FnMut(usize, usize, usize)) {
    let [_, _, t, h, w] = case.input;
    let [kt, kh, kw] = case.kernel;
    let place = |axis: usize, out: usize, tap: usize, size: usize| {
        (out * case.stride[axis] + tap).checked_sub(padding[axis]).filter(|&at| at < size)
    };
    for (a, b, c) in iterate(output) {
        for (i, j, k) in iterate([kt, kh, kw]) {
            if let (Some(x), Some(y), Some(z)) = (place(0, a, i, t), place(1, b, j, h), place(2, c, k, w)) {
                visit((a * output[1] + b) * output[2] + c, (x * h + y) * w + z, (i * kh + j) * kw + k);
            }
        }
    }
}

fn iterate([a, b, c]: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

fn naive_conv3d(case: &Case, input: &Tensor, weight: &Tensor, output: [usize; 3]) -> Vec<f32> {
    let [n, channels, t, h, w] = case.input;
    let (voxels, taps, places) = (t * h * w, case.kernel.iter().product::<usize>(), output.iter().product::<usize>());
    let (input, weight) = (values(input), values(weight));
    let mut result = vec![0f64; n * case.out_channels * places];
    for_each_tap(case, case.padding, output, |out, at, tap| {
        for clip in 0..n {
            for oc in 0..case.out_channels {
                for ic in 0..channels {
                    result[(clip * case.out_channels + oc) * places + out] +=
                        f64::from(input[(clip * channels + ic) * voxels + at])
                            * f64::from(weight[(oc * channels + ic) * taps + tap]);
                }
            }
        }
    });
    result.into_iter().map(|sum| sum as f32).collect()
}

fn naive_max_pool3d(case: &Case, input: &Tensor, output: [usize; 3]) -> Vec<f32> {
    let [n, channels, t, h, w] = case.input;
    let (voxels, places) = (t * h * w, output.iter().product::<usize>());
    let input = values(input);
    let mut result = vec![f32::NEG_INFINITY; n * channels * places];
    for_each_tap(case, case.pool().padding, output, |out, at, _| {
        for plane in 0..n * channels {
            let best = &mut result[plane * places + out];
            *best = best.max(input[plane * voxels + at]);
        }
    });
    result
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn convolution_equals_seven_loops(case in cases()) {
        let (input, weight) = (randn(case.input), randn(case.weight_dims()));
        let output = case.conv().output_dims([case.input[2], case.input[3], case.input[4]], case.kernel).unwrap();
        let expected = naive_conv3d(&case, &input, &weight, output);
        let layer = Conv3d::new(weight.clone(), None, case.conv());
        for actual in [layer.forward(&input).unwrap(), reference::conv3d(&input, &weight, &case.conv()).unwrap()] {
            prop_assert_eq!(&actual.dims()[2..], output.as_slice());
            for (actual, expected) in values(&actual).into_iter().zip(&expected) {
                // At most 512 products of unit normals: f32 rounding stays far below 1e-4.
                prop_assert!((actual - expected).abs() < 1e-4, "{} instead of {}", actual, expected);
            }
        }
    }

    #[test]
    fn max_pool_equals_six_loops(case in cases()) {
        let input = randn(case.input);
        if let Ok(output) = case.pool().output_dims([case.input[2], case.input[3], case.input[4]]) {
            let expected = naive_max_pool3d(&case, &input, output);
            prop_assert_eq!(values(&MaxPool3d::new(case.pool()).forward(&input).unwrap()), expected.clone());
            prop_assert_eq!(values(&reference::max_pool3d(&input, &case.pool()).unwrap()), expected);
        } else {
            prop_assert!(MaxPool3d::new(case.pool()).forward(&input).is_err());
        }
    }

    #[test]
    fn layer_gradients_equal_reference_gradients(case in cases()) {
        let (input, weight) = (Var::from_tensor(&randn(case.input)).unwrap(), Var::from_tensor(&randn(case.weight_dims())).unwrap());
        let plain = reference::conv3d(&input, &weight, &case.conv()).unwrap();
        let upstream = plain.randn_like(0., 1.).unwrap();
        let layer = Conv3d::new(weight.as_tensor().clone(), None, case.conv()).forward(&input).unwrap();
        let gradients = [plain, layer].map(|y| (y * &upstream).unwrap().sum_all().unwrap().backward().unwrap());
        for var in [&input, &weight] {
            match (gradients[0].get(var), gradients[1].get(var)) {
                (Some(expected), Some(actual)) => {
                    // Weight gradients sum up to 1,024 products, so their error grows a little larger.
                    for (actual, expected) in values(actual).into_iter().zip(values(expected)) {
                        prop_assert!((actual - expected).abs() < 3e-4, "{} instead of {}", actual, expected);
                    }
                }
                // A convolution of nothing but padding is a constant.
                (None, actual) => prop_assert!(actual.is_none_or(|g| values(g).iter().all(|&v| v == 0.))),
                (Some(_), None) => prop_assert!(false, "the layer has lost a gradient"),
            }
        }
    }
}

/// Compares d sum(f(x) * upstream) / dx with central differences. In f64 with a step of 1e-5 they agree to 1e-7 for
/// functions that are linear near x, as convolutions and (away from ties) pools are.
fn assert_gradient(x: &Var, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<()> {
    const STEP: f64 = 1e-5;
    let upstream = f(x)?.randn_like(0., 1.)?;
    let loss = |x: &Tensor| (f(x)? * &upstream)?.sum_all()?.to_scalar::<f64>();
    let analytic = (f(x)? * &upstream)?.sum_all()?.backward()?;
    let analytic = analytic.get(x).expect("a gradient").flatten_all()?.to_vec1::<f64>()?;
    let start = x.flatten_all()?.to_vec1::<f64>()?;
    for (i, analytic) in analytic.into_iter().enumerate() {
        let at = |offset: f64| {
            let mut moved = start.clone();
            moved[i] += offset;
            loss(&Tensor::from_vec(moved, x.dims(), x.device())?)
        };
        let numeric = (at(STEP)? - at(-STEP)?) / (2. * STEP);
        assert!((analytic - numeric).abs() < 1e-7, "element {i}: {analytic} instead of {numeric}");
    }
    Ok(())
}

#[test]
fn convolution_gradients_equal_finite_differences() -> Result<()> {
    let config = Conv3dConfig { stride: [2, 1, 2], padding: [1, 0, 2] };
    let input = Var::randn(0f64, 1., (2, 2, 3, 4, 5), &Device::Cpu)?;
    let weight = Var::randn(0f64, 1., (3, 2, 2, 3, 3), &Device::Cpu)?;
    let conv = |x: &Tensor, w: &Tensor| Conv3d::new(w.clone(), None, config).forward(x);
    assert_gradient(&input, |x| conv(x, &weight))?;
    assert_gradient(&weight, |w| conv(&input, w))
}

#[test]
fn pool_gradient_equals_finite_differences_away_from_ties() -> Result<()> {
    let pool = MaxPool3d::new(MaxPool3dConfig { kernel: [3, 2, 3], stride: [2, 1, 2], padding: [1, 1, 0] });
    // A shuffled ramp: no two values are closer than 1, so no step changes a winner.
    let ramp: Vec<f64> = (0..2 * 3 * 4 * 5).map(|i| f64::from(i * 77 % 120)).collect();
    assert_gradient(&Var::from_vec(ramp, (1, 2, 3, 4, 5), &Device::Cpu)?, |x| pool.forward(x))
}

/// Compares output and both gradients of the layer with those of the reference. Winograd's transforms lose two to
/// three bits of f32, relative to the largest value.
fn assert_equals_reference(input: [usize; 5], weight: [usize; 5], config: Conv3dConfig) -> Result<()> {
    let (input, weight) = (Var::from_tensor(&randn(input))?, Var::from_tensor(&randn(weight))?);
    let plain = reference::conv3d(&input, &weight, &config)?;
    let fast = Conv3d::new(weight.as_tensor().clone(), None, config).forward(&input)?;
    let upstream = plain.randn_like(0., 1.)?;
    let mut pairs = vec![(fast.clone(), plain.clone())];
    let gradients = [fast, plain].map(|y| (y * &upstream).unwrap().sum_all().unwrap().backward().unwrap());
    for var in [&input, &weight] {
        let [fast, plain] = [&gradients[0], &gradients[1]].map(|g| g.get(var).expect("a gradient").clone());
        pairs.push((fast, plain));
    }
    for (fast, plain) in pairs {
        let (fast, plain) = (values(&fast), values(&plain));
        let largest = plain.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        for (fast, plain) in fast.into_iter().zip(plain) {
            assert!((fast - plain).abs() < 2e-5 * largest, "{fast} instead of {plain}, largest {largest}");
        }
    }
    Ok(())
}

/// Large enough for the Winograd kernels: odd sizes that fill no whole tiles, one and several frames, a purely spatial
/// kernel, more than one task.
#[test]
fn residual_convolutions_equal_the_reference_forward_and_backward() -> Result<()> {
    for (input, out_channels, kt, pt) in [
        ([2, 16, 3, 21, 18], 32, 3, 1),
        ([1, 32, 1, 45, 45], 16, 3, 1),
        ([3, 16, 2, 28, 28], 16, 1, 0),
        ([1, 16, 6, 19, 28], 16, 3, 2),
        ([1, 16, 5, 30, 23], 48, 4, 0),
        ([8, 16, 2, 14, 14], 16, 7, 3),
    ] {
        let config = Conv3dConfig { stride: [1; 3], padding: [pt, 1, 1] };
        assert_equals_reference(input, [out_channels, input[1], kt, 3, 3], config)?;
    }
    Ok(())
}

#[test]
fn stem_convolutions_equal_the_reference_forward_and_backward() -> Result<()> {
    for (input, out_channels, kt, pt) in
        [([2, 3, 5, 22, 18], 32, 7, 3), ([1, 1, 1, 8, 14], 16, 3, 1), ([1, 4, 3, 16, 32], 16, 1, 0)]
    {
        let config = Conv3dConfig { stride: [1, 2, 2], padding: [pt, 3, 3] };
        assert_equals_reference(input, [out_channels, input[1], kt, 7, 7], config)?;
    }
    Ok(())
}

#[test]
fn batch_norm_equals_the_reference_forward_and_backward() -> Result<()> {
    for (activation, dims) in [(Activation::Relu, [3, 5, 2, 7, 9]), (Activation::Identity, [2, 17, 4, 8, 8])] {
        // A mean far from zero: the variance must not drown in it.
        let input = Var::from_tensor(&(randn(dims) * 3.)?.affine(1., 100.)?)?;
        let weight = Var::randn(0f32, 1., dims[1], &Device::Cpu)?;
        let bias = Var::randn(0f32, 1., dims[1], &Device::Cpu)?;
        let fast = batch_norm(&input, &weight, &bias, 1e-5, activation)?;
        let plain = reference::batch_norm(&input, &weight, &bias, 1e-5, activation)?;
        let upstream = randn(dims);
        let gradients =
            [&fast, &plain].map(|y| (&y.output * &upstream).unwrap().sum_all().unwrap().backward().unwrap());
        let mut pairs = vec![
            (fast.output.clone(), plain.output.clone()),
            (fast.mean.clone(), plain.mean.clone()),
            (fast.variance.clone(), plain.variance.clone()),
        ];
        for var in [&input, &weight, &bias] {
            let [fast, plain] = [&gradients[0], &gradients[1]].map(|g| g.get(var).expect("a gradient").clone());
            pairs.push((fast, plain));
        }
        for (fast, plain) in pairs {
            for (fast, plain) in values(&fast).into_iter().zip(values(&plain)) {
                // The reference's sums are f32 around a mean of 100, whose steps are 8e-6.
                assert!((fast - plain).abs() < 2e-3 * plain.abs().max(1.), "{fast} instead of {plain}");
            }
        }
    }
    Ok(())
}

#[test]
fn fixed_norm_equals_the_reference_forward_and_backward() -> Result<()> {
    for (activation, dims) in [(Activation::Relu, [3, 5, 2, 7, 9]), (Activation::Identity, [2, 17, 4, 8, 8])] {
        let input = Var::from_tensor(&randn(dims))?;
        let channel = || Var::randn(0f32, 1., dims[1], &Device::Cpu);
        let (weight, bias, mean) = (channel()?, channel()?, channel()?);
        let variance = (channel()?.sqr()? + 0.1)?;
        let norms = [fixed_norm, reference::fixed_norm];
        let outputs = norms.map(|norm| norm(&input, &weight, &bias, &mean, &variance, 1e-5, activation).unwrap());
        let upstream = randn(dims);
        let gradients = outputs.each_ref().map(|y| (y * &upstream).unwrap().sum_all().unwrap().backward().unwrap());
        let mut pairs = vec![outputs.each_ref().map(values)];
        for var in [&input, &weight, &bias] {
            pairs.push(gradients.each_ref().map(|gradients| values(gradients.get(var).expect("a gradient"))));
        }
        for [fast, plain] in pairs {
            for (fast, plain) in fast.into_iter().zip(plain) {
                assert!((fast - plain).abs() < 1e-4 * plain.abs().max(1.), "{fast} instead of {plain}");
            }
        }
    }
    Ok(())
}

#[test]
fn batch_norm_gradients_equal_finite_differences() -> Result<()> {
    let input = Var::randn(0f64, 1., (2, 2, 1, 2, 3), &Device::Cpu)?;
    let (weight, bias) = (Tensor::new(&[1.5f64, -0.5], &Device::Cpu)?, Tensor::new(&[0.1f64, 0.2], &Device::Cpu)?);
    assert_gradient(&input, |x| Ok(batch_norm(x, &weight, &bias, 1e-5, Activation::Identity)?.output))
}

#[test]
fn nan_wins_a_pool() -> Result<()> {
    let mut ramp: Vec<f32> = (0..8).map(|i| i as f32).collect();
    ramp[3] = f32::NAN;
    let input = Tensor::from_vec(ramp, (1, 1, 2, 2, 2), &Device::Cpu)?;
    let config = MaxPool3dConfig { kernel: [2; 3], stride: [1; 3], padding: [0; 3] };
    assert!(values(&MaxPool3d::new(config).forward(&input)?)[0].is_nan());
    assert!(values(&reference::max_pool3d(&input, &config)?)[0].is_nan());
    Ok(())
}

#[test]
fn half_precision_stays_close_to_single() -> Result<()> {
    let (input, weight) = (randn([1, 3, 4, 6, 6]), randn([4, 3, 3, 3, 3]));
    let config = Conv3dConfig { stride: [1; 3], padding: [1; 3] };
    let exact = values(&reference::conv3d(&input, &weight, &config)?);
    // 81 products of unit size; a relative step is 2^-11 in f16 and 2^-8 in bf16.
    for (dtype, tolerance) in [(DType::F16, 0.05), (DType::BF16, 0.3)] {
        let layer = Conv3d::new(weight.to_dtype(dtype)?, None, config);
        let half = layer.forward(&input.to_dtype(dtype)?)?;
        assert_eq!(half.dtype(), dtype);
        for (half, exact) in values(&half.to_dtype(DType::F32)?).into_iter().zip(&exact) {
            assert!((half - exact).abs() < tolerance, "{half} instead of {exact} in {dtype:?}");
        }
    }
    Ok(())
}

#[test]
fn strided_views_are_accepted() -> Result<()> {
    let input = randn([2, 4, 6, 5, 3]).transpose(2, 4)?;
    let weight = randn([4, 4, 3, 3, 3]).transpose(0, 1)?;
    let config = Conv3dConfig { stride: [1; 3], padding: [1; 3] };
    let views = Conv3d::new(weight.clone(), None, config).forward(&input)?;
    let copies = Conv3d::new(weight.contiguous()?, None, config).forward(&input.contiguous()?)?;
    assert_eq!(values(&views), values(&copies));
    let pool = MaxPool3d::new(MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [1; 3] });
    assert_eq!(values(&pool.forward(&input)?), values(&pool.forward(&input.contiguous()?)?));
    Ok(())
}

#[test]
fn constructor_reads_a_checkpoint_as_pytorch_names_it() -> Result<()> {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let layer = conv3d(3, 4, [1, 2, 3], Conv3dConfig::default(), vb.pp("stem"))?;
    assert_eq!(layer.weight().dims(), [4, 3, 1, 2, 3]);
    assert_eq!(layer.bias().map(Tensor::dims), Some(&[4][..]));
    let mut names: Vec<_> = variables.data().lock().expect("no other thread").keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["stem.bias", "stem.weight"]);
    Ok(())
}

#[test]
fn errors_say_what_was_found_and_what_is_allowed() {
    let input = randn([1, 3, 4, 6, 6]);
    let message = |dims: [usize; 5], bias: Option<Tensor>, config: Conv3dConfig| {
        let error = Conv3d::new(randn(dims), bias, config).forward(&input).expect_err("it must be refused");
        error.to_string()
    };
    let config = Conv3dConfig::default();
    let channels = message([4, 2, 1, 1, 1], None, config);
    assert!(channels.contains("input has 3 channels; the weight wants 2"), "{channels}");
    let kernel = message([4, 3, 7, 1, 1], None, Conv3dConfig { padding: [1; 3], ..config });
    assert!(
        kernel.contains("kernel along time is 7; input 4 with padding 1 on both sides allows at most 6"),
        "{kernel}"
    );
    let stride = message([4, 3, 1, 1, 1], None, Conv3dConfig { stride: [1, 0, 1], ..config });
    assert!(stride.contains("stride along height is 0"), "{stride}");
    let bias = Tensor::zeros(3, DType::F32, &Device::Cpu).expect("a small tensor");
    let bias = message([4, 3, 1, 1, 1], Some(bias), config);
    assert!(bias.contains("4 output channels want [4]"), "{bias}");

    let pool = MaxPool3d::new(MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [2, 1, 1] });
    let pool = pool.forward(&input).expect_err("it must be refused").to_string();
    assert!(pool.contains("pool padding along time is 2; a kernel of 3 allows at most 1"), "{pool}");
}
