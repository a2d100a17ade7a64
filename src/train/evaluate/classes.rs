//! Which of a model's classes each class of a dataset is.

use std::collections::HashMap;
use std::fmt;

/// A dataset's classes among a model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMatch {
    /// Index of the model's label, for each of the dataset's classes.
    pub model_indices: Vec<usize>,
    /// Names that differ in underscores, spaces or case: the dataset's and the model's.
    pub respelled: Vec<(String, String)>,
}

/// Why a model can't be evaluated on a dataset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassMatchError {
    /// Classes that the model was not trained on.
    #[error("the model does not have {} of the {classes} classes: {}", missing.len(), MissingClass::list(missing))]
    Missing {
        /// Those that it lacks.
        missing: Vec<MissingClass>,
        /// Classes of the dataset.
        classes: usize,
    },
    /// Two classes of one side are one of the other.
    #[error(
        "the classes {first:?} and {second:?} of the {side} can't be told apart by name: the other side has {other:?}"
    )]
    Ambiguous {
        /// Dataset or model.
        side: Side,
        /// One of the two.
        first: String,
        /// The other.
        second: String,
        /// What both could be.
        other: String,
    },
}

/// A class that the model lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingClass {
    /// The dataset's name.
    pub name: String,
    /// The model's most similar name, if it is similar.
    pub similar: Option<String>,
}

/// Whose classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The dataset's.
    Dataset,
    /// The model's.
    Model,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dataset => "dataset",
            Self::Model => "model",
        })
    }
}

/// Finds each of the dataset's classes among the model's labels, whose order may be another: by the same name, or else
/// by a name that differs in underscores, spaces and case only, as folders are often called.
pub fn match_classes(dataset: &[String], model: &[String]) -> Result<ClassMatch, ClassMatchError> {
    let exact: HashMap<&str, usize> = model.iter().enumerate().map(|(index, label)| (label.as_str(), index)).collect();
    let mut alike: HashMap<String, Vec<usize>> = HashMap::new();
    for (index, label) in model.iter().enumerate() {
        alike.entry(plain(label)).or_default().push(index);
    }
    let mut found = ClassMatch { model_indices: Vec::new(), respelled: Vec::new() };
    let mut missing = Vec::new();
    let mut taken: HashMap<usize, &str> = HashMap::new();
    for name in dataset {
        let candidates = alike.get(&plain(name)).map_or(&[][..], Vec::as_slice);
        let index = match (exact.get(name.as_str()), candidates) {
            (Some(&index), _) => index,
            (None, &[index]) => {
                found.respelled.push((name.clone(), model[index].clone()));
                index
            }
            (None, []) => {
                missing.push(MissingClass { name: name.clone(), similar: most_similar(name, model) });
                continue;
            }
            (None, &[first, second, ..]) => {
                let [first, second] = [first, second].map(|index| model[index].clone());
                return Err(ClassMatchError::Ambiguous { side: Side::Model, first, second, other: name.clone() });
            }
        };
        if let Some(first) = taken.insert(index, name) {
            let (first, second, other) = (first.to_owned(), name.clone(), model[index].clone());
            return Err(ClassMatchError::Ambiguous { side: Side::Dataset, first, second, other });
        }
        found.model_indices.push(index);
    }
    if !missing.is_empty() {
        return Err(ClassMatchError::Missing { missing, classes: dataset.len() });
    }
    Ok(found)
}

impl MissingClass {
    fn list(missing: &[Self]) -> String {
        const MOST: usize = 5;
        let one = |Self { name, similar }: &Self| match similar {
            Some(similar) => format!("{name:?} (it has {similar:?})"),
            None => format!("{name:?}"),
        };
        let mut text = missing.iter().take(MOST).map(one).collect::<Vec<_>>().join(", ");
        if missing.len() > MOST {
            text += &format!(" and {} more", missing.len() - MOST);
        }
        text
    }
}

/// A name without what file systems and people change in it.
fn plain(name: &str) -> String {
    let words: Vec<&str> =
        name.split(|c: char| c.is_whitespace() || c == '_').filter(|word| !word.is_empty()).collect();
    words.join(" ").to_lowercase()
}

fn most_similar(name: &str, labels: &[String]) -> Option<String> {
    const LEAST: f64 = 0.85;
    let similar = labels.iter().map(|label| (strsim::jaro_winkler(name, label), label));
    let best = similar.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= LEAST).then(|| best.1.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(dataset: &[&str], model: &[&str]) -> Result<ClassMatch, ClassMatchError> {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        match_classes(&owned(dataset), &owned(model))
    }

    #[test]
    fn classes_are_found_by_name_whatever_their_order() {
        let found = matched(&["yoga", "abseiling"], &["abseiling", "bowling", "yoga"]).unwrap();
        assert_eq!(found.model_indices, [2, 0]);
        assert!(found.respelled.is_empty());
    }

    #[test]
    fn folders_with_underscores_are_found_and_told_about() {
        let found = matched(&["air_drumming", "Yoga"], &["yoga", "air drumming"]).unwrap();
        assert_eq!(found.model_indices, [1, 0]);
        let respelled = found.respelled.iter().map(|(theirs, ours)| (theirs.as_str(), ours.as_str()));
        assert!(respelled.eq([("air_drumming", "air drumming"), ("Yoga", "yoga")]));
    }

    #[test]
    fn the_same_name_goes_before_a_similar_one() {
        assert_eq!(matched(&["a b"], &["a_b", "a b"]).unwrap().model_indices, [1]);
    }

    #[test]
    fn names_that_could_be_two_classes_are_refused() {
        let of_model = matched(&["A b"], &["a_b", "a b"]).unwrap_err();
        assert!(matches!(of_model, ClassMatchError::Ambiguous { side: Side::Model, .. }), "{of_model}");
        let of_dataset = matched(&["a_b", "a b"], &["a b", "c"]).unwrap_err();
        assert!(matches!(of_dataset, ClassMatchError::Ambiguous { side: Side::Dataset, .. }), "{of_dataset}");
    }

    #[test]
    fn classes_that_the_model_lacks_are_named_with_what_was_perhaps_meant() {
        let missing = matched(&["bowlin", "yoga", "zzz"], &["bowling", "yoga"]).unwrap_err().to_string();
        let wanted = "the model does not have 2 of the 3 classes: \"bowlin\" (it has \"bowling\"), \"zzz\"";
        assert_eq!(missing, wanted);
    }
}
