//! 3D ResNets: what a model file says ([`spec`]), its layers ([`layout`]) and the file itself ([`file`]).

pub mod counter;
pub mod file;
pub mod layout;
pub mod spec;
