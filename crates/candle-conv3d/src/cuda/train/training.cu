// Kernels of training on GPUs, compiled behind those of kernels.cu. Volumes are channels-last, (clip, t, h, w, c), their
// channels padded to a multiple of 8 (`stored`); those that pad are zero in every volume and every gradient. Statistics,
// parameters and their gradients are float. Nothing is added atomically: results are the same in every run.

// A weight (k, c, kt, kh, kw) as a convolution reads it, (stored_k, taps, rows, columns, stored_c): its frames from `tap` and
// its rows from `row` on, and of its columns `phases` side by side in the channels, column j holding those from
// j * step - shift on.
struct Weight {
    int k, c, kt, kh, kw;
    int stored_k, stored_c, taps, rows, columns;
    int tap, row, phases, step, shift;
};

extern "C" __global__ void pack_weight(const float* __restrict__ weight, T* __restrict__ out, Weight s) {
    STRIDED(i, s.stored_k * s.taps * s.rows * s.columns * s.stored_c) {
        Place to = place_of(i, s.taps, s.rows, s.columns, s.stored_c);
        int t = to.t + s.tap, h = to.h + s.row, phase = to.c / s.c, w = to.w * s.step + phase - s.shift;
        bool inside = to.clip < s.k && phase < s.phases && w >= 0 && w < s.kw;
        u64 at = (((to.clip * s.c + to.c % s.c) * s.kt + t) * s.kh + h) * s.kw + w;
        out[i] = narrow(inside ? weight[at] : 0.0f);
    }
}

// The gradient of a weight (k, c, kt, kh, kw) from that of a packed one; what is not in it has none.
extern "C" __global__ void unpack_weight(const T* __restrict__ packed, float* __restrict__ gradient, Weight s) {
    STRIDED(i, s.k * s.c * s.kt * s.kh * s.kw) {
        // The dimensions of a weight in the order of a volume's.
        Place from = place_of(i, s.c, s.kt, s.kh, s.kw);
        int t = from.h - s.tap, h = from.w - s.row, w = from.c + s.shift;
        bool inside = t >= 0 && t < s.taps && h >= 0 && h < s.rows && w >= 0 && w / s.step < s.columns;
        u64 column = ((from.clip * s.taps + t) * s.rows + h) * s.columns + w / s.step;
        u64 at = column * s.stored_c + w % s.step * s.c + from.t;
        gradient[i] = inside ? widen(packed[at]) : 0.0f;
    }
}

// Two sums for each channel over all rows, a partial one for each block: partial (block, 2, stored). `add` adds row `row` of
// the 8 channels from `first` on. A block has some rows of `tile` groups of channels at a time.
template <class Add>
__device__ __forceinline__ void column_sums(float* __restrict__ partial, int stored, u64 rows, Add add) {
    __shared__ float shared[16 * 256];
    unsigned groups = stored / 8, width = blockDim.x, tile = min(min(groups, width), 32u), lanes = width / tile;
    unsigned lane = threadIdx.x / tile, column = threadIdx.x % tile;
    for (unsigned first = blockIdx.y * tile; first < groups; first += gridDim.y * tile) {
        float sums[16];
        for (int k = 0; k < 16; k++) sums[k] = 0.0f;
        if (lane < lanes && first + column < groups)
            for (u64 row = (u64)blockIdx.x * lanes + lane; row < rows; row += (u64)gridDim.x * lanes)
                add(row, (int)(first + column) * 8, sums);
        for (int k = 0; k < 16; k++) shared[k * width + threadIdx.x] = sums[k];
        __syncthreads();
        for (unsigned i = threadIdx.x; i < 16 * tile; i += width) {
            unsigned k = i / tile, group = i % tile;
            float sum = 0.0f;
            for (unsigned l = 0; l < lanes; l++) sum += shared[k * width + l * tile + group];
            if (first + group < groups)
                partial[((u64)blockIdx.x * 2 + k / 8) * stored + (first + group) * 8 + k % 8] = sum;
        }
        __syncthreads();
    }
}

