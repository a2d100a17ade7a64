//! Permits that waiting videos get by their priority, and within a class first come, first served.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::priority::{Priority, Shares};

/// How many permits there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// In all.
    pub(super) all: usize,
    /// Of these, for videos whose bytes are still arriving: however slowly they come, the rest is left to others.
    pub(super) arriving: usize,
    /// Beyond all, for videos of a higher priority than one that holds a permit.
    pub(super) overtaking: usize,
}

/// Who asks for a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) priority: Priority,
    pub(super) arrival: Arrival,
}

/// What is there of a video's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// All of them.
    Here,
    /// They come by themselves, and more are here whenever that is looked at.
    Coming,
    /// They are fetched where decoding needs them, so that it can't go on before it has begun.
    OnDemand,
}

/// Permits; see the module.
#[derive(Debug)]
pub(super) struct Permits {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bounds: Bounds,
    /// By class of priority.
    held: [usize; Priority::COUNT],
    /// Those of them that are held by videos that are arriving.
    arriving: usize,
    /// Holders that were asked to give their permits back and have not done so yet.
    leaving: usize,
    waiting: [VecDeque<Waiting>; Priority::COUNT],
    shares: Shares,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    permit: oneshot::Sender<Permit>,
}

impl State {
    fn held(&self) -> usize {
        self.held.iter().sum()
    }

    fn fits(&self, request: Request) -> bool {
        let overtakes = self.held[..request.priority as usize].iter().any(|held| *held > 0);
        let limit = self.bounds.all + if overtakes { self.bounds.overtaking } else { 0 };
        self.held() < limit && (request.arrival == Arrival::Here || self.arriving < self.bounds.arriving)
    }

    /// Takes a permit for the next in line, if there is one and one for it.
    fn next(&mut self) -> Option<Waiting> {
        self.waiting.iter_mut().for_each(|class| class.retain(|waiting| !waiting.permit.is_closed()));
        let first = self.waiting.each_ref().map(|class| class.iter().position(|waiting| self.fits(waiting.request)));
        if first.iter().all(Option::is_none) {
            // Nobody's turn: what the classes have saved up counts for the next permit.
            return None;
        }
        let class = self.shares.next(first.map(|first| first.is_some()))?;
        let next = self.waiting[class].remove(first[class]?)?;
        self.held[class] += 1;
        self.arriving += usize::from(next.request.arrival != Arrival::Here);
        Some(next)
    }
}

