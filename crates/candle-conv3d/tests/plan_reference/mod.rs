//! Graphs with random values, and how far a plan's results are from the reference.

mod values;

use candle_conv3d::graph::{Graph, Parameter, reference};
use candle_conv3d::plan::{Input, Plan, PlanOptions};
pub(crate) use values::{error, he_weights, noise_vec};

/// Gives convolutions and linear layers He-initialised weights, norms factors near 1, everything else small noise.
pub(crate) fn bind(graph: &mut Graph) {
    let values = |parameter: &Parameter| {
        let seed =
            parameter.name.bytes().fold(5u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into())) >> 32;
        let noise = || noise_vec(seed, parameter.len());
        let near_one = || noise().into_iter().map(|x| 1.0 + 0.2 * x).collect::<Vec<f32>>();
        Ok::<_, std::convert::Infallible>(match parameter.shape.as_slice() {
            [out, fan_in @ ..] if !fan_in.is_empty() => he_weights(seed, *out, fan_in.iter().product()),
            _ if parameter.name.ends_with("running_var") => near_one(),
            _ if parameter.name.ends_with(".weight") => near_one(),
            _ => noise(),
        })
    };
    graph.bind(values).unwrap();
}

/// The largest error of each output over a batch of noise, relative to the output's largest value, and the plan.
pub(crate) fn errors(graph: &Graph, scale: f32, batch: usize, options: PlanOptions) -> (Vec<f64>, Plan) {
    let clip_len = graph.shape(graph.input()).unwrap().iter().product::<usize>();
    let values: Vec<f32> = noise_vec(7, batch * clip_len).iter().map(|x| scale * x).collect();
    let (outputs, plan) = run(graph, &values, options);
    let mut errors = vec![0.0f64; outputs.len()];
    for (clip, clip_values) in values.chunks(clip_len).enumerate() {
        let clip_values: Vec<f64> = clip_values.iter().map(|&x| x.into()).collect();
        let expected = reference::run(graph, &clip_values).unwrap();
        for ((largest, expected), actual) in errors.iter_mut().zip(expected).zip(&outputs) {
            *largest = largest.max(error(&actual[clip * expected.len()..][..expected.len()], &expected));
        }
    }
    (errors, plan)
}

/// Outputs of a batch.
pub(crate) fn run(graph: &Graph, values: &[f32], options: PlanOptions) -> (Vec<Vec<f32>>, Plan) {
    let mut plan = graph.clone().compile(options).unwrap();
    let batch = values.len() / plan.input_shape().iter().product::<usize>();
    let lens = plan.output_shapes().iter().map(|shape| shape.iter().product::<usize>());
    let mut outputs: Vec<Vec<f32>> = lens.map(|len| vec![f32::NAN; batch * len]).collect();
    // Twice: buffers that hold the last run's values must not leak into the next.
    for _ in 0..2 {
        let mut slices: Vec<&mut [f32]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
        plan.run(Input::F32 { values, batch }, &mut slices).unwrap();
    }
    (outputs, plan)
}