// Adds what column_sums left: `end` gets each channel and its two sums, once.
template <class End>
__device__ __forceinline__ void sum_partials(const float* __restrict__ partial, int blocks, int stored, End end) {
    __shared__ double shared[2 * 256];
    unsigned width = min(blockDim.x, 32u), lanes = blockDim.x / width;
    unsigned lane = threadIdx.x / width, column = threadIdx.x % width;
    for (unsigned first = blockIdx.x * width; first < (unsigned)stored; first += gridDim.x * width) {
        unsigned channel = first + column;
        double sums[2] = {0.0, 0.0};
        if (lane < lanes && channel < (unsigned)stored)
            for (unsigned block = lane; block < (unsigned)blocks; block += lanes)
                for (int k = 0; k < 2; k++) sums[k] += partial[((u64)block * 2 + k) * stored + channel];
        for (int k = 0; k < 2; k++) shared[k * 256 + threadIdx.x] = sums[k];
        __syncthreads();
        if (lane == 0 && channel < (unsigned)stored) {
            for (unsigned l = 1; l < lanes; l++)
                for (int k = 0; k < 2; k++) sums[k] += shared[k * 256 + l * width + column];
            end((int)channel, sums[0], sums[1]);
        }
        __syncthreads();
    }
}

// Sums of x - shift and of its square, where the shift is the first row: the variance doesn't drown in a large mean then.
extern "C" __global__ void statistics(const T* __restrict__ x, float* __restrict__ partial, int stored, u64 rows) {
    column_sums(partial, stored, rows, [=](u64 row, int first, float* sums) {
        Eight value = *(const Eight*)(x + row * stored + first), shift = *(const Eight*)(x + first);
        for (int k = 0; k < 8; k++) {
            float centred = widen(value.v[k]) - widen(shift.v[k]);
            sums[k] += centred;
            sums[8 + k] += centred * centred;
        }
    });
}

// affine (2, stored): the factor and the summand that normalise, scale and move a channel.
__device__ __forceinline__ void write_affine(float* affine, int stored, int channel, float scale, float offset) {
    affine[channel] = scale;
    affine[stored + channel] = offset;
}

// Mean, biased variance and 1 / sqrt(variance + epsilon) of each channel, and what to do with it.
extern "C" __global__ void finish_statistics(const T* __restrict__ x, const float* __restrict__ partial, int blocks,
                                             const float* __restrict__ weight, const float* __restrict__ bias,
                                             float* __restrict__ mean, float* __restrict__ variance,
                                             float* __restrict__ inverse, float* __restrict__ affine, int channels,
                                             int stored, u64 rows, float epsilon) {
    sum_partials(partial, blocks, stored, [=](int channel, double sum, double squares) {
        if (channel >= channels) {
            write_affine(affine, stored, channel, 0.0f, 0.0f);
            return;
        }
        double shifted = sum / rows, spread = max(squares / rows - shifted * shifted, 0.0);
        float centre = (float)(widen(x[channel]) + shifted);
        float reciprocal = (float)(1.0 / sqrt((double)(float)spread + epsilon));
        float scale = weight[channel] * reciprocal;
        mean[channel] = centre;
        variance[channel] = (float)spread;
        inverse[channel] = reciprocal;
        write_affine(affine, stored, channel, scale, bias[channel] - centre * scale);
    });
}

// The same for statistics that are given.
extern "C" __global__ void fixed_statistics(const float* __restrict__ mean, const float* __restrict__ variance,
                                            const float* __restrict__ weight, const float* __restrict__ bias,
                                            float* __restrict__ inverse, float* __restrict__ affine, int channels,
                                            int stored, float epsilon) {
    STRIDED(i, stored) {
        if ((int)i >= channels) {
            write_affine(affine, stored, (int)i, 0.0f, 0.0f);
            continue;
        }
        float reciprocal = (float)(1.0 / sqrt((double)variance[i] + epsilon)), scale = weight[i] * reciprocal;
        inverse[i] = reciprocal;
        write_affine(affine, stored, (int)i, scale, bias[i] - mean[i] * scale);
    }
}

// A comparison, not a maximum: NaN stays NaN.
__device__ __forceinline__ float rectify(float x, int relu) { return relu && x < 0.0f ? 0.0f : x; }

// y = relu(scale x + offset + residual); residual may be null.
extern "C" __global__ void normalize(const T* __restrict__ x, const float* __restrict__ affine,
                                     const T* __restrict__ residual, T* __restrict__ y, int stored, int relu, u64 values) {
    STRIDED(i, values / 8) {
        int channel = (int)((u64)i * 8 % stored);
        const float* constants = affine + channel;
        Eight value = *(const Eight*)(x + (u64)i * 8), other;
        if (residual) other = *(const Eight*)(residual + (u64)i * 8);
        for (int k = 0; k < 8; k++) {
            float result = widen(value.v[k]) * constants[k] + constants[stored + k];
            value.v[k] = narrow(rectify(residual ? result + widen(other.v[k]) : result, relu));
        }
        *(Eight*)(y + (u64)i * 8) = value;
    }
}

