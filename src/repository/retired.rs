//! Engines that were replaced or removed and still answer the requests that they have.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::info;

use crate::engine::Engine;

/// How often a model that was taken out is asked whether its last request has ended.
const PERIOD: Duration = Duration::from_millis(50);

/// Their memory by name: it is taken until they end.
#[derive(Debug, Default)]
pub(super) struct Retired {
    engines: Mutex<Vec<(String, u64)>>,
    /// One of them ended.
    ended: Condvar,
}

impl Retired {
    /// Ends an engine when nobody uses it any more, on a thread of its own: it waits for its workers.
    pub(super) fn add(self: &Arc<Self>, engine: Arc<Engine>) {
        let of = (engine.spec().name.clone(), engine.memory_bytes());
        self.lock().push(of.clone());
        let retired = Arc::clone(self);
        std::thread::spawn(move || {
            while Arc::strong_count(&engine) > 1 {
                std::thread::sleep(PERIOD);
            }
            let spec = Arc::clone(engine.spec());
            drop(engine);
            let mut engines = retired.lock();
            if let Some(index) = engines.iter().position(|other| *other == of) {
                engines.swap_remove(index);
            }
            drop(engines);
            retired.ended.notify_all();
            info!(model = spec.name, version = spec.version, "model ended");
        });
    }

    pub(super) fn bytes(&self) -> u64 {
        sum(&self.lock())
    }

    pub(super) fn bytes_by_name(&self) -> BTreeMap<String, u64> {
        let mut by_name = BTreeMap::new();
        for (name, bytes) in self.lock().iter() {
            *by_name.entry(name.clone()).or_default() += bytes;
        }
        by_name
    }

    /// Waits until they take no more than `most` bytes, but no longer than `patience`; says what they take then.
    pub(super) fn wait_until(&self, most: u64, patience: Duration) -> u64 {
        let waited = self.ended.wait_timeout_while(self.lock(), patience, |engines| sum(engines) > most);
        sum(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, u64)>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum(engines: &[(String, u64)]) -> u64 {
    engines.iter().map(|(_, bytes)| bytes).sum()
}
