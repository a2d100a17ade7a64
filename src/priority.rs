//! Classes of priority, and how they share what they compete for.

/// How a video shares the server with others. While videos of several classes wait, they go on in the ratio of
/// [`Priority::weight`], so that none starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// Batch jobs.
    Low,
    /// Most requests.
    #[default]
    Normal,
    /// Somebody is waiting for the answer.
    High,
}

impl Priority {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// From the lowest to the highest.
    pub(crate) const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// Clips of this class that run for each clip of [`Priority::Low`], while both wait.
    pub const fn weight(self) -> u32 {
        match self {
            Self::Low => 1,
            Self::Normal => 4,
            Self::High => 16,
        }
    }
}

/// Smooth weighted round robin over the classes.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// Of each class: grows by its weight at each turn, falls by all weights when it is chosen.
    credits: [i64; Priority::COUNT],
}

impl Shares {
    /// The class whose turn it is, of those that wait.
    pub(crate) fn next(&mut self, waits: [bool; Priority::COUNT]) -> Option<usize> {
        let mut total = 0;
        for (priority, (credit, waits)) in Priority::ALL.into_iter().zip(self.credits.iter_mut().zip(waits)) {
            if waits {
                *credit += i64::from(priority.weight());
                total += i64::from(priority.weight());
            } else {
                // What a class saved up while nobody was in it must not count later.
                *credit = 0;
            }
        }
        let class = (0..Priority::COUNT).filter(|&class| waits[class]).max_by_key(|&class| self.credits[class])?;
        self.credits[class] -= total;
        Some(class)
    }
}
