//! 3D convolution and pooling for candle.
