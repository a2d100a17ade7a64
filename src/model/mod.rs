//! 3D ResNets: what a model file says ([`spec`]), its layers ([`layout`]), the file itself ([`mod@file`]), the network in
//! candle ([`resnet`]) and as an inference plan ([`plan`]), networks before training ([`init`]), and the model that is built
//! in ([`builtin`]).

pub mod builtin;
pub mod counter;
pub mod file;
pub mod init;
pub mod layout;
pub mod plan;
pub mod resnet;
pub mod spec;
