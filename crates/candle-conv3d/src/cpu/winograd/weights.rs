//! The weight transform, once when a plan is compiled.

use super::super::memory::Buffer;
use super::super::microkernel::packed_index;
use super::super::padded_channels;
use super::super::team::Team;
use super::time::Time;
use super::transform::{POINTS, weights};

/// Input channels a work item transforms at once for one panel.
const CHANNELS: usize = 16;

/// Transforms `weight`, (out, in, kt, 3, 3), to `[spatial point][temporal point]`, each packed for vectors of `lanes`.
/// Computed in f64: the transform's own rounding would add to that of every product.
pub(super) fn transform(
    weight: &[f32],
    [oc, ic]: [usize; 2],
    kt: usize,
    [points_y, points_x]: [usize; 2],
    time: Time,
    lanes: usize,
    team: &mut Team,
) -> Buffer {
    let (k, columns) = (padded_channels(ic), padded_channels(oc));
    let temporal = time.points();
    let mut packed = Buffer::zeroed(points_y * points_x * temporal * k * columns);
    let shared = packed.shared();
    // 16 output channels times 16 input channels: every write of a point fills whole cache lines.
    let (blocks_o, blocks_i) = (columns / CHANNELS, k / CHANNELS);
    team.run(&|member| {
        member.share(blocks_o * blocks_i, |item| {
            let (first_o, first_i) = (item / blocks_i * CHANNELS, item % blocks_i * CHANNELS);
            let mut block = vec![0.0f32; POINTS * POINTS * POINTS * CHANNELS];
            for i in first_i..ic.min(first_i + CHANNELS) {
                for o in first_o..oc.min(first_o + CHANNELS) {
                    let taps = &weight[(o * ic + i) * kt * 9..][..kt * 9];
                    transform_one(taps, &time, |point, value| block[point * CHANNELS + o - first_o] = value);
                }
                for point in 0..points_y * points_x * temporal {
                    let (spatial, p) = (point / temporal, point % temporal);
                    let (qy, qx) = (spatial / points_x, spatial % points_x);
                    let from = &block[((qy * POINTS + qx) * POINTS + p) * CHANNELS..][..CHANNELS];
                    let to = point * k * columns + packed_index(k, columns, lanes, i, first_o);
                    // SAFETY: a panel is a multiple of 16 columns wide and `first_o` of 16, so the 16 values stand side
                    // by side inside the buffer; each (input channel, 16 output channels) belongs to one item.
                    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), shared.at(to), CHANNELS) };
                }
            }
        });
    });
    packed
}

/// Transforms the taps of one channel pair; gives each value with its index, `[qy][qx][temporal point]` of
/// [`POINTS`] each.
fn transform_one(taps: &[f32], time: &Time, mut write: impl FnMut(usize, f32)) {
    let kt = taps.len() / 9;
    // [tap in time][qy][qx]
    let mut spatial = [[[0.0; POINTS]; POINTS]; 3];
    for (frame, out) in taps.chunks_exact(9).zip(&mut spatial) {
        let mut rows = [[0.0; POINTS]; 3];
        for (row, taps) in rows.iter_mut().zip(frame.chunks_exact(3)) {
            *row = weights([f64::from(taps[0]), f64::from(taps[1]), f64::from(taps[2])]);
        }
        for qx in 0..POINTS {
            let column = weights([rows[0][qx], rows[1][qx], rows[2][qx]]);
            for qy in 0..POINTS {
                out[qy][qx] = column[qy];
            }
        }
    }
    for qy in 0..POINTS {
        for qx in 0..POINTS {
            let in_time = [spatial[0][qy][qx], spatial[1][qy][qx], spatial[2][qy][qx]];
            let points = time.weights(&in_time[..kt]);
            for (p, &value) in points.iter().enumerate().take(time.points()) {
                write((qy * POINTS + qx) * POINTS + p, value as f32);
            }
        }
    }
}