struct __align__(16) Taps { unsigned short v[8]; };

// y = max pool of relu(scale x + offset), and for each value which tap of its window it was: the first of equals.
extern "C" __global__ void normalize_pool(const T* __restrict__ x, const float* __restrict__ affine, T* __restrict__ y,
                                          unsigned short* __restrict__ taps, Pool s, int relu, int n) {
    unsigned groups = s.channels / 8;
    STRIDED(i, n * s.to * s.ho * s.wo * groups) {
        Place to = place_of(i, s.to, s.ho, s.wo, groups);
        const float* constants = affine + to.c * 8;
        float most[8];
        Taps best;
        bool first = true;
        for (int kt = 0; kt < s.kt; kt++) {
            int t = to.t * s.st - s.pt + kt;
            if (t < 0 || t >= s.t) continue;
            for (int kh = 0; kh < s.kh; kh++) {
                int h = to.h * s.sh - s.ph + kh;
                if (h < 0 || h >= s.h) continue;
                for (int kw = 0; kw < s.kw; kw++) {
                    int w = to.w * s.sw - s.pw + kw;
                    if (w < 0 || w >= s.w) continue;
                    unsigned short tap = (unsigned short)((kt * s.kh + kh) * s.kw + kw);
                    u64 at = ((to.clip * s.t + t) * s.h + h) * s.w + w;
                    Eight value = *(const Eight*)(x + at * s.channels + to.c * 8);
                    for (int k = 0; k < 8; k++) {
                        float result = widen(value.v[k]) * constants[k] + constants[s.channels + k];
                        if (first || result > most[k] || result != result) {
                            most[k] = result;
                            best.v[k] = tap;
                        }
                    }
                    first = false;
                }
            }
        }
        Eight result;
        for (int k = 0; k < 8; k++) result.v[k] = narrow(rectify(most[k], relu));
        *(Eight*)(y + (u64)i * 8) = result;
        *(Taps*)(taps + (u64)i * 8) = best;
    }
}

// What of the gradient g passes the ReLU whose results are y; all of it where y is null.
__device__ __forceinline__ void passed(const T* g, const T* y, u64 at, float* result) {
    Eight gradient = *(const Eight*)(g + at), value;
    if (y) value = *(const Eight*)(y + at);
    for (int k = 0; k < 8; k++) result[k] = y && widen(value.v[k]) <= 0.0f ? 0.0f : widen(gradient.v[k]);
}

// The gradient of what normalize_pool pools, from that of its result y (null without ReLU).
extern "C" __global__ void pool_gradient(const T* __restrict__ g, const T* __restrict__ y,
                                         const unsigned short* __restrict__ taps, T* __restrict__ out, Pool s, int n) {
    unsigned groups = s.channels / 8;
    STRIDED(i, n * s.t * s.h * s.w * groups) {
        Place from = place_of(i, s.t, s.h, s.w, groups);
        float sums[8];
        for (int k = 0; k < 8; k++) sums[k] = 0.0f;
        for (int kt = 0; kt < s.kt; kt++) {
            int ot = from.t + s.pt - kt;
            if (ot < 0 || ot % s.st || ot / s.st >= s.to) continue;
            for (int kh = 0; kh < s.kh; kh++) {
                int oh = from.h + s.ph - kh;
                if (oh < 0 || oh % s.sh || oh / s.sh >= s.ho) continue;
                for (int kw = 0; kw < s.kw; kw++) {
                    int ow = from.w + s.pw - kw;
                    if (ow < 0 || ow % s.sw || ow / s.sw >= s.wo) continue;
                    u64 place = ((from.clip * s.to + ot / s.st) * s.ho + oh / s.sh) * s.wo + ow / s.sw;
                    u64 at = place * s.channels + from.c * 8;
                    int tap = (kt * s.kh + kh) * s.kw + kw;
                    Taps best = *(const Taps*)(taps + at);
                    float upstream[8];
                    passed(g, y, at, upstream);
                    for (int k = 0; k < 8; k++) sums[k] += best.v[k] == tap ? upstream[k] : 0.0f;
                }
            }
        }
        Eight result;
        for (int k = 0; k < 8; k++) result.v[k] = narrow(sums[k]);
        *(Eight*)(out + (u64)i * 8) = result;
    }
}

