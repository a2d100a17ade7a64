//! Damages videos in the ways that storage, networks and attackers do.

/// A small generator of random numbers, the same on every machine (SplitMix64: Steele, Lea, Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of drill `seed` for its case number `case`.
    pub(crate) fn new(seed: u64, case: u64) -> Self {
        let mut random = Self(seed);
        random.0 = random.next() ^ case.wrapping_mul(0xd134_2543_de82_ef95);
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `end` - 1; 0 if there is none.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % (end as u64).max(1)) as usize
    }

    /// Small numbers are as likely as large ones: damage comes in all sizes.
    fn length_up_to(&mut self, max: usize) -> usize {
        let bits = self.below(max.max(1).ilog2() as usize + 1);
        (1 + self.below(1 << (bits + 1))).min(max)
    }
}

/// Numbers at the edges of what header fields can hold.
const EDGES: [u32; 10] = [0, 1, 2, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

/// A damaged copy of `video`, with blocks from `other` in places, and what was done to it.
pub(crate) fn mutate(video: &[u8], other: &[u8], random: &mut Random) -> (Vec<u8>, Vec<&'static str>) {
    let mut bytes = video.to_vec();
    let rounds = 1 + random.below(3) * random.below(2);
    let done = (0..rounds).map(|_| mutate_once(&mut bytes, other, random)).collect();
    (bytes, done)
}

fn mutate_once(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) -> &'static str {
    if bytes.is_empty() {
        return "nothing left";
    }
    let at = random.below(bytes.len());
    let len = random.length_up_to(bytes.len() - at);
    match random.below(9) {
        0 => {
            for _ in 0..=random.below(64) {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            "bits flipped"
        }
        1 => {
            bytes.truncate(at);
            "truncated"
        }
        2 => {
            let from = random.below(other.len());
            let block = &other[from..][..len.min(other.len() - from)];
            bytes[at..][..block.len()].copy_from_slice(block);
            "spliced"
        }
        3 => {
            let copy = bytes[at..at + len].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, copy);
            "range duplicated"
        }
        4 => {
            bytes.drain(at..at + len);
            "range removed"
        }
        5 => {
            bytes[at..at + len].fill([0, 0xff][random.below(2)]);
            "range blanked"
        }
        // Headers are small, so that damage at random would seldom meet them.
        n => {
            let header = header(bytes);
            for _ in 0..=random.below(4) {
                let at = header.start + random.below(header.len());
                if n == 6 {
                    bytes[at] = random.next() as u8;
                } else {
                    let edge = EDGES[random.below(EDGES.len())];
                    let field = if n == 7 { edge.to_be_bytes() } else { edge.to_le_bytes() };
                    let len = field.len().min(bytes.len() - at);
                    bytes[at..][..len].copy_from_slice(&field[..len]);
                }
            }
            "header damaged"
        }
    }
}

/// Where the container's header stands: an MP4's index, or else the first bytes.
fn header(bytes: &[u8]) -> std::ops::Range<usize> {
    const LEN: usize = 2048;
    let index = bytes.windows(4).position(|name| name == b"moov").unwrap_or(0);
    index..(index + LEN).min(bytes.len())
}
