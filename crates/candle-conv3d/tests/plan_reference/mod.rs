//! Naive f64 layers, (n, c, t, h, w), to compare the plan with.

mod values;

pub(crate) use values::{error, he_weights, noise_vec};

/// One clip, (c, t, h, w).
#[derive(Clone)]
pub(crate) struct Volume {
    pub(crate) dims: [usize; 4],
    pub(crate) data: Vec<f64>,
}

impl Volume {
    pub(crate) fn new(dims: [usize; 4], data: &[f32]) -> Self {
        assert_eq!(data.len(), dims.iter().product::<usize>());
        Self { dims, data: data.iter().map(|&x| f64::from(x)).collect() }
    }

    fn at(&self, c: usize, t: usize, h: usize, w: usize) -> f64 {
        let [_, dt, dh, dw] = self.dims;
        self.data[((c * dt + t) * dh + h) * dw + w]
    }

    /// Applies `reduce` to the values of every window, (weight index, value) each.
    fn windows(
        &self,
        out_channels: usize,
        [kernel, stride, padding]: [[usize; 3]; 3],
        mut reduce: impl FnMut(usize, &[(usize, usize, f64)]) -> f64,
    ) -> Volume {
        let [c, t, h, w] = self.dims;
        let out = |axis: usize, len: usize| (len + 2 * padding[axis] - kernel[axis]) / stride[axis] + 1;
        let dims = [out_channels, out(0, t), out(1, h), out(2, w)];
        let mut data = Vec::new();
        let mut met = Vec::new();
        for oc in 0..out_channels {
            for ot in 0..dims[1] {
                for oh in 0..dims[2] {
                    for ow in 0..dims[3] {
                        met.clear();
                        for ic in 0..c {
                            for kt in 0..kernel[0] {
                                for kh in 0..kernel[1] {
                                    for kw in 0..kernel[2] {
                                        let it = (ot * stride[0] + kt).wrapping_sub(padding[0]);
                                        let ih = (oh * stride[1] + kh).wrapping_sub(padding[1]);
                                        let iw = (ow * stride[2] + kw).wrapping_sub(padding[2]);
                                        if it < t && ih < h && iw < w {
                                            let tap = ((ic * kernel[0] + kt) * kernel[1] + kh) * kernel[2] + kw;
                                            met.push((ic, tap, self.at(ic, it, ih, iw)));
                                        }
                                    }
                                }
                            }
                        }
                        data.push(reduce(oc, &met));
                    }
                }
            }
        }
        Volume { dims, data }
    }

    pub(crate) fn conv(&self, weight: &[f32], bias: &[f32], geometry: [[usize; 3]; 3]) -> Volume {
        let per_output = weight.len() / bias.len();
        self.windows(bias.len(), geometry, |oc, met| {
            let sum: f64 = met.iter().map(|&(_, tap, x)| f64::from(weight[oc * per_output + tap]) * x).sum();
            sum + f64::from(bias[oc])
        })
    }

    pub(crate) fn max_pool(&self, geometry: [[usize; 3]; 3]) -> Volume {
        self.windows(self.dims[0], geometry, |oc, met| {
            met.iter().filter(|m| m.0 == oc).map(|m| m.2).fold(f64::NEG_INFINITY, f64::max)
        })
    }

    pub(crate) fn relu(mut self) -> Volume {
        self.data.iter_mut().for_each(|x| *x = x.max(0.0));
        self
    }

    /// Adds every `stride`-th element of `source`, whose missing channels are zero.
    pub(crate) fn add_strided(mut self, source: &Volume, stride: [usize; 3]) -> Volume {
        let [c, t, h, w] = self.dims;
        for ic in 0..source.dims[0].min(c) {
            for it in 0..t {
                for ih in 0..h {
                    for iw in 0..w {
                        self.data[((ic * t + it) * h + ih) * w + iw] +=
                            source.at(ic, it * stride[0], ih * stride[1], iw * stride[2]);
                    }
                }
            }
        }
        self
    }

    pub(crate) fn global_avg_pool(&self) -> Volume {
        let [c, t, h, w] = self.dims;
        let positions = t * h * w;
        let data = self.data.chunks(positions).map(|channel| channel.iter().sum::<f64>() / positions as f64).collect();
        Volume { dims: [c, 1, 1, 1], data }
    }

    pub(crate) fn linear(&self, weight: &[f32], bias: &[f32]) -> Volume {
        self.conv(weight, bias, [[1; 3], [1; 3], [0; 3]])
    }
}