// Sums of the gradient g and of its product with the centred x; y as in `passed`.
extern "C" __global__ void gradient_sums(const T* __restrict__ g, const T* __restrict__ y, const T* __restrict__ x,
                                         const float* __restrict__ mean, float* __restrict__ partial, int channels,
                                         int stored, u64 rows) {
    column_sums(partial, stored, rows, [=](u64 row, int first, float* sums) {
        u64 at = row * stored + first;
        float upstream[8];
        passed(g, y, at, upstream);
        Eight value = *(const Eight*)(x + at);
        for (int k = 0; k < 8; k++) {
            float centre = first + k < channels ? mean[first + k] : 0.0f;
            sums[k] += upstream[k];
            sums[8 + k] += upstream[k] * (widen(value.v[k]) - centre);
        }
    });
}

// Gradients of weight and bias; and terms (3, stored): what times g, what times x and what else makes the gradient of x. The
// last two are how moving statistics take part, unless they are fixed.
extern "C" __global__ void finish_gradients(const float* __restrict__ partial, int blocks, const float* __restrict__ mean,
                                            const float* __restrict__ inverse, const float* __restrict__ weight,
                                            float* __restrict__ of_weight, float* __restrict__ of_bias,
                                            float* __restrict__ terms, int channels, int stored, u64 rows, int fixed) {
    sum_partials(partial, blocks, stored, [=](int channel, double bias_sum, double weight_sum) {
        float factor = 0.0f, slope = 0.0f, offset = 0.0f;
        if (channel < channels) {
            float reciprocal = inverse[channel];
            float gradient = (float)weight_sum * reciprocal;
            of_weight[channel] = gradient;
            of_bias[channel] = (float)bias_sum;
            factor = weight[channel] * reciprocal;
            if (!fixed) {
                slope = -factor * (gradient / rows * reciprocal);
                offset = -factor * (float)(bias_sum / rows) - slope * mean[channel];
            }
        }
        terms[channel] = factor;
        terms[stored + channel] = slope;
        terms[2 * stored + channel] = offset;
    });
}

// Replaces x by its gradient, and g by what of it passes the ReLU if there is one (y as in `passed`).
extern "C" __global__ void norm_gradient(T* __restrict__ g, const T* __restrict__ y, T* __restrict__ x,
                                         const float* __restrict__ terms, int stored, u64 values) {
    STRIDED(i, values / 8) {
        u64 at = (u64)i * 8;
        const float* constants = terms + at % stored;
        float upstream[8];
        passed(g, y, at, upstream);
        Eight value = *(const Eight*)(x + at), kept;
        for (int k = 0; k < 8; k++) {
            float sum = constants[k] * upstream[k] + constants[stored + k] * widen(value.v[k]) + constants[2 * stored + k];
            value.v[k] = narrow(sum);
            kept.v[k] = narrow(upstream[k]);
        }
        *(Eight*)(x + at) = value;
        if (y) *(Eight*)(g + at) = kept;
    }
}

// sum += other
extern "C" __global__ void add(T* __restrict__ sum, const T* __restrict__ other, u64 values) {
    STRIDED(i, values / 8) {
        Eight a = *(Eight*)(sum + (u64)i * 8), b = *(const Eight*)(other + (u64)i * 8);
        for (int k = 0; k < 8; k++) a.v[k] = narrow(widen(a.v[k]) + widen(b.v[k]));
        *(Eight*)(sum + (u64)i * 8) = a;
    }
}

// A volume (t, h, w, c) of which every `stride`-th place and more channels, `channels_out`, make another one.
struct Shortcut {
    int channels, t, h, w;
    int channels_out, to, ho, wo, stride;
};

// The gradient of the volume from that of the other one, g: added to what `out` holds, if `accumulate`.
extern "C" __global__ void shortcut_gradient(const T* __restrict__ g, T* __restrict__ out, Shortcut s, int accumulate,
                                             int n) {
    unsigned groups = s.channels / 8;
    STRIDED(i, n * s.t * s.h * s.w * groups) {
        Place to = place_of(i, s.t, s.h, s.w, groups);
        Eight sum;
        for (int k = 0; k < 8; k++) sum.v[k] = narrow(0.0f);
        if (accumulate) sum = *(const Eight*)(out + (u64)i * 8);
        if (to.t % s.stride == 0 && to.h % s.stride == 0 && to.w % s.stride == 0) {
            u64 place = ((to.clip * s.to + to.t / s.stride) * s.ho + to.h / s.stride) * s.wo + to.w / s.stride;
            Eight upstream = *(const Eight*)(g + place * s.channels_out + to.c * 8);
            for (int k = 0; k < 8; k++) sum.v[k] = narrow(widen(sum.v[k]) + widen(upstream.v[k]));
        }
        *(Eight*)(out + (u64)i * 8) = sum;
    }
}

