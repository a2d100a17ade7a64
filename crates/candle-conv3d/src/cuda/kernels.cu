// Kernels of the inference plan on GPUs, compiled when a GPU is opened.
//
// TYPE chooses the element of activations and weights: 0 is float, 1 half, 2 bfloat16. Sums are float. Activations are
// channels-last, (clip, t, h, w, c) or with time folded into the channels, (clip, h, w, t, c), and their channels are
// padded with zeros to a multiple of 8; only the network's input may have a multiple of 4. Every kernel strides over its
// grid, so that any grid gives the same result: tests run them on the host as a grid of one thread. Who launches them
// sees to it that there are fewer than 2^31 pieces of work, so that 32 bits count them.

#if TYPE == 0
typedef float T;
__device__ __forceinline__ float widen(T x) { return x; }
__device__ __forceinline__ T narrow(float x) { return x; }
#elif TYPE == 1
typedef unsigned short T;
#ifndef HOST
__device__ __forceinline__ float widen(T x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ __forceinline__ T narrow(float x) {
    T y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#endif
#else
typedef unsigned short T;
__device__ __forceinline__ float widen(T x) { return __uint_as_float((unsigned)x << 16); }
// Round half to even.
__device__ __forceinline__ T narrow(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (T)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#endif

typedef unsigned long long u64;

struct __align__(4 * sizeof(T)) Four { T v[4]; };
struct __align__(16) Eight { T v[8]; };

#define STRIDED(i, count) \
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < (unsigned)(count); i += gridDim.x * blockDim.x)

// Where value `i` of volumes (clip, t, h, w, c) stands.
struct Place { u64 clip; int t, h, w, c; };

template <class Index> __device__ __forceinline__ Place place_of(Index i, int t, int h, int w, int c) {
    Place place;
    place.c = (int)(i % c);
    i /= c;
    place.w = (int)(i % w);
    i /= w;
    place.h = (int)(i % h);
    i /= h;
    place.t = (int)(i % t);
    place.clip = i / t;
    return place;
}

// How a clip is stored for the first layer: column q holds `phases` pixels, those at q * step - offset + 0, 1, ...,
// `channels` values each.
struct Load {
    int channels, t, h, w;
    int phases, step, offset;
    int stored_w, stored_c;
};

// clips (n, t, h, w, 3), table (3, 256): what a byte means in each channel.
extern "C" __global__ void load_rgb(const unsigned char* __restrict__ clips, const float* __restrict__ table,
                                    T* __restrict__ out, Load s, int n) {
    unsigned groups = s.stored_c / 4, width = s.stored_w, rows = n * s.t * s.h;
    STRIDED(i, rows * width * groups) {
        int first = (int)(i % groups) * 4;
        unsigned column = i / groups, row = column / width;
        int left = (int)(column % width) * s.step - s.offset;
        const unsigned char* pixels = clips + (u64)row * s.w * 3;
        Four four;
        for (int k = 0; k < 4; k++) {
            int phase = (first + k) / 3, channel = (first + k) % 3, x = left + phase;
            bool inside = phase < s.phases && x >= 0 && x < s.w;
            four.v[k] = narrow(inside ? table[channel * 256 + pixels[x * 3 + channel]] : 0.0f);
        }
        *(Four*)(out + (u64)column * s.stored_c + first) = four;
    }
}

// clips (n, c, t, h, w).
extern "C" __global__ void load_values(const float* __restrict__ clips, T* __restrict__ out, Load s, int n) {
    unsigned groups = s.stored_c / 4, width = s.stored_w, plane = s.t * s.h;
    STRIDED(i, n * plane * width * groups) {
        int first = (int)(i % groups) * 4;
        unsigned column = i / groups, row = column / width;
        int left = (int)(column % width) * s.step - s.offset;
        const float* clip = clips + (u64)(row / plane) * s.channels * plane * s.w;
        unsigned inner = row % plane;
        Four four;
        for (int k = 0; k < 4; k++) {
            int phase = (first + k) / s.channels, channel = (first + k) % s.channels, x = left + phase;
            bool inside = phase < s.phases && x >= 0 && x < s.w;
            four.v[k] = narrow(inside ? clip[((u64)channel * plane + inner) * s.w + x] : 0.0f);
        }
        *(Four*)(out + (u64)column * s.stored_c + first) = four;
    }
}

struct Pool {
    int channels, t, h, w;
    int to, ho, wo;
    int kt, kh, kw, st, sh, sw, pt, ph, pw;
};

extern "C" __global__ void max_pool(const T* __restrict__ x, T* __restrict__ y, Pool s, int n) {
    int groups = s.channels / 8;
    STRIDED(i, n * s.to * s.ho * s.wo * groups) {
        Place out = place_of(i, s.to, s.ho, s.wo, groups);
        float most[8];
        for (int k = 0; k < 8; k++) most[k] = __uint_as_float(0xff800000u);
        int left = out.w * s.sw - s.pw, top = out.h * s.sh - s.ph, front = out.t * s.st - s.pt;
        for (int t = max(front, 0); t < min(front + s.kt, s.t); t++)
            for (int h = max(top, 0); h < min(top + s.kh, s.h); h++)
                for (int w = max(left, 0); w < min(left + s.kw, s.w); w++) {
                    u64 at = ((out.clip * s.t + t) * s.h + h) * s.w + w;
                    Eight value = *(const Eight*)(x + at * s.channels + out.c * 8);
                    for (int k = 0; k < 8; k++) most[k] = fmaxf(most[k], widen(value.v[k]));
                }
        Eight result;
        for (int k = 0; k < 8; k++) result.v[k] = narrow(most[k]);
        *(Eight*)(y + (u64)i * 8) = result;
    }
}

// y[n, t, h, w, c] = x[n, t, h, w, c] by two sets of strides, in elements; channels that x lacks are zero. With x's
// strides doubled this is shortcut A, with others a change of layout.
struct Gather {
    int channels_in, channels, t, h, w;
    int in_n, in_t, in_h, in_w;
    int out_n, out_t, out_h, out_w;
};

extern "C" __global__ void gather(const T* __restrict__ x, T* __restrict__ y, Gather s, int n) {
    int groups = s.channels / 8;
    STRIDED(i, n * s.t * s.h * s.w * groups) {
        Place to = place_of(i, s.t, s.h, s.w, groups);
        int channel = to.c * 8;
        Eight value;
        if (channel < s.channels_in) {
            u64 frame = to.clip * s.in_n + (u64)to.t * s.in_t;
            value = *(const Eight*)(x + frame + (u64)to.h * s.in_h + (u64)to.w * s.in_w + channel);
        } else {
            for (int k = 0; k < 8; k++) value.v[k] = narrow(0.0f);
        }
        u64 frame = to.clip * s.out_n + (u64)to.t * s.out_t;
        *(Eight*)(y + frame + (u64)to.h * s.out_h + (u64)to.w * s.out_w + channel) = value;
    }
}

// What follows a convolution, where cuDNN does not fuse it: y = relu(y + bias + residual), residual may be null.
extern "C" __global__ void finish(T* __restrict__ y, const float* __restrict__ bias, const T* __restrict__ residual,
                                  int channels, int relu, u64 values) {
    STRIDED(i, values / 8) {
        int channel = (int)((u64)i * 8 % channels);
        Eight value = *(Eight*)(y + (u64)i * 8), other;
        if (residual) other = *(const Eight*)(residual + (u64)i * 8);
        for (int k = 0; k < 8; k++) {
            float sum = widen(value.v[k]) + bias[channel + k] + (residual ? widen(other.v[k]) : 0.0f);
            value.v[k] = narrow(relu ? fmaxf(sum, 0.0f) : sum);
        }
        *(Eight*)(y + (u64)i * 8) = value;
    }
}

// y[n, c] = mean over `rows` rows of x[n, row, stored_c].
extern "C" __global__ void mean(const T* __restrict__ x, float* __restrict__ y, int rows, int stored_c, int channels,
                                int n) {
    STRIDED(i, n * channels) {
        unsigned clip = i / channels, channel = i % channels;
        const T* column = x + (u64)clip * rows * stored_c + channel;
        float sum = 0.0f;
        for (int row = 0; row < rows; row++) sum += widen(column[(u64)row * stored_c]);
        y[i] = sum / rows;
    }
}

// y[n, out] = weight[in, out] x[n, in] + bias.
extern "C" __global__ void linear(const float* __restrict__ x, const float* __restrict__ weight,
                                  const float* __restrict__ bias, float* __restrict__ y, int inputs, int outputs, int n) {
    STRIDED(i, n * outputs) {
        unsigned clip = i / outputs, out = i % outputs;
        const float* row = x + (u64)clip * inputs;
        float sums[4] = {bias[out], 0.0f, 0.0f, 0.0f};
        int k = 0;
        for (; k + 4 <= inputs; k += 4)
            for (int j = 0; j < 4; j++) sums[j] += row[k + j] * weight[(u64)(k + j) * outputs + out];
        for (; k < inputs; k++) sums[0] += row[k] * weight[(u64)k * outputs + out];
        y[i] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

// y[n, c, position] = x[n, position, stored_c].
extern "C" __global__ void store(const T* __restrict__ x, float* __restrict__ y, int channels, int stored_c, int positions,
                                 int n) {
    STRIDED(i, n * channels * positions) {
        unsigned position = i % positions, rest = i / positions;
        unsigned clip = rest / channels, channel = rest % channels;
        y[i] = widen(x[((u64)clip * positions + position) * stored_c + channel]);
    }
}

struct Conv {
    int c, t, h, w;
    int k, to, ho, wo;
    int kt, kh, kw, st, sh, sw, pt, ph, pw;
    int relu;
};

// The definition of a convolution with its ends, to check fast ones by: for outputs first, first + every, ... of
// y (n, to, ho, wo, k) the value in float and y's own. weight (k, kt, kh, kw, c); bias and residual may be null.
extern "C" __global__ void direct_conv(const T* __restrict__ x, const T* __restrict__ weight,
                                       const float* __restrict__ bias, const T* __restrict__ residual,
                                       const T* __restrict__ y, float* __restrict__ pairs, Conv s, u64 first, u64 every,
                                       int count) {
    STRIDED(i, count) {
        u64 index = first + i * every;
        Place out = place_of(index, s.to, s.ho, s.wo, s.k);
        float sum = 0.0f;
        for (int kt = 0; kt < s.kt; kt++) {
            int t = out.t * s.st - s.pt + kt;
            if (t < 0 || t >= s.t) continue;
            for (int kh = 0; kh < s.kh; kh++) {
                int h = out.h * s.sh - s.ph + kh;
                if (h < 0 || h >= s.h) continue;
                for (int kw = 0; kw < s.kw; kw++) {
                    int w = out.w * s.sw - s.pw + kw;
                    if (w < 0 || w >= s.w) continue;
                    const T* pixel = x + (((out.clip * s.t + t) * s.h + h) * s.w + w) * s.c;
                    const T* taps = weight + ((((u64)out.c * s.kt + kt) * s.kh + kh) * s.kw + kw) * s.c;
                    float part = 0.0f;
                    for (int c = 0; c < s.c; c++) part += widen(pixel[c]) * widen(taps[c]);
                    sum += part;
                }
            }
        }
        if (bias) sum += bias[out.c];
        if (residual) sum += widen(residual[index]);
        pairs[2 * i] = s.relu ? fmaxf(sum, 0.0f) : sum;
        pairs[2 * i + 1] = widen(y[index]);
    }
}

// Repeatable values in -scale..scale: splitmix64's finaliser on a counter.
extern "C" __global__ void noise(T* __restrict__ out, u64 count, u64 seed, float scale) {
    STRIDED(i, count) {
        u64 z = ((seed << 40) + i + 1) * 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        out[i] = narrow(scale * ((float)((z ^ (z >> 31)) >> 40) / 8388608.0f - 1.0f));
    }
}
