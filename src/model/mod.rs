//! 3D ResNets, their model files and the numbers the tests build them from.

pub mod counter;
pub mod spec;
