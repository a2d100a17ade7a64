//! A video: a camera over a photograph, things that move before it, and what lens and sensor do to the light.

use std::f32::consts::TAU;

use crate::motion::{Motion, Path};
use crate::photo::Photo;
use crate::random::Random;

/// Pixels of a video, as `(height, width)`.
pub(crate) type Size = (usize, usize);

/// All that makes a video, but for its noise.
pub(crate) struct Scene<'a> {
    photo: &'a Photo,
    size: Size,
    path: Path,
    /// The middle of the view at the beginning and its short side, in pixels of the photograph.
    center: (f32, f32),
    view: f32,
    objects: Vec<Object<'a>>,
    light: Light,
    /// Part of a frame's time in which light is gathered.
    shutter: f32,
    /// Times within the shutter's at which the view is drawn.
    exposures: usize,
}

/// Something before the background: a part of another photograph in a soft-edged ellipse.
struct Object<'a> {
    photo: &'a Photo,
    /// Of its picture, in pixels of its photograph.
    origin: (f32, f32),
    /// Pixels of its photograph to one of the view.
    step: f32,
    /// Place of its middle at the beginning, in parts of the view's short side from the view's middle.
    place: (f32, f32),
    /// In short sides a frame.
    velocity: (f32, f32),
    /// How it bobs, as walkers do: amplitude in short sides, radians a frame.
    bob: (f32, f32),
    radius: (f32, f32),
}

/// From the colours of the photographs to those of the video.
struct Light {
    gain: [f32; 3],
    gamma: f32,
    /// Change of the gain over the video.
    drift: f32,
    /// What the corners lose.
    vignette: f32,
    /// Standard deviation of the sensor's noise, in levels.
    noise: f32,
}

impl<'a> Scene<'a> {
    /// Draws a scene of one class, for a video of `frames` frames.
    pub(crate) fn draw(motion: Motion, photos: &'a [Photo], frames: usize, random: &mut Random) -> Self {
        let photo = random.pick(photos);
        let size = *random.pick(&[(128, 128), (128, 170), (128, 226), (144, 192), (176, 132), (144, 256), (226, 128)]);
        let path = Path::draw(motion, random);
        let (height, width) = photo.size();
        let view = random.log_uniform(0.3, 0.8) * height.min(width);
        let center = (width * random.uniform(0.25, 0.75), height * random.uniform(0.25, 0.75));
        // Zooming out begins close, so that the end is not all mirrors.
        let far = path.pose(frames as f32).zoom.clamp(0.0, 1.5);
        let view = view * (-far / 2.0).exp();
        let busy = if motion == Motion::Static { 0.75 } else { 0.45 };
        let count = if random.chance(busy) { 1 + random.below(3) } else { 0 };
        let objects = (0..count).map(|_| Object::draw(random.pick(photos), random)).collect();
        let shutter = if random.chance(0.6) { random.uniform(0.1, 0.9) } else { 0.0 };
        let tint = random.uniform(-0.1, 0.1);
        let gain = random.log_uniform(0.6, 1.3);
        let light = Light {
            gain: [gain * (1.0 + tint), gain, gain * (1.0 - tint)],
            gamma: random.log_uniform(0.7, 1.4),
            drift: if random.chance(0.2) { random.uniform(-0.3, 0.3) } else { 0.0 },
            vignette: if random.chance(0.3) { random.uniform(0.0, 0.5) } else { 0.0 },
            noise: if random.chance(0.6) { random.log_uniform(0.5, 9.0) } else { 0.0 },
        };
        let exposures = if shutter > 0.0 { 3 } else { 1 };
        Self { photo, size, path, center, view, objects, light, shutter, exposures }
    }

    pub(crate) fn size(&self) -> Size {
        self.size
    }

    /// The pixels of one frame of `frames`, RGB.
    pub(crate) fn frame(&self, frame: usize, frames: usize, random: &mut Random) -> Vec<u8> {
        let (height, width) = self.size;
        let mut sum = vec![[0f32; 3]; height * width];
        for exposure in 0..self.exposures {
            let time = frame as f32 + self.shutter * exposure as f32 / self.exposures as f32;
            self.expose(time, &mut sum);
        }
        let light = 1.0 + self.light.drift * (frame as f32 / frames as f32 - 0.5);
        let (half_height, half_width) = (height as f32 / 2.0, width as f32 / 2.0);
        let tone = self.light.tone();
        let mut rgb = Vec::with_capacity(height * width * 3);
        for (at, pixel) in sum.iter().enumerate() {
            let (x, y) = ((at % width) as f32 / half_width - 1.0, (at / width) as f32 / half_height - 1.0);
            let corner = 1.0 - self.light.vignette * (x * x + y * y) / 2.0;
            for (channel, value) in pixel.iter().enumerate() {
                let value = value / self.exposures as f32 * self.light.gain[channel] * light * corner;
                let level = tone[((value * 4.0) as usize).min(tone.len() - 1)];
                let noise = if self.light.noise > 0.0 { self.light.noise * random.normal() } else { 0.0 };
                rgb.push((level + noise).round().clamp(0.0, 255.0) as u8);
            }
        }
        rgb
    }

