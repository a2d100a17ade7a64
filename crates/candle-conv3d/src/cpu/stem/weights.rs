//! The weight transform, once when a plan is compiled.

use super::super::memory::Buffer;
use super::super::microkernel::packed_index;
use super::super::padded_channels;
use super::time::Time;
use super::transform::{POINTS, weights_four, weights_three};
use super::{KERNEL, phase, point_phases};

/// Floats of weights when they are transformed.
pub(super) fn len([oc, ic]: [usize; 2], time: Time) -> usize {
    let points = (0..POINTS).flat_map(|qy| (0..POINTS).map(move |qx| (qy, qx)));
    let phases: usize = points.map(|(qy, qx)| point_phases(qy, qx).1).sum();
    time.weight_taps() * phases * ic * padded_channels(oc)
}

/// Transforms `weight`, (out, in, kt, 7, 7), to `[spatial point]`, the temporal sets of each packed together for vectors of
/// `lanes`. Computed in f64: the transform's own rounding would add to that of every product.
pub(super) fn transform(weight: &[f32], [oc, ic]: [usize; 2], time: Time, lanes: usize) -> Buffer {
    let columns = padded_channels(oc);
    let taps = weight.len() / (oc * ic);
    // Where each point's weights begin.
    let mut begins = [[0; POINTS]; POINTS];
    let mut len = 0;
    for (qy, row) in begins.iter_mut().enumerate() {
        for (qx, begin) in row.iter_mut().enumerate() {
            *begin = len;
            len += time.weight_taps() * point_phases(qy, qx).1 * ic * columns;
        }
    }
    let mut packed = Buffer::zeroed(len);
    for (index, taps) in weight.chunks_exact(taps).enumerate() {
        let (o, i) = (index / ic, index % ic);
        for (py, px) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let frames: Vec<_> = taps.chunks_exact(KERNEL * KERNEL).map(|frame| spatial(frame, py, px)).collect();
            for qy in 0..POINTS {
                for qx in 0..POINTS {
                    let (first, phases) = point_phases(qy, qx);
                    if !(first..first + phases).contains(&phase(py, px)) {
                        continue;
                    }
                    let run = phases * ic;
                    let channel = (phase(py, px) - first) * ic + i;
                    let in_time: Vec<f64> = frames.iter().map(|frame| frame[qy][qx]).collect();
                    let values = time.weights(&in_time);
                    for (tap, &value) in values.iter().enumerate() {
                        let place = packed_index(values.len() * run, columns, lanes, tap * run + channel, o);
                        packed[begins[qy][qx] + place] = value as f32;
                    }
                }
            }
        }
    }
    packed
}

/// The points of one phase's taps of a 7 x 7 kernel: rows of parity `1 - py`, columns of parity `1 - px`.
fn spatial(frame: &[f32], py: usize, px: usize) -> [[f64; POINTS]; POINTS] {
    let mut half_way = [[0.0; KERNEL]; POINTS];
    for x in 0..KERNEL {
        let column = axis(std::array::from_fn(|y| f64::from(frame[y * KERNEL + x])), py);
        for qy in 0..POINTS {
            half_way[qy][x] = column[qy];
        }
    }
    half_way.map(|row| axis(row, px))
}

fn axis([a, b, c, d, e, f, g]: [f64; KERNEL], phase: usize) -> [f64; POINTS] {
    if phase == 1 { weights_four([a, c, e, g]) } else { weights_three([b, d, f]) }
}