impl Permits {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        let state = State {
            bounds,
            held: [0; Priority::COUNT],
            arriving: 0,
            leaving: 0,
            waiting: Default::default(),
            shares: Shares::default(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Permits that are held.
    pub(super) fn held(&self) -> usize {
        self.lock().held()
    }

    /// Videos that wait for one.
    pub(super) fn waiting(&self) -> usize {
        let state = self.lock();
        state.waiting.iter().flatten().filter(|waiting| !waiting.permit.is_closed()).count()
    }

    /// Waits for a permit. Dropping the future gives up the wait.
    pub(super) async fn acquire(self: &Arc<Self>, request: Request) -> Permit {
        let (sender, permit) = oneshot::channel();
        self.lock().waiting[request.priority as usize].push_back(Waiting { request, permit: sender });
        self.grant();
        permit.await.expect("who waits is in the line until there is a permit")
    }

    /// Whether the holder of a permit that can't go on should give it back to one that waits and could.
    fn wants_back(&self) -> bool {
        let mut state = self.lock();
        let wants = |waiting: &&Waiting| waiting.request.arrival == Arrival::OnDemand && !waiting.permit.is_closed();
        let waiting = state.waiting.iter().flatten().filter(wants).filter(|waiting| !state.fits(waiting.request));
        let wants = waiting.count() > state.leaving;
        state.leaving += usize::from(wants);
        wants
    }

    fn grant(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some(Waiting { request, permit }) = state.next() else { return };
            drop(state);
            // If nobody waits for it any more it comes back here.
            let _ = permit.send(Permit { permits: Arc::clone(self), request, leaves: false });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A permit, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Arc<Permits>,
    request: Request,
    leaves: bool,
}

impl Permit {
    /// All bytes of the video are here now.
    pub(super) fn arrived(&mut self) {
        if mem::replace(&mut self.request.arrival, Arrival::Here) != Arrival::Here {
            self.permits.lock().arriving -= 1;
            self.permits.grant();
        }
    }

    /// Whether its holder, which waits for bytes, is to give it back: another video waits for it and could go on.
    pub(super) fn is_wanted_back(&mut self) -> bool {
        self.leaves = self.leaves || (self.request.arrival != Arrival::Here && self.permits.wants_back());
        self.leaves
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.permits.lock();
        state.held[self.request.priority as usize] -= 1;
        state.arriving -= usize::from(self.request.arrival != Arrival::Here);
        state.leaving -= usize::from(self.leaves);
        drop(state);
        self.permits.grant();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinHandle;

    use super::*;

    fn permits(all: usize, arriving: usize, overtaking: usize) -> Arc<Permits> {
        Permits::new(Bounds { all, arriving, overtaking })
    }

    fn request(priority: Priority, arrival: Arrival) -> Request {
        Request { priority, arrival }
    }

    /// Stands in line, in the order of calls.
    async fn wait(permits: &Arc<Permits>, priority: Priority, arrival: Arrival) -> JoinHandle<Permit> {
        let in_line = |permits: &Permits| permits.lock().waiting.iter().map(VecDeque::len).sum::<usize>();
        let before = in_line(permits);
        let wait = tokio::spawn({
            let permits = Arc::clone(permits);
            async move { permits.acquire(request(priority, arrival)).await }
        });
        while in_line(permits) == before && !wait.is_finished() {
            tokio::task::yield_now().await;
        }
        wait
    }

    async fn waits(wait: &mut JoinHandle<Permit>) -> bool {
        tokio::time::timeout(Duration::from_millis(1), wait).await.is_err()
    }

    #[tokio::test]
    async fn a_higher_class_passes_a_lower_one_that_came_first_and_starves_none() {
        let permits = permits(1, 1, 0);
        let held = permits.acquire(request(Priority::Low, Arrival::Here)).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waits = Vec::new();
        for priority in [[Priority::Low; 3].as_slice(), &[Priority::High; 40]].concat() {
            let (permits, order) = (Arc::clone(&permits), Arc::clone(&order));
            waits.push(tokio::spawn(async move {
                let _permit = permits.acquire(request(priority, Arrival::Here)).await;
                order.lock().unwrap().push(priority);
            }));
        }
        while permits.waiting() < waits.len() {
            tokio::task::yield_now().await;
        }
        drop(held);
        for wait in waits {
            wait.await.unwrap();
        }
        let order = order.lock().unwrap();
        // Sixteen for each low one, and so two low ones among the first 34.
        let low_of_first = order[..34].iter().filter(|priority| **priority == Priority::Low).count();
        assert!(order[0] == Priority::High && low_of_first == 2, "{order:?}");
    }

    #[tokio::test]
    async fn a_higher_class_finds_a_permit_beside_lower_ones_but_not_beside_its_own() {
        let permits = permits(2, 2, 1);
        let low = permits.acquire(request(Priority::Low, Arrival::Here)).await;
        let _normal = permits.acquire(request(Priority::Normal, Arrival::Here)).await;
        let mut another = wait(&permits, Priority::Low, Arrival::Here).await;
        assert!(waits(&mut another).await, "no lower one is there to be overtaken");
        let high = permits.acquire(request(Priority::High, Arrival::Here)).await;
        let mut second = wait(&permits, Priority::High, Arrival::Here).await;
        assert!(waits(&mut second).await, "there is one such permit");
        drop(low);
        assert!(waits(&mut another).await, "what was taken beyond all is given back first");
        drop(high);
        drop(second.await.unwrap());
        another.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_here_passes_what_is_arriving() {
        let permits = permits(3, 2, 0);
        let mut slow = Vec::new();
        for _ in 0..2 {
            slow.push(permits.acquire(request(Priority::Normal, Arrival::Coming)).await);
        }
        let mut third = wait(&permits, Priority::Normal, Arrival::Coming).await;
        drop(permits.acquire(request(Priority::Normal, Arrival::Here)).await);
        assert!(waits(&mut third).await);
        slow[0].arrived();
        third.await.unwrap();
        assert_eq!(permits.held(), 2);
    }

    #[tokio::test]
    async fn who_waits_for_bytes_gives_its_permit_to_who_has_not_begun_but_only_as_many_as_wait() {
        let permits = permits(3, 2, 0);
        let mut slow = Vec::new();
        for _ in 0..2 {
            slow.push(permits.acquire(request(Priority::Normal, Arrival::OnDemand)).await);
        }
        assert!(!slow[0].is_wanted_back(), "nobody waits");
        let third = wait(&permits, Priority::Normal, Arrival::OnDemand).await;
        assert!(slow[0].is_wanted_back() && slow[0].is_wanted_back());
        assert!(!slow[1].is_wanted_back(), "one is enough");
        drop(slow.remove(0));
        third.await.unwrap();
        assert!(!slow[0].is_wanted_back());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_holds_nothing() {
        let permits = permits(1, 1, 0);
        let held = permits.acquire(request(Priority::Normal, Arrival::Here)).await;
        let given_up = wait(&permits, Priority::Normal, Arrival::Here).await;
        let next = wait(&permits, Priority::Normal, Arrival::Here).await;
        given_up.abort();
        drop(held);
        drop(next.await.unwrap());
        assert_eq!(permits.held(), 0);
    }
}
