//! How the camera moves.

use std::f32::consts::TAU;

use crate::random::Random;

/// Motions, named by the camera's own movement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Motion {
    Static,
    PanLeft,
    PanRight,
    TiltUp,
    TiltDown,
    ZoomIn,
    ZoomOut,
    RollClockwise,
    RollCounterClockwise,
    Shake,
}

impl Motion {
    pub(crate) const ALL: [Self; 10] = [
        Self::Static,
        Self::PanLeft,
        Self::PanRight,
        Self::TiltUp,
        Self::TiltDown,
        Self::ZoomIn,
        Self::ZoomOut,
        Self::RollClockwise,
        Self::RollCounterClockwise,
        Self::Shake,
    ];

    /// The class's name.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::PanLeft => "pan left",
            Self::PanRight => "pan right",
            Self::TiltUp => "tilt up",
            Self::TiltDown => "tilt down",
            Self::ZoomIn => "zoom in",
            Self::ZoomOut => "zoom out",
            Self::RollClockwise => "roll clockwise",
            Self::RollCounterClockwise => "roll counter-clockwise",
            Self::Shake => "shake",
        }
    }
}

/// Where the camera looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pose {
    /// The middle of the view, in the view's short sides from where it began; y grows downwards.
    pub(crate) x: f32,
    pub(crate) y: f32,
    /// Logarithm of the view's size relative to where it began: less is closer.
    pub(crate) zoom: f32,
    /// Clockwise as seen from behind the camera, in radians.
    pub(crate) roll: f32,
}

/// The camera's pose at any time of a video.
pub(crate) struct Path {
    /// Of the class, a frame.
    velocity: Pose,
    speed: Wave,
    /// Of the hand, in each of the pose's parts.
    jitter: [Vec<Wave>; 4],
}

/// A sine.
struct Wave {
    amplitude: f32,
    /// Radians a frame.
    frequency: f32,
    phase: f32,
}

impl Wave {
    fn at(&self, frame: f32) -> f32 {
        self.amplitude * (self.frequency * frame + self.phase).sin()
    }

    /// From 0 to `frame`.
    fn integral(&self, frame: f32) -> f32 {
        if self.frequency == 0.0 {
            return 0.0;
        }
        self.amplitude * (self.phase.cos() - (self.frequency * frame + self.phase).cos()) / self.frequency
    }
}

const STILL: Pose = Pose { x: 0.0, y: 0.0, zoom: 0.0, roll: 0.0 };

impl Path {
    /// A path of one class. Lengths are in parts of the view's short side, which the network sees as 112 pixels: the
    /// slowest pan moves its clip's 16 frames by 5 of them, the fastest passes all that it saw.
    pub(crate) fn draw(motion: Motion, random: &mut Random) -> Self {
        let pan = random.log_uniform(0.003, 0.05);
        let zoom = random.log_uniform(0.003, 0.03);
        let roll = random.log_uniform(0.004, 0.045);
        // What else the camera does is well below what it is named for.
        let mut beside = |strength: f32| random.uniform(-strength, strength);
        let velocity = match motion {
            Motion::Static | Motion::Shake => STILL,
            Motion::PanLeft | Motion::PanRight | Motion::TiltUp | Motion::TiltDown => {
                let (along, across) = (pan, beside(0.3) * pan);
                let (zoom, roll) = (beside(0.15) * pan, beside(0.15) * pan);
                match motion {
                    Motion::PanLeft => Pose { x: -along, y: across, zoom, roll },
                    Motion::PanRight => Pose { x: along, y: across, zoom, roll },
                    Motion::TiltUp => Pose { x: across, y: -along, zoom, roll },
                    _ => Pose { x: across, y: along, zoom, roll },
                }
            }
            Motion::ZoomIn | Motion::ZoomOut => {
                let (x, y, roll) = (beside(0.2) * zoom, beside(0.2) * zoom, beside(0.2) * zoom);
                Pose { x, y, zoom: if motion == Motion::ZoomIn { -zoom } else { zoom }, roll }
            }
            Motion::RollClockwise | Motion::RollCounterClockwise => {
                let (x, y, zoom) = (beside(0.2) * roll, beside(0.2) * roll, beside(0.2) * roll);
                Pose { x, y, zoom, roll: if motion == Motion::RollClockwise { roll } else { -roll } }
            }
        };
        let jitter = Self::jitter(motion, &velocity, random);
        let speed = Wave {
            amplitude: random.uniform(0.0, 0.4),
            frequency: random.uniform(0.05, 0.3),
            phase: random.uniform(0.0, TAU),
        };
        Self { velocity, speed, jitter }
    }

    /// The hand that holds the camera. A shake is nothing but that; other classes have little of it.
    fn jitter(motion: Motion, velocity: &Pose, random: &mut Random) -> [Vec<Wave>; 4] {
        // Speed of the jitter, in short sides a frame.
        let speed = match motion {
            Motion::Shake => random.log_uniform(0.012, 0.06),
            // On a tripod, or in a calm hand: at most a tenth of a pixel a frame.
            Motion::Static if random.chance(0.5) => 0.0,
            Motion::Static => random.log_uniform(0.0001, 0.001),
            _ if random.chance(0.4) => 0.0,
            _ => {
                let main = velocity
                    .x
                    .abs()
                    .max(velocity.y.abs())
                    .max(velocity.zoom.abs() / 2.0)
                    .max(velocity.roll.abs() / 2.0);
                main * random.uniform(0.05, 0.3)
            }
        };
        // Along x, along y; zooming and rolling of a hand are weaker.
        [1.0, 1.0, 0.1, 0.4].map(|part| {
            (0..3)
                .map(|_| {
                    let frequency =
                        if motion == Motion::Shake { random.uniform(0.5, 2.2) } else { random.uniform(0.1, 1.2) };
                    let amplitude = part * speed * random.uniform(0.3, 1.0) / frequency;
                    Wave { amplitude, frequency, phase: random.uniform(0.0, TAU) }
                })
                .collect()
        })
    }

    /// `frame` counts from 0 and may lie between two frames.
    pub(crate) fn pose(&self, frame: f32) -> Pose {
        let way = frame + self.speed.integral(frame);
        let jitter = self.jitter.each_ref().map(|waves| waves.iter().map(|wave| wave.at(frame)).sum::<f32>());
        let Pose { x, y, zoom, roll } = self.velocity;
        Pose {
            x: x * way + jitter[0],
            y: y * way + jitter[1],
            zoom: zoom * way + jitter[2],
            roll: roll * way + jitter[3],
        }
    }
}