    fn expose(&self, time: f32, sum: &mut [[f32; 3]]) {
        let (height, width) = self.size;
        let short = height.min(width) as f32;
        let pose = self.path.pose(time);
        // Pixels of the photograph between two of the view.
        let step = self.view / short * pose.zoom.exp();
        let level = self.photo.level(step);
        let (sin, cos) = pose.roll.sin_cos();
        let center = (self.center.0 + pose.x * self.view, self.center.1 + pose.y * self.view);
        let objects: Vec<_> = self.objects.iter().map(|object| object.at(time, short)).collect();
        for y in 0..height {
            for x in 0..width {
                let (u, v) = (x as f32 + 0.5 - width as f32 / 2.0, y as f32 + 0.5 - height as f32 / 2.0);
                let over = (center.0 + step * (cos * u - sin * v), center.1 + step * (sin * u + cos * v));
                let mut color = self.photo.sample(level, over.0, over.1);
                for object in &objects {
                    object.cover(u, v, &mut color);
                }
                for (sum, value) in sum[y * width + x].iter_mut().zip(color) {
                    *sum += value;
                }
            }
        }
    }
}

impl Light {
    /// Levels for the quarters of levels that reach the sensor.
    fn tone(&self) -> Vec<f32> {
        (0..4 * 256).map(|quarter| 255.0 * (quarter as f32 / (4.0 * 255.0)).min(1.0).powf(self.gamma)).collect()
    }
}

/// An object at some moment, in pixels of the view.
struct Placed<'a> {
    object: &'a Object<'a>,
    middle: (f32, f32),
    radius: (f32, f32),
    level: usize,
}

impl<'a> Object<'a> {
    fn draw(photo: &'a Photo, random: &mut Random) -> Self {
        let (height, width) = photo.size();
        let angle = random.uniform(0.0, TAU);
        let speed = if random.chance(0.2) { 0.0 } else { random.log_uniform(0.003, 0.05) };
        let bob = if random.chance(0.4) { (random.uniform(0.0, 0.02), random.uniform(0.2, 1.0)) } else { (0.0, 0.0) };
        Self {
            photo,
            origin: (width * random.uniform(0.1, 0.9), height * random.uniform(0.1, 0.9)),
            step: random.log_uniform(0.7, 3.0),
            place: (random.uniform(-0.6, 0.6), random.uniform(-0.6, 0.6)),
            velocity: (speed * angle.cos(), speed * angle.sin()),
            bob,
            radius: (random.log_uniform(0.05, 0.22), random.log_uniform(0.05, 0.3)),
        }
    }

    fn at(&'a self, time: f32, short: f32) -> Placed<'a> {
        let bob = self.bob.0 * (self.bob.1 * time).sin();
        let middle =
            (short * (self.place.0 + self.velocity.0 * time), short * (self.place.1 + self.velocity.1 * time + bob));
        let radius = (short * self.radius.0, short * self.radius.1);
        Placed { object: self, middle, radius, level: self.photo.level(self.step) }
    }
}

impl Placed<'_> {
    /// Draws over `color` at a pixel of the view.
    fn cover(&self, u: f32, v: f32, color: &mut [f32; 3]) {
        let (x, y) = (u - self.middle.0, v - self.middle.1);
        let distance = ((x / self.radius.0).powi(2) + (y / self.radius.1).powi(2)).sqrt();
        // Its edge is about two pixels wide.
        let opacity = ((1.0 - distance) * self.radius.0.min(self.radius.1) / 2.0).clamp(0.0, 1.0);
        if opacity == 0.0 {
            return;
        }
        let Object { photo, origin, step, .. } = self.object;
        let own = photo.sample(self.level, origin.0 + step * x, origin.1 + step * y);
        for (value, own) in color.iter_mut().zip(own) {
            *value += (own - *value) * opacity;
        }
    }
}
