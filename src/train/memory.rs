//! How much memory a step of training takes, and how much there is: asked before the first step, because a system that is
//! short of memory ends the program without a word.

use std::fs;
use std::path::{Path, PathBuf};

use candle_conv3d::graph::{Operation, Parameter};

use crate::model::file::Model;

/// A step whose memory is estimated.
#[derive(Debug, Clone, Copy)]
pub struct StepShape<'a> {
    /// The network and its clips.
    pub model: &'a Model,
    /// The first group of layers that is trained: those before keep nothing for the way back.
    pub first_group: usize,
    /// Tensors of each weight beside itself and its gradient: directions, moments, averages.
    pub states: usize,
    /// Batches decoded ahead.
    pub prefetch: usize,
}

const FLOAT: u64 = 4;
/// The program itself, its threads and decoders.
const BASE: u64 = 128 << 20;

impl StepShape<'_> {
    /// Bytes that a step with batches of so many clips takes on a CPU, about: what is kept for the way back, and the
    /// gradients on the way.
    pub fn bytes(&self, batch_size: usize) -> u64 {
        let Self { model, first_group, states, prefetch } = *self;
        let weights: usize = model.graph.parameters().map(Parameter::len).sum();
        let mut floats = model.graph.nodes().map(|(_, node)| (node, node.shape().iter().product::<usize>()));
        let clip_floats = floats.next().map_or(0, |(_, floats)| floats);
        let (mut kept, mut largest) = (clip_floats, clip_floats);
        for (node, floats) in floats {
            // What a convolution gives is kept for its way back; what batch norm and ReLU make of it is made again.
            let is_kept = !matches!(
                node.operation(),
                Operation::BatchNorm(_) | Operation::Nonlinearity(_) | Operation::Dropout(_) | Operation::Add
            );
            let group = model.spec.architecture.group_of(node.name());
            if is_kept && (!matches!(node.operation(), Operation::Conv(_)) || group >= first_group) {
                kept += floats;
            }
            largest = largest.max(floats);
        }
        // On the way back the gradient of the largest volume is there, too.
        let a_clip = (kept + largest + prefetch * clip_floats) as u64;
        BASE + FLOAT * (a_clip * batch_size as u64 + ((2 + states) * weights) as u64)
    }
}

/// Bytes that this process can still take: of what the machine has free, its control groups allow and its limits leave. `None`
/// if the system doesn't say.
pub fn available() -> Option<u64> {
    [free_on_machine(), left_in_groups(), left_in_limits()].into_iter().flatten().min()
}

fn free_on_machine() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn left_in_limits() -> Option<u64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
    let taken = kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmSize:")?;
    Some(limit.saturating_sub(taken))
}

/// The number behind `name` in a file of `/proc` that counts in kB, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn left_in_groups() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            match controllers {
                "" => {
                    left_in_group(Path::new("/sys/fs/cgroup"), path, ["memory.max", "memory.current", "inactive_file "])
                }
                _ if controllers.split(',').any(|name| name == "memory") => left_in_group(
                    Path::new("/sys/fs/cgroup/memory"),
                    path,
                    ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "],
                ),
                _ => None,
            }
        })
        .min()
}

/// The least that a group and those above it leave. Files that are only cached go when memory is wanted.
fn left_in_group(root: &Path, path: &str, [limit, usage, cached]: [&str; 3]) -> Option<u64> {
    let number = |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let left = |folder: PathBuf| {
        let limit = number(&folder, limit)?;
        let cached = fs::read_to_string(folder.join("memory.stat"))
            .ok()
            .and_then(|stat| stat.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse::<u64>().ok()));
        let used = number(&folder, usage)?.saturating_sub(cached.unwrap_or(0));
        Some(limit.saturating_sub(used))
    };
    // A container sees its own group as the root, whatever its path is called outside.
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().filter_map(|above| left(root.join(above))).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::builtin;

    #[test]
    fn memory_grows_with_the_batch_and_shrinks_with_what_is_frozen() {
        let model = builtin::model().unwrap();
        let shape = |first_group| StepShape { model: &model, first_group, states: 1, prefetch: 4 };
        let whole = shape(0);
        assert_eq!(whole.bytes(3) - whole.bytes(2), whole.bytes(2) - whole.bytes(1));
        assert!(shape(4).bytes(8) < whole.bytes(8));
        let mut spec = model.spec.clone();
        spec.clip.size *= 2;
        let larger = Model::new(spec, model.tensors.clone()).unwrap();
        assert!(StepShape { model: &larger, ..whole }.bytes(8) > 3 * whole.bytes(8) - 3 * BASE);
    }

    #[test]
    fn groups_leave_what_the_narrowest_of_them_does() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("outer/inner");
        fs::create_dir_all(&inner).unwrap();
        let write = |folder: &Path, max: &str, current: &str| {
            fs::write(folder.join("memory.max"), max).unwrap();
            fs::write(folder.join("memory.current"), current).unwrap();
        };
        write(&inner, "max\n", "500\n");
        write(&root.path().join("outer"), "3000\n", "1000\n");
        fs::write(root.path().join("outer/memory.stat"), "anon 600\ninactive_file 400\n").unwrap();
        let names = ["memory.max", "memory.current", "inactive_file "];
        assert_eq!(left_in_group(root.path(), "/outer/inner", names), Some(2400));
        write(&inner, "700\n", "500\n");
        assert_eq!(left_in_group(root.path(), "/outer/inner", names), Some(200));
        assert_eq!(left_in_group(root.path(), "/elsewhere", names), None);
        assert!(available().is_some_and(|bytes| bytes > 0));
    }
}
