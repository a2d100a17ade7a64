//! Copies of one video in two splits: a network knows them by heart, and validation says more than is true.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::Listing;
use super::{Dataset, Split};
use crate::digest::digest_rest;

/// A warning of the files that are the same, byte by byte, in two splits. Only files of the same size are read.
pub(super) fn warning_of_copies(dataset: &Dataset) -> Option<String> {
    let mut by_size: HashMap<u64, BTreeMap<&Path, BTreeSet<Split>>> = HashMap::new();
    for split in Split::ALL {
        for example in dataset.split(split) {
            let video = example.video.as_path();
            // What can't be read is told of when it is decoded.
            if let Ok(data) = fs::metadata(video)
                && data.is_file()
                && data.len() > 0
            {
                by_size.entry(data.len()).or_default().entry(video).or_default().insert(split);
            }
        }
    }
    let mut pairs = BTreeSet::new();
    for files in by_size.into_values() {
        let splits: BTreeSet<Split> = files.values().flatten().copied().collect();
        if splits.len() < 2 {
            continue;
        }
        let mut by_digest: HashMap<[u8; 32], (&Path, BTreeSet<Split>)> = HashMap::new();
        for (video, splits) in files {
            let Ok(digest) = digest(video) else { continue };
            match by_digest.get_mut(&digest) {
                Some((first, of_first)) => {
                    if splits != *of_first {
                        pairs.insert(format!("{} and {}", below(dataset, first), below(dataset, video)));
                        of_first.extend(splits);
                    }
                }
                None => {
                    by_digest.insert(digest, (video, splits));
                }
            }
        }
    }
    (!pairs.is_empty()).then(|| {
        let count = pairs.len();
        let pairs = Listing(pairs.into_iter().collect());
        format!("{count} video(s) are in two splits, as copies of the same content: {pairs}")
    })
}

fn below(dataset: &Dataset, video: &Path) -> String {
    video.strip_prefix(&dataset.root).unwrap_or(video).display().to_string()
}

fn digest(path: &Path) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    digest_rest(&mut File::open(path)?, &mut digest)?;
    Ok(digest.finalize().into())
}