// The gradient of a volume from that of its means, g (n, channels).
extern "C" __global__ void spread(const float* __restrict__ g, T* __restrict__ out, int places, int channels, int stored,
                                  int n) {
    STRIDED(i, n * places * stored) {
        int channel = (int)(i % stored);
        unsigned clip = i / stored / places;
        out[i] = narrow(channel < channels ? g[(u64)clip * channels + channel] / places : 0.0f);
    }
}

// out[n, place, stored] = x[n, channel, place], zero for channels that x lacks.
extern "C" __global__ void channels_last(const T* __restrict__ x, T* __restrict__ out, int places, int channels, int stored,
                                         int n) {
    STRIDED(i, n * places * stored) {
        int channel = (int)(i % stored);
        unsigned row = i / stored, clip = row / places, place = row % places;
        out[i] = channel < channels ? x[((u64)clip * channels + channel) * places + place] : narrow(0.0f);
    }
}

// The inverse of channels_last.
extern "C" __global__ void channels_first(const T* __restrict__ x, T* __restrict__ out, int places, int channels,
                                          int stored, int n) {
    STRIDED(i, n * channels * places) {
        unsigned place = i % places, rest = i / places, channel = rest % channels, clip = rest / channels;
        out[i] = x[((u64)clip * places + place) * stored + channel];
    }
}

// As direct_conv, the definition of the gradient of a convolution's input x (n, t, h, w, c) from that of its result,
// y (n, to, ho, wo, k).
extern "C" __global__ void direct_input_gradient(const T* __restrict__ x, const T* __restrict__ weight,
                                                 const T* __restrict__ y, float* __restrict__ pairs, Conv s, u64 every,
                                                 int count) {
    STRIDED(i, count) {
        u64 index = i * every;
        Place to = place_of(index, s.t, s.h, s.w, s.c);
        double sum = 0.0;
        for (int kt = 0; kt < s.kt; kt++) {
            int ot = to.t + s.pt - kt;
            if (ot < 0 || ot % s.st || ot / s.st >= s.to) continue;
            for (int kh = 0; kh < s.kh; kh++) {
                int oh = to.h + s.ph - kh;
                if (oh < 0 || oh % s.sh || oh / s.sh >= s.ho) continue;
                for (int kw = 0; kw < s.kw; kw++) {
                    int ow = to.w + s.pw - kw;
                    if (ow < 0 || ow % s.sw || ow / s.sw >= s.wo) continue;
                    u64 place = ((to.clip * s.to + ot / s.st) * s.ho + oh / s.sh) * s.wo + ow / s.sw;
                    const T* upstream = y + place * s.k;
                    float part = 0.0f;
                    for (int k = 0; k < s.k; k++)
                        part += widen(upstream[k]) *
                                widen(weight[((((u64)k * s.kt + kt) * s.kh + kh) * s.kw + kw) * s.c + to.c]);
                    sum += part;
                }
            }
        }
        pairs[2 * i] = (float)sum;
        pairs[2 * i + 1] = widen(x[index]);
    }
}

// And that of its weight (k, kt, kh, kw, c) over n clips.
extern "C" __global__ void direct_weight_gradient(const T* __restrict__ x, const T* __restrict__ weight,
                                                  const T* __restrict__ y, float* __restrict__ pairs, Conv s, u64 every,
                                                  int count, int n) {
    STRIDED(i, count) {
        u64 index = i * every;
        Place tap = place_of(index, s.kt, s.kh, s.kw, s.c);
        double sum = 0.0;
        for (u64 frame = 0; frame < (u64)n * s.to; frame++) {
            int t = (int)(frame % s.to) * s.st - s.pt + tap.t;
            if (t < 0 || t >= s.t) continue;
            for (int oh = 0; oh < s.ho; oh++) {
                int h = oh * s.sh - s.ph + tap.h;
                if (h < 0 || h >= s.h) continue;
                float part = 0.0f;
                for (int ow = 0; ow < s.wo; ow++) {
                    int w = ow * s.sw - s.pw + tap.w;
                    if (w < 0 || w >= s.w) continue;
                    part += widen(x[(((frame / s.to * s.t + t) * s.h + h) * s.w + w) * s.c + tap.c]) *
                            widen(y[((frame * s.ho + oh) * s.wo + ow) * s.k + tap.clip]);
                }
                sum += part;
            }
        }
        pairs[2 * i] = (float)sum;
        pairs[2 * i + 1] = widen(weight[index]);
    }
}
