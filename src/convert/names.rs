//! Which of a checkpoint's names are the network's: many wrappers and heads stand around the same layers.

use std::collections::{BTreeMap, BTreeSet};

use super::checkpoint::CheckpointError;
use crate::zoo::{Architecture, HEAD, HEAD_ALIASES, HEAD_WEIGHT};

/// Where in a checkpoint the weights are, if it does not show that by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Key of the dictionary of tensors; those within others are `outer.inner`.
    pub key: Option<String>,
    /// What the names of the network's tensors begin with; others are left out.
    pub prefix: Option<String>,
    /// Beginnings of names, and what stands there instead.
    pub renames: Vec<(String, String)>,
}

/// The names of the network's tensors by those in the file, which come with their ranks.
pub(super) fn network_names(
    ranks: &BTreeMap<String, usize>,
    selection: &Selection,
) -> Result<BTreeMap<String, String>, CheckpointError> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut renamed = BTreeSet::new();
    for name in ranks.keys() {
        let rename = selection.renames.iter().find_map(|(old, new)| Some((new, name.strip_prefix(old.as_str())?)));
        if rename.is_some() {
            renamed.insert(name.clone());
        }
        names.insert(name.clone(), rename.map_or_else(|| name.clone(), |(new, rest)| format!("{new}{rest}")));
    }
    let prefix = match &selection.prefix {
        Some(prefix) => {
            if !names.values().any(|name| name.starts_with(prefix)) {
                let names = names.into_values().take(4).collect();
                return Err(CheckpointError::NoSuchPrefix { prefix: prefix.clone(), names });
            }
            names.retain(|file, name| name.starts_with(prefix) || renamed.contains(file) || is_head(name));
            prefix.clone()
        }
        None => find_prefix(&names)?,
    };
    for name in names.values_mut() {
        if let Some(rest) = name.strip_prefix(&prefix) {
            *name = rest.to_owned();
        }
    }
    if !names.values().any(|name| name == HEAD_WEIGHT) {
        let matrices = names.iter().filter(|(file, name)| ranks[*file] == 2 && is_head(name)).map(|(_, name)| name);
        let heads: BTreeSet<String> =
            matrices.filter_map(|name| name.strip_suffix(".weight")).map(str::to_owned).collect();
        if let (1, Some(head)) = (heads.len(), heads.first()) {
            for name in names.values_mut() {
                if let Some(rest) = name.strip_prefix(head.as_str()).filter(|rest| rest.starts_with('.')) {
                    *name = format!("{HEAD}{rest}");
                }
            }
        }
    }
    Ok(names)
}

fn is_head(name: &str) -> bool {
    let layer = name.strip_suffix(".weight").or(name.strip_suffix(".bias"));
    let ends_with =
        |layer: &str, head: &str| layer.strip_suffix(head).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    layer.is_some_and(|layer| HEAD_ALIASES.iter().any(|head| ends_with(layer, head)))
}

/// What stands before the names of a network's layers.
fn find_prefix(names: &BTreeMap<String, String>) -> Result<String, CheckpointError> {
    let mut prefixes = BTreeSet::new();
    for [marker, first_block] in Architecture::MARKERS {
        for prefix in names.values().filter_map(|name| name.strip_suffix(marker)) {
            let block = format!("{prefix}{first_block}");
            let is_prefix = prefix.is_empty() || prefix.ends_with('.');
            if is_prefix && names.values().any(|name| name.starts_with(&block)) {
                prefixes.insert(prefix.to_owned());
            }
        }
    }
    match prefixes.len() {
        // Of some other network; `DataParallel` is known whatever is in it.
        0 if names.values().all(|name| name.starts_with("module.")) => Ok("module.".to_owned()),
        0 => Ok(String::new()),
        1 => Ok(prefixes.into_iter().next().expect("there is one")),
        _ => Err(CheckpointError::SeveralNetworks { prefixes: prefixes.into_iter().collect() }),
    }
}
