//! The average of the weights over steps (Polyak, Juditsky 1992; exponential, as in EMA of weights): it wavers less than they
//! do, and is often the better model.

use std::collections::HashMap;

use candle_core::{Result, Tensor};

use super::network::Network;

/// An exponential moving average of all that changes in a network: weights and running statistics.
#[derive(Debug)]
pub(super) struct Average {
    decay: f64,
    values: HashMap<String, Tensor>,
}

impl Average {
    /// An average that keeps the part `decay` of itself in each step, beginning with the network as it is.
    pub(super) fn new(network: &Network, decay: f64) -> Result<Self> {
        Ok(Self { decay, values: network.copies()? })
    }

    /// Takes in the network after step `step`, counted from 0. In the first steps less is kept: the beginning says nothing.
    pub(super) fn note(&mut self, network: &Network, step: u64) -> Result<()> {
        let decay = self.decay.min((1.0 + step as f64) / (10.0 + step as f64));
        for (name, current) in network.variables(|_| true) {
            let value = self.values.get_mut(&name).expect("an average has all that the network has");
            *value = ((&*value * decay)? + (current.as_detached_tensor() * (1.0 - decay))?)?;
        }
        Ok(())
    }

    /// The averages by parameter, where the network is.
    pub(super) fn values(&self) -> &HashMap<String, Tensor> {
        &self.values
    }

    /// Goes on from the [`values`](Self::values) of an earlier process.
    pub(super) fn restore(&mut self, values: &HashMap<String, Tensor>) -> Result<()> {
        for (name, value) in &mut self.values {
            let Some(earlier) = values.get(name) else { candle_core::bail!("the average of {name} is missing") };
            *value = earlier.to_device(value.device())?;
        }
        Ok(())
    }
}
