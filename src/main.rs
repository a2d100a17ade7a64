//! The `kinetoscope` binary.

fn main() {}
